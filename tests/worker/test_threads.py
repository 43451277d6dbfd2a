"""The worker's threads on memory ports and the real clock: each request answered exactly once, and no failure hidden."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

import pytest

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
from markserve.messages import Answer, InferenceRequest, InstanceDrained
from markserve.ports import ModelRunner
from tests.builders import MODEL, a_profile, a_request, an_instance
from worker.engine import Engine
from worker.intake import Intake, Work
from worker.lifeline import Lifeline
from worker.mailbox import Mailbox
from worker.pacing import Pacing
from worker.threads import serve

REQUESTS = 400
RECEIVERS = 3


class CountingResults(MemoryResultStore):
    """Counts the answers that became *the* answer."""

    def __init__(self) -> None:
        super().__init__()
        self.first_answers: list[str] = []
        self.all_stored = threading.Event()

    def put_answer(self, answer: Answer, *, expires_at_s: float, accepted_as: str = "") -> bool:
        is_new = self.get(answer.request_id) is None
        is_first = is_new and super().put_answer(answer, expires_at_s=expires_at_s, accepted_as=accepted_as)
        if is_first:
            self.first_answers.append(answer.request_id)
            if len(self.first_answers) == REQUESTS:
                self.all_stored.set()
        return is_first


class FailingRunner:
    """Fails as a bug would: with an exception that is nobody's answer."""

    def run(self, batch: Sequence[InferenceRequest]) -> list[Answer | Exception]:
        raise RuntimeError(f"out of memory on {len(batch)}")


class Worker:
    def __init__(self, runner: ModelRunner) -> None:
        self.queue = MemoryWorkQueue()
        self.results = CountingResults()
        self.events = MemoryEventPublisher()
        self.instances = MemoryInstanceRegistry()
        self.instances.put(an_instance(state=InstanceState.SERVING))
        parameters, blobs, pause = MemoryParameterSource(Tunables(rt_max_s=5.0)), MemoryBlobStore(), threading.Event()
        mailbox = Mailbox(queue=self.queue, results=self.results, blobs=blobs, clock=time.time, pause=pause.wait)
        pacing: Pacing[Work] = Pacing(
            estimate=LatencyEstimate(a_profile()), tunables=parameters.get(), max_batch_size=16, spill_reserve_s=0.0
        )
        self.engine = Engine(
            instance_id="i-0001",
            queue=self.queue,
            mailbox=mailbox,
            intake=Intake(instance_id="i-0001", blobs=blobs, mailbox=mailbox, runner_for=lambda _: runner, pause=pause.wait),
            pacing=pacing,
            runner_for=lambda _: runner,
            receive_wait_s=0.05,
            clock=time.time,
            receivers=RECEIVERS,
        )
        self.lifeline = Lifeline(
            self.engine,
            model=MODEL,
            instance_id="i-0001",
            instances=self.instances,
            parameters=parameters,
            events=self.events,
            interruption=MemoryInterruptionNotice(),
            clock=time.time,
        )

    def send(self, count: int) -> None:
        for number in range(count):
            now_s = time.time()
            deadline_s = now_s + 60.0 if number % 4 else None
            self.queue.send(a_request(request_id=f"r{number}", arrival_at_s=now_s, deadline_at_s=deadline_s, spill_at_s=None))

    def serve(self) -> None:
        serve(self.engine, self.lifeline, receivers=RECEIVERS, heartbeat_s=0.05)


def test_each_request_is_answered_exactly_once_and_the_drain_ends_the_worker() -> None:
    model = MemoryModelRunner()
    worker = Worker(model)
    thread = threading.Thread(target=worker.serve)
    thread.start()

    worker.send(REQUESTS)
    assert worker.results.all_stored.wait(60.0)
    worker.engine.drain("the test is over")
    thread.join(60.0)
    worker.lifeline.conclude()

    assert not thread.is_alive()
    assert sorted(worker.results.first_answers) == sorted(f"r{number}" for number in range(REQUESTS))
    assert sorted(name for batch in model.batches for name in batch) == sorted(f"r{number}" for number in range(REQUESTS))
    assert worker.queue.dead_letters == []
    (instance,) = worker.instances.list()
    assert instance.state is InstanceState.DRAINING
    assert (instance.stats.completed, instance.stats.in_flight, instance.stats.dropped) == (REQUESTS, 0, 0)
    assert instance.stats.batches == len(model.batches)
    assert isinstance(worker.events.events[-1], InstanceDrained)


def test_worker_finishes_what_it_holds_when_drained_under_load() -> None:
    model = MemoryModelRunner()
    worker = Worker(model)
    worker.send(REQUESTS)
    thread = threading.Thread(target=worker.serve)
    thread.start()

    worker.engine.drain("the test is over")
    thread.join(60.0)
    worker.lifeline.conclude()

    answered = sum(len(batch) for batch in model.batches)
    assert not thread.is_alive()
    assert len(worker.results.first_answers) == answered
    assert worker.queue.depth() == REQUESTS - answered


def test_failure_of_one_thread_ends_all_and_is_raised() -> None:
    worker = Worker(FailingRunner())
    worker.send(1)

    with pytest.raises(RuntimeError, match="out of memory on 1"):
        worker.serve()
