"""What capacity a plan can hold: candidates, the ceilings and spot rules that bound it, and which offerings to look at."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from markserve.core.types import CapacityType, Offering

EPSILON_RPS = 1e-9
"""A smaller rate is rounding."""
DOMINATORS_KEPT = 3
"""A dominated offering stays while fewer than this many beat it, so that a dry pool or a pool cap leaves a choice."""
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
    key: str = field(init=False, repr=False)
    """Pool key of an offering, id of an instance."""
    is_new: bool = field(init=False, repr=False)
    """Whether choosing it means a launch."""
    usd_per_s: float = field(init=False, repr=False)
    """Rent."""
    merit: tuple[float, bool, int, str] = field(init=False, repr=False, compare=False)
    """Order in which chosen candidates serve: least cost per request first."""

    def __post_init__(self) -> None:
        if self.capacity_rps <= 0 or self.ready_step < 0:
            raise ValueError(
                f"{self.offering.key}: capacity_rps {self.capacity_rps} must be positive and ready_step {self.ready_step} not negative"
            )
        # Stored, as one plan reads them a hundred thousand times.
        object.__setattr__(self, "key", self.instance_id or self.offering.key)
        object.__setattr__(self, "is_new", not self.instance_id)
        object.__setattr__(self, "usd_per_s", self.offering.price_usd_per_hour / 3600)
        object.__setattr__(self, "merit", (self.usd_per_request, self.is_new, self.ready_step, self.key))

    @property
    def is_spot(self) -> bool:
        """Whether it can be interrupted."""
        return self.offering.capacity_type is CapacityType.SPOT

    @property
    def launch_cost_usd(self) -> float:
        """Rent paid before it serves; sunk for an instance that is already there."""
        return self.offering.launch_overhead_s * self.usd_per_s if self.is_new else 0.0

    @property
    def usd_per_request(self) -> float:
        """Cost of one request at full use."""
        return self.usd_per_s / self.capacity_rps


@dataclass(frozen=True, kw_only=True, slots=True)
class SpillTier:
    """The spillover function as a tier to plan with."""

    usd_per_request: float
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

    def after(self, offerings: Iterable[Offering], *, given_back: Iterable[Offering] = ()) -> Room:
        """Return what is left once `offerings` are bought and `given_back` are not."""
        bought, returned = list(offerings), list(given_back)
        return Room(
            instances=self.instances - len(bought) + len(returned),
            usd_per_hour=self.usd_per_hour
            - math.fsum(o.price_usd_per_hour for o in bought)
            + math.fsum(o.price_usd_per_hour for o in returned),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class SpotRules:
    """How much of a model's capacity may be interruptible, and how much of that in one pool."""

    max_share: float
    pools: int
    """Spot pools that can be bought from now."""

    def refusal(self, chosen: Sequence[Candidate], *, peak_rps: float = math.inf) -> str | None:
        """Why `chosen` leans too much on spot; None when it does not.

        The share is of the capacity that serves: with a launch of spot, no more than `peak_rps` counts, so that
        instances which would stand idle allow no more spot. Without one, everything counts: a dip in demand
        does not replace spot instances that are there.
        """
        spot = [c for c in chosen if c.is_spot]
        if not spot:
            return None
        spot_rps, total_rps = math.fsum(c.capacity_rps for c in spot), math.fsum(c.capacity_rps for c in chosen)
        serving_rps = min(total_rps, peak_rps) if any(c.is_new for c in spot) else total_rps
        if self.max_share < 1 and spot_rps > self.max_share * serving_rps + EPSILON_RPS:
            return f"spot would be {spot_rps / serving_rps:.0%} of the capacity that serves, above spot-max-share {self.max_share:.0%}"
        pool_limit = max(1, math.ceil(max(POOL_MAX_SHARE, 1 / max(1, self.pools)) * len(spot) - 1e-9))
        by_pool: dict[str, int] = {}
        for candidate in spot:
            by_pool[candidate.offering.key] = by_pool.get(candidate.offering.key, 0) + 1
        fullest = max(by_pool, key=lambda pool: (by_pool[pool], pool))
        if by_pool[fullest] > pool_limit:
            return f"pool {fullest} would hold {by_pool[fullest]} of {len(spot)} spot instances, above {pool_limit}"
        return None


def prune(offers: Sequence[Candidate]) -> tuple[tuple[Candidate, ...], int]:
    """Drop offerings that `DOMINATORS_KEPT` others beat in every respect: no dearer, no smaller, no slower to launch.

    On demand may beat spot, never the reverse, since spot has a ceiling of its own.

    Returns
    -------
    (kept, dropped)
        What is kept, cheapest first, and how many were dropped.
    """
    kept: list[Candidate] = []
    largest: dict[tuple[bool, float], list[float]] = {}  # capacities kept so far, by spot or not and launch overhead
    order = sorted(offers, key=lambda c: (c.offering.price_usd_per_hour, -c.capacity_rps, c.offering.launch_overhead_s, c.is_spot, c.key))
    for candidate in order:
        overhead_s = candidate.offering.launch_overhead_s
        candidate_is_spot, rate_rps, dominators = candidate.is_spot, candidate.capacity_rps, 0
        for (is_spot, other_s), capacities in largest.items():
            if other_s <= overhead_s and (candidate_is_spot or not is_spot):
                # Largest first: the last one that is large enough tells how many are.
                if capacities[-1] >= rate_rps:
                    dominators += len(capacities)
                elif capacities[0] >= rate_rps:
                    dominators += sum(other >= rate_rps for other in capacities)
                if dominators >= DOMINATORS_KEPT:
                    break
        if dominators < DOMINATORS_KEPT:
            kept.append(candidate)
            capacities = largest.setdefault((candidate_is_spot, overhead_s), [])
            capacities.append(candidate.capacity_rps)
            capacities.sort(reverse=True)
            del capacities[DOMINATORS_KEPT:]
    return tuple(kept), len(order) - len(kept)


def counted(candidates: Iterable[Candidate]) -> Mapping[str, tuple[Candidate, int]]:
    """Group candidates by key, with their number, in order of first appearance."""
    groups: dict[str, tuple[Candidate, int]] = {}
    for candidate in candidates:
        groups[candidate.key] = (candidate, groups.get(candidate.key, (candidate, 0))[1] + 1)
    return groups
