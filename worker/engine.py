"""The worker's steps: receive, batch, run, reply, drain. Who calls them, and in which thread, is `main`'s business.

Shared state is guarded by `changed`; no port is called while holding it.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence

from markserve.core.batching import Batch
from markserve.core.tunables import Tunables
from markserve.core.types import Tier, WorkerStats
from markserve.core.visibility import Run
from markserve.errors import InferenceFailed, InvalidRequest, Transient
from markserve.messages import Answer, AnswerError
from markserve.ports import ModelRunner, WorkQueue
from markserve.telemetry import logger
from worker.intake import Intake, Work
from worker.mailbox import Finished, Mailbox
from worker.pacing import MESSAGES_PER_RECEIVE, Pacing
from worker.polling import Polling

RELEASE_MARGIN_S = 2.0
"""Before an interruption: time to release messages, report and exit."""


class Engine:
    """One worker's state and steps.

    Parameters
    ----------
    runner_for
        Gives the runner of a model version, loading it on first use. Raises `MarkserveError` when it cannot.
    receivers
        Threads that will call `receive` and end with `receiver_ended`; draining waits for them.
    clock
        Epoch time.
    """

    def __init__(
        self,
        *,
        instance_id: str,
        queue: WorkQueue,
        mailbox: Mailbox,
        intake: Intake,
        pacing: Pacing[Work],
        runner_for: Callable[[str], ModelRunner],
        receive_wait_s: float,
        clock: Callable[[], float],
        receivers: int = 0,
    ) -> None:
        self.changed = threading.Condition()
        self._instance_id = instance_id
        self._queue = queue
        self._mailbox = mailbox
        self._intake = intake
        self._pacing = pacing
        self._runner_for = runner_for
        self._receive_wait_s = receive_wait_s
        self._clock = clock
        self._receivers = receivers
        self._asked = 0  # messages that receive calls under way may bring
        self._polling = Polling(pacing, now_s=clock())
        self._run: Run | None = None  # the batch that is being computed
        self._held_rows = 0
        self._suspect_held = False
        self._queue_depth = 0
        self._running = 0
        self._unreplied = 0
        self._closed: deque[Batch[Work]] = deque()  # what draining has closed and not yet run
        self._completed = self._failed = self._dropped = self._batches = 0
        self.drain_reason: str | None = None
        self._finish_by_s: float | None = None
        self._abandoned = False

    # --- receiving --------------------------------------------------------------------------------------------

    def wait_for_room(self) -> bool:
        """Block while a receive call would bring nothing that can be used yet; False once nothing more is to be received."""
        with self.changed:
            if self._room() + self._asked < 1:
                self._polling.hold_off()
            while self._is_accepting():
                pause_s = self._polling.pause_s(self._run, room=self._room(), now_s=self._clock())
                if pause_s <= 0:
                    return True
                self.changed.wait(min(1.0, pause_s))
            return False

    def receive(self) -> list[Finished]:
        """Poll the queue once, hold what came, and return answers for what cannot be run."""
        with self.changed:
            wanted = min(MESSAGES_PER_RECEIVE, self._room()) if self._is_accepting() else 0
            if wanted < 1:
                return []
            self._asked += wanted
            self._polling.begin()
            run = self._run
        asked_at_s = self._clock()
        try:
            received = self._queue.receive(max_messages=wanted, wait_s=self._receive_wait_s)
            now_s = self._clock()
            self._mailbox.hold(received, now_s=now_s)
            with self.changed:
                requests = [one.request for one in received]
                is_full = len(received) == wanted
                if received:
                    self._pacing.observe_round_trip(max(0.0, now_s - asked_at_s))
                self._pacing.observe_receipt(requests, now_s=now_s, queue_was_empty=self._polling.queue_was_empty, is_full=is_full)
                self._polling.came_back(is_full=is_full, begun_during=run, now_s=now_s)
            refused: list[Finished] = []
            for one in received:
                judged = self._intake.judge(one, now_s)
                if isinstance(judged, Work):
                    self._hold(judged)
                elif judged is not None:
                    refused.append(judged)
            with self.changed:
                self._unreplied += len(refused)
            return refused
        finally:
            with self.changed:
                self._asked -= wanted
                self._polling.end()
                self.changed.notify_all()

    def receiver_ended(self) -> None:
        """Say that one receiver will not call `receive` again."""
        with self.changed:
            self._receivers -= 1
            self.changed.notify_all()

    def _is_accepting(self) -> bool:
        return self.drain_reason is None and not self._abandoned

    def _room(self) -> int:
        if self._suspect_held:
            return 0  # should it kill this worker, as little as possible dies with it
        hold = self._pacing.hold_limit
        # The second bound holds receiving back when answers cannot be stored as fast as they are computed.
        return min(hold - self._held_rows, 3 * hold - self._in_flight()) - self._asked

    def _hold(self, work: Work) -> None:
        with self.changed:
            second_suspect = work.is_suspect and self._suspect_held
            if not second_suspect:
                request = work.request
                add = self._pacing.accumulator.isolate if work.is_suspect else self._pacing.accumulator.add
                add(
                    work,
                    size=work.rows,
                    answer_by_s=request.deadline_at_s if request.spill_at_s is None else request.spill_at_s,
                    reply_overhead_s=request.reply_overhead_s,
                    now_s=work.received_at_s,
                )
                self._held_rows += work.rows
                self._suspect_held |= work.is_suspect
                self.changed.notify_all()
        if second_suspect:
            # Were both held and one kills this worker, the other would look as guilty.
            self._mailbox.send_again(work.received)

    # --- running ----------------------------------------------------------------------------------------------

    def wait_for_batch(self) -> Batch[Work] | None:
        """Block until a batch is to be run; None once there will be no more."""
        while not self._abandoned:
            batch = self.next_batch()
            if batch is not None:
                return batch
            with self.changed:
                if self._has_run_all():
                    return None
                if self.drain_reason is not None and len(self._pacing.accumulator):
                    continue  # it came, or the drain began, since the look above
                now_s = self._clock()
                due_s = self._pacing.accumulator.due_at_s(
                    now_s=now_s, runner_idle=True, arrival_rate_rps=self._pacing.arrival_rate_rps(now_s)
                )
                # At most a second, so that a clock that was set back cannot put the runner to sleep.
                self.changed.wait(1.0 if due_s is None else min(1.0, max(0.0, due_s - now_s)))
        return None

    def next_batch(self) -> Batch[Work] | None:
        """Close a batch if one is due now; drops what can no longer be answered in time."""
        with self.changed:
            now_s = self._clock()
            accumulator = self._pacing.accumulator
            hopeless = accumulator.hopeless(now_s)
            if self.drain_reason is None:
                batch = accumulator.take(now_s=now_s, runner_idle=True, arrival_rate_rps=self._pacing.arrival_rate_rps(now_s))
                hopeless += accumulator.hopeless(now_s)
                unfinishable: list[Work] = []
            else:
                self._closed.extend(accumulator.drain())
                batch, unfinishable = self._next_closed(now_s)
            self._let_go([*hopeless, *unfinishable])
            if batch is not None:
                self._held_rows -= batch.size
                self._running = len(batch.items)
                estimate_s = self._pacing.accumulator.estimate.batch_latency_s(batch.size)
                self._run = Run(started_at_s=now_s, ends_at_s=now_s + estimate_s)
            self._dropped += len(hopeless)
            self.changed.notify_all()
        self._mailbox.forget(work.received for work in hopeless)
        for work in unfinishable:
            self._mailbox.give_back(work.received)
        if batch is not None and self._run is not None:
            self._mailbox.expect((work.received for work in batch.items), finish_at_s=self._run.ends_at_s)
        return batch

    def run(self, batch: Batch[Work]) -> list[Finished]:
        """Compute a batch and return its answers."""
        started_s = self._clock()
        by_version: dict[str, list[Work]] = {}
        for work in batch.items:
            by_version.setdefault(work.request.model_version, []).append(work)
        outcomes: list[tuple[Work, Answer | Exception]] = []
        for version, works in by_version.items():
            results = self._runner_for(version).run([work.request for work in works])
            outcomes += zip(works, results, strict=True)
        finished_s = self._clock()
        is_typical = len(by_version) == 1 and not any(isinstance(outcome, Exception) for _, outcome in outcomes)
        with self.changed:
            if self._run is not None:
                self._pacing.observe_end(self._run, now_s=finished_s)
                self._run = None
            if is_typical:
                self._pacing.observe_batch(rows=batch.size, compute_s=finished_s - started_s)
            self._batches += 1
            self._running = 0
            self._unreplied += len(outcomes)
            self.changed.notify_all()
        # One line per batch, with every request in it: whoever has an id finds where it was computed, with whom, and why then.
        logger.info(
            "batch",
            extra={
                "request_ids": [work.request.request_id for work in batch.items],
                "rows": batch.size,
                "compute_s": round(finished_s - started_s, 4),
                "closed": batch.close_reason,
            },
        )
        return [self._finish(work, outcome, batch.size, started_s, finished_s) for work, outcome in outcomes]

    def _next_closed(self, now_s: float) -> tuple[Batch[Work] | None, list[Work]]:
        """Next batch of a drain, and what cannot be finished before the instance ends."""
        unfinishable: list[Work] = []
        while self._closed:
            batch = self._closed.popleft()
            ends_s = now_s + self._pacing.accumulator.estimate.batch_latency_s(batch.size) + RELEASE_MARGIN_S
            if self._finish_by_s is None or ends_s <= self._finish_by_s:
                return batch, unfinishable
            unfinishable += batch.items
        return None, unfinishable

    def _let_go(self, works: Iterable[Work]) -> None:
        for work in works:
            self._held_rows -= work.rows
            if work.is_suspect:
                self._suspect_held = False

    def _finish(self, work: Work, outcome: Answer | Exception, batch_size: int, started_s: float, finished_s: float) -> Finished:
        request = work.request
        answer = Answer(
            request_id=request.request_id,
            tier=Tier.WORKER,
            outputs=outcome.outputs if isinstance(outcome, Answer) else (),
            error=_error(outcome) if isinstance(outcome, Exception) else None,
            instance_id=self._instance_id,
            batch_size=batch_size,
            queued_s=max(0.0, work.received_at_s - request.arrival_at_s),
            batch_wait_s=started_s - work.received_at_s,
            compute_s=finished_s - started_s,
            finished_at_s=finished_s,
            model_version=request.model_version,
        )
        return Finished(received=work.received, answer=answer, is_suspect=work.is_suspect)

    # --- replying and reporting -------------------------------------------------------------------------------

    def reply(self, parcel: Sequence[Finished]) -> None:
        """Deliver answers; the queue redelivers the messages of those that could not be."""
        delivered = self._mailbox.deliver(parcel)
        with self.changed:
            self._unreplied -= len(parcel)
            for finished, is_delivered in zip(parcel, delivered, strict=True):
                self._completed += is_delivered and finished.answer.error is None
                self._failed += is_delivered and finished.answer.error is not None
                if finished.is_suspect:
                    self._suspect_held = False
            self.changed.notify_all()

    def keep_hidden(self) -> None:
        """See to it that no message becomes visible to others while it is held."""
        with self.changed:
            run = self._run
        self._mailbox.keep_hidden(run)

    def tidy(self) -> None:
        """Once in a while: delete what is left over, and look how much waits in the queue."""
        self._mailbox.flush()
        with self.changed:
            known_empty = self._polling.queue_was_empty
        try:
            # A poll that came back short has just shown the queue empty: asking would cost a call and say the same.
            depth = 0 if known_empty else self._queue.depth()
        except Transient as error:
            logger.warning("queue depth unknown, reporting the last one: %s", error)
        else:
            with self.changed:
                self._queue_depth = depth

    def follow(self, tunables: Tunables) -> None:
        """Adopt the operator's parameters."""
        with self.changed:
            self._pacing.follow(tunables)

    def stats(self) -> WorkerStats:
        """Figures of this worker since it started."""
        with self.changed:
            limits = self._pacing.limits
            return WorkerStats(
                service_rate_rps=limits.service_rate_rps if self._is_accepting() else 0.0,
                batch_latency_s=limits.batch_latency_s,
                max_batch_size=limits.max_batch_size,
                queue_depth=self._queue_depth,
                transport_s=self._pacing.transport_s,
                in_flight=self._in_flight(),
                completed=self._completed,
                dropped=self._dropped,
                failed=self._failed,
                batches=self._batches,
                sqs_calls=self._queue.calls,
            )

    def _in_flight(self) -> int:
        return len(self._pacing.accumulator) + sum(len(batch.items) for batch in self._closed) + self._running + self._unreplied

    # --- draining ---------------------------------------------------------------------------------------------

    def drain(self, reason: str, *, finish_by_s: float | None = None) -> None:
        """Receive no more and finish what is held, until `finish_by_s` if the instance ends then. Calls no port."""
        with self.changed:
            if self.drain_reason is None:
                logger.info("draining: %s", reason)
                self.drain_reason = reason
            if finish_by_s is not None:
                self._finish_by_s = min(finish_by_s, self._finish_by_s or finish_by_s)
            self.changed.notify_all()

    def abandon(self) -> None:
        """Make every waiting caller return: a thread has failed and the process is about to end."""
        with self.changed:
            self._abandoned = True
            self.changed.notify_all()

    def wait_until_drained(self, timeout_s: float) -> bool:
        """Wait at most `timeout_s`; True once everything is answered and nothing more will come."""
        with self.changed:
            return self.changed.wait_for(lambda: self._abandoned or (self._has_run_all() and not self._unreplied), timeout_s)

    def _has_run_all(self) -> bool:
        is_idle = not self._running and not self._closed and not len(self._pacing.accumulator)
        return self.drain_reason is not None and self._receivers <= 0 and not self._asked and is_idle


def _error(outcome: Exception) -> AnswerError:
    if isinstance(outcome, InvalidRequest):
        return AnswerError(status=outcome.status, message=str(outcome))
    if isinstance(outcome, InferenceFailed):
        return AnswerError(status=500, message=str(outcome))
    logger.error("inference failed", exc_info=outcome)
    return AnswerError(status=500, message="inference failed")
