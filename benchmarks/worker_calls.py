"""How many SQS calls a request costs: the worker's real engine and threads, on a queue in memory that counts as SQS bills.

The queue answers after a round trip, as SQS does over a network, and a long poll returns as soon as one message is there,
which is what makes receiving expensive. The model sleeps T(b) = 10 ms + 2.5 ms b. One send per request is the front's.

    python -m benchmarks.worker_calls [--seconds 5] [--round-trip 0.01] [--load 0.8 ...] [--json]
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from markserve.adapters.memory import (
    MemoryBlobStore,
    MemoryEventPublisher,
    MemoryInstanceRegistry,
    MemoryInterruptionNotice,
    MemoryModelRunner,
    MemoryParameterSource,
    MemoryResultStore,
    MemoryWorkQueue,
)
from markserve.core.profiles import LatencyEstimate
from markserve.core.tunables import Tunables
from markserve.core.types import BatchProfile, CapacityType, Instance, InstanceState, Offering, ProfilePoint
from markserve.messages import Answer, InferenceRequest, Tensor
from markserve.ports import ReceivedRequest
from worker.engine import Engine
from worker.intake import Intake, Work
from worker.lifeline import Lifeline
from worker.mailbox import Mailbox
from worker.pacing import Pacing
from worker.threads import serve

LOADS = (0.05, 0.2, 0.5, 0.8, 0.95)
"""Offered load, as shares of the worker's service rate."""
RT_MAX_S = 0.4
MAX_BATCH_SIZE = 32
RECEIVERS = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One load."""

    load: float
    rate_rps: float
    requests: int
    calls_per_request: float
    worker_calls_per_request: float
    mean_batch: float
    within_objective: float
    p50_s: float
    p98_s: float
    messages_per_receive: float
    messages_per_delete: float
    extensions: int
    """Calls that extended a visibility timeout."""


class DistantQueue(MemoryWorkQueue):
    """A queue whose calls take a round trip."""

    def __init__(self, round_trip_s: float) -> None:
        super().__init__()
        self._round_trip_s = round_trip_s
        self._counting = threading.Lock()
        self.received: list[int] = []
        self.deleted: list[int] = []
        self.extensions = 0

    def receive(self, *, max_messages: int, wait_s: float) -> list[ReceivedRequest]:
        """Receive after half of the round trip, and return after the other."""
        time.sleep(self._round_trip_s / 2)
        received = super().receive(max_messages=max_messages, wait_s=wait_s)
        time.sleep(self._round_trip_s / 2)
        with self._counting:
            self.received.append(len(received))
        return received

    def delete(self, receipts: Sequence[str]) -> None:
        """Delete after a round trip per batch of ten."""
        batches = [receipts[start : start + 10] for start in range(0, len(receipts), 10)]
        time.sleep(self._round_trip_s * len(batches))
        super().delete(receipts)
        with self._counting:
            self.deleted += map(len, batches)

    def extend(self, receipts: Sequence[str], *, for_s: float) -> None:
        """Extend after a round trip."""
        time.sleep(self._round_trip_s)
        super().extend(receipts, for_s=for_s)
        with self._counting:
            self.extensions += 1


class SleepingRunner:
    """Takes T(b) and echoes."""

    def __init__(self) -> None:
        self._inner = MemoryModelRunner()
        self.batches = self._inner.batches

    def run(self, batch: Sequence[InferenceRequest]) -> list[Answer | Exception]:
        """Sleep T(b), then answer."""
        time.sleep(_latency_s(len(batch)))
        return self._inner.run(batch)


def main(argv: Sequence[str]) -> int:
    """Print calls per request by load."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.worker_calls", description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--round-trip", type=float, default=0.01, help="seconds per call; about 0.01 to SQS from its own region")
    parser.add_argument("--load", type=float, nargs="*", default=LOADS, help="shares of the worker's service rate")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    rows = []
    for load in args.load:
        rows.append(measure(load, seconds=args.seconds, round_trip_s=args.round_trip))
        if not args.json:
            row = rows[-1]
            sys.stdout.write(
                f"load {row.load:4.0%}  {row.rate_rps:6.1f}/s  {row.requests:6d} requests  {row.calls_per_request:5.2f} calls each"
                f" ({row.worker_calls_per_request:.2f} of the worker)  batches of {row.mean_batch:4.1f}"
                f"  {row.messages_per_receive:4.1f} a receive, {row.messages_per_delete:4.1f} a delete, {row.extensions} extensions"
                f"  p50 {row.p50_s * 1e3:4.0f} ms  p98 {row.p98_s * 1e3:4.0f} ms  {row.within_objective:6.1%} within {RT_MAX_S:g} s\n"
            )
            sys.stdout.flush()
    if args.json:
        sys.stdout.write(json.dumps([asdict(row) for row in rows], indent=2) + "\n")
    return 0


def measure(load: float, *, seconds: float, round_trip_s: float) -> Row:
    """Put one load on one worker and count."""
    queue, results, runner = DistantQueue(round_trip_s), MemoryResultStore(), SleepingRunner()
    instances, parameters = MemoryInstanceRegistry(), MemoryParameterSource(Tunables(rt_max_s=RT_MAX_S))
    blobs, pause = MemoryBlobStore(), threading.Event()
    instances.put(_instance())
    mailbox = Mailbox(queue=queue, results=results, blobs=blobs, clock=time.time, pause=pause.wait)
    pacing: Pacing[Work] = Pacing(
        estimate=LatencyEstimate(_profile()), tunables=parameters.get(), max_batch_size=MAX_BATCH_SIZE, spill_reserve_s=0.0
    )
    engine = Engine(
        instance_id="i-bench",
        queue=queue,
        mailbox=mailbox,
        intake=Intake(instance_id="i-bench", blobs=blobs, mailbox=mailbox, runner_for=lambda _: runner, pause=pause.wait),
        pacing=pacing,
        runner_for=lambda _: runner,
        receive_wait_s=5.0,
        clock=time.time,
        receivers=RECEIVERS,
    )
    lifeline = Lifeline(
        engine,
        model="bench",
        instance_id="i-bench",
        instances=instances,
        parameters=parameters,
        events=MemoryEventPublisher(),
        interruption=MemoryInterruptionNotice(),
        clock=time.time,
    )
    rate_rps = load * pacing.limits.service_rate_rps
    worker = threading.Thread(target=serve, args=(engine, lifeline), kwargs={"receivers": RECEIVERS, "heartbeat_s": 1.0})
    worker.start()
    sent = _send(queue, rate_rps, seconds)
    time.sleep(2 * RT_MAX_S)
    # Read before the drain: its last polls belong to no request.
    calls, batches, received, deleted = queue.calls, list(runner.batches), list(queue.received), list(queue.deleted)
    engine.drain("measured")
    queue.send(_request("wake-up", time.time()))  # ends the long polls
    queue.send(_request("wake-up-2", time.time()))
    worker.join()
    latencies = sorted(_latency_of(results, request) for request in sent)
    return Row(
        load=load,
        rate_rps=rate_rps,
        requests=len(sent),
        calls_per_request=calls / len(sent),
        worker_calls_per_request=calls / len(sent) - 1,
        mean_batch=sum(map(len, batches)) / max(1, len(batches)),
        within_objective=sum(latency <= RT_MAX_S for latency in latencies) / len(latencies),
        p50_s=latencies[len(latencies) // 2],
        p98_s=latencies[int(0.98 * len(latencies))],
        messages_per_receive=sum(received) / max(1, len(received)),
        messages_per_delete=sum(deleted) / max(1, len(deleted)),
        extensions=queue.extensions,
    )


def _send(queue: MemoryWorkQueue, rate_rps: float, seconds: float) -> list[InferenceRequest]:
    """Send Poisson arrivals, open loop."""
    chance = random.Random(6)  # noqa: S311  # arrivals, no secret
    sent: list[InferenceRequest] = []
    begin = due = time.time()
    while due < begin + seconds:
        time.sleep(max(0.0, due - time.time()))
        sent.append(_request(str(len(sent)), due))
        queue.send(sent[-1])
        due += chance.expovariate(rate_rps)
    return sent


def _request(request_id: str, now_s: float) -> InferenceRequest:
    tensor = Tensor(name="x", datatype="UINT8", shape=(1, 1), data=b"\x00")
    deadline_at_s = now_s + RT_MAX_S
    return InferenceRequest(
        request_id=request_id, model="bench", model_version="1", arrival_at_s=now_s, inputs=(tensor,), deadline_at_s=deadline_at_s
    )


def _latency_of(results: MemoryResultStore, request: InferenceRequest) -> float:
    stored = results.get(request.request_id)
    return stored.answer.finished_at_s - request.arrival_at_s if stored and stored.answer else float("inf")


def _latency_s(batch_size: int) -> float:
    return 0.010 + 0.0025 * batch_size


def _profile() -> BatchProfile:
    points = tuple(
        ProfilePoint(batch_size=b, p50_s=_latency_s(b), p98_s=1.05 * _latency_s(b), p99_s=1.1 * _latency_s(b), samples=100)
        for b in (1, 2, 4, 8, 16, MAX_BATCH_SIZE)
    )
    return BatchProfile(instance_type="bench", points=points)


def _instance() -> Instance:
    offering = Offering(
        instance_type="bench",
        capacity_type=CapacityType.ON_DEMAND,
        zone="bench-a",
        price_usd_per_hour=0.1,
        launch_overhead_s=1.0,
        interruption_rate_per_hour=0.0,
    )
    return Instance(
        instance_id="i-bench", model="bench", offering=offering, state=InstanceState.SERVING, requested_at_s=time.time(), reason=""
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
