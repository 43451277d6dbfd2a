"""What capacity a plan can hold: candidates, the ceilings and spot rules that bound it, and which offerings to look at."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from markserve.core.types import CapacityType, Offering

EPSILON_RPS = 1e-9
"""A smaller rate is rounding."""
POOL_MAX_SHARE = 0.5
"""Largest share of spot instances in one pool while another pool is available: same-pool interruptions arrive within
3 minutes of each other in over 92 % of events (arXiv 2604.16457), so half of the spot fleet survives one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """Something the loop may choose: an offering to launch, or an instance that is already there."""

    offering: Offering
    capacity_rps: float
    ready_step: int
    """First step that it can serve in full."""
    instance_id: str = ""
    """Empty for an offering."""
    rank: int = 0
    """Preference among equal instances; lower is kept first."""
    pool: str = field(init=False, repr=False)
    """Pool key of its offering."""
    key: str = field(init=False, repr=False)
    """Pool key of an offering, id of an instance."""
    is_new: bool = field(init=False, repr=False)
    """Whether choosing it means a launch."""
    is_spot: bool = field(init=False, repr=False)
    """Whether it can be interrupted."""
    usd_per_s: float = field(init=False, repr=False)
    """Rent."""
    usd_per_request: float = field(init=False, repr=False)
    """Cost of one request at full use."""
    launch_cost_usd: float = field(init=False, repr=False)
    """Rent paid before it serves; sunk for an instance that is already there."""
    merit: tuple[float, bool, int, str, str] = field(init=False, repr=False, compare=False)
    """Order in which chosen candidates serve: least cost per request first; those alike follow each other."""

    def __post_init__(self) -> None:
        if self.capacity_rps <= 0 or self.ready_step < 0:
            raise ValueError(
                f"{self.offering.key}: capacity_rps {self.capacity_rps} must be positive and ready_step {self.ready_step} not negative"
            )
        # Stored, as one plan reads them a hundred thousand times.
        object.__setattr__(self, "pool", self.offering.key)
        object.__setattr__(self, "key", self.instance_id or self.pool)
        object.__setattr__(self, "is_new", not self.instance_id)
        usd_per_s = self.offering.price_usd_per_hour / 3600
        object.__setattr__(self, "is_spot", self.offering.capacity_type is CapacityType.SPOT)
        object.__setattr__(self, "usd_per_s", usd_per_s)
        object.__setattr__(self, "usd_per_request", usd_per_s / self.capacity_rps)
        object.__setattr__(self, "launch_cost_usd", self.offering.launch_overhead_s * usd_per_s if self.is_new else 0.0)
        object.__setattr__(self, "merit", (self.usd_per_request, self.is_new, self.ready_step, self.pool, self.key))


@dataclass(frozen=True, kw_only=True, slots=True)
class SpillTier:
    """The spillover function as a tier to plan with."""

    usd_per_request: float
    """Cost of spilling one, less what the queue's calls would have cost: what a place on a worker is worth. Positive."""
    latency_s: float
    capacity_rps: float
    """What its concurrency limit lets through."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Room:
    """What the hard ceilings still allow."""

    instances: int
    usd_per_hour: float

    def refusal(self, offering: Offering) -> str | None:
        """Why one more of `offering` does not fit; None when it does."""
        if self.instances < 1:
            return "the ceiling max-instances is reached"
        if offering.price_usd_per_hour > self.usd_per_hour + 1e-9:
            return f"its ${offering.price_usd_per_hour:.4f}/h exceed the ${max(self.usd_per_hour, 0):.4f}/h left under max-hourly-cost-usd"
        return None

    def fits(self, offering: Offering) -> int:
        """How many of `offering` fit."""
        if self.instances < 1 or self.usd_per_hour <= 0:
            return 0
        # Short of one at the edge of rounding: whoever asks for more than one at once asks again.
        return min(self.instances, math.floor(self.usd_per_hour / offering.price_usd_per_hour - 1e-9))

    def with_bought(self, offering: Offering, number: int) -> Room:
        """Return what is left once `number` more are bought; fewer, where negative."""
        return Room(instances=self.instances - number, usd_per_hour=self.usd_per_hour - number * offering.price_usd_per_hour)


@dataclass(frozen=True, kw_only=True, slots=True)
class Holding:
    """Sums over what is chosen, of which the spot rules speak; kept so that one more costs no walk over all of it."""

    instances: int = 0
    total_rps: float = 0.0
    spot_rps: float = 0.0
    spot_launches: int = 0
    """Spot instances that are planned, not there."""
    by_pool: Mapping[str, int] = field(default_factory=dict)
    """Spot instances by pool."""

    def plus(self, changes: Iterable[tuple[Candidate, int]]) -> Holding:
        """Return the sums with so many more of each, or fewer where negative."""
        instances, total_rps, spot_rps, spot_launches, by_pool = (
            self.instances,
            self.total_rps,
            self.spot_rps,
            self.spot_launches,
            self.by_pool,
        )
        for candidate, number in changes:
            rate_rps = number * candidate.capacity_rps
            instances += number
            total_rps += rate_rps
            if candidate.is_spot:
                spot_rps += rate_rps
                spot_launches += number if candidate.is_new else 0
                by_pool = {**by_pool, candidate.pool: by_pool.get(candidate.pool, 0) + number}
        return Holding(instances=instances, total_rps=total_rps, spot_rps=spot_rps, spot_launches=spot_launches, by_pool=by_pool)


@dataclass(frozen=True, kw_only=True, slots=True)
class SpotRules:
    """How much of a model's capacity may be interruptible, and how much of that in one pool."""

    max_share: float
    pools: int
    """Spot pools that can be bought from now."""

    def refusal(self, holding: Holding, *, peak_rps: float = math.inf) -> str | None:
        """Why `holding` leans too much on spot; None when it does not.

        The share is of the capacity that serves: with a launch of spot, no more than `peak_rps` counts, so that
        instances which would stand idle allow no more spot. Without one, everything counts: a dip in demand
        does not replace spot instances that are there.
        """
        spot_number = sum(holding.by_pool.values())
        if not spot_number:
            return None
        serving_rps = min(holding.total_rps, peak_rps) if holding.spot_launches else holding.total_rps
        if self.max_share < 1 and holding.spot_rps > self.max_share * serving_rps + EPSILON_RPS:
            return (
                f"spot would be {holding.spot_rps / serving_rps:.0%} of the capacity that serves, above spot-max-share {self.max_share:.0%}"
            )
        pool_limit = max(1, math.ceil(max(POOL_MAX_SHARE, 1 / max(1, self.pools)) * spot_number - 1e-9))
        most = max(holding.by_pool.values())
        if most > pool_limit:
            fullest = max(pool for pool, number in holding.by_pool.items() if number == most)
            return f"pool {fullest} would hold {most} of {spot_number} spot instances, above {pool_limit}"
        return None
