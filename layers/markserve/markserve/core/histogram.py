"""Latency histograms with logarithmic buckets: small, mergeable, with a known error.

A histogram is a mapping of bucket index to count; absent means zero. Bucket i holds latencies in
`(LOWEST_S * GROWTH**(i-1), LOWEST_S * GROWTH**i]`, bucket 0 everything up to `LOWEST_S`. Sums of histograms are
histograms of the union, which sums of quantiles are not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from markserve.core.types import require

LOWEST_S = 1e-4
GROWTH = 1.05
"""5 % per bucket: 1 ms to 30 s takes 212 buckets, and a quantile is over by at most 5 %."""
HIGHEST_INDEX = 400
"""About 8 hours; anything slower counts there."""


def bucket_index(latency_s: float) -> int:
    """Bucket of a latency; negative ones (clock skew between hosts) count as instantaneous.

    >>> bucket_index(0.0001), bucket_index(0.2), bucket_index(-0.5)
    (0, 156, 0)
    """
    require(not math.isnan(latency_s), "latency_s is not a number")
    if latency_s <= LOWEST_S:
        return 0
    # Not a rounding of the logarithm alone: an edge must fall into its own bucket whatever log() rounds to.
    index = min(math.ceil(math.log(min(latency_s, 1e9) / LOWEST_S) / math.log(GROWTH)), HIGHEST_INDEX)
    if latency_s <= bucket_upper_s(index - 1):
        return index - 1
    return min(index + 1, HIGHEST_INDEX) if latency_s > bucket_upper_s(index) else index


def bucket_upper_s(index: int) -> float:
    """Upper edge of a bucket, which belongs to it.

    >>> round(bucket_upper_s(156), 4)
    0.2021
    """
    return LOWEST_S * GROWTH**index


def merge(*histograms: Mapping[int, int]) -> dict[int, int]:
    """Histogram of all observations together.

    >>> merge({3: 1, 5: 2}, {5: 1})
    {3: 1, 5: 3}
    """
    merged: dict[int, int] = {}
    for histogram in histograms:
        for index, count in histogram.items():
            merged[index] = merged.get(index, 0) + count
    return merged


def quantile_s(counts: Mapping[int, int], q: float) -> float | None:
    """Upper edge of the bucket that holds the q-quantile: never too low, at most 5 % too high; None without observations.

    The rank is the nearest rank, `ceil(q * n)`: of 100 observations the 0.98-quantile is the 98th.

    >>> quantile_s({0: 98, 10: 2}, 0.98), quantile_s({}, 0.5)
    (0.0001, None)
    """
    require(0 < q <= 1, f"q must lie in (0, 1], got {q}")
    total = sum(counts.values())
    rank = max(1, math.ceil(q * total - 1e-9))
    seen = 0
    for index in sorted(counts):
        seen += counts[index]
        if total and seen >= rank:
            return bucket_upper_s(index)
    return None


def fraction_within(counts: Mapping[int, int], latency_s: float) -> float:
    """Share of observations certainly within `latency_s`; 1.0 without observations.

    The bucket that straddles the limit counts as beyond it, so the share is never too high. Attainment of an
    objective is counted exactly elsewhere (`OutcomeCounts.within_slo`); this answers for any other limit.

    >>> fraction_within({0: 3, 200: 1}, 0.2)
    0.75
    """
    total = sum(counts.values())
    if not total:
        return 1.0
    return sum(count for index, count in counts.items() if bucket_upper_s(index) <= latency_s) / total


def from_text(counts: Mapping[str, int]) -> dict[int, int]:
    """Histogram from its form on the wire, where JSON turns the indices into text.

    >>> from_text({"12": 3})
    {12: 3}
    """
    return {int(index): count for index, count in counts.items()}
