"""What is read from traces, and what is refused."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from markserve.errors import InvalidRequest
from simulator.arrivals import windows
from simulator.traces import Surge, open_trace
from tests.simulator.rig import write_trace

SHARED = Path(__file__).resolve().parents[3] / "shared/data/traces"


def test_count_trace_gives_poisson_arrivals_of_its_rate(tmp_path: Path) -> None:
    trace = open_trace(write_trace(tmp_path / "t.csv.gz", [(float(t), 100.0) for t in range(0, 6000, 60)]), scale=2.0)

    numbers = np.array([w.arrivals_s.size for w in windows(trace, seed=3)])

    assert numbers.size == 1200
    mean, variance = 200 * 5 / 60, numbers.var()
    assert abs(numbers.mean() - mean) < 4 * np.sqrt(mean / 1200)
    assert 0.85 < variance / mean < 1.15  # Poisson: equal


def test_arrivals_are_the_same_for_the_same_seed_and_lie_in_their_windows(tmp_path: Path) -> None:
    trace = open_trace(write_trace(tmp_path / "t.csv", [(float(t), 7.0) for t in range(17)]))

    first, second, other = (list(windows(trace, seed=seed)) for seed in (1, 1, 2))

    assert all((a.arrivals_s == b.arrivals_s).all() for a, b in zip(first, second, strict=True))
    assert [w.arrivals_s.tolist() for w in first] != [w.arrivals_s.tolist() for w in other]
    assert all(((w.arrivals_s >= w.at_s) & (w.arrivals_s < w.at_s + 5)).all() for w in first)


def test_missing_rows_are_unknown_and_not_zero(tmp_path: Path) -> None:
    rows = [(float(t), 10.0) for t in range(40) if not 10 <= t < 20]
    trace = open_trace(write_trace(tmp_path / "t.csv", rows))

    assert [w.is_known for w in windows(trace, seed=1)] == [True, True, False, False, True, True, True, True]


def test_rows_of_zero_are_known(tmp_path: Path) -> None:
    trace = open_trace(write_trace(tmp_path / "t.csv", [(float(t), 0.0) for t in range(10)]))

    assert [(w.is_known, w.arrivals_s.size) for w in windows(trace, seed=1)] == [(True, 0), (True, 0)]


def test_request_trace_is_replayed_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    path.write_text("arrival_s,tokens\n3.5,1\n3.5,2\n4.25,1\n12.0,9\n")

    got = list(windows(open_trace(path), seed=1))

    assert [w.arrivals_s.tolist() for w in got] == [[0.0, 0.0, 0.75], [8.5]]


def test_start_end_and_surge_select_and_multiply(tmp_path: Path) -> None:
    path = write_trace(tmp_path / "t.csv", [(float(t), 100.0) for t in range(100)])
    trace = open_trace(path, start_s=50, end_s=60, surges=(Surge(5.0, 3.0, 5.0),))

    before, during = (w.arrivals_s.size for w in windows(trace, seed=1))

    assert abs(before - 500) < 100
    assert abs(during - 1500) < 160


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty, not even a header"),
        ("t_s,count\n", "empty, there is no row below the header"),
        ("time,count\n1,2\n", "needs columns t_s,count or arrival_s"),
        ("t_s,count\n0,1\n2,1\n1,1\n", "line 4: times must rise"),
        ("t_s,count\n0,1\n0,1\n", "line 3: times must rise"),
        ("t_s,count\n-1,1\n0,1\n", "line 2: times and counts must be finite and not negative"),
        ("t_s,count\n0,1\n1,nan\n", "line 3: times and counts must be finite and not negative"),
        ("t_s,count\n0,1\n1,-3\n", "line 3: times and counts must be finite and not negative"),
        ("t_s,count\n0,1\n1,many\n", "line 3: not numbers"),
        ("t_s,count\n0,1\n", "one row does not tell the step"),
        ("arrival_s\n2\n1\n", "line 3: times must rise"),
    ],
)
def test_bad_trace_is_refused_with_the_reason(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.csv.gz"
    path.write_bytes(gzip.compress(text.encode()))

    with pytest.raises(InvalidRequest, match=message):
        open_trace(path)


@pytest.mark.parametrize("text", ["1:2", "a:b:c", "-1:2:3", "1:2:0", "1:nan:3"])
def test_bad_surge_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest):
        Surge.parse(text)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the recorded traces are not here")
def test_recorded_trace_is_replayed_at_its_own_rate() -> None:
    trace = open_trace(SHARED / "twitter_may25_1s.csv.gz", end_s=3600.0)

    got = list(windows(trace, seed=1))

    assert len(got) == 720
    assert abs(sum(w.arrivals_s.size for w in got) - 126_294) < 1_500  # the hour's count; four standard deviations
