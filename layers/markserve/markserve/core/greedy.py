"""Which capacity to hold against a demand path: the fill loop of MArk's Algorithm 1, for one or several models.

Knows steps, capacities and prices. Where the demand comes from, and what becomes of the choice, is `core.planning`'s.
"""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property

from markserve.core.capacity import EPSILON_RPS, Candidate, Holding, Room
from markserve.core.pruning import undominated
from markserve.core.scoring import Score, Scorer
from markserve.core.task import Bid, Task, Unmet

BIDS_SHOWN = 3
"""Bids per round that `fill` finds for certain: the winner and the two that the record shows as having come next."""


class Choice:
    """What is chosen for a task so far, as numbers of equal candidates; the only mutable thing in planning.

    Of instances that are alike, the first in `existing` are chosen first: which of them it is changes neither cost nor
    capacity.

    Parameters
    ----------
    existing
        Instances that are there, in the order in which equal ones are kept.
    offers
        What may be launched, any number of times.
    may_replace
        Whether the search may exchange instances that are there for launches; else launches for one another only.
    """

    def __init__(self, task: Task, *, existing: Sequence[Candidate], offers: Sequence[Candidate], may_replace: bool = False) -> None:
        self.task = task
        self.may_replace = may_replace
        self.existing = tuple(existing)
        self.offers = tuple(offers)
        alike: dict[tuple[object, ...], list[Candidate]] = {}
        for c in self.existing:
            alike.setdefault((c.offering.key, c.offering.price_usd_per_hour, c.capacity_rps, c.ready_step), []).append(c)
        self._members = {members[0].key: members for members in alike.values()}
        self._head = {c.key: members[0] for members in alike.values() for c in members} | {c.key: c for c in self.offers}
        self._ready_step = max((c.ready_step for c in (*self.existing, *self.offers)), default=0)
        self.numbers: dict[str, int] = {}
        """How many of each are chosen, by the key of the offering, or of the first instance of those alike."""
        self.left_rps = list(task.demand_rps)
        """Demand that is not met by what is chosen; negative where there is slack."""
        self.holding = Holding()
        self._unmet: Unmet | None = None

    @property
    def counted(self) -> list[tuple[Candidate, int]]:
        """What is chosen, with numbers, in order of first choice."""
        return [(self._head[key], number) for key, number in self.numbers.items()]

    @property
    def chosen(self) -> list[Candidate]:
        """What is chosen, one entry per instance."""
        return [c for key, n in self.numbers.items() for c in (self._members[key][:n] if key in self._members else [self._head[key]] * n)]

    @property
    def launched(self) -> list[tuple[Candidate, int]]:
        """Chosen offerings, with numbers."""
        return [(c, n) for c, n in self.counted if c.is_new]

    def launched_beyond(self, numbers: Mapping[str, int]) -> list[tuple[Candidate, int]]:
        """Offerings of which another number is chosen than these, with how many more; fewer is negative."""
        keys = dict.fromkeys([*self.numbers, *numbers])
        more = [(self._head[key], self.numbers.get(key, 0) - numbers.get(key, 0)) for key in keys]
        return [(candidate, number) for candidate, number in more if candidate.is_new and number]

    @property
    def launches(self) -> list[Candidate]:
        """Chosen offerings, one entry per instance."""
        return [c for c in self.chosen if c.is_new]

    @property
    def kept_ids(self) -> set[str]:
        """Instances that are there and wanted."""
        return {c.instance_id for c in self.chosen if not c.is_new}

    @property
    def size(self) -> int:
        """How many instances are chosen."""
        return self.holding.instances

    @property
    def idle(self) -> list[Candidate]:
        """Of each kind of instance that is there, the next one to choose."""
        return [members[n] for key, members in self._members.items() if (n := self.numbers.get(key, 0)) < len(members)]

    @property
    def last_kept(self) -> list[Candidate]:
        """Of each kind of instance that is there and chosen, the one to drop first."""
        return [members[n - 1] for key, members in self._members.items() if (n := self.numbers.get(key, 0))]

    @property
    def unmet(self) -> Unmet:
        """What is not met, with its spans."""
        if self._unmet is None:
            self._unmet = Unmet(self.left_rps)
        return self._unmet

    @cached_property
    def undominated(self) -> list[Candidate]:
        """The offers that others do not make needless, least cost per request first."""
        found = undominated([(c.offering, c.capacity_rps, c.ready_step) for c in self.offers])
        return sorted((self.offers[index] for index in found), key=lambda c: (c.usd_per_request, c.key))

    def head(self, candidate: Candidate) -> Candidate:
        """Return the one that stands for a candidate and those alike."""
        return self._head[candidate.key]

    def set_chosen(self, chosen: Iterable[Candidate]) -> None:
        """Choose as many of each as these."""
        self.numbers = {}
        for candidate in chosen:
            key = self._head[candidate.key].key
            self.numbers[key] = self.numbers.get(key, 0) + 1
        self._refresh()

    def with_offers(self, offers: Sequence[Candidate], numbers: Mapping[str, int]) -> Choice:
        """Return another choice that starts from `numbers` and may launch `offers` only."""
        other = Choice(self.task, existing=self.existing, offers=self.offers, may_replace=self.may_replace)
        other.offers = tuple(offers)
        other.restore(numbers)
        return other

    def restore(self, numbers: Mapping[str, int]) -> None:
        """Choose exactly these numbers."""
        self.numbers = dict(numbers)
        self._refresh()

    def set_numbers(self, changes: Iterable[tuple[Candidate, int]]) -> None:
        """Choose these many of each of these."""
        for candidate, number in changes:
            self.numbers[self._head[candidate.key].key] = number
        self.numbers = {key: number for key, number in self.numbers.items() if number}
        self._refresh()

    def add(self, candidate: Candidate, number: int = 1) -> None:
        """Choose more of one."""
        key = self._head[candidate.key].key
        self.numbers[key] = self.numbers.get(key, 0) + number
        for step in range(candidate.ready_step, len(self.left_rps)):
            self.left_rps[step] -= number * candidate.capacity_rps
        self.holding = self.holding.plus([(candidate, number)])
        self._unmet = None

    def _refresh(self) -> None:
        self.left_rps = self.task.left_rps(self.counted)
        self.holding = Holding().plus(self.counted)
        self._unmet = None

    def scorer(self) -> Scorer:
        """Return what rates changes to what is chosen."""
        return self.task.scorer(self.counted, ready_step=self._ready_step)

    def score(self) -> Score:
        """Rate what is chosen: (requests that nothing serves, expected cost in USD) over the horizon."""
        return self.task.score(self.counted)

    def spot_refusal(self, more: Candidate) -> str | None:
        """Why one more would lean too much on spot."""
        return self.task.spot_refusal(self.holding.plus([(more, 1)]))

    def bid(self, candidate: Candidate) -> Bid | None:
        """Return what a candidate would serve of what is unmet now."""
        return self.task.bid(candidate, self.unmet)

    def bids_and_refusals(self, room: Room) -> list[tuple[Bid, str | None]]:
        """Every candidate that would serve something now, with the reason why it may not be chosen."""
        bids = (self.bid(candidate) for candidate in [*self.idle, *self.offers])
        return [(bid, self._refusal(bid, room)) for bid in bids if bid is not None]

    def best_bids(self, room: Room, *, launch: bool = True, number: int = 1) -> list[Bid]:
        """Return at least the `number` best admissible bids, best first, where there are as many."""
        return self.best_bids_and_repeats(room, launch=launch, number=number)[0]

    def best_bids_and_repeats(self, room: Room, *, launch: bool = True, number: int = 1) -> tuple[list[Bid], int]:
        """Return the best bids, and how often in a row the first one would win.

        No bid can cost less per request than the rent over the largest rate the candidate could serve. So candidates
        are asked in the order of that bound, until it exceeds the bids at hand: most are never asked.

        The first one wins again while each of its instances is used in full and no span of those asked ends earlier:
        then its own cost stays, and that of every other one stays or rises, as does the bound of those not asked. What
        the spot rules refused might be allowed later, so then it is 1.
        """
        peak_rps = max(self.left_rps)
        if peak_rps <= EPSILON_RPS:
            return [], 0
        candidates = [*self.idle, *(self.offers if launch else ())]
        bounds = sorted((c.usd_per_s / min(c.capacity_rps, peak_rps), index) for index, c in enumerate(candidates))
        bids: list[Bid] = []
        lowest_rps, may_change = math.inf, False
        for bound, index in bounds:
            if len(bids) >= number and bound > bids[number - 1].usd_per_request * (1 + 1e-9):
                break
            bid = self.bid(candidates[index])
            if bid is None:
                continue
            lowest_rps = min(lowest_rps, self.unmet.lows_rps[bid.first_step])
            if (refusal := self._refusal(bid, room)) is None:
                insort(bids, bid, key=lambda b: b.order)
            may_change = may_change or (refusal is not None and bid.candidate.is_spot)
        return bids, 1 if may_change or not bids else self._repeats(bids, lowest_rps, room)

    def _repeats(self, bids: Sequence[Bid], lowest_rps: float, room: Room) -> int:
        best, spill = bids[0], self.task.spill
        candidate = best.candidate
        if spill is not None and best.least_usd_per_request >= spill.usd_per_request:
            return 1  # only worth it while more is unmet than spill-over takes
        in_full = math.floor(self.unmet.lows_rps[best.first_step] / candidate.capacity_rps + EPSILON_RPS)
        most = min(in_full, math.ceil((lowest_rps - EPSILON_RPS) / candidate.capacity_rps))
        if candidate.is_new:
            most = min(most, room.fits(candidate.offering))
        else:
            is_tie = len(bids) > 1 and bids[1].order[:4] == best.order[:4]  # then rank decides, and changes
            most = 1 if is_tie else min(most, self.number_idle(candidate))
        if candidate.is_spot and most > 1:
            refused = (n for n in range(2, most + 1) if self.task.spot_refusal(self.holding.plus([(candidate, n)])) is not None)
            most = next(refused, most + 1) - 1
        return max(1, most)

    def number_there(self, candidate: Candidate) -> int:
        """How many instances like this one are there."""
        return len(self._members[self._head[candidate.key].key])

    def number_idle(self, candidate: Candidate) -> int:
        """How many instances like this one are there and not chosen."""
        return self.number_there(candidate) - self.numbers.get(self._head[candidate.key].key, 0)

    def _refusal(self, bid: Bid, room: Room) -> str | None:
        candidate, spill = bid.candidate, self.task.spill
        if candidate.is_new and (full := room.refusal(candidate.offering)):
            return full
        if candidate.is_spot and (leaning := self.spot_refusal(candidate)):
            return leaning
        if spill is not None and not self.task.is_worth_it(bid, self.unmet):
            return (
                f"left to spill-over: its {bid.served:.0f} requests cost ${bid.served * spill.usd_per_request:.4f} there "
                f"net of queue calls and ${bid.cost_usd:.4f} on it"
            )
        return None

    def unmet_share(self) -> float:
        """Share of the horizon's demand that is not met."""
        demand = math.fsum(self.task.demand_rps)
        return math.fsum(max(0.0, rate) for rate in self.left_rps) / demand if demand > 0 else 0.0


def fill(choices: Sequence[Choice], room: Room, *, launch: bool = True, on_bids: Callable[[Choice, list[Bid]], None] | None = None) -> Room:
    """Add the candidate with the least cost per unmet request until nothing useful, allowed and worthwhile is left.

    `cost_i = (O_i + (e - tau_i) * P_i) / N_i`, with `O_i = 0` for instances that are already there, `[tau_i, e]` the
    longest span of unmet demand from the step at which `i` is ready, and `N_i` the requests `i` would serve in it.

    With several models, the one with the largest unmet share goes first, so that under a shared ceiling no model
    starves because of its name.

    Parameters
    ----------
    launch
        False considers only the instances that are there.
    on_bids
        Told of every round's best admissible bids (at least `BIDS_SHOWN` of them, if there are), for the record.

    Returns
    -------
    Room
        What the ceilings allow after the chosen launches.

    Notes
    -----
    Deviations from the paper: `tau` is each offering's own, as launch overheads differ; a launch has to be cheaper
    than spilling the same requests, over the best prefix of its span; ceilings and spot rules apply.
    A candidate that would win several times in a row is added as often at once, with the same result. Prune the
    offerings first: a round takes a sort of the candidates and a walk over the steps for the few that are asked.

    References
    ----------
    Zhang et al., MArk (USENIX ATC '19), Algorithm 1.
    """
    still_open = {choice.task.model: choice for choice in choices}
    while still_open:
        is_last = len(still_open) == 1
        choice = min(still_open.values(), key=lambda c: (0.0 if is_last else -c.unmet_share(), c.task.model))
        allowed, repeats = choice.best_bids_and_repeats(room, launch=launch, number=BIDS_SHOWN)
        if not allowed:
            del still_open[choice.task.model]
            continue
        if on_bids is not None:
            on_bids(choice, allowed)
        best = allowed[0].candidate
        number = repeats if is_last else 1
        choice.add(best, number)
        if best.is_new:
            room = room.with_bought(best.offering, number)
    return room
