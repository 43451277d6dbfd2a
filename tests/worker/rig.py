"""A worker on memory ports and a clock that only the test moves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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
from markserve.core.types import InstanceState
from markserve.errors import UnknownModel
from markserve.messages import Answer, InferenceRequest
from markserve.ports import ModelRunner
from tests.builders import MODEL, NOW_S, a_profile, a_request, an_instance
from worker.engine import Engine
from worker.intake import Intake, Work
from worker.lifeline import Lifeline
from worker.mailbox import Mailbox, parcels
from worker.pacing import Pacing

INSTANCE_ID = "i-0001"


class ManualClock:
    """Time that passes when told to; `pause` lets it pass."""

    def __init__(self, now_s: float = NOW_S) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s

    def pause(self, seconds: float) -> None:
        self.now_s += seconds


class TimedRunner:
    """Runs the memory model and lets the clock advance by T(b) = 10 ms + 2.5 ms * b, as the default profile says."""

    def __init__(self, clock: ManualClock, inner: ModelRunner) -> None:
        self._clock = clock
        self._inner = inner
        self.factor = 1.0

    def run(self, batch: Sequence[InferenceRequest]) -> list[Answer | Exception]:
        rows = sum(request.inputs[0].shape[0] if request.inputs else 1 for request in batch)
        self._clock.pause(self.factor * (0.010 + 0.0025 * rows))
        return self._inner.run(batch)


class Rig:
    """Everything a worker needs, and one worker. Objective 200 ms, spill at 120 ms, batches of up to 20 and more."""

    def __init__(self, *, failures: dict[str, Exception] | None = None, tunables: Tunables | None = None, **faults: Any) -> None:
        self.clock = ManualClock()
        self.queue = MemoryWorkQueue(now=self.clock, faults=faults.get("queue", {}))
        self.results = MemoryResultStore(faults=faults.get("results", {}))
        self.blobs = MemoryBlobStore()
        self.events = MemoryEventPublisher()
        self.instances = MemoryInstanceRegistry()
        self.instances.put(an_instance(instance_id=INSTANCE_ID, state=InstanceState.WARMING))
        self.parameters = MemoryParameterSource(tunables or Tunables(rt_max_s=0.2))
        self.versions: tuple[str, ...] = faults.get("versions", ())
        self.notice = MemoryInterruptionNotice()
        self.model = MemoryModelRunner(failures=failures)
        self.runner = TimedRunner(self.clock, self.model)
        self.engine, self.lifeline = self._worker()

    def restart(self) -> None:
        """Replace the worker by a fresh one, as after a crash: what it held is lost to it."""
        self.engine, self.lifeline = self._worker()

    def send(self, request_id: str, **overrides: Any) -> InferenceRequest:
        """Enqueue a request that arrives now, with 200 ms to its deadline and 120 ms to its spill."""
        now_s = self.clock.now_s
        times = {"arrival_at_s": now_s, "deadline_at_s": now_s + 0.2, "spill_at_s": now_s + 0.12}
        request = a_request(request_id=request_id, **{**times, **overrides})
        self.queue.send(request)
        return request

    def send_async(self, request_id: str, **overrides: Any) -> InferenceRequest:
        """Enqueue a request without a deadline."""
        return self.send(request_id, **{"deadline_at_s": None, "spill_at_s": None, **overrides})

    def receive(self) -> None:
        """Poll once, and deliver the refusals."""
        for parcel in parcels(self.engine.receive()):
            self.engine.reply(parcel)

    def run_one(self) -> bool:
        """Run one batch, if one closes now, and deliver its answers."""
        batch = self.engine.next_batch()
        if batch is None:
            return False
        for parcel in parcels(self.engine.run(batch)):
            self.engine.reply(parcel)
        return True

    def answer(self, request_id: str) -> Answer | None:
        stored = self.results.get(request_id)
        return stored.answer if stored else None

    def state(self) -> InstanceState:
        (instance,) = self.instances.list()
        return instance.state

    def _worker(self) -> tuple[Engine, Lifeline]:
        self.pacing: Pacing[Work] = Pacing(
            estimate=LatencyEstimate(a_profile()), tunables=self.parameters.get(MODEL), max_batch_size=32, spill_reserve_s=0.08
        )
        mailbox = Mailbox(queue=self.queue, results=self.results, blobs=self.blobs, clock=self.clock, pause=self.clock.pause)
        intake = Intake(instance_id=INSTANCE_ID, blobs=self.blobs, mailbox=mailbox, runner_for=self._runner_for, pause=self.clock.pause)
        engine = Engine(
            instance_id=INSTANCE_ID,
            queue=self.queue,
            mailbox=mailbox,
            intake=intake,
            pacing=self.pacing,
            runner_for=self._runner_for,
            receive_wait_s=0.0,
            clock=self.clock,
        )
        lifeline = Lifeline(
            engine,
            model=MODEL,
            instance_id=INSTANCE_ID,
            instances=self.instances,
            parameters=self.parameters,
            events=self.events,
            interruption=self.notice,
            clock=self.clock,
            versions=lambda: self.versions,
        )
        return engine, lifeline

    def _runner_for(self, version: str) -> ModelRunner:
        if version not in ("1", "2"):
            raise UnknownModel(f"no version {version} of model '{MODEL}'")
        return self.runner
