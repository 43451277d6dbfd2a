"""Exchanges that the local search tries: what may take the place of what is chosen. Rates nothing, checks nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, combinations_with_replacement

from markserve.core.capacity import EPSILON_RPS, Candidate, Room
from markserve.core.greedy import Choice

SEARCHED_OFFERS = 8
"""Offerings that moves bring in, the cheapest per request: a dear one loses anyway, and moves grow with their number."""
PAIRED_OFFERS = 3
"""Spot offerings, and on-demand ones to go with each, that paired moves bring in."""
PAIRED_FLEET = 12
"""Planned launches up to which two offerings are brought in at once: in a larger fleet one at a time does as well."""
PAIRED_MOST = 4
"""Spot instances that one paired move brings in at most; more come with further moves."""
MIXED_OFFERS = 6
"""Offerings of which mixed moves bring in two: their number grows with its square."""
EACH_NUMBER = 6
"""Numbers of one offering that moves take out one by one; beyond, they grow by half."""

Counted = tuple[tuple[Candidate, int], ...]
"""Candidates with numbers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Move:
    """Exchange some of what is chosen for something else."""

    removed: Counted
    added: Counted

    @property
    def text(self) -> str:
        """The move in words."""
        removed, added = (" and ".join(f"{n} x {c.key}" if n > 1 else c.key for c, n in part) for part in (self.removed, self.added))
        if not removed:
            return f"add {added}"
        return f"{removed} for {added}" if added else f"drop {removed}"


def single_moves(choice: Choice, _: Room) -> Iterator[Move]:
    """Drop, add or exchange one offering; or two single ones for one or two of another."""
    for last in choice.last_kept:
        yield Move(removed=((last, 1),), added=())
    yield from _kept_swaps(choice)
    planned = choice.launched
    offers = searched(choice)
    if choice.may_replace:
        yield from _replacements(choice, offers)
    for offer in offers:
        for number in (1, 2, 3):
            yield Move(removed=(), added=((offer, number),))
    for one, number in planned:
        for removed in _some(number):
            yield Move(removed=((one, removed),), added=())
            yield from _swaps(one, removed, offers)
    for (one, _number), (other, _number) in combinations(planned, 2):
        for offer in offers:
            if offer.key not in (one.key, other.key):
                yield Move(removed=((one, 1), (other, 1)), added=((offer, 1),))
                yield Move(removed=((one, 1), (other, 1)), added=((offer, 2),))


def _some(number: int) -> list[int]:
    """Return how many of `number` to try: each of the first few, then in growing strides, then all.

    >>> _some(3), _some(100)
    ([1, 2, 3], [1, 2, 3, 4, 5, 6, 9, 13, 19, 28, 42, 63, 94, 100])
    """
    result, step = [], 1
    while step < number:
        result.append(step)
        step = step + 1 if step < EACH_NUMBER else step * 3 // 2
    return [*result, number]


def paired_moves(choice: Choice, room: Room) -> Iterator[Move]:
    """Bring in spot with as much on demand as its share asks for, in place of nothing, one offering, or every launch.

    Neither half pays alone: spot is refused without on demand, and on demand is dearer than what it replaces.
    """
    share, planned = choice.task.spot.max_share, choice.launched
    if not 0 < share < 1 or sum(number for _, number in planned) > PAIRED_FLEET:
        return
    ranked = choice.undominated
    spot = [c for c in ranked if c.is_spot][:PAIRED_OFFERS]
    firm = [c for c in ranked if not c.is_spot]
    by_launch = sorted(firm, key=lambda c: (c.launch_cost_usd, c.key))
    firm = list(dict.fromkeys([*firm[: PAIRED_OFFERS - 1], *by_launch[:1]]))
    given_up: list[Counted] = [(), *(((one, number),) for one, number in planned)]
    if len(planned) > 1:
        given_up.append(tuple(planned))
    for removed in given_up:
        stays = _left(choice, removed)
        spot_rps = math.fsum(n * c.capacity_rps for c, n in stays if c.is_spot)
        firm_rps = math.fsum(n * c.capacity_rps for c, n in stays if not c.is_spot)
        given_back = sum(n for _, n in removed)
        for one, other in combinations_with_replacement(spot, 2):
            for number in range(1, PAIRED_MOST + 1):
                bought: Counted = ((one, number),) if one is other else ((one, number), (other, number))
                lacking_rps = (spot_rps + math.fsum(n * c.capacity_rps for c, n in bought)) * (1 - share) / share - firm_rps
                for partner in firm:
                    if lacking_rps > (room.instances + given_back) * partner.capacity_rps:
                        continue  # more than the ceiling allows
                    fewest = max(0, math.ceil((lacking_rps - EPSILON_RPS) / partner.capacity_rps))
                    if fewest:
                        yield Move(removed=removed, added=(*bought, (partner, fewest)))
                    elif partner is firm[0]:  # without a partner, each would be the same move
                        yield Move(removed=removed, added=bought)


def mixed_moves(choice: Choice, _: Room) -> Iterator[Move]:
    """Bring in two offerings together, in place of nothing or of some of one: what the caps on spot pools ask for."""
    planned = choice.launched
    if sum(number for _, number in planned) > PAIRED_FLEET:
        return
    given_up: list[Counted] = [(), *(((one, n),) for one, number in planned for n in sorted({1, 2, number}) if n <= number)]
    given_up += [((one, 1), (other, 1)) for (one, _), (other, _) in combinations(planned, 2)]
    offers = searched(choice)[:MIXED_OFFERS]
    for removed in given_up:
        gone = {c.key for c, _ in removed}
        for one, other in combinations(offers, 2):
            if not gone & {one.key, other.key}:
                for number, more in ((1, 1), (1, 2), (2, 1), (2, 2)):
                    yield Move(removed=removed, added=((one, number), (other, more)))


def searched(choice: Choice) -> list[Candidate]:
    """Return the offers that moves bring in: the cheapest per request, also of those on demand and of those soon ready."""
    ranked = choice.undominated
    firm = [c for c in ranked if not c.is_spot]
    found = [*ranked[:SEARCHED_OFFERS], *firm[:2]]
    for some in (ranked, firm):
        # Where a ceiling leaves demand unserved, the largest of those soon ready serve most.
        soonest = min((c.ready_step for c in some), default=0)
        found += sorted((c for c in some if c.ready_step == soonest), key=lambda c: (-c.capacity_rps, c.usd_per_request, c.key))[:1]
    return list({c.key: c for c in found}.values())


def _swaps(one: Candidate, removed: int, offers: Sequence[Candidate]) -> Iterator[Move]:
    """Exchange `removed` of one offering for one of another, or for about the same capacity of it."""
    for offer in offers:
        if offer.key != one.key:
            fewest = math.floor(removed * one.capacity_rps / offer.capacity_rps)
            for added in sorted({1 if removed <= EACH_NUMBER else fewest, max(1, fewest), fewest + 1}):
                yield Move(removed=((one, removed),), added=((offer, added),))


def _replacements(choice: Choice, offers: Sequence[Candidate]) -> Iterator[Move]:
    """Launch in place of an instance that is there, or to take over from it; or keep a smaller one, and launch what that one lacks."""
    for last in choice.last_kept:
        for move in _swaps(last, 1, offers):
            yield move
            yield Move(removed=(), added=move.added)
        for idle in choice.idle:
            lacking_rps = last.capacity_rps - idle.capacity_rps
            if lacking_rps > EPSILON_RPS:
                for offer in offers:
                    fewest = math.floor(lacking_rps / offer.capacity_rps)
                    for added in sorted({max(1, fewest), fewest + 1}):
                        yield Move(removed=((last, 1),), added=((idle, 1), (offer, added)))


def _kept_swaps(choice: Choice) -> Iterator[Move]:
    """Keep other instances of those that are there: some of one kind for about the same capacity of another that is not chosen."""
    kept = [(c, n) for c, n in choice.counted if not c.is_new]
    for idle in choice.idle:
        most = choice.number_idle(idle)
        for one, number in kept:
            if choice.head(one).key != choice.head(idle).key:
                for removed in _some(number):
                    fewest = math.floor(removed * one.capacity_rps / idle.capacity_rps)
                    for added in sorted({1, fewest, fewest + 1} & set(range(1, most + 1))):
                        yield Move(removed=((one, removed),), added=((idle, added),))
        for (one, ones), (other, others) in combinations(kept, 2):
            if choice.head(idle).key not in (choice.head(one).key, choice.head(other).key):
                for number, more in ((1, 1), (2, 1), (1, 2)):
                    if number <= ones and more <= others:
                        yield from (Move(removed=((one, number), (other, more)), added=((idle, n),)) for n in (1, 2) if n <= most)


def _left(choice: Choice, removed: Counted) -> list[tuple[Candidate, int]]:
    gone = {c.key: n for c, n in removed}
    return [(c, n - gone.get(c.key, 0)) for c, n in choice.counted]
