"""Batch latency T(b): what a measured profile promises, and how observations correct it.

Everything that decides by time (batch limits, admission, planning) asks here. Profiles hold p98 latencies, since
a mean would be exceeded by half of the batches.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import accumulate

from markserve.core.estimators import DecayingQuantile
from markserve.core.types import BatchProfile, require

SCALE_QUANTILE = 0.98
"""The quantile of observed/predicted that the scale follows; the profile's own quantile."""
SCALE_WINDOW = 128
"""Batches that the scale remembers: 0.98 of it tolerates two strays, and it is forgotten within seconds under load."""

Curve = tuple[tuple[int, ...], tuple[float, ...], float]
"""Rising batch sizes, their non-decreasing latencies, and seconds per row beyond the last size."""


@lru_cache(maxsize=256)
def _curve(profile: BatchProfile) -> Curve:
    sizes = tuple(point.batch_size for point in profile.points)
    # A larger batch that measured faster is noise: the running maximum keeps T monotone, on the safe side.
    latencies = tuple(accumulate((point.p98_s for point in profile.points), max))
    if len(sizes) == 1:
        return sizes, latencies, latencies[0] / sizes[0]
    last = (latencies[-1] - latencies[-2]) / (sizes[-1] - sizes[-2])
    mean = (latencies[-1] - latencies[0]) / (sizes[-1] - sizes[0])
    # A noisy flat end must not promise unlimited throughput, hence not less than the whole profile's slope.
    return sizes, latencies, max(last, mean)


def _latency_s(curve: Curve, batch_size: int) -> float:
    sizes, latencies, slope = curve
    if batch_size <= sizes[0]:
        return latencies[0]
    if batch_size >= sizes[-1]:
        return latencies[-1] + slope * (batch_size - sizes[-1])
    right = bisect_left(sizes, batch_size)
    share = (batch_size - sizes[right - 1]) / (sizes[right] - sizes[right - 1])
    return latencies[right - 1] + share * (latencies[right] - latencies[right - 1])


def batch_latency_s(profile: BatchProfile, batch_size: int) -> float:
    """p98 latency of a batch, interpolated between the measured sizes.

    Piecewise linear and never falling: a measured dip is raised to the level before it. Below the first size it is
    the first size's latency. Beyond the last it grows by the last slope, or the whole profile's mean slope if that
    is steeper; a profile of one point grows in proportion.

    Notes
    -----
    The usual fit `T(b) = a + c*b` (Clipper, BentoML) is off where hardware steps: at a vector width, at the number
    of cores, where a GPU fills. Interpolation keeps the steps and needs no assumption.

    Examples
    --------
    >>> from markserve.core.types import ProfilePoint
    >>> points = (ProfilePoint(batch_size=1, p50_s=0.01, p98_s=0.02, p99_s=0.03, samples=100),
    ...           ProfilePoint(batch_size=5, p50_s=0.03, p98_s=0.06, p99_s=0.07, samples=100))
    >>> profile = BatchProfile(instance_type="c5.large", points=points)
    >>> round(batch_latency_s(profile, 3), 6), round(batch_latency_s(profile, 10), 6)
    (0.04, 0.11)
    """
    require(batch_size >= 1, f"batch_size must be at least 1, got {batch_size}")
    return _latency_s(_curve(profile), batch_size)


@dataclass(frozen=True, slots=True)
class LatencyEstimate:
    """A profile with the one correction that running batches teach: a factor on all of T(b).

    `scale` follows the 0.98-quantile of observed over profiled latency. One factor, because what differs between
    the profiling run and today (a slower host, a noisy neighbour, a throttled credit balance) slows every batch
    size alike, and because live traffic visits few sizes, so per-size estimates would starve.

    Examples
    --------
    >>> from markserve.core.types import ProfilePoint
    >>> point = ProfilePoint(batch_size=1, p50_s=0.01, p98_s=0.02, p99_s=0.03, samples=100)
    >>> estimate = LatencyEstimate(BatchProfile(instance_type="c5.large", points=(point,)))
    >>> for _ in range(5):
    ...     estimate = estimate.observe(batch_size=1, observed_s=0.03)
    >>> round(estimate.scale, 3), round(estimate.batch_latency_s(1), 3)
    (1.5, 0.03)
    """

    profile: BatchProfile
    scale: float = 1.0
    tracker: DecayingQuantile | None = None
    curve: Curve = field(init=False, repr=False, compare=False)
    """Kept so that a lookup costs a bisection, not a hash of the profile."""

    def __post_init__(self) -> None:
        require(self.scale > 0, f"scale must be positive, got {self.scale}")
        object.__setattr__(self, "curve", _curve(self.profile))

    def batch_latency_s(self, batch_size: int) -> float:
        """T(b) as currently believed."""
        return self.scale * _latency_s(self.curve, batch_size)

    def observe(self, batch_size: int, observed_s: float) -> LatencyEstimate:
        """Return the estimate after one more executed batch."""
        require(observed_s > 0, f"observed_s must be positive, got {observed_s}")
        tracker = self.tracker or DecayingQuantile(quantile=SCALE_QUANTILE, value=self.scale, window=SCALE_WINDOW)
        tracker = tracker.observe(observed_s / _latency_s(self.curve, batch_size))
        return replace(self, scale=tracker.value, tracker=tracker)
