"""Figures of a load: what was sent, what came back, how fast, and from where."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import msgspec

from local.load import RequestRecord

BREAKDOWN = ("front", "queue", "batch", "compute", "reply")
"""Parts of a request's time, as the server's own account names them."""


class LoadFigures(msgspec.Struct, frozen=True, kw_only=True):
    """Figures of requests. Latencies count from the instant a request should have been sent to its full answer."""

    sent: int
    answered: int
    retries: int
    """Refusals, 429 or 503, after which the client sent the request again."""
    lost: int
    """No response at all."""
    failed: int
    """A response, but no well-formed result."""
    failures: dict[str, int]
    """The failed, by HTTP status; 200 is a malformed result."""
    first_failure: str
    """What the first of them got instead."""
    doubled: int
    """Answers whose server-side request id another answer has as well."""
    accuracy: float
    """Of the answers whose truth is known."""
    attainment: float
    """Share of all requests that were answered within the objective."""
    p50_s: float | None
    p98_s: float | None
    p99_s: float | None
    tier_share: dict[str, float]


class PhaseFigures(msgspec.Struct, frozen=True, kw_only=True):
    """One phase of the load."""

    phase: str
    sent: int
    rate_rps: float
    attainment: float
    p98_s: float | None
    lambda_share: float


def quantile(values: Sequence[float], q: float) -> float | None:
    """Smallest observed value that at least a share `q` does not exceed (nearest rank); None of nothing.

    >>> quantile([4.0, 1.0, 3.0, 2.0], 0.5), quantile([1.0], 0.98)
    (2.0, 1.0)
    """
    if not values:
        return None
    return sorted(values)[max(0, math.ceil(q * len(values)) - 1)]


def load_figures(records: Sequence[RequestRecord], *, rt_max_s: float) -> LoadFigures:
    """Add up requests, without regard to what served them."""
    answered = [record for record in records if record.is_answered]
    failed = [record for record in records if record.status != 0 and not record.is_answered]
    ids = Counter(record.server_request_id for record in answered if record.server_request_id)
    latencies_s = [record.latency_s for record in answered]
    return LoadFigures(
        sent=len(records),
        answered=len(answered),
        retries=sum(record.retries for record in records),
        lost=sum(record.status == 0 for record in records),
        failed=len(failed),
        failures=dict(Counter(str(record.status) for record in failed).most_common()),
        first_failure=failed[0].error if failed else "",
        doubled=sum(count - 1 for count in ids.values()),
        accuracy=_accuracy(answered),
        attainment=_attainment(records, rt_max_s),
        p50_s=quantile(latencies_s, 0.5),
        p98_s=quantile(latencies_s, 0.98),
        p99_s=quantile(latencies_s, 0.99),
        tier_share=_tier_share(answered),
    )


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _accuracy(answered: Sequence[RequestRecord]) -> float:
    """Share of right labels among the answers whose truth is known; 1.0 when none is."""
    judged = [record for record in answered if record.truth is not None]
    return _share(sum(record.predicted == record.truth for record in judged), len(judged)) if judged else 1.0


def _attainment(records: Sequence[RequestRecord], latency_s: float) -> float:
    return _share(sum(record.is_answered and record.latency_s <= latency_s for record in records), len(records))


def _tier_share(answered: Sequence[RequestRecord]) -> dict[str, float]:
    tiers = Counter(record.tier for record in answered)
    return {tier: count / len(answered) for tier, count in sorted(tiers.items())}


def breakdown(answered: Sequence[RequestRecord]) -> dict[str, float]:
    """Medians of the server's own account of a request, of those that a worker answered."""
    of_workers = [record.timing_s for record in answered if record.tier == "worker"]
    medians = {part: quantile([timing[part] for timing in of_workers if part in timing], 0.5) for part in BREAKDOWN}
    return {part: median_s for part, median_s in medians.items() if median_s is not None}


def phase_figures(records: Sequence[RequestRecord], latency_s: float) -> tuple[PhaseFigures, ...]:
    """Add up each phase, in order."""
    figures = []
    for phase in dict.fromkeys(record.phase for record in records):
        chosen = [record for record in records if record.phase == phase]
        span_s = chosen[-1].scheduled_at_s - chosen[0].scheduled_at_s
        figures.append(
            PhaseFigures(
                phase=phase,
                sent=len(chosen),
                rate_rps=(len(chosen) - 1) / span_s if span_s > 0 else 0.0,
                attainment=_attainment(chosen, latency_s),
                p98_s=quantile([record.latency_s for record in chosen if record.is_answered], 0.98),
                lambda_share=_share(sum(record.tier == "lambda" for record in chosen), len(chosen)),
            )
        )
    return tuple(figures)
