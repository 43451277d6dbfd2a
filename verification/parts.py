"""A front and a worker as they ship, on the world's ports."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from markserve import attempt, front
from markserve.adapters.memory import MemoryBlobStore, MemoryInstanceRegistry, MemoryMetricsSink, MemoryModelStore, MemoryParameterSource
from markserve.core.profiles import LatencyEstimate
from markserve.core.tunables import Tunables
from markserve.core.types import BatchProfile, CapacityType, Instance, InstanceState, Offering, ProfilePoint, WorkerStats
from markserve.core.visibility import LEAD_SHARE
from markserve.front import Call, Front, FrontPorts
from markserve.messages import Answer, InferenceRequest, ModelRecord, Tensor
from markserve.ports import ModelRunner, ResultStore, SpilloverInvoker
from markserve.telemetry import logger
from verification.ports import label_of
from worker.engine import Engine
from worker.intake import Intake, Work
from worker.mailbox import Mailbox
from worker.pacing import Pacing

if TYPE_CHECKING:
    from verification.protocol import Protocol

__all__ = ["Parts", "coarse_polls", "label_of", "new_call", "new_front", "run_worker"]

RT_MAX_S = 0.2
LATENCY_S = 0.01
RECORD = ModelRecord(
    model="m", version="1", inputs=(), outputs=(), artefact_key="", artefact_sha256="", max_batch_size=4, queue_url="queue"
)
PROFILE = BatchProfile(
    instance_type="c5.large", points=(ProfilePoint(batch_size=1, p50_s=LATENCY_S, p98_s=LATENCY_S, p99_s=LATENCY_S, samples=100),)
)
INSTANCE = Instance(
    instance_id="i-1",
    model="m",
    offering=Offering(
        instance_type="c5.large",
        capacity_type=CapacityType.ON_DEMAND,
        zone="a",
        price_usd_per_hour=0.085,
        launch_overhead_s=180.0,
        interruption_rate_per_hour=0.0,
    ),
    state=InstanceState.SERVING,
    requested_at_s=0.0,
    reason="",
    heartbeat_at_s=0.0,
    stats=WorkerStats(service_rate_rps=50.0, batch_latency_s=LATENCY_S),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Parts:
    """Which front is checked, and what a worker needs at least."""

    front_type: type[Front] = Front
    least_latency_s: float = LATENCY_S


def new_front(world: Protocol, number: int, front_type: type[Front]) -> Front:
    """One front environment."""
    ports = FrontPorts(
        models=MemoryModelStore(RECORD),
        results=cast("ResultStore", world.results),
        instances=MemoryInstanceRegistry(INSTANCE),
        work_queue=lambda _: world.queue,
        spillover=cast("SpilloverInvoker", world.spillover),
        parameters=MemoryParameterSource(Tunables(rt_max_s=RT_MAX_S, spillover_max_concurrency=10 if world.scenario.spill else 0)),
        metrics=MemoryMetricsSink(),
        blobs=MemoryBlobStore(),
    )
    return front_type(
        ports,
        window_s=5.0,
        heartbeat_timeout_s=1e9,  # the fleet's view is not what is checked here: requests are enqueued
        now_s=world.clock,
        sleep=world.clock.sleep,
        new_id=lambda: f"request {number}",
    )


def new_call(front: Front, client: str, key: str | None, *, asynchronous: bool, arrival_at_s: float) -> Call:
    """One request; its only input is named for its client, so that an answer tells whose it is."""
    tensor = Tensor(name=client, datatype="FP32", shape=(1,), data=b"\0" * 4)
    return Call(
        chosen=front.choose(RECORD.model, None, client=client, idempotency_key=key),
        inputs=(tensor,),
        output_names=(),
        arrival_at_s=arrival_at_s,
        client=client,
        body_sha256="same",
        idempotency_key=key,
        asynchronous=asynchronous,
    )


def run_worker(world: Protocol, mailbox_type: type[Mailbox]) -> Hashable:
    """Receive a message, deal with it, and let go of it."""
    clock = world.clock
    pacing: Pacing[Work] = Pacing(
        estimate=LatencyEstimate(PROFILE), tunables=Tunables(rt_max_s=RT_MAX_S), max_batch_size=4, spill_reserve_s=0.0
    )
    mailbox = mailbox_type(
        queue=world.queue, results=cast("ResultStore", world.results), blobs=MemoryBlobStore(), clock=clock, pause=clock.sleep
    )
    intake = Intake(instance_id="i-1", blobs=MemoryBlobStore(), mailbox=mailbox, runner_for=lambda _: world.runner, pause=clock.sleep)
    runner: ModelRunner = Keeping(world, lambda: engine.keep_hidden()) if world.scenario.extends else world.runner
    engine = Engine(
        instance_id="i-1",
        queue=world.queue,
        mailbox=mailbox,
        intake=intake,
        pacing=pacing,
        runner_for=lambda _: runner,
        receive_wait_s=0.0,
        clock=clock,
    )
    if refused := engine.receive():
        engine.reply(refused)
    while len(pacing.accumulator):
        batch = engine.next_batch()
        if batch is not None:
            engine.reply(engine.run(batch))
        elif len(pacing.accumulator):
            due_s = pacing.accumulator.due_at_s(now_s=clock(), runner_idle=True, arrival_rate_rps=pacing.arrival_rate_rps(clock()))
            clock.sleep(max(1e-6, (due_s or clock()) - clock()))
    for _ in range(world.scenario.faults + 1):  # a delete that failed is tried again with each heartbeat
        mailbox.flush()
    return "idle"


class Keeping:
    """A model that takes so long that the worker looks after its message's visibility meanwhile, on time or late."""

    def __init__(self, world: Protocol, keep_hidden: Callable[[], None]) -> None:
        self._world = world
        self._keep_hidden = keep_hidden

    def run(self, batch: Sequence[InferenceRequest]) -> list[Answer | Exception]:
        """Extend once, then compute."""
        self._world.clock.sleep((1 - LEAD_SHARE) * self._world.scenario.visibility_s + 1e-6)
        self._keep_hidden()
        return self._world.runner.run(batch)


def _first_and_last(*, first_s: float, total_s: float, **_: float) -> Iterator[float]:
    if 0 < first_s < total_s:
        yield first_s
        yield total_s - first_s
    elif total_s > 0:
        yield total_s


@contextmanager
def coarse_polls() -> Iterator[None]:
    """Let fronts poll once in between and once at the end, and nobody log: how often they look is not what is checked."""
    kept, level = (vars(attempt)["poll_delays_s"], vars(front)["poll_delays_s"]), logger.log_level
    vars(attempt)["poll_delays_s"] = vars(front)["poll_delays_s"] = _first_and_last
    logger.setLevel("CRITICAL")
    try:
        yield
    finally:
        vars(attempt)["poll_delays_s"], vars(front)["poll_delays_s"] = kept
        logger.setLevel(level)
