"""Queues, events and other one-way ports in memory.

`MemoryWorkQueue` behaves like SQS where callers can tell: at-least-once, a visibility timeout, a receive count, a
dead-letter queue after `max_receive_count`.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from markserve.adapters.memory_stores import NO_FAULTS, fail_if_told
from markserve.core.tunables import Tunables, apply_overrides
from markserve.errors import InvalidRequest, PayloadTooLarge
from markserve.messages import InferenceRequest, Message, MetricsBatch, decode, encode
from markserve.ports import ReceivedRequest
from markserve.refusals import log_refusal


@dataclass
class _Envelope:
    body: bytes
    visible_at_s: float
    receive_count: int = 0
    receipts: set[str] = field(default_factory=set)


@dataclass(frozen=True, kw_only=True, slots=True)
class DeadLetter:
    """A message that was given up, and why."""

    body: bytes
    reason: str


class MemoryWorkQueue:
    """`WorkQueue` in memory; `now` is the clock its visibility timeouts run on."""

    def __init__(
        self,
        *,
        now: Callable[[], float] = time.time,
        visibility_s: float = 30.0,
        max_receive_count: int = 5,
        max_body_bytes: int = 1024 * 1024,
        faults: Mapping[str, Exception] = NO_FAULTS,
    ) -> None:
        self._now = now
        self._visibility_s = visibility_s
        self._max_receive_count = max_receive_count
        self._max_body_bytes = max_body_bytes
        self._faults = faults
        self._envelopes: dict[int, _Envelope] = {}
        self._by_receipt: dict[str, int] = {}
        self._sequence = itertools.count()
        self._changed = threading.Condition()
        self.dead_letters: list[DeadLetter] = []
        self.calls = 0
        """Calls that SQS would have billed."""

    def send(self, request: InferenceRequest) -> None:
        fail_if_told(self._faults, "send")
        body = encode(request)
        if len(body) > self._max_body_bytes:
            raise PayloadTooLarge(f"request of {len(body)} bytes exceeds the queue's {self._max_body_bytes}", field="inputs")
        self.send_raw(body)

    def send_raw(self, body: bytes) -> None:
        """Put any bytes on the queue, as a faulty or newer producer might."""
        with self._changed:
            self.calls += 1
            self._envelopes[next(self._sequence)] = _Envelope(body=body, visible_at_s=self._now())
            self._changed.notify_all()

    def receive(self, *, max_messages: int, wait_s: float) -> list[ReceivedRequest]:
        fail_if_told(self._faults, "receive")
        with self._changed:
            self.calls += 1
            if not self._visible():
                self._changed.wait_for(self._visible, timeout=wait_s)
            received = (self._receive_one(key) for key in self._visible()[: min(max_messages, 10)])
            return [one for one in received if one is not None]

    def _visible(self) -> list[int]:
        now_s = self._now()
        return [key for key, envelope in self._envelopes.items() if envelope.visible_at_s <= now_s]

    def _receive_one(self, key: int) -> ReceivedRequest | None:
        envelope = self._envelopes[key]
        envelope.receive_count += 1
        if envelope.receive_count > self._max_receive_count:
            self._bury(key, f"received {self._max_receive_count} times without an answer")
            return None
        try:
            request = decode(envelope.body, InferenceRequest)
        except InvalidRequest as error:
            log_refusal("work message", error, message_id=str(key))
            self._bury(key, str(error))
            return None
        receipt = f"{key}.{envelope.receive_count}"
        envelope.receipts.add(receipt)
        envelope.visible_at_s = self._now() + self._visibility_s
        self._by_receipt[receipt] = key
        return ReceivedRequest(receipt=receipt, request=request, receive_count=envelope.receive_count)

    def _bury(self, key: int, reason: str) -> None:
        envelope = self._envelopes.pop(key)
        for receipt in envelope.receipts:
            self._by_receipt.pop(receipt, None)
        self.dead_letters.append(DeadLetter(body=envelope.body, reason=reason))

    def delete(self, receipts: Sequence[str]) -> None:
        fail_if_told(self._faults, "delete")
        with self._changed:
            self.calls += -(-len(receipts) // 10)
            for receipt in receipts:
                key = self._by_receipt.pop(receipt, None)
                if key is not None:
                    self._envelopes.pop(key, None)

    def release(self, receipts: Sequence[str]) -> None:
        with self._changed:
            self.calls += -(-len(receipts) // 10)
            for receipt in receipts:
                key = self._by_receipt.get(receipt)
                if key is not None and key in self._envelopes:
                    self._envelopes[key].visible_at_s = self._now()
            self._changed.notify_all()

    def extend(self, receipts: Sequence[str], *, for_s: float) -> None:
        fail_if_told(self._faults, "extend")
        with self._changed:
            self.calls += -(-len(receipts) // 10)
            now_s = self._now()
            for receipt in receipts:
                envelope = self._envelopes.get(self._by_receipt.get(receipt, -1))
                # Only the latest receipt counts: the message may be somebody else's by now.
                if envelope is not None and envelope.visible_at_s > now_s and receipt.endswith(f".{envelope.receive_count}"):
                    envelope.visible_at_s = now_s + for_s

    def visibility_timeout_s(self) -> float:
        return self._visibility_s

    def reject(self, received: ReceivedRequest, *, reason: str) -> None:
        with self._changed:
            self.calls += 2
            key = self._by_receipt.get(received.receipt)
            if key is not None and key in self._envelopes:
                self._bury(key, reason)
            else:
                self.dead_letters.append(DeadLetter(body=encode(received.request), reason=reason))

    def depth(self) -> int:
        fail_if_told(self._faults, "depth")
        with self._changed:
            self.calls += 1
            return len(self._visible())


class MemoryMetricsSink:
    """`MetricsSink` that keeps what it is sent."""

    def __init__(self, *, faults: Mapping[str, Exception] = NO_FAULTS) -> None:
        self._faults = faults
        self.batches: list[MetricsBatch] = []

    def send(self, batch: MetricsBatch) -> None:
        fail_if_told(self._faults, "send")
        self.batches.append(batch)


class MemoryEventPublisher:
    """`EventPublisher` that keeps what it is told."""

    def __init__(self, *, faults: Mapping[str, Exception] = NO_FAULTS) -> None:
        self._faults = faults
        self.events: list[Message] = []

    def publish(self, event: Message) -> None:
        fail_if_told(self._faults, "publish")
        self.events.append(event)


class MemoryParameterSource:
    """`ParameterSource` with fixed parameters; assign `tunables` or `by_model` to change them."""

    def __init__(self, tunables: Tunables | None = None, by_model: Mapping[str, Tunables] | None = None) -> None:
        self.tunables = tunables or Tunables()
        self.by_model = dict(by_model or {})

    def get(self, model: str | None = None) -> Tunables:
        return self.by_model.get(model or "", self.tunables)


class MemoryParameterWriter:
    """`ParameterWriter` into a `MemoryParameterSource`, whose `get` shows the value at once."""

    def __init__(self, source: MemoryParameterSource) -> None:
        self._source = source

    def put(self, name: str, text: str, *, model: str | None = None) -> None:
        source = self._source
        if model is None:
            source.tunables = apply_overrides(source.tunables, {name: text})[0]
        else:
            source.by_model[model] = apply_overrides(source.get(model), {name: text})[0]


class MemoryInterruptionNotice:
    """`InterruptionNotice` that is silent until `at_s` is set."""

    def __init__(self, at_s: float | None = None) -> None:
        self.at_s = at_s

    def pending(self) -> float | None:
        return self.at_s
