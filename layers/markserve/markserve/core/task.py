"""One model's demand, the terms on which to meet it, and what a candidate would serve of what is unmet."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from markserve.core.capacity import EPSILON_RPS, Candidate, Holding, SpillTier, SpotRules
from markserve.core.scoring import Score, Scorer


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


class Unmet:
    """Demand that is not met yet, with its spans: so that most bids need no walk over the steps.

    Attributes
    ----------
    rates_rps
        Demand minus capacity by step; negative where there is slack.
    ends
        Last step of the unmet span that a step belongs to; -1 where demand is met.
    lows_rps
        Least unmet rate from a step to the end of its span.
    """

    def __init__(self, rates_rps: Sequence[float]) -> None:
        steps = len(rates_rps)
        self.rates_rps = rates_rps
        self.ends = [-1] * steps
        self.lows_rps = [0.0] * steps
        end, low = -1, math.inf
        for step in range(steps - 1, -1, -1):
            rate = rates_rps[step]
            if rate > EPSILON_RPS:
                end, low = (step, rate) if end < 0 else (end, min(low, rate))
                self.ends[step], self.lows_rps[step] = end, low
            else:
                end = -1


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

    peak_rps: float = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "peak_rps", max(self.demand_rps))

    def spot_refusal(self, holding: Holding) -> str | None:
        """Why `holding` leans too much on spot; what only `min_instances` or no demand at all calls for counts as serving."""
        is_minimum = self.peak_rps <= EPSILON_RPS or holding.instances <= self.min_instances
        return self.spot.refusal(holding) if is_minimum else self.spot.refusal(holding, peak_rps=self.peak_rps)

    def left_rps(self, chosen: Iterable[tuple[Candidate, int]]) -> list[float]:
        """Demand minus capacity by step; negative where there is slack."""
        left = list(self.demand_rps)
        for candidate, number in chosen:
            for step in range(candidate.ready_step, len(left)):
                left[step] -= number * candidate.capacity_rps
        return left

    def bid(self, candidate: Candidate, unmet: Unmet) -> Bid | None:
        """Cost of letting `candidate` serve the longest span of unmet demand that starts when it is first useful.

        An offering is useful at the step where a launch made now is ready, and only if demand is unmet there: else
        it can still be launched later. An instance that is there is useful at the first unmet step that a relaunch
        could not reach; its rent counts from now on.
        """
        steps, ready = len(unmet.ends), candidate.ready_step
        reach = ready if candidate.is_new else max(ready, self.lead_step)
        first = next((t for t in range(ready, min(reach + 1, steps)) if unmet.ends[t] >= 0), None)
        if first is None:
            return None
        last, capacity_rps = unmet.ends[first], candidate.capacity_rps
        usd_per_step = self.step_s * candidate.usd_per_s
        cost = candidate.launch_cost_usd + (first - ready) * usd_per_step
        if unmet.lows_rps[first] >= capacity_rps:  # full in every step: the best prefix is the whole span
            served = (last - first + 1) * capacity_rps * self.step_s
            cost += (last - first + 1) * usd_per_step
            return Bid(
                candidate=candidate, first_step=first, last_step=last, served=served, cost_usd=cost, least_usd_per_request=cost / served
            )
        served, least = 0.0, math.inf
        for rate in unmet.rates_rps[first : last + 1]:
            served += rate if rate < capacity_rps else capacity_rps
            cost += usd_per_step
            least = min(least, cost / served)
        return Bid(
            candidate=candidate,
            first_step=first,
            last_step=last,
            served=served * self.step_s,
            cost_usd=cost,
            least_usd_per_request=least / self.step_s,
        )

    def is_worth_it(self, bid: Bid, unmet: Unmet) -> bool:
        """Whether buying beats spilling the same requests; always so for what the spillover function cannot take."""
        if self.spill is None or bid.least_usd_per_request < self.spill.usd_per_request:
            return True
        return max(unmet.rates_rps[bid.first_step : bid.last_step + 1]) > self.spill.capacity_rps + EPSILON_RPS

    def scorer(self, chosen: Iterable[tuple[Candidate, int]], *, ready_step: int | None = None) -> Scorer:
        """Return what rates changes to `chosen`, to candidates that are all ready at `ready_step`, if that is given."""
        return Scorer(self.demand_rps, self.step_s, self.spill, chosen, ready_step=ready_step)

    def score(self, chosen: Iterable[tuple[Candidate, int]]) -> Score:
        """Rate holding `chosen`: (requests that nothing serves, expected cost in USD) over the horizon; lower is better."""
        score = self.scorer(chosen).score()
        assert score is not None  # noqa: S101 - without a limit there is always one
        return score
