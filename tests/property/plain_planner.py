"""The planner's definitions written as plainly as possible: one instance at a time, every candidate asked, nothing kept.

Slow on purpose. The planner must give the same results.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from markserve.core.capacity import EPSILON_RPS, Candidate, Holding, Room
from markserve.core.task import Bid, Task


def score(task: Task, chosen: Sequence[Candidate]) -> tuple[float, float]:
    """Requests that nothing serves, and cost: the cheapest serves first, and is given back once spilling the rest is cheaper."""
    left, cost = list(task.demand_rps), 0.0
    spill_usd, spillable = (task.spill.usd_per_request, task.spill.capacity_rps) if task.spill else (math.inf, 0.0)
    for c in sorted(chosen, key=lambda c: c.merit):
        needed = [step for step in range(c.ready_step, len(left)) if left[step] > EPSILON_RPS]
        worth_rps = c.usd_per_s / spill_usd
        while needed and left[needed[-1]] <= spillable and min(left[needed[-1]], c.capacity_rps) <= worth_rps:
            needed.pop()
        for step in needed:
            left[step] -= c.capacity_rps
        cost += c.launch_cost_usd + len(needed) * task.step_s * c.usd_per_s
    unserved = sum(max(0.0, rate - spillable) for rate in left) * task.step_s
    spilled = sum(min(max(0.0, rate), spillable) for rate in left) * task.step_s
    return unserved, cost + (spilled * spill_usd if spilled else 0.0)


def left_rps(task: Task, chosen: Sequence[Candidate]) -> list[float]:
    """Demand less what is chosen."""
    return [rate - sum(c.capacity_rps for c in chosen if c.ready_step <= step) for step, rate in enumerate(task.demand_rps)]


def bid(task: Task, candidate: Candidate, left: Sequence[float]) -> Bid | None:
    """Cost and requests of the span of unmet demand from the step at which the candidate is first useful."""
    reach = candidate.ready_step if candidate.is_new else max(candidate.ready_step, task.lead_step)
    first = next((t for t in range(candidate.ready_step, min(reach + 1, len(left))) if left[t] > EPSILON_RPS), None)
    if first is None:
        return None
    step, served, cost, least = first, 0.0, 0.0, math.inf
    while step < len(left) and left[step] > EPSILON_RPS:
        served += min(left[step], candidate.capacity_rps) * task.step_s
        cost = candidate.launch_cost_usd + (step + 1 - candidate.ready_step) * task.step_s * candidate.usd_per_s
        least = min(least, cost / served)
        step += 1
    return Bid(candidate=candidate, first_step=first, last_step=step - 1, served=served, cost_usd=cost, least_usd_per_request=least)


def fill(task: Task, existing: Sequence[Candidate], offers: Sequence[Candidate], room: Room) -> list[Candidate]:
    """Algorithm 1, one instance per round."""
    chosen: list[Candidate] = []
    while True:
        left = left_rps(task, chosen)
        ids = {c.key for c in chosen}
        bids = [b for c in (*(e for e in existing if e.key not in ids), *offers) if (b := bid(task, c, left))]
        allowed = [b for b in bids if is_allowed(task, b, left, chosen, room)]
        if not allowed:
            return chosen
        best = min(allowed, key=lambda b: b.order).candidate
        chosen.append(best)
        if best.is_new:
            room = Room(instances=room.instances - 1, usd_per_hour=room.usd_per_hour - best.offering.price_usd_per_hour)


def is_allowed(task: Task, offered: Bid, left: Sequence[float], chosen: Sequence[Candidate], room: Room) -> bool:
    """Whether the ceilings, the spot rules and the price of spilling allow it."""
    candidate = offered.candidate
    if candidate.is_new and room.refusal(candidate.offering):
        return False
    if candidate.is_spot and task.spot_refusal(Holding().plus((c, 1) for c in (*chosen, candidate))):
        return False
    most_rps = max(left[offered.first_step : offered.last_step + 1])
    return (
        task.spill is None or most_rps > task.spill.capacity_rps + EPSILON_RPS or offered.least_usd_per_request < task.spill.usd_per_request
    )
