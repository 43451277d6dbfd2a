"""Why a plan is what it is: reasons of what was chosen, and the alternatives that were not."""

from __future__ import annotations

import math
from collections.abc import Sequence

from markserve.core.capacity import Room
from markserve.core.greedy import Choice
from markserve.core.plan import Rejected
from markserve.core.task import Bid

MAX_ALTERNATIVES = 40
"""Rejected alternatives in a plan's record; it has to fit a DynamoDB item."""
RUNNERS_UP = 2
"""Runners-up recorded per chosen offering."""


class PlanNotes:
    """Collects why things were and were not chosen, while the choice is made."""

    def __init__(self) -> None:
        self.rejected: list[Rejected] = []
        self._why: dict[tuple[str, str], str] = {}
        self._said: dict[str, list[str]] = {}

    def chosen(self, choice: Choice, bids: list[Bid]) -> None:
        """Record why the best bid won and who came next, once per offering."""
        best, key = bids[0], (choice.task.model, bids[0].candidate.key)
        if key in self._why or not best.candidate.is_new:
            return
        unmet = max(choice.left_rps[best.first_step : best.last_step + 1])
        self._why[key] = (
            f"up to {unmet:.1f} rps unmet in steps {best.first_step}-{best.last_step}; "
            f"${best.usd_per_request * 1e6:.3f} per million requests it would serve"
        )
        for bid in bids[1 : 1 + RUNNERS_UP]:
            reason = (
                f"{choice.task.model}: ${bid.usd_per_request * 1e6:.3f} per million requests, "
                f"{best.candidate.key} ${best.usd_per_request * 1e6:.3f}"
            )
            self.rejected.append(Rejected(offering=bid.candidate.key, cost_usd=round(bid.cost_usd, 6), reason=reason))

    def refused(self, choice: Choice, room: Room) -> None:
        """Record what would still serve unmet demand, and why it may not."""
        found = choice.bids_and_refusals(room)
        for bid, refusal in sorted(found, key=lambda pair: pair[0].order):
            if refusal is not None:
                reason = f"{choice.task.model}: {refusal}"
                self.rejected.append(Rejected(offering=bid.candidate.key, cost_usd=round(bid.cost_usd, 6), reason=reason))
        if (worst := max(choice.left_rps)) > 0 and (refusals := [r for _, r in found if r]):
            self.say(choice, [f"up to {worst:.1f} rps spill: {refusals[0]}"])

    def left_to_lambda(self, choice: Choice) -> None:
        """Say so where the plan wants no instance of a model that is asked for, because Lambda alone costs less."""
        task = choice.task
        rate_rps = math.fsum(task.demand_rps) / len(task.demand_rps)
        if choice.chosen or task.spill is None or not choice.offers or rate_rps <= 0 or max(choice.left_rps) > task.spill.capacity_rps:
            return
        cheapest = min(choice.offers, key=lambda c: (c.offering.price_usd_per_hour, c.key))
        there, here = 3600 * rate_rps * task.spill.usd_per_request, cheapest.offering.price_usd_per_hour
        if there < here:
            on_lambda = f"Lambda alone costs ${there:.4f}/h net of queue calls"
            self.say(choice, [f"scaled to zero: {on_lambda}, the cheapest instance {cheapest.key} ${here:.4f}/h"])

    def disabled(self, choice: Choice) -> None:
        """Record what would have been launched."""
        for candidate, number in choice.launched:
            cost_usd = round(number * candidate.offering.price_usd_per_hour, 6)
            reason = f"{choice.task.model}: would launch {number}, but launches-enabled is false"
            self.rejected.append(Rejected(offering=candidate.key, cost_usd=cost_usd, reason=reason))
        if launches := len(choice.launches):
            self.say(choice, [f"{launches} launch(es) held back: launches-enabled is false"])

    def why(self, choice: Choice, key: str, reason: str) -> None:
        """State why an offering is launched."""
        self._why[choice.task.model, key] = reason

    def say(self, choice: Choice, sentences: Sequence[str]) -> None:
        """Add to the model's reason."""
        self._said.setdefault(choice.task.model, []).extend(sentences)

    def replace(self, choice: Choice, other: PlanNotes) -> None:
        """Take over another plan's notes on the model."""
        self._said[choice.task.model] = other._said.get(choice.task.model, [])
        self._why |= other._why
        self.rejected += other.rejected

    def reason_for(self, model: str, key: str) -> str:
        """Return why an offering is launched."""
        return self._why.get((model, key), "found by local search")

    def said(self, model: str) -> list[str]:
        """Return what was said of a model."""
        return self._said.get(model, [])


def bounded(rejected: Sequence[Rejected]) -> tuple[Rejected, ...]:
    """Drop repetitions, and say how many there were beyond `MAX_ALTERNATIVES`."""
    distinct = list(dict.fromkeys(rejected))
    if len(distinct) <= MAX_ALTERNATIVES:
        return tuple(distinct)
    rest = len(distinct) - MAX_ALTERNATIVES + 1
    return (*distinct[: MAX_ALTERNATIVES - 1], Rejected(offering="others", cost_usd=None, reason=f"{rest} more alternatives not recorded"))
