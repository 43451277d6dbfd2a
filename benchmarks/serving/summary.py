"""What a run's records amount to: attainment, percentiles, goodput, and whether the generator may be believed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.serving.replies import Outcome

RT_MAX_S = 0.2
SL_MIN = 0.98
SATURATED_LAG_S = 0.005
"""A generator that sends this late at its 99th percentile measures itself."""
SATURATED_BUSY_SHARE = 0.9


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """One run, request by request; times in seconds from its start, NaN where there is none."""

    scheduled_s: Sequence[float]
    sent_s: Sequence[float]
    done_s: Sequence[float]
    outcomes: Sequence[int]
    held: Sequence[int]
    """1 where the request waited for a connection: all were busy, which is the server's doing."""
    doubled: int
    resent: int
    busy_share: float
    connections: int


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """The figures of one run's measured part. Latencies count from the scheduled send time."""

    offered_rps: float
    requests: int
    within: int
    """Right answers within RT_max."""
    attainment: float
    goodput_rps: float
    p50_s: float | None
    """Of all requests, one without a right answer being infinitely late; None where that is the percentile."""
    p99_s: float | None
    late: int
    rejected: int
    errors: int
    unanswered: int
    lost: int
    wrong: int
    doubled: int
    resent: int
    held: int
    lag_p99_s: float
    lag_max_s: float
    busy_share: float
    connections: int

    @property
    def passes(self) -> bool:
        """Whether the objective is met, with no answer wrong or doubled."""
        return self.attainment >= SL_MIN and self.wrong == 0 and self.doubled == 0

    @property
    def is_generator_saturated(self) -> bool:
        """Whether the generator was late or had no time left, so that the run says more about it than about the server."""
        return self.lag_p99_s > SATURATED_LAG_S or self.busy_share > SATURATED_BUSY_SHARE


def percentile(ascending: Sequence[float], share: float) -> float:
    """Return the smallest value that at least `share` of the values do not exceed (nearest rank).

    >>> percentile([1.0, 2.0, 3.0, 4.0], 0.5), percentile([1.0, 2.0, 3.0, 4.0], 0.99)
    (2.0, 4.0)
    """
    if not ascending:
        raise ValueError("a percentile of nothing")
    return ascending[max(0, math.ceil(share * len(ascending) - 1e-9) - 1)]


def summarise(record: RunRecord, *, warm_up_s: float, duration_s: float) -> RunSummary:
    """Reduce a run to its figures; requests scheduled before `warm_up_s` load the server and are not counted.

    Wrong and doubled answers count wherever they occur.
    """
    measured = [i for i, at in enumerate(record.scheduled_s) if at >= warm_up_s]
    if not measured:
        raise ValueError("no request was scheduled after the warm-up")
    window_s = duration_s - warm_up_s
    latencies = sorted(record.done_s[i] - record.scheduled_s[i] if record.outcomes[i] == Outcome.OK else math.inf for i in measured)
    within = sum(latency <= RT_MAX_S for latency in latencies)
    lags = sorted(
        record.sent_s[i] - record.scheduled_s[i] for i in measured if not record.held[i] and not math.isnan(record.sent_s[i])
    ) or [0.0]
    counts = {outcome: sum(record.outcomes[i] == outcome for i in measured) for outcome in Outcome}
    return RunSummary(
        offered_rps=len(measured) / window_s,
        requests=len(measured),
        within=within,
        attainment=within / len(measured),
        goodput_rps=within / window_s,
        p50_s=_finite(percentile(latencies, 0.5)),
        p99_s=_finite(percentile(latencies, 0.99)),
        late=counts[Outcome.OK] - within,
        rejected=counts[Outcome.REJECTED],
        errors=counts[Outcome.ERROR],
        unanswered=counts[Outcome.UNANSWERED] + counts[Outcome.PENDING],
        lost=counts[Outcome.LOST],
        wrong=sum(outcome == Outcome.WRONG for outcome in record.outcomes),
        doubled=record.doubled,
        resent=record.resent,
        held=sum(record.held[i] for i in measured),
        lag_p99_s=percentile(lags, 0.99),
        lag_max_s=lags[-1],
        busy_share=record.busy_share,
        connections=record.connections,
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
