"""What share of requests the workers can take in time: the rate that is offered against the rate that they can use.

Matters where no time is set aside for spilling (`spillover.spill_reserve`): what is admitted and then not served in time is
spilled late, so that it has to be turned away at arrival. A front cannot do that by looking at the queue alone: what it
knows of it is about a second old, and says nothing of what other fronts have admitted since.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from markserve.core.staffing import utilization_bound
from markserve.core.types import require

MEMORY_S = 3.0
"""Time constant of the estimate of what is offered: a jump is known within a few views, and Poisson noise of a second of
20 rps (22 %) shrinks to 9 %."""
SHARE_MIN = 0.01
"""Admitted whatever the load, or nothing would show how high it is."""
LONGEST_VIEW_S = 15.0
"""Between two views that are worth comparing. A front that slept for longer starts anew."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AdmittedShare:
    """Share of requests that go to the workers, and what it was worked out from."""

    share: float = 1.0
    offered_rps: float | None = None
    """Estimate of what arrives at all fronts; None before there are two views to compare."""
    usable_rps: float = math.inf
    entered: int = 0
    """Requests that had ever entered the queue, by the last view."""
    members: str = ""
    """Fingerprint of the workers that this count is of."""
    viewed_at_s: float | None = None

    @property
    def reason(self) -> str:
        """What the share follows from."""
        if self.offered_rps is None or self.share >= 1:
            return "all requests are admitted"
        return f"{self.share:.0%} are admitted, as workers can use {self.usable_rps:.1f} of {self.offered_rps:.1f} rps"

    def turns_away(self, lot: float) -> bool:
        """Whether a request is not admitted whose lot, uniform on [0, 1), is this."""
        return lot >= self.share


def usable_rate_rps(*, servers: int, service_rate_rps: float, batch_latency_s: float, waiting_s: float, late_share_max: float) -> float:
    """Rate that a fleet can take while at most `late_share_max` of it starts too late.

    The bound of `core.staffing`, by which the planner buys, at the fleet that is there.

    Parameters
    ----------
    waiting_s
        What the objective leaves for waiting: a request must start within it.

    Examples
    --------
    >>> [
    ...     round(usable_rate_rps(servers=n, service_rate_rps=5.0 * n, batch_latency_s=0.2, waiting_s=0.06, late_share_max=0.02), 1)
    ...     for n in (1, 4, 16)
    ... ]
    [0.4, 8.7, 61.2]
    """
    if servers < 1 or batch_latency_s <= 0 or waiting_s <= 0:
        return 0.0
    batch_size = max(1, round(service_rate_rps * batch_latency_s / servers))
    waits = math.floor(100 * waiting_s / batch_latency_s + 1e-6) / 100  # rounded, so that results are found again
    return service_rate_rps * utilization_bound(servers, batch_size, waits, late_share_max)


def revise_share(known: AdmittedShare, *, entered: int, members: str, viewed_at_s: float, usable_rps: float) -> AdmittedShare:
    """Work the share out anew after one more view of the fleet.

    Nobody counts what arrives at all fronts, but workers count what they have finished with and hold, and the queue what waits.
    By conservation their sum has grown by what was admitted, however little of it was served:

        offered = growth / interval / share,    share = min(1, usable / offered)

    with `offered` smoothed over `MEMORY_S`. It estimates the load and does not hunt for a share: no requests have to be late
    to find out that some will be, and when the load falls the share follows.

    Regimes
    -------
    Capacity suffices: 1. A jump: at the old share for the first view or two. Fleet changed: the counts are of other workers, so
    the estimate holds and the share follows the capacity. Several fronts with different shares: each takes its own for that of
    all. What is admitted in all still meets what is usable, since each corrects by the same factor.

    Parameters
    ----------
    entered
        Finished, given up, failed, held by the workers of this fingerprint, and waiting in the queue.
    viewed_at_s
        When that was so.

    Examples
    --------
    >>> share = AdmittedShare()
    >>> for second in range(20):
    ...     entered = share.entered + round(80 * share.share)
    ...     share = revise_share(share, entered=entered, members="i-1", viewed_at_s=float(second), usable_rps=50.0)
    >>> share.reason
    '62% are admitted, as workers can use 50.0 of 80.0 rps'
    """
    require(usable_rps >= 0, f"usable_rps must not be negative, got {usable_rps}")
    if known.viewed_at_s is not None and viewed_at_s <= known.viewed_at_s:
        return known
    offered_rps = known.offered_rps
    interval_s = math.inf if known.viewed_at_s is None else viewed_at_s - known.viewed_at_s
    if interval_s > LONGEST_VIEW_S:
        offered_rps = None
    elif members == known.members:
        sample_rps = max(0, entered - known.entered) / interval_s / known.share
        weight = -math.expm1(-interval_s / MEMORY_S)
        offered_rps = sample_rps if offered_rps is None else offered_rps + weight * (sample_rps - offered_rps)
    fits = not offered_rps or offered_rps <= usable_rps
    share = 1.0 if not offered_rps or fits else max(SHARE_MIN, usable_rps / offered_rps)
    return replace(
        known, share=share, offered_rps=offered_rps, usable_rps=usable_rps, entered=entered, members=members, viewed_at_s=viewed_at_s
    )
