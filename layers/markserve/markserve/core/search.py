"""One model's complete choice: its minimum, Algorithm 1's fill, then local search.

Greedy alone is far off where one large instance takes over from several small ones, where instances become ready at
different times, and where a ceiling binds. Most of those plans are one exchange away from the best one: with it,
`benchmarks/planner.py` finds gaps to the exact optimum that docs/planner.md reports.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, combinations

from markserve.core.capacity import EPSILON_RPS, Candidate, Room
from markserve.core.greedy import Choice, fill
from markserve.core.moves import Move, mixed_moves, paired_moves, searched, single_moves
from markserve.core.notes import PlanNotes
from markserve.core.scoring import Score

RESTARTS = 3
"""Other plans that the search also starts from, the best of those filled with one or two types only."""
RESTARTED_FLEET = 40
"""Instances up to which it does: in a larger fleet single instances matter less, and each start takes longer."""
MOST_MOVES = 20_000
"""Moves rated in one search: bounds the time of a very large first plan."""
MOST_RESTART_MOVES = 1_000
"""Moves rated from all other starts together."""
LEAST_SAVING_USD = 1e-9
"""A smaller saving is rounding."""


def complete(
    choices: Sequence[Choice], room: Room, notes: PlanNotes, pending: Collection[str] = (), *, most_moves: int = MOST_MOVES
) -> Room:
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
            room, moves = settle(choice, before[choice.task.model], room, Effort(moves_left=most_moves))
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


def settle(choice: Choice, base: Mapping[str, int], room: Room, effort: Effort) -> tuple[Room, list[str]]:
    """Improve what is chosen, and the best of other plans to start from: fills with one or two offerings only.

    One exchange does not lead from several small instances to the right mix of large ones, and back.
    """
    if choice.size > RESTARTED_FLEET:
        return improve(choice, room, effort)
    home = dict(choice.numbers)
    starts = [(_rank(choice), home)]
    free = _room_between(room, choice, base)
    ranked = searched(choice)
    types = sorted({c.offering.instance_type for c in ranked})
    by_type = [[c for c in ranked if c.offering.instance_type in names] for n in (1, 2) for names in combinations(types, n)]
    for offers in (*combinations(ranked, 1), *combinations(ranked, 2), *by_type):
        trial = choice.with_offers(offers, base)
        fill([trial], free)
        if trial.numbers not in [numbers for _, numbers in starts]:
            starts.append((_rank(trial), dict(trial.numbers)))
    room, moves = improve(choice, room, effort)
    best = (_rank(choice), dict(choice.numbers), moves)
    effort.moves_left = min(effort.moves_left, MOST_RESTART_MOVES)
    for _, numbers in sorted(starts[1:], key=lambda start: start[0])[:RESTARTS]:
        choice.restore(numbers)
        _, moves = improve(choice, _room_between(free, choice, base, back=False), effort)
        rank = _rank(choice)
        if rank < (*best[0][:2], best[0][2] - LEAST_SAVING_USD):
            best = (rank, dict(choice.numbers), moves)
    choice.restore(best[1])
    return _room_between(free, choice, base, back=False), best[2]


def _rank(choice: Choice) -> tuple[float, int, float]:
    """Rate what is chosen as a whole: requests that nothing serves, launches that only satisfy the cap per pool of spot, cost."""
    scorer = choice.scorer()
    score = scorer.score()
    assert score is not None  # noqa: S101 - without a limit there is always one
    return score[0], scorer.idle if choice.task.spot.pools > 1 else 0, score[1]


def _room_between(room: Room, choice: Choice, numbers: Mapping[str, int], *, back: bool = True) -> Room:
    """Room once the launches of `choice` beyond `numbers` are given back, or bought; those of `numbers` that it gave up, the reverse."""
    for candidate, more in choice.launched_beyond(numbers):
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


def improve(choice: Choice, room: Room, effort: Effort | None = None) -> tuple[Room, list[str]]:
    """Apply the best strictly better feasible move until there is none.

    Better: fewer requests that nothing serves, else a lower cost, spilled requests included; so where the ceiling on
    instances binds, a larger one may take a smaller one's place. Feasible: the ceilings and spot rules hold, and at
    least `min_instances` stay; what is then unmet spills, if that is cheaper. Only planned launches are exchanged for
    launches, unless the choice `may_replace`: instances that are there may be dropped (not wanted any more) or exchanged
    for one another, and whether to replace them is decided by comparing whole plans.

    Returns
    -------
    (room, moves)
        What the ceilings then allow, and one sentence per applied move.
    """
    effort = effort or Effort()
    moves: list[str] = []
    while effort.is_new(choice.numbers):
        now, found = choice.score(), None
        for moves_of in (single_moves, paired_moves, mixed_moves):
            found = found or _best(choice, room, moves_of(choice, room), now, effort)
        if found is None:
            break
        score, move = found
        choice.set_numbers(_changes(choice, move).values())
        room = _room_after(room, move)
        gain = f"serves {now[0] - score[0]:.0f} more requests" if score[0] < now[0] else f"saves ${now[1] - score[1]:.4f}"
        moves.append(f"{move.text} {gain} over the horizon")
    return room, moves


@dataclass(slots=True)
class Effort:
    """What a search may still do: a plan seen before leads where it led then."""

    moves_left: int = MOST_MOVES
    seen: set[frozenset[tuple[str, int]]] = field(default_factory=set)

    def is_new(self, numbers: Mapping[str, int]) -> bool:
        """Whether to search from these numbers; they count as seen from then on."""
        known, key = len(self.seen), frozenset(numbers.items())
        self.seen.add(key)
        return len(self.seen) > known and self.moves_left > 0


class Round:
    """Rates moves from what is chosen now."""

    def __init__(self, choice: Choice, room: Room, now: Score) -> None:
        self._choice = choice
        self._room = room
        self._scorer = choice.scorer()
        self._has_spot = bool(choice.holding.spot_rps)
        given_up = choice.counted if choice.may_replace else choice.launched
        self._dearest_usd = max((c.usd_per_request for c, _ in given_up), default=0.0)
        self._unmet_from = list(accumulate(reversed(choice.left_rps), max))[::-1]
        self.now = now
        self._scorer.score()
        self._idle = self._scorer.idle
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
        if score is None or score >= (self.now[0], self.now[1] - LEAST_SAVING_USD):
            return None
        # Spot that never serves would only satisfy the cap per pool until it is drained again.
        return score if self._choice.task.spot.pools <= 1 or self._scorer.idle <= self._idle else None

    def _fits(self, move: Move) -> bool:
        added, removed = sum([n for _, n in move.added]), sum([n for _, n in move.removed])
        if self._choice.size - removed + added < self._choice.task.min_instances:
            return False
        if not added:
            return True
        bought = [(c, n) for c, n in move.added if c.is_new]
        more = sum([n for _, n in bought]) - sum([n for c, n in move.removed if c.is_new])
        more_usd = _usd_per_hour(bought) - _usd_per_hour([(c, n) for c, n in move.removed if c.is_new])
        # A ceiling may have been lowered below what runs already; a move must only not make that worse.
        instances, usd_per_hour = self._room.instances, self._room.usd_per_hour
        return instances - more >= min(0, instances) and usd_per_hour - more_usd >= min(0.0, usd_per_hour) - 1e-9

    def _is_promising(self, move: Move) -> bool:
        """Whether it lowers the rent, or the cost per request, or serves what is unmet; hardly anything else pays."""
        if not any(c.is_new for c, _ in move.added) or min([c.usd_per_request for c, _ in move.added]) < self._dearest_usd:
            return True
        if not move.removed:  # what serves nothing now can still be launched later
            return any(self._choice.bid(c) is not None for c, _ in move.added)
        first_ready = min([c.ready_step for c, _ in move.added])
        if first_ready < len(self._unmet_from) and self._unmet_from[first_ready] > EPSILON_RPS:
            return True
        if _usd_per_hour(move.added) < _usd_per_hour(move.removed):
            return True
        kinds = {c.is_spot for c, _ in move.added}
        return len(kinds) > 1


def _usd_per_hour(counted: Iterable[tuple[Candidate, int]]) -> float:
    return sum([n * c.offering.price_usd_per_hour for c, n in counted])


def _best(choice: Choice, room: Room, moves: Iterable[Move], now: Score, effort: Effort) -> tuple[Score, Move] | None:
    """Find the feasible move with the best score, if any is better than `now`."""
    this = Round(choice, room, now)
    best: tuple[Score, str, Move] | None = None
    for move in moves:
        effort.moves_left -= 1
        if effort.moves_left < 0:
            break
        score = this.rate(move)
        if score is not None and (best is None or (score, move.text) < best[:2]):
            best = (score, move.text, move)
            this.limit_usd = score[1] + LEAST_SAVING_USD if score[0] == 0 else this.limit_usd
    return None if best is None else (best[0], best[2])


def _changes(choice: Choice, move: Move) -> dict[str, tuple[Candidate, int]]:
    """Return the new number of each candidate that a move touches, by its key in `choice`."""
    result: dict[str, tuple[Candidate, int]] = {}
    for sign, part in ((-1, move.removed), (1, move.added)):
        for candidate, number in part:
            head = choice.head(candidate)
            before = result[head.key][1] if head.key in result else choice.numbers.get(head.key, 0)
            result[head.key] = (head, before + sign * number)
    return result


def _room_after(room: Room, move: Move) -> Room:
    changed = [*((c, n) for c, n in move.added if c.is_new), *((c, -n) for c, n in move.removed if c.is_new)]
    return Room(
        instances=room.instances - sum(n for _, n in changed),
        usd_per_hour=room.usd_per_hour - math.fsum(n * c.offering.price_usd_per_hour for c, n in changed),
    )
