"""How this worker paces itself: T(b), transport and objective as measured now, and the batch limits they give."""

from __future__ import annotations

from typing import Generic, TypeVar

from markserve.core.batch_limits import RATE_TOLERANCE
from markserve.core.batching import BatchAccumulator, BatchLimits, choose_batch_limits
from markserve.core.estimators import DecayingQuantile, RateEstimate
from markserve.core.profiles import LatencyEstimate
from markserve.core.tunables import Tunables
from markserve.core.visibility import Run
from markserve.errors import InfeasibleSlo
from markserve.messages import InferenceRequest
from markserve.telemetry import logger

ItemT = TypeVar("ItemT")

MARGIN_SHARE = 0.02
"""Share of the objective kept for what is not measured: clock skew, thread wake-ups."""
NOTICEABLE = 0.05
"""Relative change of T(b) or of the budget that is worth choosing limits anew; less is noise."""
RECEIVE_ROUND_TRIP_S = 0.05
"""What the runner gets through while a receive call is under way is fetched ahead; about 20 ms on AWS, with slack."""
BACKLOG_BATCHES = 4
"""Batches held behind a backlog. In a simulation of 20 rps of capacity at four times that load, holding one batch keeps 0.44 of
the capacity useful, four keep all of it."""
ROUND_TRIP_QUANTILE = 0.25
"""Of receive calls that bring something: under load the quickest quarter took a round trip, the others also waited."""
ROUND_TRIP_WINDOW = 32
EARLY_SHARE = 0.2
"""T(b) is an upper quantile, so a batch is done sooner, by this share of it until that is measured."""
EARLY_QUANTILE = 0.75
"""Three of four batches that are done should find the next one received; for the fourth, others would wait."""
EARLY_WINDOW = 32
MESSAGES_PER_RECEIVE = 10
OVERHEAD_QUANTILE = 0.98
OVERHEAD_WINDOW = 100


class Pacing(Generic[ItemT]):
    """Estimates, limits and the accumulator they steer. Not thread-safe: the engine's lock guards it.

    The latency budget of `choose_batch_limits` is what the objective leaves after everything else:

        budget = RT_max - transport - reply overhead - spill reserve - margin

    where transport is measured on requests that did not queue behind others, since waiting behind others is what
    the budget is for; the reply overhead and the spill reserve (deadline - spill_at) arrive with the requests.
    """

    def __init__(
        self,
        *,
        estimate: LatencyEstimate,
        tunables: Tunables,
        max_batch_size: int,
        spill_reserve_s: float,
        rate: RateEstimate | None = None,
        rate_tolerance: float = RATE_TOLERANCE,
    ) -> None:
        self._rate_tolerance = rate_tolerance
        self._max_batch_size = max_batch_size
        self._rt_max_s = tunables.rt_max_s
        self._transport = DecayingQuantile(quantile=OVERHEAD_QUANTILE, value=0.0, window=OVERHEAD_WINDOW)
        self._reply_overhead = DecayingQuantile(quantile=OVERHEAD_QUANTILE, value=0.0, window=OVERHEAD_WINDOW)
        self._spill_reserve_s = spill_reserve_s if tunables.spillover_max_concurrency else 0.0
        self._round_trip = DecayingQuantile(quantile=ROUND_TRIP_QUANTILE, value=RECEIVE_ROUND_TRIP_S, window=ROUND_TRIP_WINDOW)
        self._early = DecayingQuantile(quantile=EARLY_QUANTILE, value=EARLY_SHARE, window=EARLY_WINDOW)
        self._rate = rate or RateEstimate()
        self._is_backlogged = False
        self._chosen_budget_s = self.latency_budget_s
        self._chosen_scale = estimate.scale
        limits = _limits(estimate, self._chosen_budget_s, max_batch_size, rate_tolerance)
        self.accumulator = BatchAccumulator[ItemT](limits=limits, estimate=estimate, margin_s=self._margin_s)

    @property
    def limits(self) -> BatchLimits:
        """Limits in force."""
        return self.accumulator.limits

    @property
    def transport_s(self) -> float:
        """Arrival at the front to receipt here, for requests that did not queue behind others."""
        return self._transport.value

    @property
    def reply_overhead_s(self) -> float:
        """Finished computation to reply."""
        return self._reply_overhead.value

    @property
    def latency_budget_s(self) -> float:
        """What a request may spend here, waiting and computing."""
        return self._rt_max_s - self._transport.value - self._reply_overhead.value - self._spill_reserve_s - self._margin_s

    @property
    def hold_limit(self) -> int:
        """Rows worth holding: the next batch, and what the runner gets through while more is fetched.

        More would wait here while another worker is idle. Behind a backlog nobody is idle, and the queue's oldest
        messages are those that are nearly hopeless: holding several batches lets the accumulator see past them.
        """
        batches = BACKLOG_BATCHES if self._is_backlogged else 1
        return batches * self.limits.max_batch_size + int(self.limits.service_rate_rps * RECEIVE_ROUND_TRIP_S) + 1

    @property
    def round_trip_s(self) -> float:
        """How long a receive call takes that does not have to wait for a message."""
        return self._round_trip.value

    @property
    def early_share(self) -> float:
        """By which share of its estimate a batch may be done early."""
        return self._early.value

    @property
    def is_backlogged(self) -> bool:
        """Whether the queue held more than two calls in a row could bring."""
        return self._is_backlogged

    @property
    def receivers_wanted(self) -> int:
        """Receive calls to have under way at once: as many as bring in what the runner gets through, ten a round trip."""
        return 1 + int(self.limits.service_rate_rps * min(self._round_trip.value, RECEIVE_ROUND_TRIP_S) / MESSAGES_PER_RECEIVE)

    @property
    def _margin_s(self) -> float:
        return MARGIN_SHARE * self._rt_max_s

    def arrival_rate_rps(self, now_s: float) -> float:
        """Rate at which requests reach this worker."""
        return self._rate.rate_rps(now_s)

    def observe_receipt(self, requests: list[InferenceRequest], *, now_s: float, queue_was_empty: bool, is_full: bool) -> None:
        """Learn from one receive call; an empty one says that the rate is lower.

        Parameters
        ----------
        queue_was_empty
            Whether the call before this one left nothing behind.
        is_full
            Whether this one brought as much as it had asked for: twice in a row means a backlog.
        """
        self._rate = self._rate.observe(len(requests), now_s)
        self._is_backlogged = is_full and not queue_was_empty
        for request in requests:
            if queue_was_empty:
                self._transport = self._transport.observe(max(0.0, now_s - request.arrival_at_s))
            if request.deadline_at_s is not None:
                self._reply_overhead = self._reply_overhead.observe(request.reply_overhead_s)
                self._spill_reserve_s = request.deadline_at_s - request.spill_at_s if request.spill_at_s is not None else 0.0
        self._revise()

    def observe_round_trip(self, seconds: float) -> None:
        """Learn how long a receive call took that brought something."""
        self._round_trip = self._round_trip.observe(seconds)

    def observe_end(self, run: Run, *, now_s: float) -> None:
        """Learn by which share of its estimate a batch was done early."""
        estimate_s = run.ends_at_s - run.started_at_s
        if estimate_s > 0:
            self._early = self._early.observe(max(0.0, 1 - (now_s - run.started_at_s) / estimate_s))

    def observe_arrivals(self, count: int, *, now_s: float) -> None:
        """Learn of requests that came without a queue before this process: no transport, no backlog but the one held."""
        self._rate = self._rate.observe(count, now_s)

    def observe_reply(self, overhead_s: float) -> None:
        """Learn how long a finished computation took to become its reply, where this process sends it."""
        self._reply_overhead = self._reply_overhead.observe(overhead_s)

    def observe_batch(self, *, rows: int, compute_s: float) -> None:
        """Learn how long a batch took."""
        if compute_s > 0:
            self.accumulator.estimate = self.accumulator.estimate.observe(rows, compute_s)
            self._revise()

    def follow(self, tunables: Tunables) -> None:
        """Adopt the operator's parameters."""
        self._rt_max_s = tunables.rt_max_s
        self._revise()

    def _revise(self) -> None:
        estimate, budget_s = self.accumulator.estimate, self.latency_budget_s
        same_budget = abs(budget_s - self._chosen_budget_s) <= NOTICEABLE * abs(self._chosen_budget_s)
        same_scale = abs(estimate.scale - self._chosen_scale) <= NOTICEABLE * self._chosen_scale
        if same_budget and same_scale:
            return
        self._chosen_budget_s, self._chosen_scale = budget_s, estimate.scale
        limits = _limits(estimate, budget_s, self._max_batch_size, self._rate_tolerance)
        if limits.max_batch_size != self.limits.max_batch_size:
            logger.info(
                "batch limit %d -> %d (T(b) at %.2f of its profile): %s",
                self.limits.max_batch_size,
                limits.max_batch_size,
                estimate.scale,
                limits.reason,
            )
        self.accumulator.limits = limits


def _limits(estimate: LatencyEstimate, budget_s: float, max_batch_size: int, rate_tolerance: float) -> BatchLimits:
    try:
        return choose_batch_limits(
            estimate=estimate, latency_budget_s=budget_s, max_batch_size=max_batch_size, rate_tolerance=rate_tolerance
        )
    except InfeasibleSlo as error:
        # Whoever planned this instance believed otherwise. Late answers, and Lambda's, are better than a dead worker.
        latency_s = estimate.batch_latency_s(1)
        return BatchLimits(
            max_batch_size=1,
            max_queue_delay_s=0.0,
            service_rate_rps=1 / latency_s,
            batch_latency_s=latency_s,
            reason=f"one at a time, the objective cannot be met: {error}",
        )
