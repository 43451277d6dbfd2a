"""One model's complete choice: its minimum, Algorithm 1's fill, then one-move local search.

Greedy alone is far off where one large instance takes over from several small ones, where instances become ready at
different times, and where a ceiling binds. Most of those plans are one exchange away from the best one: with it,
`benchmarks/planner.py` finds gaps to the exact optimum that docs/planner.md reports.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, combinations, combinations_with_replacement

from markserve.core.capacity import EPSILON_RPS, Candidate, Room
from markserve.core.greedy import Choice, fill
from markserve.core.notes import PlanNotes
from markserve.core.scoring import Score

MAX_ROUNDS = 50
"""Moves in one plan; each must lower the cost, so this only bounds the time of a very large first plan."""
SEARCHED_OFFERS = 8
"""Offerings that moves bring in, the cheapest per request: a dear one loses anyway, and moves grow with their number."""
PAIRED_OFFERS = 3
"""Spot offerings, and on-demand ones to go with each, that paired moves bring in."""
PAIRED_FLEET = 12
"""Planned launches up to which pairs are tried: in a larger fleet one instance on demand hardly moves the share."""
PAIRED_MOST = 4
"""Spot instances that one paired move brings in at most; more come with further moves."""
RESTARTS = 3
RESTARTED_FLEET = 40
EACH_NUMBER = 6
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
    before = {}
    for choice in choices:
        room = _keep_minimum(choice, room, notes)
        before[choice.task.model] = dict(choice.numbers)
    room = fill(choices, room, on_bids=notes.chosen)
    for choice in choices:
        if choice.launched or choice.task.model not in pending:
            room, moves = settle(choice, before[choice.task.model], room)
            notes.say(choice, moves)
    for choice in choices:
        room = _keep_minimum(choice, room, notes)
        if choice.size < choice.task.min_instances:
            notes.say(choice, [f"min-instances {choice.task.min_instances} not reached: nothing more may be bought"])
    return fill_up(choices, room, notes)


def fill_up(choices: Sequence[Choice], room: Room, notes: PlanNotes) -> Room:
    """Fill what has become possible since, and take it back where it is not better after all.

    Algorithm 1 looks at what is unmet alone; that what is chosen already would then be needed less, it does not see.
    """
    before = [(dict(choice.numbers), choice.score()) for choice in choices]
    room = fill(choices, room, on_bids=notes.chosen)
    for choice, (numbers, score) in zip(choices, before, strict=True):
        if choice.numbers != numbers and choice.score() >= score:
            room = _room_between(room, choice, numbers)
            choice.restore(numbers)
    return room


def settle(choice: Choice, base: Mapping[str, int], room: Room) -> tuple[Room, list[str]]:
    """Improve what is chosen, and the best of other plans to start from: fills with one or two offerings only.

    One exchange does not lead from several small instances to the right mix of large ones, and back.
    """
    if choice.size > RESTARTED_FLEET:
        return improve(choice, room)
    home = dict(choice.numbers)
    starts = [(choice.score(), home)]
    free = _room_between(room, choice, base)
    ranked = searched(choice)
    types = sorted({c.offering.instance_type for c in ranked})
    by_type = [[c for c in ranked if c.offering.instance_type in names] for n in (1, 2) for names in combinations(types, n)]
    for offers in (*combinations(ranked, 1), *combinations(ranked, 2), *by_type):
        trial = Choice(choice.task, existing=choice.existing, offers=offers)
        trial.restore(base)
        fill([trial], free)
        if trial.numbers not in [numbers for _, numbers in starts]:
            starts.append((trial.score(), dict(trial.numbers)))
    best: tuple[Score, dict[str, int], list[str]] | None = None
    for _, numbers in [starts[0], *sorted(starts[1:], key=lambda start: start[0])[:RESTARTS]]:
        choice.restore(numbers)
        _, moves = improve(choice, _room_between(free, choice, base, back=False))
        score = choice.score()
        if best is None or score < (best[0][0], best[0][1] - LEAST_SAVING_USD):
            best = (score, dict(choice.numbers), moves)
    choice.restore(best[1])
    return _room_between(free, choice, base, back=False), best[2]


def _room_between(room: Room, choice: Choice, numbers: Mapping[str, int], *, back: bool = True) -> Room:
    """Room once the launches of `choice` beyond `numbers` are given back, or bought."""
    for candidate, number in choice.launched:
        more = number - numbers.get(candidate.key, 0)
        room = room.with_bought(candidate.offering, -more if back else more)
    return room


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
        found = None
        for moves_of in (_moves, _pairs, _mixed):
            found = found or _best(choice, room, moves_of(choice, room), now)
        if found is None:
            break
        score, move = found
        choice.set_numbers(_changes(choice, move).values())
        room = _room_after(room, move)
        gain = f"serves {now[0] - score[0]:.0f} more requests" if score[0] < now[0] else f"saves ${now[1] - score[1]:.4f}"
        moves.append(f"{move.text} {gain} over the horizon")
    return room, moves


class Round:
    """Rates moves from what is chosen now."""

    def __init__(self, choice: Choice, room: Room, now: Score) -> None:
        self._choice = choice
        self._room = room
        self._scorer = choice.task.scorer(choice.counted)
        self._has_spot = bool(choice.holding.spot_rps)
        self._dearest_usd = max((c.usd_per_request for c, _ in choice.launched), default=0.0)
        self._unmet_from = list(accumulate(reversed(choice.left_rps), max))[::-1]
        self.now = now
        # Where nothing is unserved, a move wins by its cost alone, and is given up once that is certain to be higher.
        self.limit_usd = now[1] if now[0] == 0 else math.inf

    def rate(self, move: Move) -> Score | None:
        """Return the score of a move that is feasible and better than what is chosen now."""
        if not self._fits(move) or not self._is_promising(move):
            return None
        if self._has_spot or any(c.is_spot for c, _ in move.added):
            after = self._choice.holding.plus((*move.added, *((c, -n) for c, n in move.removed)))
            if self._choice.task.spot_refusal(after) is not None:
                return None
        score = self._scorer.score(_changes(self._choice, move), limit_usd=self.limit_usd)
        return score if score is not None and score < (self.now[0], self.now[1] - LEAST_SAVING_USD) else None

    def _fits(self, move: Move) -> bool:
        added, removed = sum([n for _, n in move.added]), sum([n for _, n in move.removed])
        if self._choice.size - removed + added < self._choice.task.min_instances:
            return False
        if not added:
            return True
        more = added - sum([n for c, n in move.removed if c.is_new])
        more_usd = _usd_per_hour(move.added) - _usd_per_hour([(c, n) for c, n in move.removed if c.is_new])
        # A ceiling may have been lowered below what runs already; a move must only not make that worse.
        instances, usd_per_hour = self._room.instances, self._room.usd_per_hour
        return instances - more >= min(0, instances) and usd_per_hour - more_usd >= min(0.0, usd_per_hour) - 1e-9

    def _is_promising(self, move: Move) -> bool:
        """Whether it lowers the rent, or the cost per request, or serves what is unmet; hardly anything else pays."""
        if not move.removed:  # what serves nothing now can still be launched later
            return any(self._choice.bid(c) is not None for c, _ in move.added)
        if not move.added or min([c.usd_per_request for c, _ in move.added]) < self._dearest_usd:
            return True
        first_ready = min([c.ready_step for c, _ in move.added])
        if first_ready < len(self._unmet_from) and self._unmet_from[first_ready] > EPSILON_RPS:
            return True
        if _usd_per_hour(move.added) < _usd_per_hour(move.removed):
            return True
        kinds = {c.is_spot for c, _ in move.added}
        return len(kinds) > 1


def _usd_per_hour(counted: Iterable[tuple[Candidate, int]]) -> float:
    return sum([n * c.offering.price_usd_per_hour for c, n in counted])


def _best(choice: Choice, room: Room, moves: Iterable[Move], now: Score) -> tuple[Score, Move] | None:
    """Find the feasible move with the best score, if any is better than `now`."""
    this = Round(choice, room, now)
    best: tuple[Score, str, Move] | None = None
    for move in moves:
        score = this.rate(move)
        if score is not None and (best is None or (score, move.text) < best[:2]):
            best = (score, move.text, move)
            this.limit_usd = score[1] + LEAST_SAVING_USD if score[0] == 0 else this.limit_usd
    return None if best is None else (best[0], best[2])


def _moves(choice: Choice, _: Room) -> Iterator[Move]:
    for last in choice.last_kept:
        yield Move(removed=((last, 1),), added=())
    planned = choice.launched
    offers = searched(choice)
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


def _mixed(choice: Choice, _: Room) -> Iterator[Move]:
    """Bring in two offerings together, in place of nothing or of some of one: what the caps on spot pools ask for."""
    planned = choice.launched
    if sum(number for _, number in planned) > PAIRED_FLEET:
        return
    given_up: list[Counted] = [(), *(((one, n),) for one, number in planned for n in sorted({1, 2, number}) if n <= number)]
    given_up += [((one, 1), (other, 1)) for (one, _), (other, _) in combinations(planned, 2)]
    for removed in given_up:
        gone = {c.key for c, _ in removed}
        for one, other in combinations(searched(choice), 2):
            if not gone & {one.key, other.key}:
                for number, more in ((1, 1), (1, 2), (2, 1), (2, 2)):
                    yield Move(removed=removed, added=((one, number), (other, more)))


def searched(choice: Choice) -> list[Candidate]:
    """Return the offers that moves bring in: the cheapest per request, also of those on demand and of those soon ready."""
    ranked = sorted(choice.offers, key=lambda c: (c.usd_per_request, c.key))
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


def _room_after(room: Room, move: Move) -> Room:
    changed = [*move.added, *((c, -n) for c, n in move.removed if c.is_new)]
    return Room(
        instances=room.instances - sum(n for _, n in changed),
        usd_per_hour=room.usd_per_hour - math.fsum(n * c.offering.price_usd_per_hour for c, n in changed),
    )
