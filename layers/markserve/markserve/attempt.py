"""One synchronous request in the front's hands: wait for a worker, spill in time, return the one answer.

The answer is what the results table holds: whoever writes it first, a worker or this front with what the spillover
function computed, has answered; the other one's work is dropped.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from markserve.core.spillover import Admission, AdmissionAction, poll_delays_s
from markserve.core.types import Tier
from markserve.errors import ConfigurationError, MarkserveError, Overloaded, Throttled, Transient
from markserve.front_view import Measured
from markserve.messages import Answer, AnswerError, InferenceRequest
from markserve.ports import ResultStore, SpilloverInvoker, WorkQueue
from markserve.reporting import MetricsBuffer

GRACE_S = 1.0
"""Waiting goes on this long after the deadline: a late answer still beats none, and one batch may be finishing."""
SPILL_RETRY_S = 0.1
"""Pause between two attempts at a spillover function that is at its limit."""
RECORD_RETRY_S = 0.05
"""Pause between two attempts to record an answer: a few times a throttled write's own time."""
POLL_SHARE = 0.02
POLL_MIN_S = 0.01
"""Shortest interval between two polls: a share of the objective, at least two reads' worth."""
SYNC_TTL_S = 3600.0
"""A synchronous answer is read once, within seconds; an hour leaves time to look into a complaint."""
KEPT_TTL_S = 24 * 3600.0
"""Results that may be asked for later: async ones, and those under an idempotency key."""
RETRY_AFTER_S = 1.0
"""Shortest wait to suggest to a client; HTTP counts it in whole seconds."""


@dataclass(kw_only=True, slots=True)
class Attempt:
    """State of one request from admission to its answer."""

    request: InferenceRequest
    deadline_at_s: float
    may_retry: bool
    """Whether the client can repeat it under the same key: a failure of ours must then not become the answer."""
    queue: WorkQueue
    results: ResultStore
    spillover: SpilloverInvoker
    metrics: MetricsBuffer
    measured: Measured
    now_s: Callable[[], float]
    sleep: Callable[[float], None]
    handed_over_at_s: float | None = None
    """When somebody else got the work: enqueued, or invoked."""

    def run(self, admission: Admission) -> tuple[Answer, str]:
        """Return the one answer, an error if need be, and the reason it came from where it came.

        Raises
        ------
        Overloaded
            If the queue does not take the request and it cannot be spilled: nothing was accepted.
        """
        if admission.action is AdmissionAction.SPILL:
            return self._spill_until_grace_ends(admission.reason)
        spill_at_s = admission.spill_at_s
        refusal = self._send()
        if refusal is not None:
            if spill_at_s is None:
                raise Overloaded(f"not accepted: {refusal}", retry_after_s=RETRY_AFTER_S, status=503)
            return self._spill_until_grace_ends(f"spilled: the work queue did not take it: {refusal}")
        first_s = self.measured.first_look_s(admission.predicted_wait_s)
        answer = self._wait(first_s=first_s, until_s=self.deadline_at_s if spill_at_s is None else spill_at_s)
        if answer is not None:
            return answer, admission.reason
        if spill_at_s is not None:
            return self._spill_until_grace_ends(
                f"spilled: no worker had answered {self.deadline_at_s - spill_at_s:.3f} s before the deadline"
            )
        answer = self._wait(first_s=0.0, until_s=self.deadline_at_s + GRACE_S)
        return (answer, "answered late by a worker") if answer is not None else self._give_up(None)

    def timings_s(self, answer: Answer, *, now_s: float) -> tuple[tuple[str, float], ...]:
        """Break the time from arrival to `now_s` down by where it went."""
        front_s = (self.handed_over_at_s or now_s) - self.request.arrival_at_s
        if answer.error is not None and not answer.compute_s:
            return (("front", front_s),)
        return (
            ("front", front_s),
            ("queue", max(0.0, answer.queued_s - front_s)),
            ("batch", answer.batch_wait_s),
            ("compute", answer.compute_s),
            ("reply", max(0.0, now_s - answer.finished_at_s)),
        )

    def _send(self) -> Transient | None:
        try:
            self.queue.send(self.request)
        except Transient as error:
            return error
        self.handed_over_at_s = self.now_s()
        return None

    def _wait(self, *, first_s: float, until_s: float) -> Answer | None:
        """Poll until the answer is there or `until_s` has come; the last poll is exactly then."""
        target_s = self.now_s()
        missed_at_s: float | None = None
        shortest_s = max(POLL_MIN_S, POLL_SHARE * (self.deadline_at_s - self.request.arrival_at_s))
        for delay_s in poll_delays_s(first_s=first_s, total_s=until_s - target_s, shortest_s=shortest_s):
            # Against fixed instants: reads take time too, and must not push the last poll past `until_s`.
            target_s += delay_s
            self.metrics.report_if_due(now_s=self.now_s(), slack_s=target_s - self.now_s())
            self.sleep(max(0.0, target_s - self.now_s()))
            asked_at_s = self.now_s()
            answer = self._read()
            if answer is not None:
                self._learn(answer, asked_at_s=asked_at_s, missed_at_s=missed_at_s)
                return answer
            missed_at_s = asked_at_s
        return None

    def _read(self) -> Answer | None:
        try:
            stored = self.results.get(self.request.request_id)
        except Transient:
            return None  # as good as not there yet: the schedule asks again, and the deadline holds
        return None if stored is None else stored.answer

    def _learn(self, answer: Answer, *, asked_at_s: float, missed_at_s: float | None) -> None:
        if answer.tier is not Tier.WORKER or answer.error is not None or self.handed_over_at_s is None:
            return
        # Time spent between polls is the front's own choice; counting it would make it poll later and later.
        unseen_s = 0.0 if missed_at_s is None else max(0.0, missed_at_s - answer.finished_at_s)
        self.measured.replied(self.now_s() - asked_at_s + unseen_s)
        self.measured.completed(max(0.0, answer.finished_at_s - self.handed_over_at_s))

    def _spill_until_grace_ends(self, reason: str) -> tuple[Answer, str]:
        while True:
            try:
                return self._spill(), reason
            # A misconfigured function is no reason to drop what a worker may be computing.
            except (Transient, ConfigurationError) as error:
                failure = error
            end_at_s = self.deadline_at_s + GRACE_S
            answer = self._wait(first_s=SPILL_RETRY_S, until_s=min(self.now_s() + SPILL_RETRY_S, end_at_s))
            if answer is not None:
                return answer, f"answered late by a worker; not spilled: {failure}"
            if self.now_s() >= end_at_s:
                return self._give_up(failure)

    def _spill(self) -> Answer:
        started_at_s = self.now_s()
        self.metrics.report_if_due(now_s=started_at_s, slack_s=self.deadline_at_s - started_at_s - self.measured.spill_s.value)
        if self.handed_over_at_s is None:
            self.handed_over_at_s = self.now_s()
        started_at_s = self.now_s()
        answer = self.spillover.invoke(self.request)
        if not answer.cold_start:
            self.measured.spilled(self.now_s() - started_at_s)
        return self._claim(answer)

    def _give_up(self, failure: MarkserveError | None) -> tuple[Answer, str]:
        waited_s = self.now_s() - self.request.arrival_at_s
        if failure is None:
            error = AnswerError(status=504, message=f"no answer within {waited_s:.3f} s, and spill-over is off")
        elif isinstance(failure, Throttled):
            error = AnswerError(status=503, message=f"no answer within {waited_s:.3f} s: workers and spill-over are at their limits")
        else:
            error = AnswerError(status=503, message=f"no answer within {waited_s:.3f} s: workers were late and spill-over failed")
        tier = Tier.WORKER if failure is None else Tier.LAMBDA
        answer = Answer(request_id=self.request.request_id, tier=tier, error=error, finished_at_s=self.now_s())
        reason = f"gave up: {failure or 'the deadline has passed'}"
        return (answer if self.may_retry else self._claim(answer)), reason

    def _claim(self, answer: Answer) -> Answer:
        """Make `answer` the one answer, or return the one that came first.

        Without a key this response is the only one the client gets, so a table that does not answer does not matter. Under a
        key, what is not recorded is not given out: a retry could find another answer.
        """
        ttl_s = KEPT_TTL_S if self.may_retry else SYNC_TTL_S
        while True:
            try:
                if self.results.put_answer(answer, expires_at_s=self.now_s() + ttl_s):
                    return answer
                stored = self.results.get(self.request.request_id)
            except Transient:
                if not self.may_retry:
                    return answer
                if self.now_s() >= self.deadline_at_s + GRACE_S:
                    error = AnswerError(status=503, message="the answer could not be recorded; try again under the same key")
                    return Answer(request_id=answer.request_id, tier=answer.tier, error=error, finished_at_s=self.now_s())
                self.sleep(RECORD_RETRY_S)
            else:
                return (stored and stored.answer) or answer
