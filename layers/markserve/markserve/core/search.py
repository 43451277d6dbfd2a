"""One model's complete choice: its minimum, Algorithm 1's fill, then one-move local search.

Greedy alone is far off where one large instance takes over from several small ones, where instances become ready at
different times, and where a ceiling binds. Most of those plans are one exchange away from the best one: with it,
`benchmarks/planner.py` finds gaps to the exact optimum that docs/planner.md reports.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, combinations_with_replacement

from markserve.core.capacity import EPSILON_RPS, Candidate, Room
from markserve.core.greedy import Choice, fill
from markserve.core.notes import PlanNotes
from markserve.core.scoring import Score

MAX_ROUNDS = 50
"""Moves in one plan; each must lower the cost, so this only bounds the time of a very large first plan."""
SEARCHED_OFFERS = 6
"""Offerings that moves bring in, the cheapest per request: a dear one loses anyway, and moves grow with their number."""
PAIRED_OFFERS = 3
"""Spot offerings, and on-demand ones to go with each, that paired moves bring in."""
PAIRED_FLEET = 12
"""Planned launches up to which pairs are tried: in a larger fleet one instance on demand hardly moves the share."""
PAIRED_MOST = 4
"""Spot instances that one paired move brings in at most; more come with further moves."""
EACH_NUMBER = 12
"""How many of one offering moves take out in every number up to this; of more only all at once."""
LEAST_SAVING_USD = 1e-9
"""A smaller saving is rounding."""


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


def complete(choices: Sequence[Choice], room: Room, notes: PlanNotes, pending: Collection[str] = ()) -> Room:
    """Keep each model's minimum, fill with launches, improve, and fill up what the search made possible.

    What an earlier plan ordered is left alone while it is on its way, unless there is more to buy.
    """
    for choice in choices:
        room = _keep_minimum(choice, room, notes)
    room = fill(choices, room, on_bids=notes.chosen)
    for choice in choices:
        if choice.launched or choice.task.model not in pending:
            room, moves = improve(choice, room)
            notes.say(choice, moves)
    for choice in choices:
        room = _keep_minimum(choice, room, notes)
        if choice.size < choice.task.min_instances:
            notes.say(choice, [f"min-instances {choice.task.min_instances} not reached: nothing more may be bought"])
    return fill(choices, room, on_bids=notes.chosen)


def _keep_minimum(choice: Choice, room: Room, notes: PlanNotes) -> Room:
    """Choose up to `min_instances`: by cost per unmet request while there is demand, else by rent."""
    while choice.size < choice.task.min_instances:
        idle = choice.idle
        allowed = [c for c in idle if choice.spot_refusal(c) is None] + allowed_offers(choice, room)
        allowed = allowed or idle  # too much spot is better than too little of anything
        if not allowed:
            break
        bids = sorted((bid for c in allowed if (bid := choice.bid(c))), key=lambda bid: bid.order)
        cheapest = min(allowed, key=lambda c: (c.is_new, c.offering.price_usd_per_hour, -c.capacity_rps, c.rank, c.key))
        best = bids[0].candidate if bids else cheapest
        choice.add(best)
        room = room.with_bought(best.offering, 1) if best.is_new else room
        if not bids:
            notes.say(choice, [f"{best.key} kept for min-instances {choice.task.min_instances}"])
        if best.is_new:
            notes.why(choice, best.key, f"min-instances is {choice.task.min_instances}")
    return room


def allowed_offers(choice: Choice, room: Room) -> list[Candidate]:
    """Offers of which one more keeps the ceilings and the spot rules."""
    return [c for c in choice.offers if room.refusal(c.offering) is None and (not c.is_spot or choice.spot_refusal(c) is None)]


def improve(choice: Choice, room: Room) -> tuple[Room, list[str]]:
    """Apply the best strictly better feasible move until there is none.

    Better: fewer requests that nothing serves, else a lower cost, spilled requests included; so where the ceiling on
    instances binds, a larger one may take a smaller one's place. Feasible: the ceilings and spot rules hold, and at
    least `min_instances` stay; what is then unmet spills, if that is cheaper. Only planned launches are exchanged;
    instances that are there may be dropped (not wanted any more), because whether to replace them is decided by
    comparing whole plans.

    Returns
    -------
    (room, moves)
        What the ceilings then allow, and one sentence per applied move.
    """
    moves: list[str] = []
    for _ in range(MAX_ROUNDS):
        now = choice.score()
        found = _best(choice, room, _moves(choice), now) or _best(choice, room, _pairs(choice, room), now)
        if found is None:
            break
        score, move = found
        choice.set_numbers(_changes(choice, move).values())
        room = _room_after(room, move)
        gain = f"serves {now[0] - score[0]:.0f} more requests" if score[0] < now[0] else f"saves ${now[1] - score[1]:.4f}"
        moves.append(f"{move.text} {gain} over the horizon")
    return room, moves


def _best(choice: Choice, room: Room, moves: Iterable[Move], now: Score) -> tuple[Score, Move] | None:
    """Find the feasible move with the best score, if any is better than `now`."""
    scorer = choice.task.scorer(choice.counted)
    # Where nothing is unserved, a move wins by its cost alone, and is given up once that is certain to be higher.
    limit_usd = now[1] - LEAST_SAVING_USD if now[0] == 0 else math.inf
    has_spot = any(c.is_spot for c, _ in choice.counted)
    best: tuple[Score, str, Move] | None = None
    for move in moves:
        if not _is_allowed(choice, move, room):
            continue
        changes = _changes(choice, move)
        if (has_spot or any(c.is_spot for c, _ in move.added)) and choice.task.spot_refusal(_after(choice, changes)) is not None:
            continue
        score = scorer.score(changes, limit_usd=limit_usd + LEAST_SAVING_USD)
        if score is None or score >= (now[0], now[1] - LEAST_SAVING_USD):
            continue
        if best is None or (score, move.text) < best[:2]:
            best = (score, move.text, move)
            limit_usd = score[1] if score[0] == 0 else limit_usd
    return None if best is None else (best[0], best[2])


def _moves(choice: Choice) -> Iterator[Move]:
    for last in choice.last_kept:
        yield Move(removed=((last, 1),), added=())
    planned = choice.launched
    offers = sorted(choice.offers, key=lambda c: (c.usd_per_request, c.key))[:SEARCHED_OFFERS]
    for offer in offers:
        if choice.bid(offer) is not None:  # else it can still be launched later
            yield Move(removed=(), added=((offer, 1),))
    for one, number in planned:
        for removed in _some(number):
            yield Move(removed=((one, removed),), added=())
            yield from _swaps(one, removed, offers)
    for (one, _), (other, _) in combinations(planned, 2):
        for offer in offers:
            if offer.key not in (one.key, other.key):
                yield Move(removed=((one, 1), (other, 1)), added=((offer, 1),))
                yield Move(removed=((one, 1), (other, 1)), added=((offer, 2),))


def _some(number: int) -> Iterable[int]:
    """Return how many of `number` to try: each of the first few, then all."""
    return range(1, number + 1) if number <= EACH_NUMBER else (*range(1, EACH_NUMBER + 1), number)


def _pairs(choice: Choice, room: Room) -> Iterator[Move]:
    """Bring in spot with as much on demand as its share asks for, in place of nothing, one offering, or every launch.

    Neither half pays alone: spot is refused without on demand, and on demand is dearer than what it replaces.
    """
    share, planned = choice.task.spot.max_share, choice.launched
    if not 0 < share < 1 or sum(number for _, number in planned) > PAIRED_FLEET:
        return
    ranked = sorted(choice.offers, key=lambda c: (c.usd_per_request, c.key))
    spot = [c for c in ranked if c.is_spot][:PAIRED_OFFERS]
    firm = [c for c in ranked if not c.is_spot]
    by_launch = sorted(firm, key=lambda c: (c.launch_cost_usd, c.key))
    firm = list(dict.fromkeys([*firm[: PAIRED_OFFERS - 1], *by_launch[:1]]))
    given_up: list[Counted] = [(), *(((one, number),) for one, number in planned)]
    if len(planned) > 1:
        given_up.append(tuple(planned))
    for removed in given_up:
        stays = _after(choice, _changes(choice, Move(removed=removed, added=())))
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


def _swaps(one: Candidate, removed: int, offers: Sequence[Candidate]) -> Iterator[Move]:
    """Exchange `removed` of one offering for one of another, or for about the same capacity of it."""
    for offer in offers:
        if offer.key != one.key:
            fewest = math.floor(removed * one.capacity_rps / offer.capacity_rps)
            for added in sorted({1, max(1, fewest), fewest + 1}):
                yield Move(removed=((one, removed),), added=((offer, added),))


def _changes(choice: Choice, move: Move) -> dict[str, tuple[Candidate, int]]:
    """Return the new number of each candidate that a move touches, by its key in `choice`."""
    result: dict[str, tuple[Candidate, int]] = {}
    for sign, part in ((-1, move.removed), (1, move.added)):
        for candidate, number in part:
            head = choice.head(candidate)
            before = result[head.key][1] if head.key in result else choice.numbers.get(head.key, 0)
            result[head.key] = (head, before + sign * number)
    return result


def _after(choice: Choice, changes: Mapping[str, tuple[Candidate, int]]) -> list[tuple[Candidate, int]]:
    after = [(c, n) for c, n in choice.counted if c.key not in changes]
    return after + [(c, n) for c, n in changes.values() if n]


def _is_allowed(choice: Choice, move: Move, room: Room) -> bool:
    if choice.size - sum(n for _, n in move.removed) + sum(n for _, n in move.added) < choice.task.min_instances:
        return False
    if not move.added:
        return True
    saves_rent = sum(n * c.usd_per_s for c, n in move.added) < sum(n * c.usd_per_s for c, n in move.removed)
    first_ready = min(c.ready_step for c, _ in move.added)
    pairs = any(c.is_spot for c, _ in move.added) and not all(c.is_spot for c, _ in move.added)
    if not saves_rent and not pairs and max(choice.left_rps[first_ready:], default=0.0) <= EPSILON_RPS:
        return False  # where nothing is unmet, hardly anything but a lower rent makes it cheaper
    left_room = _room_after(room, move)
    # A ceiling may have been lowered below what runs already; a move must only not make that worse.
    return left_room.instances >= min(0, room.instances) and left_room.usd_per_hour >= min(0.0, room.usd_per_hour) - 1e-9


def _room_after(room: Room, move: Move) -> Room:
    changed = [*move.added, *((c, -n) for c, n in move.removed if c.is_new)]
    return Room(
        instances=room.instances - sum(n for _, n in changed),
        usd_per_hour=room.usd_per_hour - math.fsum(n * c.offering.price_usd_per_hour for c, n in changed),
    )
