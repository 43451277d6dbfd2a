"""What one front environment saw, counted per window and sent on when it costs nobody time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from markserve.core.arrivals import window_start
from markserve.core.histogram import bucket_index
from markserve.core.types import Tier
from markserve.errors import Transient
from markserve.messages import ArrivalCounts, MetricsBatch, OutcomeCounts
from markserve.ports import MetricsSink

REPORT_EVERY_S = 1.0
"""Shortest interval between two reports of one environment; each is a billed message."""
OVERDUE_AFTER_S = 5.0
"""Age at which a report is sent even without slack: the planner must not wait for an environment that never idles."""
NEEDED_SLACK_S = 0.02
"""Idle time that sending fits into: SQS takes 5 to 10 ms."""
UNSENT_LIMIT = 60
"""Reports kept while the queue does not take them: a minute's worth; beyond it the oldest are given up."""


@dataclass(slots=True)
class _Outcomes:
    ok: int = 0
    errors: int = 0
    within_slo: int = 0
    histogram: Counter[int] = field(default_factory=Counter)


class MetricsBuffer:
    """Arrivals and outcomes not yet reported.

    A report that failed is sent again under its own batch id, so that one which did arrive is not counted twice.
    """

    def __init__(self, sink: MetricsSink, *, window_s: float, new_id: Callable[[], str]) -> None:
        self._sink = sink
        self._window_s = window_s
        self._new_id = new_id
        self._arrivals: Counter[tuple[str, float]] = Counter()
        self._outcomes: dict[tuple[str, float, Tier | None, str, str], _Outcomes] = {}
        self._unsent: list[MetricsBatch] = []
        self._reported_at_s = float("-inf")

    def arrival(self, model: str, *, at_s: float) -> None:
        """Count one request that asks for computation."""
        self._arrivals[model, window_start(at_s, self._window_s)] += 1

    def outcome(
        self,
        model: str,
        *,
        arrival_at_s: float,
        tier: Tier | None,
        latency_s: float,
        succeeded: bool,
        objective_s: float,
        slo_class: str = "",
        model_version: str = "",
    ) -> None:
        """Count how one request ended; `tier` is None when it was rejected."""
        key = (model, window_start(arrival_at_s, self._window_s), tier, slo_class, model_version)
        counts = self._outcomes.setdefault(key, _Outcomes())
        counts.ok += succeeded
        counts.errors += not succeeded
        counts.within_slo += succeeded and latency_s <= objective_s
        counts.histogram[bucket_index(latency_s)] += 1

    def report_if_due(self, *, now_s: float, slack_s: float) -> bool:
        """Send what is held if that fits into `slack_s` of idle time, or is overdue; False when nothing was sent."""
        age_s = now_s - self._reported_at_s
        if age_s < REPORT_EVERY_S or (slack_s < NEEDED_SLACK_S and age_s < OVERDUE_AFTER_S):
            return False
        return self.report(now_s=now_s)

    def report(self, *, now_s: float) -> bool:
        """Send everything held; what the queue does not take is kept for the next time."""
        if self._arrivals or self._outcomes:
            self._unsent = [*self._unsent[1 - UNSENT_LIMIT :], self._take(now_s)]
        if not self._unsent:
            return False
        self._reported_at_s = now_s
        while self._unsent:
            try:
                self._sink.send(self._unsent[0])
            except Transient:
                return False
            self._unsent.pop(0)
        return True

    def _take(self, now_s: float) -> MetricsBatch:
        batch = MetricsBatch(
            batch_id=self._new_id(),
            sent_at_s=now_s,
            arrivals=tuple(
                ArrivalCounts(model=model, window_at_s=at_s, count=count) for (model, at_s), count in sorted(self._arrivals.items())
            ),
            outcomes=tuple(
                OutcomeCounts(
                    model=model,
                    window_at_s=at_s,
                    tier=tier,
                    slo_class=slo_class,
                    model_version=version,
                    ok=counts.ok,
                    errors=counts.errors,
                    within_slo=counts.within_slo,
                    latency_histogram={str(bucket): count for bucket, count in sorted(counts.histogram.items())},
                )
                for (model, at_s, tier, slo_class, version), counts in self._outcomes.items()
            ),
        )
        self._arrivals, self._outcomes = Counter(), {}
        return batch
