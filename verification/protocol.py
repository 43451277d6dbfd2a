"""The answer-exactly-once protocol as a world to explore: fronts, a work queue, workers, spill-over, the results table.

Fronts and workers are the ones that ship (`Front`, `Attempt`, `Engine`, `Intake`, `Mailbox`), on the ports in memory; the
world stops them before each call and decides who goes on, what fails, who dies, and when time passes.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import count

from markserve.adapters.memory import MemoryResultStore
from markserve.core.types import Tier
from markserve.errors import MarkserveError
from markserve.front import Pending, Served
from markserve.messages import Answer
from verification.explorer import Action, Violation
from verification.parts import Parts, label_of, new_call, new_front, run_worker
from verification.ports import Clock, GatedQueue, GatedResults, GatedRunner, GatedSpillover
from verification.processes import Pause, Process
from worker.mailbox import Mailbox


@dataclass(frozen=True, kw_only=True, slots=True)
class Ask:
    """One attempt of a client: the same client and key make it a retry."""

    client: str = "alice"
    key: str | None = "k"
    asynchronous: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Scenario:
    """What there is, and how much may go wrong."""

    name: str
    asks: tuple[Ask, ...] = (Ask(),)
    workers: int = 1
    spill: bool = True
    front_crashes: int = 0
    worker_crashes: int = 0
    faults: int = 0
    """Calls that fail, before or after they took effect."""
    redeliveries: int = 0
    """Messages that the queue hands out again though they are held, or were deleted."""
    visibility_s: float = 0.25
    """Past the deadline of 0.2 s and within the front's grace, where an expiry races with everything."""
    extends: bool = False
    """Whether batches take so long that workers extend visibility while they compute."""


class Protocol:
    """One run. The types are exchangeable so that a broken part can be put in, to see it caught."""

    def __init__(
        self,
        scenario: Scenario,
        *,
        mailbox_type: type[Mailbox] = Mailbox,
        results_type: type[MemoryResultStore] = MemoryResultStore,
        parts: Parts | None = None,
    ) -> None:
        self.scenario = scenario
        self.current: Process | None = None
        self.clock = Clock(self)
        self.stored = results_type()
        self.results = GatedResults(self, self.stored)
        self.queue = GatedQueue(self, visibility_s=scenario.visibility_s)
        self.spillover = GatedSpillover(self)
        self.runner = GatedRunner(self)
        self.parts = parts or Parts()
        self._mailbox_type = mailbox_type
        self.fronts: list[Process | None] = [None] * len(scenario.asks)
        self.computed = count(1)
        self.faults, self.redeliveries = scenario.faults, scenario.redeliveries
        self._front_crashes, self._worker_crashes = scenario.front_crashes, scenario.worker_crashes
        self._first: dict[str, str] = {}
        self.workers = [self._new_worker(number) for number in range(scenario.workers)]

    # --- what can happen --------------------------------------------------------------------------------------

    def actions(self) -> Sequence[Action]:
        """List starts, steps of who is ready, failures and deaths while the budget lasts, and the passing of time."""
        return [*self.progress(), *self._mishaps()]

    def progress(self) -> list[Action]:
        """List what happens by itself sooner or later, failures not included."""
        actions: list[Action] = [("start", str(n)) for n, front in enumerate(self.fronts) if front is None]
        for process in self._alive():
            assert process.waiting is not None  # noqa: S101
            if process.waiting.wake_at_s is None or process.waiting.wake_at_s <= self.clock.now_s:
                actions += [("step", process.name, str(outcome)) for outcome in process.waiting.outcomes()]
        if self._next_instant_s() is not None:
            actions.append(("time passes",))
        return actions

    def _mishaps(self) -> list[Action]:
        actions: list[Action] = []
        for process in self._alive():
            assert process.waiting is not None  # noqa: S101
            if self.faults and process.waiting.may_fail and process.waiting.outcomes():
                actions += [("fails", process.name, "refused"), ("fails", process.name, "answer lost")]
            budget = self._front_crashes if process.name.startswith("front") else self._worker_crashes
            if budget and process.history:
                actions.append(("dies", process.name))
        if self.redeliveries:
            actions += [("redelivered", str(key)) for key in self.queue.repeatable()]
        return actions

    def do(self, action: Action) -> None:
        """Let one of `actions` happen."""
        match action:
            case ("start", number):
                self._start(int(number))
            case ("step" | "fails" as kind, name, outcome):
                self.faults -= kind == "fails"
                self._resume(self._named(name), outcome)
            case ("dies", name):
                self._die(name)
            case ("redelivered", key):
                self.redeliveries -= 1
                self.queue.repeat(int(key))
            case _:
                instant_s = self._next_instant_s()
                assert instant_s is not None  # noqa: S101
                self.clock.now_s = instant_s

    def _start(self, number: int) -> None:
        ask = self.scenario.asks[number]
        front = new_front(self, number, self.parts.front_type)
        arrival_at_s = self.clock.now_s

        def body() -> Hashable:
            try:
                result = front.infer(new_call(front, ask.client, ask.key, asynchronous=ask.asynchronous, arrival_at_s=arrival_at_s))
            except MarkserveError as error:
                return ("refused", type(error).__name__)
            return self._outcome(result)

        process = Process(f"front {number}", body)
        process.history.append(("arrived", arrival_at_s))
        self.fronts[number] = process
        self._resume(process, None)

    def _outcome(self, result: Served | Pending) -> Hashable:
        if isinstance(result, Pending):
            return ("accepted", result.request_id)
        return ("answered", result.answer.request_id, label_of(result.answer))

    def _new_worker(self, number: int) -> Process:
        """One life of a worker: a message received, dealt with, let go of; an idle worker is as good as a new one."""
        process = Process(f"worker {number}", lambda: run_worker(self, self._mailbox_type))
        self._resume(process, None)
        return process

    def _die(self, name: str) -> None:
        process = self._named(name)
        process.kill()
        if name.startswith("front"):
            self._front_crashes -= 1
        else:
            self._worker_crashes -= 1
            self._replace(process)

    def _resume(self, process: Process, outcome: Hashable) -> None:
        self.current = process
        process.resume(outcome)
        self.current = None
        if process.result is not None and process.name.startswith("worker"):
            self._replace(process)

    def _replace(self, process: Process) -> None:
        number = int(process.name.split()[1])
        self.workers[number] = self._new_worker(number)

    # --- what it has come to ----------------------------------------------------------------------------------

    def state(self) -> Hashable:
        """Shared state, and each process's own; workers are interchangeable."""
        return (
            round(self.clock.now_s, 6),
            tuple(front.state if front else None for front in self.fronts),
            tuple(sorted((worker.state for worker in self.workers), key=repr)),
            self.queue.state(),
            self.results.state(),
            (self.faults, self.redeliveries, self._front_crashes, self._worker_crashes),
        )

    def check(self) -> None:
        """Raise `Violation` where an invariant does not hold."""
        for number, front in enumerate(self.fronts):
            if front is not None and isinstance(front.result, tuple) and front.result[0] == "answered":
                self._check_answer(number, str(front.result[1]), str(front.result[2]))
        for request_id, reason in self.queue.buried():
            stored = self.stored.get(request_id)
            if stored is None or stored.answer is None or stored.answer.error is None:
                raise Violation(f"{request_id} is in the dead-letter queue without an error as its answer: {reason}")
        if not self.progress():
            self._check_quiet()

    def _check_answer(self, number: int, request_id: str, label: str) -> None:
        """One request, one answer, and nobody else's; a failure of ours under a key is no answer, it may be tried again."""
        ask = self.scenario.asks[number]
        may_retry = ask.key is not None
        if label.startswith("error 50") and may_retry and self._stored_label(request_id) != label:
            return
        if not label.startswith("error") and not label.startswith(f"{ask.client} "):
            raise Violation(f"{ask.client} was given {label!r}")
        if self._first.setdefault(request_id, label) != label:
            raise Violation(f"{request_id} was answered {self._first[request_id]!r} and {label!r}")
        if may_retry and self._stored_label(request_id) != label:
            raise Violation(f"{request_id} was answered {label!r}, the results table holds {self._stored_label(request_id)!r}")

    def _check_quiet(self) -> None:
        for front in self.fronts:
            result = front.result if front else None
            if result is None:
                raise Violation("nothing is left to happen, and a client waits")
            if isinstance(result, tuple) and result[0] == "accepted" and self._stored_label(str(result[1])) is None:
                raise Violation(f"nothing is left to happen, and {result[1]}, which was accepted, has no answer")
        if self.queue.left():
            raise Violation("nothing is left to happen, and a message is left in the queue")

    def _stored_label(self, request_id: str) -> str | None:
        stored = self.stored.get(request_id)
        return None if stored is None or stored.answer is None else label_of(stored.answer)

    def close(self) -> None:
        """End what still runs."""
        for process in self._alive():
            process.kill()

    # --- for the parts ----------------------------------------------------------------------------------------

    def pause(self, pause: Pause) -> Hashable:
        """Stop the process that runs now."""
        assert self.current is not None  # noqa: S101
        return self.current.pause(pause)

    def note(self, *seen: Hashable) -> None:
        """Add to what the running process knows."""
        assert self.current is not None  # noqa: S101
        self.current.history.append(seen)

    def new_label(self, client: str, tier: Tier) -> str:
        """Name a computation: no two give the same, so that two answers can be told apart."""
        return f"{client} {tier} {next(self.computed)}"

    def check_written(self, before: Answer | None, after: Answer | None, request_id: str) -> None:
        """See that an answer that stands is not replaced."""
        if before is not None and (after is None or label_of(after) != label_of(before)):
            raise Violation(f"the answer of {request_id} was replaced: {label_of(before)!r} by {after and label_of(after)!r}")

    def _alive(self) -> list[Process]:
        return [process for process in (*self.fronts, *self.workers) if process is not None and process.result is None]

    def _named(self, name: str) -> Process:
        return next(process for process in self._alive() if process.name == name)

    def _next_instant_s(self) -> float | None:
        wakes = [process.waiting.wake_at_s for process in self._alive() if process.waiting and process.waiting.wake_at_s is not None]
        return min((at_s for at_s in (*wakes, *self.queue.expiries_s()) if at_s > self.clock.now_s), default=None)
