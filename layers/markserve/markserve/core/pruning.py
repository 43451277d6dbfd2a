"""Which offerings need not be looked at, because others are always at least as good a buy."""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence

from markserve.core.types import CapacityType, Offering

SPOT_DOMINATORS = 2
"""Spot pools that must beat a spot pool before it is dropped: the cap per pool never closes two while a third is open."""


def undominated(offers: Sequence[tuple[Offering, float, int]]) -> list[int]:
    """Return the indices of the offerings to look at, cheapest first, of (offering, requests/s, first step it serves).

    An offering beats another if it is ready at the same step, is no dearer, no smaller, and costs no more to launch.
    Dropped is what one on-demand offering beats, and spot that `SPOT_DOMINATORS` spot pools beat.

    Notes
    -----
    Dropping changes no choice of the fill loop unless `spot_max_share` is below 1. Let X be dropped, D beat it:

    1. Both bid for the same span, as it depends on the ready step alone. In it D serves no less and costs no more, in
       every prefix too. So its cost per request is no higher; ties go to the lower rent, more capacity, then the name,
       which is the order in which offerings are dropped. D precedes X, and is worth it where X is.
    2. Where X fits under the ceilings, so does D, which is no dearer. Dry pools are no offers, so D can be bought.
    3. On demand, no spot rule applies to D, so D wins over X wherever X is allowed.
    4. Both spot, n spot instances chosen: a pool is full when it holds ceil((n + 1) / 2) of them or more (or its larger share,
       where there is one pool). Two pools cannot both be: they would hold n + 1. A third pool that is overfull refuses X too.
       So one of two D is allowed where X is.

    With a share below 1, a smaller X may fit under the share where a larger D does not; then dropping can cost the last
    few percent of spot. Keeping them all would keep a third of a region's market; docs/planner.md has what it costs.
    The local search and the minimum choose among undominated offerings anyway, so dropping them first changes nothing there.

    Examples
    --------
    >>> a, b = (Offering(instance_type=n, capacity_type=CapacityType.ON_DEMAND, zone="a", price_usd_per_hour=0.1) for n in "ab")
    >>> undominated([(a, 10.0, 3), (b, 12.0, 3)]), undominated([(a, 10.0, 2), (b, 12.0, 3)])
    ([1], [1, 0])
    """
    order = sorted(range(len(offers)), key=lambda i: (offers[i][0].price_usd_per_hour, -offers[i][1], offers[i][0].key))
    firm: dict[int, list[tuple[float, float]]] = {}
    spot: dict[int, list[tuple[float, float]]] = {}
    kept = []
    for index in order:
        offering, rate_rps, step = offers[index]
        launch_usd = offering.launch_overhead_s * offering.price_usd_per_hour
        if _beaten_by(firm.get(step, ()), rate_rps, launch_usd, enough=1):
            continue
        this = firm
        if offering.capacity_type is CapacityType.SPOT:
            this = spot
            if _beaten_by(spot.get(step, ()), rate_rps, launch_usd, enough=SPOT_DOMINATORS):
                continue
        kept.append(index)
        insort(this.setdefault(step, []), (rate_rps, launch_usd), key=lambda pair: -pair[0])
    return kept


def _beaten_by(largest_first: Sequence[tuple[float, float]], rate_rps: float, launch_usd: float, *, enough: int) -> bool:
    for rate, usd in largest_first:
        if rate < rate_rps:
            return False
        if usd <= launch_usd:
            enough -= 1
            if not enough:
                return True
    return False
