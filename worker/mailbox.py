"""Answers out, messages acknowledged: the worker's dealings with the results table and the queue.

A message is deleted only once its answer stands in the results table (or nobody waits for it any more), so whatever
dies, the queue still has what is unanswered. A queue that does not answer costs a redelivery, never the worker.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from markserve.core.visibility import HeldMessage, Run, choose_extension
from markserve.errors import Transient
from markserve.messages import Answer
from markserve.payloads import offload_outputs
from markserve.ports import BlobStore, ReceivedRequest, ResultStore, WorkQueue
from markserve.telemetry import logger
from worker.tracing import Tracing

DELETE_BATCH = 10
PARCEL_ANSWERS = 25
"""DynamoDB takes as many statements in a call."""
PARCEL_BYTES = 128 * 1024
RESULT_RETENTION_S = 86_400.0
"""How long an answer can be fetched, or repeated for an idempotency key."""
STORE_RETRY_S = (0.1, 0.3, 1.0, 2.0, 4.0, 8.0)
"""Waits between attempts to store an answer: about 15 s, half of the queue's visibility timeout."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finished:
    """An answer on its way to the results table, and the message it answers."""

    received: ReceivedRequest
    answer: Answer
    is_suspect: bool = False
    dead_letter_reason: str | None = None


def parcels(finished: Iterable[Finished]) -> Iterator[list[Finished]]:
    """Divide answers into what is stored by one call; large ones go by themselves, since others would wait for them."""
    parcel: list[Finished] = []
    size_bytes = 0
    for one in finished:
        own_bytes = sum(len(tensor.data) for tensor in one.answer.outputs)
        if parcel and (len(parcel) == PARCEL_ANSWERS or size_bytes + own_bytes > PARCEL_BYTES):
            yield parcel
            parcel, size_bytes = [], 0
        parcel.append(one)
        size_bytes += own_bytes
    if parcel:
        yield parcel


class Mailbox:
    """Stores answers, and keeps, deletes, returns or buries messages. Safe to share between threads."""

    def __init__(
        self,
        *,
        queue: WorkQueue,
        results: ResultStore,
        blobs: BlobStore,
        clock: Callable[[], float],
        pause: Callable[[float], object],
        tracing: Tracing | None = None,
    ) -> None:
        self._tracing = tracing or Tracing(None, name="")
        self._queue = queue
        self._results = results
        self._blobs = blobs
        self._clock = clock
        self._pause = pause
        self._lock = threading.Lock()
        self._held: dict[str, HeldMessage] = {}
        self._deletable: list[str] = []

    def hold(self, received: Iterable[ReceivedRequest], *, now_s: float) -> None:
        """Keep messages from now on, until one of the methods below has dealt with them."""
        with self._lock:
            for one in received:
                request = one.request
                # A request with a deadline is answered by then, or dropped.
                finish_at_s = request.deadline_at_s if request.spill_at_s is None else request.spill_at_s
                self._held[one.receipt] = HeldMessage(
                    receipt=one.receipt, received_at_s=now_s, hidden_since_s=now_s, finish_at_s=finish_at_s
                )

    def expect(self, received: Iterable[ReceivedRequest], *, finish_at_s: float) -> None:
        """Note when messages should be dealt with."""
        with self._lock:
            for one in received:
                if one.receipt in self._held:
                    self._held[one.receipt] = replace(self._held[one.receipt], finish_at_s=finish_at_s)

    def keep_hidden(self, run: Run | None) -> None:
        """Extend the visibility timeout of messages that may outlast it; `run` is the batch that is being computed."""
        with self._lock:
            held = list(self._held.values())
        if held:
            self._attempt(lambda: self._extend(held, run), "visibility not extended yet")

    def _extend(self, held: list[HeldMessage], run: Run | None) -> None:
        now_s = self._clock()
        extension = choose_extension(held, run=run, now_s=now_s, visibility_timeout_s=self._queue.visibility_timeout_s())
        if not extension.receipts:
            return
        logger.info("visibility extended by %g s: %s", extension.for_s, extension.reason)
        self._queue.extend(extension.receipts, for_s=extension.for_s)
        with self._lock:
            for receipt in extension.receipts:
                if receipt in self._held:
                    self._held[receipt] = replace(self._held[receipt], hidden_since_s=now_s)

    def deliver(self, parcel: Sequence[Finished]) -> list[bool]:
        """Store answers and let go of their messages; False leaves a message to be redelivered."""
        outcomes = self._store([one.answer for one in parcel], [one.received.request.body_sha256 for one in parcel])
        for finished, is_first in zip(parcel, outcomes, strict=True):
            self._settle(finished, is_first)
        with self._lock:
            count = len(self._deletable) // DELETE_BATCH * DELETE_BATCH
            due, self._deletable = self._deletable[:count], self._deletable[count:]
        self._delete(due)
        return [is_first is not None for is_first in outcomes]

    def _settle(self, finished: Finished, is_first: bool | None) -> None:
        if is_first is None:
            self._let_go([finished.received])
            return
        self._tracing.note(finished.received.request, finished.answer)
        reason = finished.dead_letter_reason
        if reason is None or not is_first:
            # Somebody who was slow, or died after answering, has answered what looked like poison: it is none.
            self.forget([finished.received])
        else:
            self._let_go([finished.received])
            self._attempt(lambda: self._queue.reject(finished.received, reason=reason), "not moved to the dead-letter queue yet")

    def is_answered(self, request_id: str) -> bool:
        """Whether the request has its answer already."""
        stored = self._results.get(request_id)
        return stored is not None and stored.answer is not None

    def forget(self, received: Iterable[ReceivedRequest]) -> None:
        """Mark messages for deletion, without a call: `deliver` deletes them ten at a time, `flush` the rest."""
        receipts = self._let_go(received)
        with self._lock:
            self._deletable += receipts

    def flush(self) -> None:
        """Delete every message that is marked, and send the traces."""
        self._tracing.flush()
        with self._lock:
            due, self._deletable = self._deletable, []
        self._delete(due)

    def give_back(self, received: ReceivedRequest) -> None:
        """Return a message unprocessed, in a way that never makes it look like the cause of a worker's death."""
        self._let_go([received])
        if received.receive_count == 1 and not received.request.suspect:
            self._attempt(lambda: self._queue.release([received.receipt]), "not released before its visibility timeout")
        else:
            self.send_again(received)

    def send_again(self, received: ReceivedRequest) -> None:
        """Replace a message by a copy that runs alone and whose receive count starts anew."""
        self._let_go([received])
        # Sent before the delete: twice is harmless, never is not.
        if self._attempt(lambda: self._queue.send(received.request.as_suspect()), "not sent again before its visibility timeout"):
            self.forget([received])

    def _let_go(self, received: Iterable[ReceivedRequest]) -> list[str]:
        receipts = [one.receipt for one in received]
        with self._lock:
            for receipt in receipts:
                self._held.pop(receipt, None)
        return receipts

    def _store(self, answers: Sequence[Answer], accepted_as: Sequence[str]) -> list[bool | None]:
        """For each answer, whether it is now the answer; None when that could not be stored, or found out."""
        outcomes: list[bool | None] = [None] * len(answers)
        left = dict(enumerate(answers))
        for wait_s in (*STORE_RETRY_S, None):
            for place, outcome in self._try_to_store(left, accepted_as).items():
                if isinstance(outcome, Transient):
                    logger.warning("%s: answer not stored: %s", left[place].request_id, outcome)
                    continue
                if not outcome:
                    logger.info("%s: not kept: answered before by another, or accepted too long ago", left[place].request_id)
                outcomes[place] = outcome
                del left[place]
            if not left or wait_s is None:
                break
            self._pause(wait_s)
        return outcomes

    def _try_to_store(self, answers: dict[int, Answer], accepted_as: Sequence[str]) -> dict[int, bool | Transient]:
        outcomes: dict[int, bool | Transient] = {}
        for place, answer in answers.items():
            try:
                answers[place] = offload_outputs(answer, self._blobs)
            except Transient as error:
                outcomes[place] = error
        ready = {place: answer for place, answer in answers.items() if place not in outcomes}
        try:
            stored = self._results.put_answers(
                list(ready.values()), expires_at_s=self._clock() + RESULT_RETENTION_S, accepted_as=[accepted_as[place] for place in ready]
            )
        except Transient as error:
            return outcomes | dict.fromkeys(ready, error)
        return outcomes | dict(zip(ready, stored, strict=True))

    def _delete(self, receipts: list[str]) -> None:
        if receipts and not self._attempt(lambda: self._queue.delete(receipts), f"{len(receipts)} messages not deleted yet"):
            with self._lock:
                self._deletable += receipts

    @staticmethod
    def _attempt(call: Callable[[], None], otherwise: str) -> bool:
        try:
            call()
        except Transient as error:
            logger.warning("%s: %s", otherwise, error)
            return False
        return True
