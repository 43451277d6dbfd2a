"""The serving benchmark's arithmetic: schedules, reading and judging replies, percentiles, the search, the verdicts."""

from __future__ import annotations

import itertools
import math
import socket
import statistics
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.serving import arrivals, targets
from benchmarks.serving.generator import Generator, Question
from benchmarks.serving.protocols import open_inference, plain, rows
from benchmarks.serving.replies import BadReply, Outcome, Reply, judge, read_reply
from benchmarks.serving.search import confirmed, highest_passing
from benchmarks.serving.summary import RunRecord, percentile, summarise

SCHEDULES = pytest.mark.parametrize("draw", [arrivals.poisson, arrivals.mmpp])


@SCHEDULES
def test_schedule_ascends_within_its_duration_and_offers_its_rate(draw: Callable[[float, float, int], list[float]]) -> None:
    times = draw(500.0, 40.0, 3)

    assert times == sorted(times)
    assert times[0] > 0
    assert times[-1] < 40.0
    assert abs(len(times) - 20_000) < 4 * math.sqrt(20_000)


@SCHEDULES
def test_schedule_is_its_seeds(draw: Callable[[float, float, int], list[float]]) -> None:
    assert draw(50.0, 5.0, 1) == draw(50.0, 5.0, 1)
    assert draw(50.0, 5.0, 1) != draw(50.0, 5.0, 2)


def test_poisson_gaps_vary_as_an_exponential_does() -> None:
    times = arrivals.poisson(100.0, 200.0, 4)
    gaps = [after - before for before, after in itertools.pairwise(times)]

    assert statistics.stdev(gaps) / statistics.fmean(gaps) == pytest.approx(1.0, abs=0.05)


def test_bursty_arrivals_are_over_dispersed_and_burst_at_the_same_times_at_any_rate() -> None:
    def counts(rate: float) -> list[int]:
        times = arrivals.mmpp(rate, 60.0, 5)
        return [sum(begin <= t < begin + 1 for t in times) for begin in range(60)]

    low, high = counts(200.0), counts(400.0)

    assert statistics.variance(low) > 5 * statistics.fmean(low)
    assert statistics.correlation(low, high) > 0.95


def test_percentile_is_the_nearest_rank() -> None:
    values = [float(i) for i in range(1, 101)]

    assert (percentile(values, 0.5), percentile(values, 0.99), percentile(values, 1.0)) == (50.0, 99.0, 100.0)
    assert percentile([7.0], 0.01) == 7.0
    with pytest.raises(ValueError, match="nothing"):
        percentile([], 0.5)


@given(st.lists(st.floats(0, 10), min_size=1), st.floats(0.01, 1.0))
def test_at_least_the_share_of_values_is_no_higher_than_the_percentile(values: list[float], share: float) -> None:
    found = percentile(sorted(values), share)

    assert sum(value <= found for value in values) >= share * len(values) - 1e-6


def record(rows: list[tuple[float, float, float, Outcome]], *, doubled: int = 0, held: tuple[int, ...] = ()) -> RunRecord:
    return RunRecord(
        scheduled_s=[row[0] for row in rows],
        sent_s=[row[1] for row in rows],
        done_s=[row[2] for row in rows],
        outcomes=[row[3] for row in rows],
        held=[int(i in held) for i in range(len(rows))],
        doubled=doubled,
        resent=0,
        busy_share=0.1,
        connections=1,
    )


def test_latency_counts_from_the_schedule_not_from_the_send() -> None:
    late_send = record([(1.0, 1.5, 1.51, Outcome.OK)])

    summary = summarise(late_send, warm_up_s=1.0, duration_s=2.0)

    assert summary.p50_s == pytest.approx(0.51)
    assert (summary.within, summary.late, summary.lag_max_s) == (0, 1, pytest.approx(0.5))
    assert summary.is_generator_saturated


def test_every_scheduled_request_counts_and_the_warm_up_does_not() -> None:
    rows = [
        (0.5, 0.5, 0.6, Outcome.OK),
        (1.0, 1.0, 1.1, Outcome.OK),
        (1.2, 1.2, 1.3, Outcome.REJECTED),
        (1.4, 1.4, 3.4, Outcome.UNANSWERED),
    ]

    summary = summarise(record(rows), warm_up_s=1.0, duration_s=2.0)

    assert (summary.requests, summary.within, summary.rejected, summary.unanswered) == (3, 1, 1, 1)
    assert summary.attainment == pytest.approx(1 / 3)
    assert summary.goodput_rps == 1.0
    assert (summary.p50_s, summary.p99_s) == (None, None)


def test_a_wrong_answer_fails_the_run_even_in_the_warm_up() -> None:
    good = [(1.0 + i / 1000, 1.0 + i / 1000, 1.1 + i / 1000, Outcome.OK) for i in range(100)]

    assert summarise(record(good), warm_up_s=1.0, duration_s=2.0).passes
    assert not summarise(record([(0.1, 0.1, 0.2, Outcome.WRONG), *good]), warm_up_s=1.0, duration_s=2.0).passes
    assert not summarise(record(good, doubled=1), warm_up_s=1.0, duration_s=2.0).passes


def test_waiting_for_a_connection_is_the_servers_lag_not_the_generators() -> None:
    held = record([(1.0, 1.4, 1.5, Outcome.OK)], held=(0,))

    assert summarise(held, warm_up_s=1.0, duration_s=2.0).lag_max_s == 0.0


def test_reply_is_read_once_it_is_whole() -> None:
    whole = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nx: y\r\n\r\nhello"

    assert all(read_reply(whole[:cut]) is None for cut in range(len(whole)))
    assert read_reply(whole) == Reply(200, b"hello", len(whole), closes=False)
    assert read_reply(whole + b"more") == Reply(200, b"hello", len(whole), closes=False)


def test_chunked_reply_is_joined() -> None:
    whole = b"HTTP/1.1 503 No\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n3\r\nabc\r\nA\r\n0123456789\r\n0\r\n\r\n"

    assert all(read_reply(whole[:cut]) is None for cut in range(len(whole)))
    assert read_reply(whole) == Reply(503, b"abc0123456789", len(whole), closes=True)


@pytest.mark.parametrize("raw", [b"SSH-2.0\r\n\r\n", b"HTTP/1.1 200 OK\r\nx: y\r\n\r\n"])
def test_what_is_no_reply_is_refused(raw: bytes) -> None:
    with pytest.raises(BadReply):
        read_reply(raw)


@pytest.mark.parametrize(
    ("status", "body", "outcome"),
    [
        (200, b'{"scores":[1.0004,-2.0]}', Outcome.OK),
        (200, b'{"scores":[1.01,-2.0]}', Outcome.WRONG),
        (200, b'{"scores":[1.0]}', Outcome.WRONG),
        (200, b'{"scores":["a","b"]}', Outcome.WRONG),
        (200, b"{}", Outcome.WRONG),
        (200, b"not json", Outcome.WRONG),
        (503, b"", Outcome.REJECTED),
        (429, b"", Outcome.REJECTED),
        (500, b'{"scores":[1.0,-2.0]}', Outcome.ERROR),
    ],
)
def test_answer_is_compared_with_the_expected_one(status: int, body: bytes, outcome: Outcome) -> None:
    assert judge(Reply(status, body, 0, closes=False), (1.0, -2.0), plain("/").decode, 1e-3) == outcome


def test_each_dialect_finds_its_scores() -> None:
    assert list(rows("/").decode(b"[[1.0, 2.0]]")) == [1.0, 2.0]
    for data in (b"[1.0, 2.0]", b"[[1.0, 2.0]]"):
        assert list(open_inference("/", "x").decode(b'{"outputs":[{"name":"y","data":' + data + b"}]}")) == [1.0, 2.0]


@given(st.floats(3.0, 5000.0), st.floats(3.0, 5000.0))
def test_search_ends_within_its_precision_below_the_limit(limit: float, start: float) -> None:
    found = highest_passing(lambda rate: rate <= limit, start, precision=1.03, runs=80)

    assert limit / 1.03 <= found <= limit


def test_search_gives_up_where_nothing_passes_and_never_exceeds_its_runs() -> None:
    asked: list[float] = []

    assert highest_passing(lambda rate: bool(asked.append(rate)), 100.0, runs=30) == 0.0
    assert len(asked) < 30
    asked.clear()
    highest_passing(lambda rate: bool(asked.append(rate)) or rate < 1234, 100.0, runs=5)
    assert len(asked) == 5


def test_confirming_steps_down_until_a_longer_run_passes() -> None:
    assert confirmed(lambda rate: rate <= 95, 100.0, step=0.97) == pytest.approx(94.09)
    assert confirmed(lambda _: False, 100.0) == 0.0
    assert confirmed(lambda _: True, 0.0) == 0.0


@contextmanager
def scripted_server(*replies: bytes) -> Iterator[tuple[str, int]]:
    """Answer the n-th request of the first connection with the n-th reply; an empty one closes the connection."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            for reply in replies:
                if not connection.recv(65536):
                    return
                if not reply:
                    return
                connection.sendall(reply)
            connection.recv(65536)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield listener.getsockname()
    finally:
        thread.join(10)
        listener.close()


def reply(scores: str, count: int = 1) -> bytes:
    body = f'{{"scores":[{scores}]}}'.encode()
    return b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body) * count


def run(address: tuple[str, int], schedule: list[float]) -> RunRecord:
    questions = [Question(b"POST / HTTP/1.1\r\n\r\n", (1.0,))]
    return Generator(address, questions, plain("/").decode, tolerance=1e-3, connections=1, most_connections=1).run(schedule)


def test_generator_tells_right_from_wrong_and_counts_a_reply_that_nobody_asked_for() -> None:
    with scripted_server(reply("1.0"), reply("2.0"), reply("1.0", count=2)) as address:
        seen = run(address, [0.0, 0.05, 0.1])

    assert list(seen.outcomes) == [Outcome.OK, Outcome.WRONG, Outcome.OK]
    assert seen.doubled == 1
    assert all(done >= sent >= at for at, sent, done in zip(seen.scheduled_s, seen.sent_s, seen.done_s, strict=True))


def test_a_connection_that_ends_instead_of_a_reply_loses_the_request() -> None:
    with scripted_server(b"") as address:
        seen = run(address, [0.0])

    assert list(seen.outcomes) == [Outcome.LOST]


def entry(at: float, max_rps: float, front: str = "python") -> dict[str, Any]:
    alone = {"latency_s": {"1": 0.003}, "ceiling_rps": 1000.0}
    run = {"p50_s": 0.004, "goodput_rps": 860.0, "wrong": 0, "lost": 0, "doubled": 0, "rss_bytes": 1000}
    return {
        "at": at, "front": front, "max_rps": max_rps, "ceiling_before": alone, "ceiling_after": alone, "low": run, "at_maximum": run,
        "levels": {"0.2": run, "0.5": run, "0.8": run}, "overload": run,
    }  # fmt: skip


def test_ratio_takes_markserves_maxima_just_before_and_just_after_the_peer() -> None:
    results = {
        "contestants": {"markserve": entry(0, 900), "a": entry(1, 450), "b": entry(3, 800, front="Rust")},
        "rechecks": [{"at": 2, "max_rps": 1100.0}, {"at": 4, "max_rps": 1300.0}],
    }

    assert targets.ratio_to(results, "a") == pytest.approx(1000 / 450)
    assert targets.ratio_to(results, "b") == pytest.approx(1.5)
    assert targets.ratio_to(results, "absent") is None


def test_verdicts_say_met_and_missed() -> None:
    results = {
        "contestants": {"markserve": entry(0, 900), "a": entry(1, 700), "b": entry(3, 850, front="Rust")},
        "rechecks": [{"at": 2, "max_rps": 900.0}, {"at": 4, "max_rps": 900.0}],
    }

    judged = {one.target: one.is_met for one in targets.verdicts(results)}

    assert list(judged.values()) == [True, False, False, True, True, True, True, True]


def test_without_markserve_nothing_is_judged() -> None:
    assert [one.is_met for one in targets.verdicts({"contestants": {"a": entry(1, 700)}, "rechecks": []})] == [None]
