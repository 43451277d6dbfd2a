"""What the planner is told of the coming minutes, in `benchmarks.policy_lookahead`."""

from __future__ import annotations

from benchmarks.policy_lookahead import told_ahead
from markserve.core.types import Forecast
from simulator.assumptions import HORIZON_STEPS, STEP_S
from simulator.policies import View

MAXIMA_RPS = [10.0, 20.0, 30.0, 40.0, 50.0, 60.0]


def _flat(view: View) -> Forecast | None:
    """Forecast the last known rate for ever, a tenth more at the upper quantile."""
    last = view.history[-1]
    assert last is not None
    paths = {0.5: (last,) * HORIZON_STEPS, 0.9: (1.1 * last,) * HORIZON_STEPS}
    return Forecast(model="m", origin_at_s=view.history_until_s, step_s=STEP_S, rates_rps=paths, forecaster="flat", reason="")


def _view(steps: int, *, is_first: bool = False) -> View:
    return View(
        now_s=steps * STEP_S + 3.0,
        history_until_s=steps * STEP_S,
        history=MAXIMA_RPS[:steps],
        instances=(),
        launch_overhead_s=180.0,
        offerings=(),
        is_first=is_first,
    )


def test_told_nothing_it_forecasts_as_usual() -> None:
    assert told_ahead(_flat, MAXIMA_RPS, 0)(_view(2)) == _flat(_view(2))


def test_known_minutes_are_certain_and_the_forecast_starts_from_their_end() -> None:
    told = told_ahead(_flat, MAXIMA_RPS, 2)(_view(2))
    assert told is not None
    assert told.origin_at_s == 2 * STEP_S
    assert told.rates_rps[0.5][:4] == (30.0, 40.0, 40.0, 40.0)
    assert told.rates_rps[0.9][:4] == (30.0, 40.0, 44.0, 44.0)
    assert all(len(path) == HORIZON_STEPS for path in told.rates_rps.values())


def test_at_the_end_of_the_trace_no_more_is_told_than_there_is() -> None:
    told = told_ahead(_flat, MAXIMA_RPS, 4)(_view(5))
    assert told is not None
    assert told.rates_rps[0.5][:2] == (60.0, 60.0)


def test_at_the_start_nobody_is_told_anything() -> None:
    assert told_ahead(_flat, MAXIMA_RPS, 4)(_view(1, is_first=True)) == _flat(_view(1, is_first=True))
