"""The load generator: when requests go out, and what is recorded of their answers."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from aiohttp import web

from local.arrivals import Arrival, Phase, poisson_arrivals, read_trace, trace_arrivals
from local.load import HEADER_LENGTH, LoadProgress, LoadTarget, RequestRecord, Sample, replay, require_loopback

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def a_sample(label: int) -> Sample:
    tensor = np.zeros((1, 1, 8, 8), dtype=np.float32)
    tensor[0, 0, 0, label % 8] = 1.0
    return Sample(tensor=tensor, label=label)


def oip_answer(request_id: str, scores: list[float]) -> web.Response:
    data = np.array([scores], dtype="<f4").tobytes()
    output = {"name": "logits", "datatype": "FP32", "shape": [1, len(scores)], "parameters": {"binary_data_size": len(data)}}
    header = json.dumps({"model_name": "digits", "id": request_id, "outputs": [output]}).encode()
    headers = {
        HEADER_LENGTH: str(len(header)),
        "x-markserve-tier": "worker",
        "x-markserve-batch-size": "4",
        "Server-Timing": "queue;dur=20, compute;dur=5",
    }
    return web.Response(body=header + data, headers=headers)


async def header_of(request: web.Request) -> dict[str, object]:
    body = await request.read()
    header: dict[str, object] = json.loads(body[: int(request.headers[HEADER_LENGTH])])
    return header


def run_load(handler: Handler, arrivals: list[Arrival], *, timeout_s: float = 5.0, retry_for_s: float = 0.0) -> list[RequestRecord]:
    """Serve `handler` on loopback and send `arrivals` to it."""

    async def scenario() -> list[RequestRecord]:
        app = web.Application()
        app.router.add_post("/v2/models/digits/infer", handler)
        runner = web.AppRunner(app, handler_cancellation=True)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        target = LoadTarget(
            endpoint=f"http://{host}:{port}",
            model="digits",
            input_name="image",
            output_name="logits",
            samples=[a_sample(3)],
            timeout_s=timeout_s,
            retry_for_s=retry_for_s,
        )
        try:
            return await replay(arrivals, target, seed=1, progress=LoadProgress())
        finally:
            await runner.cleanup()

    return asyncio.run(scenario())


def test_every_request_is_recorded_once_when_all_are_answered() -> None:
    seen: Counter[str] = Counter()

    async def serve(request: web.Request) -> web.Response:
        request_id = str((await header_of(request))["id"])
        seen[request_id] += 1
        return oip_answer(request_id, [0.0, 0.0, 0.0, 9.0])

    records = run_load(serve, [Arrival(at_s=0.01 * i, phase="calm") for i in range(20)])

    assert [record.index for record in records] == list(range(20))
    assert all(record.is_answered and record.predicted == record.truth == 3 for record in records)
    assert seen == Counter({record.request_id: 1 for record in records})
    assert {record.tier for record in records} == {"worker"}
    assert records[0].timing_s == {"queue": 0.02, "compute": 0.005}
    assert records[0].batch_size == 4


def test_requests_do_not_wait_for_answers_when_the_server_is_slow() -> None:
    arrived = 0
    all_here = asyncio.Event()

    async def serve(request: web.Request) -> web.Response:
        nonlocal arrived
        request_id = str((await header_of(request))["id"])
        arrived += 1
        if arrived == 8:
            all_here.set()
        await all_here.wait()  # nobody is answered before everybody has asked: a closed loop would never end
        return oip_answer(request_id, [1.0])

    records = run_load(serve, [Arrival(at_s=0.0, phase="burst") for _ in range(8)])

    assert all(record.status == 200 for record in records)
    assert all(record.latency_s >= 0 for record in records)


def test_answer_of_another_request_is_an_error_when_ids_differ() -> None:
    async def serve(request: web.Request) -> web.Response:
        await request.read()
        return oip_answer("somebody-elses", [1.0])

    (record,) = run_load(serve, [Arrival(at_s=0.0, phase="calm")])

    assert not record.is_answered
    assert "somebody-elses" in record.error


def test_status_and_reason_are_recorded_when_the_server_refuses() -> None:
    async def serve(request: web.Request) -> web.Response:
        await request.read()
        return web.json_response({"error": "too busy"}, status=429)

    (record,) = run_load(serve, [Arrival(at_s=0.0, phase="burst")])

    assert (record.status, record.is_answered) == (429, False)
    assert "too busy" in record.error


@pytest.mark.parametrize("status", [429, 503])
def test_refused_request_is_sent_again_after_the_time_it_was_told(status: int) -> None:
    asked_at_s: list[float] = []

    async def serve(request: web.Request) -> web.Response:
        request_id = str((await header_of(request))["id"])
        asked_at_s.append(time.time())
        if len(asked_at_s) < 3:
            return web.json_response({"error": "too busy"}, status=status, headers={"Retry-After": "0.2"})
        return oip_answer(request_id, [1.0])

    (record,) = run_load(serve, [Arrival(at_s=0.0, phase="burst")], retry_for_s=60.0)

    assert record.is_answered
    assert record.retries == 2
    assert min(later - earlier for earlier, later in pairwise(asked_at_s)) >= 0.2
    assert record.latency_s >= 0.4


def test_refusal_counts_when_another_try_would_come_too_late() -> None:
    async def serve(request: web.Request) -> web.Response:
        await request.read()
        return web.json_response({"error": "too busy"}, status=429, headers={"Retry-After": "60"})

    (record,) = run_load(serve, [Arrival(at_s=0.0, phase="burst")], retry_for_s=30.0)

    assert (record.status, record.retries) == (429, 0)


@pytest.mark.parametrize("status", [400, 500, 504])
def test_request_is_not_sent_again_when_the_error_is_no_refusal(status: int) -> None:
    async def serve(request: web.Request) -> web.Response:
        await request.read()
        return web.json_response({"error": "no"}, status=status)

    (record,) = run_load(serve, [Arrival(at_s=0.0, phase="burst")], retry_for_s=30.0)

    assert (record.status, record.retries) == (status, 0)


def test_request_is_lost_not_retried_when_no_answer_comes_in_time() -> None:
    asked = 0

    async def serve(request: web.Request) -> web.Response:
        nonlocal asked
        asked += 1
        await asyncio.Event().wait()
        raise AssertionError("unreachable")

    (record,) = run_load(serve, [Arrival(at_s=0.0, phase="calm")], timeout_s=0.2)

    assert (record.status, asked) == (0, 1)
    assert "Timeout" in record.error


def test_malformed_scores_are_an_error_when_a_value_is_not_finite() -> None:
    async def serve(request: web.Request) -> web.Response:
        return oip_answer(str((await header_of(request))["id"]), [float("nan"), 1.0])

    (record,) = run_load(serve, [Arrival(at_s=0.0, phase="calm")])

    assert not record.is_answered
    assert "finite" in record.error


def test_arrivals_are_the_same_when_the_seed_is() -> None:
    phases = [Phase(name="calm", duration_s=50.0, rate_rps=4.0), Phase(name="ramp", duration_s=50.0, rate_rps=4.0, end_rate_rps=20.0)]

    assert poisson_arrivals(phases, seed=7) == poisson_arrivals(phases, seed=7)
    assert poisson_arrivals(phases, seed=7) != poisson_arrivals(phases, seed=8)


def test_arrivals_follow_the_rates_when_phases_change() -> None:
    phases = [
        Phase(name="calm", duration_s=500.0, rate_rps=4.0),
        Phase(name="silent", duration_s=100.0, rate_rps=0.0),
        Phase(name="ramp", duration_s=500.0, rate_rps=4.0, end_rate_rps=20.0),
    ]

    arrivals = poisson_arrivals(phases, seed=3)
    counts = Counter(arrival.phase for arrival in arrivals)

    assert abs(counts["calm"] - 2000) < 4 * 2000**0.5  # four standard deviations of a Poisson count
    assert counts["silent"] == 0
    assert abs(counts["ramp"] - 6000) < 4 * 6000**0.5
    assert [a.at_s for a in arrivals] == sorted(a.at_s for a in arrivals)
    gaps = np.diff([a.at_s for a in arrivals if a.phase == "calm"])
    assert 0.9 < gaps.std() / gaps.mean() < 1.1  # exponential gaps, not the smoother ones of a paced generator


def test_trace_keeps_its_mean_when_scaled_to_fractions() -> None:
    rows = [(float(t), 3.0) for t in range(2000)]

    arrivals = trace_arrivals(rows, step_s=1.0, seed=1, scale=0.1)

    assert abs(len(arrivals) - 600) < 4 * 600**0.5


def test_trace_sends_nothing_where_rows_are_missing(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text("t_s,count\n100,2\n101,2\n105,1\n")

    rows, step_s = read_trace(path)
    arrivals = trace_arrivals(rows, step_s=step_s, seed=1)

    assert (rows, step_s) == ([(0.0, 2.0), (1.0, 2.0), (5.0, 1.0)], 1.0)
    assert [int(arrival.at_s) for arrival in arrivals] == [0, 0, 1, 1, 5]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("time,n\n0,1\n1,2\n", "columns t_s and count"),
        ("t_s,count\n0,1\n1,many\n", "line 3: t_s and count must be numbers"),
        ("t_s,count\n0,1\n", "at least two rows"),
        ("t_s,count\n0,1\n0,1\n", "same t_s"),
    ],
)
def test_trace_is_refused_with_a_reason_when_malformed(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(text)

    with pytest.raises(ValueError, match=message):
        read_trace(path)


def test_target_is_refused_when_it_is_not_on_this_machine() -> None:
    require_loopback("http://127.0.0.1:47000/")

    with pytest.raises(ValueError, match="not on this machine"):
        require_loopback("http://192.0.2.1/")
