"""Arrivals within steps have the variability asked for, at the trace's own rate; generated traces have their law."""

from __future__ import annotations

import csv
import itertools
from pathlib import Path

import numpy as np
import pytest

from markserve.errors import InvalidRequest
from simulator.arrivals import windows
from simulator.mmpp import Mmpp
from simulator.processes import MAP_COLUMNS, Map2, parse_process
from simulator.traces import open_trace
from tests.simulator.rig import write_trace

SHARED = Path(__file__).resolve().parents[3] / "shared/data/traces"
BURSTY = (-10.0, 0.1, 0.2, -1.0, 9.85, 0.05, 0.1, 0.7)
"""A MAP(2) whose phases differ tenfold in rate and change rarely: variable and correlated."""


def gaps_s(folder: Path, process: str, *, rate: float = 50.0, steps: int = 2000) -> np.ndarray:
    trace = open_trace(write_trace(folder / "t.csv", [(float(t), rate) for t in range(steps)]), process=parse_process(process))
    return np.diff(np.concatenate([w.arrivals_s for w in windows(trace, seed=4)]))


@pytest.mark.parametrize("cv", [0.0, 0.5, 1.0, 2.0, 4.0])
def test_renewal_gaps_have_the_mean_and_the_variability_asked_for(tmp_path: Path, cv: float) -> None:
    gaps = gaps_s(tmp_path, f"cv={cv}")

    tolerance = 4 * max(cv, 0.01) / np.sqrt(gaps.size)
    assert gaps.mean() * 50 == pytest.approx(1.0, abs=tolerance + 1e-3)
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.06, abs=1e-6)


def write_map(path: Path, *laws: tuple[float, ...]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(MAP_COLUMNS)
        writer.writerows(laws)
    return path


def map_moments(law: tuple[float, ...]) -> tuple[float, float, float]:
    """Rate, squared coefficient of variation and lag-1 correlation of the gaps, by matrix algebra."""
    d0, d1 = np.array(law[:4]).reshape(2, 2), np.array(law[4:]).reshape(2, 2)
    inverse = np.linalg.inv(-d0)
    step = inverse @ d1
    phases = np.linalg.svd(step.T - np.eye(2))[2][-1]
    phases = phases / phases.sum()
    ones = np.ones(2)
    mean = phases @ inverse @ ones
    square = 2 * phases @ inverse @ inverse @ ones
    product = phases @ inverse @ step @ inverse @ ones
    variance = square - mean**2
    return float(1 / mean), float(variance / mean**2), float((product - mean**2) / variance)


def test_map_gaps_have_the_moments_of_theory_at_the_rate_of_the_trace(tmp_path: Path) -> None:
    path = write_map(tmp_path / "map.csv", BURSTY)
    gaps = gaps_s(tmp_path, f"map={path}", steps=6000)

    _, scv, lag_1 = map_moments(BURSTY)
    assert gaps.mean() * 50 == pytest.approx(1.0, rel=0.05)
    assert gaps.var() / gaps.mean() ** 2 == pytest.approx(scv, rel=0.1)
    assert np.corrcoef(gaps[:-1], gaps[1:])[0, 1] == pytest.approx(lag_1, rel=0.15)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the recorded fits are not here")
def test_recorded_fits_are_read_by_trace_and_hour() -> None:
    path = SHARED / "batch_map2_fits.csv"
    with path.open() as file:
        rows = [row for row in csv.DictReader(file) if row["trace"] == "Twitter"]

    process = parse_process(f"map={path}#Twitter")

    assert isinstance(process, Map2)
    assert len(process.hours) == len(rows)
    for law, row in zip(process.hours, rows, strict=True):
        rate, scv, _ = map_moments(law)
        assert rate == pytest.approx(float(row["mean_rate_rps"]), rel=0.01)
        assert scv == pytest.approx(float(row["scv_interarrival"]), rel=0.02)


@pytest.mark.parametrize("text", ["normal", "cv=", "cv=-1", "cv=nan", "map=", "map=/nowhere.csv", "poisson=2"])
def test_bad_process_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest):
        parse_process(text)


@pytest.mark.parametrize("law", [(1.0,) * 8, (-10.0, 0.1, 0.2, -1.0, 9.85, 0.05, 0.1, 9.0), (-1.0, 0.0, 0.0, -1.0, 1.0, 0.0, 0.0, 1.0)])
def test_matrices_that_are_no_map_are_refused(tmp_path: Path, law: tuple[float, ...]) -> None:
    with pytest.raises(InvalidRequest, match=r"no MAP\(2\)"):
        parse_process(f"map={write_map(tmp_path / 'map.csv', law)}")


def test_mmpp_stays_in_each_state_for_its_mean_and_has_the_mean_rate() -> None:
    means = np.array([mean for _, mean in Mmpp.parse("mmpp:10,100,400:20:200000").rows()])

    assert means.size == 200_000
    pure = means[np.isin(means, (10.0, 100.0, 400.0))]
    assert pure.size > 0.9 * means.size
    assert means.mean() == pytest.approx(170.0, rel=0.05)
    runs = [len(list(group)) for _, group in itertools.groupby(pure.tolist())]
    assert np.mean(runs) == pytest.approx(20.0, rel=0.1)


def test_mmpp_is_a_trace_like_any_other() -> None:
    trace = open_trace(Mmpp.parse("mmpp:20,200:60:600", seed=2), scale=2.0)

    first, second = (np.concatenate([w.arrivals_s for w in windows(trace, seed=9)]) for _ in range(2))

    assert (first == second).all()
    expected = 2 * sum(mean for _, mean in Mmpp.parse("mmpp:20,200:60:600", seed=2).rows())
    assert abs(first.size - expected) < 5 * np.sqrt(expected)


@pytest.mark.parametrize("text", ["mmpp:10:60:600", "mmpp:10,20:60", "mmpp:a,b:1:600", "mmpp:-1,2:3:400", "mmpp:1,2:0:400", "mmpp:1,2:3:1"])
def test_bad_mmpp_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="mmpp"):
        Mmpp.parse(text)


def test_gaps_add_up_to_arrivals(tmp_path: Path) -> None:
    path = tmp_path / "gaps.csv"
    path.write_text("interarrival_us\n1000000\n500000\n4000000\n")

    got = list(windows(open_trace(path), seed=1))

    assert [w.arrivals_s.tolist() for w in got] == [[0.0, 0.5, 4.5]]
