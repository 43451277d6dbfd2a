"""Traces as the series that forecasters read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from markserve.errors import InvalidRequest
from simulator.forecasting import FORECASTERS, forecaster
from simulator.policies import View
from simulator.steps import read_steps
from simulator.traces import open_trace
from tests.simulator.rig import write_trace


def test_step_is_the_highest_window_rate(tmp_path: Path) -> None:
    rows = [(float(t), 50.0 if 60 <= t < 65 else 10.0) for t in range(180)]

    steps = read_steps(open_trace(write_trace(tmp_path / "t.csv", rows)))

    assert steps.rates_rps.tolist() == [10.0, 50.0, 10.0]
    assert (steps.since_s, steps.row_s) == (0.0, 1.0)


def test_steps_lie_on_the_clock_and_half_known_ones_are_unknown(tmp_path: Path) -> None:
    rows = [(float(t), 10.0) for t in range(95, 300) if not 180 <= t < 220]

    steps = read_steps(open_trace(write_trace(tmp_path / "t.csv", rows)))

    assert steps.since_s == 60.0
    assert steps.rates_rps.tolist() == pytest.approx([np.nan, 10.0, np.nan, 10.0], nan_ok=True)


def test_minute_rows_stand_for_their_windows(tmp_path: Path) -> None:
    steps = read_steps(open_trace(write_trace(tmp_path / "t.csv", [(60.0 * t, 120.0) for t in range(5) if t != 3])))

    assert steps.rates_rps.tolist() == pytest.approx([2.0, 2.0, 2.0, np.nan, 2.0], nan_ok=True)


def test_requests_are_counted_and_time_between_them_is_quiet(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    path.write_text("arrival_s\n1\n2\n3\n200\n")

    assert read_steps(open_trace(path)).rates_rps[:3].tolist() == [0.6, 0.0, 0.0]


def test_rows_longer_than_a_step_are_refused(tmp_path: Path) -> None:
    trace = open_trace(write_trace(tmp_path / "t.csv", [(300.0 * t, 1.0) for t in range(5)]))

    with pytest.raises(InvalidRequest, match="a row covers 300 s; forecasting needs 60 s or less"):
        read_steps(trace)


def test_simulated_forecaster_remembers_more_than_the_view_shows() -> None:
    forecast = forecaster("digits", "seasonal_day")
    load = 50 + 40 * np.sin(2 * np.pi * np.arange(1500) / 1440)
    made = None
    for minute in range(1420, 1500):
        # The first view brings all of the first day at once; each later one the last hours.
        since = 0 if minute == 1420 else minute - 360
        view = View(
            offerings=(),
            now_s=60.0 * minute,
            history_until_s=60.0 * minute,
            history=load[since:minute].tolist(),
            instances=(),
            launch_overhead_s=180.0,
        )
        made = forecast(view)

    assert made is not None
    assert made.forecaster == "seasonal_day"
    assert made.rates_rps[0.5][9] == pytest.approx(load[69], rel=0.1)


@pytest.mark.parametrize("name", FORECASTERS)
def test_every_forecaster_serves_in_the_simulator(name: str) -> None:
    forecast = forecaster("digits", name)

    for minute in range(1, 20):
        view = View(
            offerings=(),
            now_s=60.0 * minute,
            history_until_s=60.0 * minute,
            history=[20.0 + minute % 3] * minute,
            instances=(),
            launch_overhead_s=180.0,
        )
        made = forecast(view)
        assert made is not None
        assert made.rates_rps[0.5][0] == pytest.approx(21.0, rel=0.3)


def test_unknown_forecaster_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="'lucky' is none of best, persistence"):
        forecaster("digits", "lucky")
