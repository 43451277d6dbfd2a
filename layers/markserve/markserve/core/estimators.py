"""Online estimates of a quantile and of a rate, as values that observations replace.

Nothing here knows what is being measured. An estimator is frozen: `observe` returns the next one, so a caller
may hand its current view to a policy without copying or locking.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from dataclasses import dataclass, replace

from markserve.core.types import require


@dataclass(frozen=True, slots=True)
class DecayingQuantile:
    """Quantile of the last `window` observations, starting from a prior that they displace.

    The window starts as `window` copies of the prior `value`; each observation pushes out the oldest entry. So
    evidence that things got worse shows after `window * (1 - quantile)` observations, while evidence that they
    got better must fill most of the window first: an upper quantile used in a latency guarantee should be
    quick to warn and slow to trust. One stray outlier among `1 / (1 - quantile)` observations moves nothing.

    Why a window and not a stochastic-gradient tracker: the latter forgets upward errors `q / (1 - q)` times
    slower than it learns them (49 times at 0.98), without bound; here both fade after `window` observations.

    `observe` costs O(window) in copying, about a microsecond.

    Examples
    --------
    >>> tracked = DecayingQuantile(quantile=0.98, value=1.0, window=100)
    >>> tracked.observe(9.0).observe(9.0).value
    1.0
    >>> tracked.observe(9.0).observe(9.0).observe(2.0).value
    2.0
    """

    quantile: float
    value: float
    window: int = 128
    recent: tuple[float, ...] = ()
    """Entries in order of arrival, oldest first; empty until the first observation."""
    ordered: tuple[float, ...] = ()
    """The same entries, ascending."""

    def __post_init__(self) -> None:
        require(0 < self.quantile < 1, f"quantile must lie in (0, 1), got {self.quantile}")
        require(math.isfinite(self.value), f"value must be finite, got {self.value}")
        require(self.window >= 1, f"window must be at least 1, got {self.window}")

    def observe(self, x: float) -> DecayingQuantile:
        """Return the estimate after one more observation.

        Raises
        ------
        ValueError
            If the observation is not finite: one NaN would stay for a whole window.
        """
        require(math.isfinite(x), f"an observation must be finite, got {x}")
        recent = self.recent or (self.value,) * self.window
        ordered = list(self.ordered or recent)
        del ordered[bisect_left(ordered, recent[0])]
        insort(ordered, x)
        # The epsilon keeps 0.98 * 100 at rank 98, not 99.
        rank = max(0, math.ceil(self.quantile * self.window - 1e-9) - 1)
        return replace(self, value=ordered[rank], recent=(*recent[1:], x), ordered=tuple(ordered))


@dataclass(frozen=True, slots=True)
class RateEstimate:
    """Rate of events, weighting the recent past exponentially.

    With time constant `c`, counts decay as `exp(-age / c)` and the rate is

        rate = decayed count / (c * (1 - exp(-observed time / c)))

    The divisor corrects the start: without it a young estimate reads too low by up to its own age. The first
    observation only starts the clock, since nobody knows how long its events took to arrive.

    Limits: blind to anything faster than `c`; after a silence of `s` it still reports `exp(-s / c)` of the old
    rate. Observations out of order count as of the latest instant seen.

    Examples
    --------
    >>> rate = RateEstimate(time_constant_s=2.0)
    >>> for second in range(11):
    ...     rate = rate.observe(5, now_s=float(second))
    >>> round(rate.rate_rps(now_s=10.5))
    5
    """

    time_constant_s: float = 2.0
    decayed_count: float = 0.0
    at_s: float | None = None
    started_at_s: float | None = None

    def __post_init__(self) -> None:
        require(self.time_constant_s > 0, f"time_constant_s must be positive, got {self.time_constant_s}")

    def observe(self, count: int, now_s: float) -> RateEstimate:
        """Return the estimate after `count` more events."""
        require(count >= 0, f"count must not be negative, got {count}")
        if self.at_s is None:
            return replace(self, at_s=now_s, started_at_s=now_s)
        at_s = max(now_s, self.at_s)
        return replace(self, decayed_count=self._decayed(at_s) + count, at_s=at_s)

    def rate_rps(self, now_s: float) -> float:
        """Events per second as of `now_s`; 0 before there is anything to go by."""
        if self.at_s is None or self.started_at_s is None:
            return 0.0
        at_s = max(now_s, self.at_s)
        # A floor on the observed time: two events a millisecond apart are not evidence of 1000 events/s.
        observed_s = max(at_s - self.started_at_s, self.time_constant_s / 10)
        return self._decayed(at_s) / (self.time_constant_s * -math.expm1(-observed_s / self.time_constant_s))

    def _decayed(self, at_s: float) -> float:
        age_s = at_s - (self.at_s if self.at_s is not None else at_s)
        return self.decayed_count * math.exp(-age_s / self.time_constant_s)
