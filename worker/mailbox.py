"""Answers out, messages acknowledged: the worker's dealings with the results table and the queue.

A message is deleted only once its answer stands in the results table (or nobody waits for it any more), so whatever
dies, the queue still has what is unanswered. A queue that does not answer costs a redelivery, never the worker.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from markserve.errors import Transient
from markserve.messages import Answer
from markserve.payloads import offload_outputs
from markserve.ports import BlobStore, ReceivedRequest, ResultStore, WorkQueue
from markserve.telemetry import logger
from worker.tracing import Tracing

DELETE_BATCH = 10
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


class Mailbox:
    """Stores answers, and deletes, returns or buries messages. Safe to share between threads."""

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
        self._deletable: list[str] = []

    def deliver(self, finished: Finished) -> bool:
        """Store an answer and let go of its message; False leaves the message to be redelivered."""
        is_first = self._store(finished.answer, accepted_as=finished.received.request.body_sha256)
        if is_first is None:
            return False
        self._tracing.note(finished.received.request, finished.answer)
        reason = finished.dead_letter_reason
        if reason is None or not is_first:
            # Somebody who was slow, or died after answering, has answered what looked like poison: it is none.
            self.forget([finished.received])
        else:
            self._attempt(lambda: self._queue.reject(finished.received, reason=reason), "not moved to the dead-letter queue yet")
        with self._lock:
            count = len(self._deletable) // DELETE_BATCH * DELETE_BATCH
            due, self._deletable = self._deletable[:count], self._deletable[count:]
        self._delete(due)
        return True

    def is_answered(self, request_id: str) -> bool:
        """Whether the request has its answer already."""
        stored = self._results.get(request_id)
        return stored is not None and stored.answer is not None

    def forget(self, received: Iterable[ReceivedRequest]) -> None:
        """Mark messages for deletion, without a call: `deliver` deletes them ten at a time, `flush` the rest."""
        with self._lock:
            self._deletable += [one.receipt for one in received]

    def flush(self) -> None:
        """Delete every message that is marked, and send the traces."""
        self._tracing.flush()
        with self._lock:
            due, self._deletable = self._deletable, []
        self._delete(due)

    def give_back(self, received: ReceivedRequest) -> None:
        """Return a message unprocessed, in a way that never makes it look like the cause of a worker's death."""
        if received.receive_count == 1 and not received.request.suspect:
            self._attempt(lambda: self._queue.release([received.receipt]), "not released before its visibility timeout")
        else:
            self.send_again(received)

    def send_again(self, received: ReceivedRequest) -> None:
        """Replace a message by a copy that runs alone and whose receive count starts anew."""
        # Sent before the delete: twice is harmless, never is not.
        if self._attempt(lambda: self._queue.send(received.request.as_suspect()), "not sent again before its visibility timeout"):
            self.forget([received])

    def _store(self, answer: Answer, *, accepted_as: str) -> bool | None:
        """Whether this is now the answer; None when that could not be stored, or found out."""
        for wait_s in (*STORE_RETRY_S, None):
            try:
                answer = offload_outputs(answer, self._blobs)
                expires_at_s = self._clock() + RESULT_RETENTION_S
                is_first = self._results.put_answer(answer, expires_at_s=expires_at_s, accepted_as=accepted_as)
                if not is_first:
                    logger.info("%s: not kept: answered before by another, or accepted too long ago", answer.request_id)
            except Transient as error:
                logger.warning("%s: answer not stored: %s", answer.request_id, error)
                if wait_s is not None:
                    self._pause(wait_s)
            else:
                return is_first
        return None

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
