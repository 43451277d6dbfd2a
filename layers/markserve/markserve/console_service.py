"""The console's view of how requests were served: attainment, burn, tiers, latencies."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from markserve.console_messages import LatencyBar, Service, ServicePoint
from markserve.core.histogram import LOWEST_S, bucket_upper_s, from_text, merge, quantile_s
from markserve.core.slo import SloWindow, assess
from markserve.core.types import Slo, Tier
from markserve.messages import OutcomeCounts

SLIDING_STEPS, SHORT_STEPS, LEAD_STEPS = 5.0, 0.5, 1.0
"""Windows of the burn rates, as the ingest function judges by; a test holds them equal."""
BUCKETS_PER_BAR = 3
"""Of 5 % each: a bar is 16 % wide, and a chart has some twenty of them."""
POINTS_MOST = 60
"""More would be too narrow to see."""
REJECTED = "rejected"


def service_view(outcomes: Sequence[OutcomeCounts], *, slo: Slo, since_s: float, now_s: float, window_s: float, step_s: float) -> Service:
    """Add up the outcomes of an interval; a longer past than the interval is used for the burn rates only."""
    shown = [counts for counts in outcomes if counts.window_at_s >= since_s]
    by_tier = Counter({str(tier): 0 for tier in Tier} | {REJECTED: 0})
    for counts in shown:
        by_tier[_tier(counts)] += counts.ok + counts.errors
    requests = by_tier.total()
    histogram = merge(*(from_text(counts.latency_histogram) for counts in shown if counts.tier is not None))
    point_s = max(step_s, math.ceil((now_s - since_s) / POINTS_MOST / window_s - 1e-9) * window_s)
    assessment = assess(
        [SloWindow(at_s=c.window_at_s, requests=c.ok + c.errors, within_slo=min(c.within_slo, c.ok + c.errors)) for c in outcomes],
        slo=slo,
        now_s=now_s,
        sliding_s=SLIDING_STEPS * step_s,
        short_s=max(SHORT_STEPS * step_s, 2 * window_s),
        lead_s=LEAD_STEPS * step_s,
    )
    return Service(
        rt_max_s=slo.latency_s,
        sl_min=slo.percentile,
        requests=requests,
        attainment=sum(counts.within_slo for counts in shown) / requests if requests else None,
        burn_rate_short=assessment.burn_rate,
        burn_rate_long=assessment.long_burn_rate,
        at_risk=assessment.at_risk,
        reason=assessment.reason,
        by_tier=dict(by_tier),
        point_s=point_s,
        points=_points(shown, every_s=point_s),
        latency=_bars(histogram),
        p50_s=quantile_s(histogram, 0.5),
        p98_s=quantile_s(histogram, 0.98),
        p99_s=quantile_s(histogram, 0.99),
    )


def latency_sum_s(outcomes: Sequence[OutcomeCounts]) -> float:
    """Time that fronts spent on requests: the middle of each latency's bucket."""
    histogram = merge(*(from_text(counts.latency_histogram) for counts in outcomes))
    return math.fsum(count * bucket_upper_s(index) / math.sqrt(bucket_upper_s(1) / LOWEST_S) for index, count in histogram.items())


def _tier(counts: OutcomeCounts) -> str:
    return REJECTED if counts.tier is None else str(counts.tier)


def _points(outcomes: Sequence[OutcomeCounts], *, every_s: float) -> list[ServicePoint]:
    grouped: dict[float, Counter[str]] = defaultdict(Counter)
    for counts in outcomes:
        sums = grouped[math.floor(counts.window_at_s / every_s + 1e-9) * every_s]
        sums[_tier(counts)] += counts.ok + counts.errors
        sums["within"] += counts.within_slo
    return [
        ServicePoint(
            at_s=at_s, by_worker=sums[Tier.WORKER], by_lambda=sums[Tier.LAMBDA], rejected=sums[REJECTED], within_slo=sums["within"]
        )
        for at_s, sums in sorted(grouped.items())
    ]


def _bars(histogram: Mapping[int, int]) -> list[LatencyBar]:
    if not histogram:
        return []
    grouped: Counter[int] = Counter()
    for index, count in histogram.items():
        grouped[math.ceil(index / BUCKETS_PER_BAR)] += count
    return [LatencyBar(upper_s=bucket_upper_s(bar * BUCKETS_PER_BAR), count=grouped[bar]) for bar in range(min(grouped), max(grouped) + 1)]
