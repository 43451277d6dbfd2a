"""What a served model counts, and how Prometheus reads it."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field

BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5, 5.0, 10.0)


@dataclass(slots=True)
class Counters:
    """Totals since the start. Plain integers: one thread counts."""

    answered: int = 0
    within_objective: int = 0
    invalid: int = 0
    failed: int = 0
    shed: int = 0
    deaths: int = 0
    batches: int = 0
    rows: int = 0
    compute_s: float = 0.0
    latency_sum_s: float = 0.0
    latency_counts: list[int] = field(default_factory=lambda: [0] * (len(BUCKETS_S) + 1))

    def observe_latency(self, seconds: float) -> None:
        """Count an answer's time from first byte to reply."""
        self.latency_sum_s += seconds
        self.latency_counts[bisect_left(BUCKETS_S, seconds)] += 1
