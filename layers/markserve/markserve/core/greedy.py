"""Which capacity to hold against a demand path: the fill loop of MArk's Algorithm 1, for one or several models.

Knows steps, capacities and prices. Where the demand comes from, and what becomes of the choice, is `core.planning`'s.
"""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from markserve.core.capacity import EPSILON_RPS, Candidate, Room, SpillTier, SpotRules
from markserve.core.types import Offering

BIDS_SHOWN = 3
"""Bids per round that `fill` finds for certain: the winner and the two that the record shows as having come next."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Bid:
    """What a candidate would serve of the unmet demand, and at what cost."""

    candidate: Candidate
    first_step: int
    last_step: int
    served: float
    cost_usd: float
    least_usd_per_request: float
    """Over the best prefix of the span: it may be given back before the span ends."""

    @property
    def usd_per_request(self) -> float:
        """Algorithm 1's cost over the whole span."""
        return self.cost_usd / self.served

    @property
    def order(self) -> tuple[float, bool, float, float, int, str]:
        """Least cost per request first; ties: what is there, lower rent, more capacity, preferred rank, key."""
        c = self.candidate
        return (round(self.usd_per_request, 15), c.is_new, c.offering.price_usd_per_hour, -c.capacity_rps, c.rank, c.key)


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """One model's demand path and the terms on which to meet it."""

    model: str
    demand_rps: tuple[float, ...]
    step_s: float
    lead_step: int
    """First step that a launch made now reaches, whatever the offering: an instance that is not needed before it can
    as well be launched again later."""
    spill: SpillTier | None
    spot: SpotRules
    min_instances: int = 0

    def spot_refusal(self, chosen: Sequence[Candidate]) -> str | None:
        """Why `chosen` leans too much on spot; what only `min_instances` or no demand at all calls for counts as serving."""
        peak_rps = max(self.demand_rps)
        is_minimum = len(chosen) <= self.min_instances or peak_rps <= EPSILON_RPS
        return self.spot.refusal(chosen) if is_minimum else self.spot.refusal(chosen, peak_rps=peak_rps)

    def left_rps(self, chosen: Iterable[Candidate]) -> list[float]:
        """Demand minus capacity by step; negative where there is slack."""
        left = list(self.demand_rps)
        for candidate in chosen:
            for step in range(candidate.ready_step, len(left)):
                left[step] -= candidate.capacity_rps
        return left

    def bid(self, candidate: Candidate, left: Sequence[float]) -> Bid | None:
        """Cost of letting `candidate` serve the longest span of unmet demand that starts when it is first useful.

        An offering is useful at the step where a launch made now is ready, and only if demand is unmet there: else
        it can still be launched later. An instance that is there is useful at the first unmet step that a relaunch
        could not reach; its rent counts from now on.
        """
        steps = len(left)
        reach = candidate.ready_step if candidate.is_new else max(candidate.ready_step, self.lead_step)
        first = next((t for t in range(candidate.ready_step, min(reach + 1, steps)) if left[t] > EPSILON_RPS), None)
        if first is None:
            return None
        step_s, capacity_rps = self.step_s, candidate.capacity_rps
        launch_cost_usd, usd_per_s = candidate.launch_cost_usd, candidate.usd_per_s
        step, served, cost, least = first, 0.0, 0.0, math.inf
        while step < steps and left[step] > EPSILON_RPS:
            served += min(left[step], capacity_rps) * step_s
            cost = launch_cost_usd + (step + 1 - candidate.ready_step) * step_s * usd_per_s
            least = min(least, cost / served)
            step += 1
        return Bid(candidate=candidate, first_step=first, last_step=step - 1, served=served, cost_usd=cost, least_usd_per_request=least)

    def is_worth_it(self, bid: Bid, left: Sequence[float]) -> bool:
        """Whether buying beats spilling the same requests; always so for what the spillover function cannot take."""
        if self.spill is None or max(left[bid.first_step : bid.last_step + 1]) > self.spill.capacity_rps + EPSILON_RPS:
            return True
        return bid.least_usd_per_request < self.spill.usd_per_request

    def score(self, chosen: Sequence[Candidate]) -> tuple[float, float]:
        """Rate holding `chosen`: (requests that nothing serves, expected cost in USD) over the horizon; lower is better.

        Each step is served by the cheapest capacity first. An instance is paid for the steps that need it, and given
        back when what is left of them would cost less to spill. What nobody serves then spills.
        """
        left, cost = list(self.demand_rps), 0.0
        spill_usd, spillable = (self.spill.usd_per_request, self.spill.capacity_rps) if self.spill else (math.inf, 0.0)
        needed: list[int] = []
        previous: Candidate | None = None
        for c in sorted(chosen, key=lambda c: c.merit):
            # What the last of several equal ones did not need, the next one does not need either.
            steps = needed if previous is not None and c.is_new and c.key == previous.key else range(c.ready_step, len(left))
            needed = [step for step in steps if left[step] > EPSILON_RPS]
            worth_rps = c.usd_per_s / spill_usd
            while needed and left[needed[-1]] <= spillable and min(left[needed[-1]], c.capacity_rps) <= worth_rps:
                needed.pop()
            for step in needed:
                left[step] -= c.capacity_rps
            cost += c.launch_cost_usd + len(needed) * self.step_s * c.usd_per_s
            previous = c
        unserved = math.fsum(max(0.0, rate - spillable) for rate in left) * self.step_s
        spilled = math.fsum(min(max(0.0, rate), spillable) for rate in left) * self.step_s
        return round(unserved, 6), cost + spilled * (self.spill.usd_per_request if self.spill else 0.0)


class Choice:
    """What is chosen for a task so far; the only mutable thing in planning.

    Parameters
    ----------
    existing
        Instances that are there, in the order in which equal ones are kept.
    offers
        What may be launched, any number of times.
    """

    def __init__(self, task: Task, *, existing: Sequence[Candidate], offers: Sequence[Candidate]) -> None:
        self.task = task
        self.existing = tuple(existing)
        self.offers = tuple(offers)
        self.chosen: list[Candidate] = []
        self.left_rps = list(task.demand_rps)
        """Demand that `chosen` does not meet; negative where there is slack."""

    @property
    def launches(self) -> list[Candidate]:
        """Chosen offerings, one entry per instance."""
        return [c for c in self.chosen if c.is_new]

    @property
    def kept_ids(self) -> set[str]:
        """Instances that are there and wanted."""
        return {c.instance_id for c in self.chosen if not c.is_new}

    def set_chosen(self, chosen: Iterable[Candidate]) -> None:
        """Choose exactly these."""
        self.chosen = list(chosen)
        self.left_rps = self.task.left_rps(self.chosen)

    def add(self, candidate: Candidate) -> None:
        """Choose one more."""
        self.chosen.append(candidate)
        for step in range(candidate.ready_step, len(self.left_rps)):
            self.left_rps[step] -= candidate.capacity_rps

    def bids_and_refusals(self, room: Room) -> list[tuple[Bid, str | None]]:
        """Every candidate that would serve something now, with the reason why it may not be chosen."""
        result: list[tuple[Bid, str | None]] = []
        for candidate in [*self._one_of_each_existing(), *self.offers]:
            bid = self.task.bid(candidate, self.left_rps)
            if bid is not None:
                result.append((bid, self._refusal(bid, room)))
        return result

    def best_bids(self, room: Room, *, launch: bool = True, number: int = 1) -> list[Bid]:
        """Return at least the `number` best admissible bids, best first, where there are as many.

        No bid can cost less per request than the rent over the largest rate the candidate could serve. So candidates
        are asked in the order of that bound, until it exceeds the bids at hand: most are never asked.
        """
        peak_rps = max(self.left_rps)
        if peak_rps <= EPSILON_RPS:
            return []
        candidates = [*self._one_of_each_existing(), *(self.offers if launch else ())]
        bounds = sorted((c.usd_per_s / min(c.capacity_rps, peak_rps), index) for index, c in enumerate(candidates))
        bids: list[Bid] = []
        for bound, index in bounds:
            if len(bids) >= number and bound > bids[number - 1].usd_per_request * (1 + 1e-9):
                break
            bid = self.task.bid(candidates[index], self.left_rps)
            if bid is not None and self._refusal(bid, room) is None:
                insort(bids, bid, key=lambda b: b.order)
        return bids

    def _one_of_each_existing(self) -> list[Candidate]:
        kept, first = self.kept_ids, dict[tuple[Offering, float, int], Candidate]()
        for candidate in self.existing:
            if candidate.instance_id not in kept:
                first.setdefault((candidate.offering, candidate.capacity_rps, candidate.ready_step), candidate)
        return list(first.values())

    def _refusal(self, bid: Bid, room: Room) -> str | None:
        candidate, spill = bid.candidate, self.task.spill
        if candidate.is_new and (full := room.refusal(candidate.offering)):
            return full
        if candidate.is_spot and (leaning := self.task.spot_refusal([*self.chosen, candidate])):
            return leaning
        if spill is not None and not self.task.is_worth_it(bid, self.left_rps):
            return (
                f"left to spill-over: its {bid.served:.0f} requests cost ${bid.served * spill.usd_per_request:.4f} there "
                f"and ${bid.cost_usd:.4f} on it"
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
    O(picks x candidates x steps); prune the offerings first.

    References
    ----------
    Zhang et al., MArk (USENIX ATC '19), Algorithm 1.
    """
    still_open = {choice.task.model: choice for choice in choices}
    while still_open:
        choice = min(still_open.values(), key=lambda c: (-c.unmet_share(), c.task.model))
        allowed = choice.best_bids(room, launch=launch, number=BIDS_SHOWN)
        if not allowed:
            del still_open[choice.task.model]
            continue
        if on_bids is not None:
            on_bids(choice, allowed)
        choice.add(allowed[0].candidate)
        if allowed[0].candidate.is_new:
            room = room.after([allowed[0].candidate.offering])
    return room
