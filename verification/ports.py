"""The ports in memory, with a stop before each call: what a process sees of the outside passes through here."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import TYPE_CHECKING, TypeVar

from markserve.adapters.memory import MemoryResultStore, MemoryWorkQueue
from markserve.core.types import Tier
from markserve.errors import DependencyUnavailable
from markserve.messages import Answer, InferenceRequest, StoredResult, Tensor, decode
from markserve.ports import ReceivedRequest
from verification.explorer import Violation
from verification.processes import Pause

if TYPE_CHECKING:
    from verification.protocol import Protocol

ResultT = TypeVar("ResultT")


def label_of(answer: Answer) -> str:
    """Who computed an answer, or which error it is."""
    return f"error {answer.error.status} {answer.error.message[:40]}" if answer.error is not None else answer.outputs[0].name


class Clock:
    """Time that passes when the world says so."""

    def __init__(self, world: Protocol) -> None:
        self._world = world
        self.now_s = 0.0

    def __call__(self) -> float:
        """Return the instant."""
        return self.now_s

    def sleep(self, duration_s: float) -> None:
        """Stop until then, or later."""
        if duration_s > 0:
            self._world.pause(Pause(call="sleep", wake_at_s=round(self.now_s + duration_s, 6)))


def gated(world: Protocol, call: str, run: Callable[[], ResultT], digest: Callable[[ResultT], Hashable]) -> ResultT:
    """Stop, then call, or fail before the call or after it, as the world chose."""
    outcome = world.pause(Pause(call=call, may_fail=True))
    if outcome == "refused":
        world.note(call, outcome)
        raise DependencyUnavailable(f"{call}: refused")
    result = run()
    if outcome == "answer lost":
        world.note(call, outcome)
        raise DependencyUnavailable(f"{call}: no answer")
    world.note(call, digest(result))
    return result


class GatedResults:
    """`ResultStore` that stops before each call and sees to it that no answer is replaced."""

    def __init__(self, world: Protocol, stored: MemoryResultStore) -> None:
        self._world = world
        self._stored = stored
        self._ids: list[str] = []

    def put_pending(self, request_id: str, **fields: object) -> bool:
        """Record an acceptance."""
        if request_id not in self._ids:
            self._ids.append(request_id)
        return gated(self._world, "put_pending", lambda: self._stored.put_pending(request_id, **fields), bool)  # type: ignore[arg-type]

    def put_answer(self, answer: Answer, *, expires_at_s: float, accepted_as: str = "") -> bool:
        """Record an answer."""
        if answer.request_id not in self._ids:
            self._ids.append(answer.request_id)

        def run() -> bool:
            before = self._stored.get(answer.request_id)
            is_first = self._stored.put_answer(answer, expires_at_s=expires_at_s, accepted_as=accepted_as)
            after = self._stored.get(answer.request_id)
            self._world.check_written(before.answer if before else None, after.answer if after else None, answer.request_id)
            return is_first

        return gated(self._world, f"put_answer {label_of(answer)}", run, bool)

    def put_answers(self, answers: Sequence[Answer], *, expires_at_s: float, accepted_as: Sequence[str]) -> list[bool]:
        """Record answers; a worker holds one here."""
        return [self.put_answer(one, expires_at_s=expires_at_s, accepted_as=body) for one, body in zip(answers, accepted_as, strict=True)]

    def get(self, request_id: str) -> StoredResult | None:
        """Read."""
        return gated(self._world, "get", lambda: self._stored.get(request_id), _seen)

    def state(self) -> Hashable:
        """Return what is stored."""
        return tuple(sorted((request_id, _seen(self._stored.get(request_id))) for request_id in self._ids))


def _seen(stored: StoredResult | None) -> str:
    if stored is None:
        return ""
    return f"pending until {stored.deadline_at_s}" if stored.answer is None else label_of(stored.answer)


class GatedQueue(MemoryWorkQueue):
    """A queue that gives any one visible message, and repeats some."""

    def __init__(self, world: Protocol, *, visibility_s: float) -> None:
        super().__init__(now=world.clock, visibility_s=visibility_s)
        self._world = world
        self._lost: dict[int, tuple[bytes, int]] = {}

    def send(self, request: InferenceRequest) -> None:
        """Enqueue."""
        gated(self._world, f"send {request.request_id} {request.suspect}", lambda: super(GatedQueue, self).send(request), lambda _: "")

    def receive(self, *, max_messages: int, wait_s: float) -> list[ReceivedRequest]:  # noqa: ARG002 - one at a time, no polls
        """Wait for a message; the world says which."""
        key = int(str(self._world.pause(Pause(call="receive", outcomes=self._visible))))
        one = self._receive_one(key)
        if one is None:
            return []
        self._world.note("received", one.receipt, one.request.request_id, one.request.suspect, one.receive_count)
        return [one]

    def delete(self, receipts: Sequence[str]) -> None:
        """Acknowledge; what is deleted may still come back."""

        def run() -> None:
            keys = [key for receipt in receipts if (key := self._by_receipt.get(receipt, -1)) in self._envelopes]
            for key in keys:
                self._check_deletable(key)
                self._lost[key] = (self._envelopes[key].body, self._envelopes[key].receive_count)
            super(GatedQueue, self).delete(receipts)

        gated(self._world, f"delete {sorted(receipts)}", run, lambda _: "")

    def release(self, receipts: Sequence[str]) -> None:
        """Give back."""
        gated(self._world, f"release {sorted(receipts)}", lambda: super(GatedQueue, self).release(receipts), lambda _: "")

    def extend(self, receipts: Sequence[str], *, for_s: float) -> None:
        """Keep hidden."""

        def run() -> None:
            super(GatedQueue, self).extend(receipts, for_s=for_s)
            for envelope in self._envelopes.values():
                envelope.visible_at_s = round(envelope.visible_at_s, 6)  # the clock's steps: a sum of floats is not always one

        gated(self._world, f"extend {sorted(receipts)}", run, lambda _: "")

    def reject(self, received: ReceivedRequest, *, reason: str) -> None:
        """Bury."""
        gated(self._world, f"reject {received.receipt}", lambda: super(GatedQueue, self).reject(received, reason=reason), lambda _: "")

    def depth(self) -> int:
        """Return nothing of use: it changes no decision here."""
        return 0

    def _check_deletable(self, key: int) -> None:
        """Let a message go once its answer stands, its front no longer counts on it, or a copy replaces it."""
        request = decode(self._envelopes[key].body, InferenceRequest)
        stored = self._world.stored.get(request.request_id)
        answer_by_s = request.deadline_at_s if request.spill_at_s is None else request.spill_at_s
        others = [decode(e.body, InferenceRequest).request_id for k, e in self._envelopes.items() if k != key]
        is_given_up = answer_by_s is not None and self._world.clock.now_s + self._world.parts.least_latency_s > answer_by_s
        if (stored is None or stored.answer is None) and not is_given_up and request.request_id not in others:
            raise Violation(f"the last message of {request.request_id} was deleted before its answer was stored")

    def repeatable(self) -> list[int]:
        """Messages that are held or were deleted: the queue may hand them out again."""
        held = [key for key, envelope in self._envelopes.items() if envelope.visible_at_s > self._world.clock.now_s]
        return [*held, *self._lost]

    def repeat(self, key: int) -> None:
        """Make a message visible again."""
        if key in self._envelopes:
            self._envelopes[key].visible_at_s = self._world.clock.now_s
            return
        body, receive_count = self._lost.pop(key)
        self.send_raw(body)
        self._envelopes[max(self._envelopes)].receive_count = receive_count

    def expiries_s(self) -> Iterable[float]:
        """Instants at which messages become visible again."""
        return [round(envelope.visible_at_s, 6) for envelope in self._envelopes.values()]

    def buried(self) -> list[tuple[str, str]]:
        """Dead letters: request and reason."""
        return [(decode(letter.body, InferenceRequest).request_id, letter.reason) for letter in self.dead_letters]

    def left(self) -> int:
        """Messages that are not dealt with."""
        return len(self._envelopes)

    def state(self) -> Hashable:
        """Messages, who may hold them, and what could come back."""
        now_s = self._world.clock.now_s
        held = tuple(
            (
                key,
                envelope.body,
                envelope.receive_count,
                max(0.0, round(envelope.visible_at_s - now_s, 6)),
                tuple(sorted(envelope.receipts)),
            )
            for key, envelope in sorted(self._envelopes.items())
        )
        return (held, tuple(sorted(self._lost)) if self._world.redeliveries else (), tuple(self.buried()))


class GatedSpillover:
    """The spillover function: slow, failing, or failing after it has computed."""

    def __init__(self, world: Protocol) -> None:
        self._world = world

    def invoke(self, request: InferenceRequest) -> Answer:
        """Compute one request."""
        return gated(self._world, "invoke", lambda: computed(self._world, request, Tier.LAMBDA), label_of)

    def warm(self, *, model: str, environments: int) -> None:
        """Nothing to warm."""


class GatedRunner:
    """The model on a worker: takes as long as the world likes."""

    def __init__(self, world: Protocol) -> None:
        self._world = world

    def run(self, batch: Sequence[InferenceRequest]) -> list[Answer | Exception]:
        """Compute a batch."""
        self._world.pause(Pause(call="compute"))
        answers: list[Answer | Exception] = [computed(self._world, request, Tier.WORKER) for request in batch]
        self._world.note(*(label_of(answer) for answer in answers if isinstance(answer, Answer)))
        return answers


def computed(world: Protocol, request: InferenceRequest, tier: Tier) -> Answer:
    """Compute what tells whose request it was and which computation this is."""
    name = world.new_label(request.inputs[0].name, tier)
    return Answer(request_id=request.request_id, tier=tier, outputs=(Tensor(name=name, datatype="FP32", shape=(1,), data=b"\0" * 4),))
