"""What to launch, keep, drain and warm: MArk's Algorithm 1 over offerings, then a local search.

Decides for all models at once, because they share the ceilings. Knows nothing of queues, clouds or clocks.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from markserve.core.capacity import EPSILON_RPS, Room, SpillTier
from markserve.core.demand import Trigger
from markserve.core.greedy import Choice, fill
from markserve.core.notes import PlanNotes, bounded
from markserve.core.plan import CapacityPlan, Drain, Launch, ModelPlan, Rejected, WarmUp
from markserve.core.prepare import ModelDemand, Prepared, prepare
from markserve.core.scale_in import over_ceiling, scale_in
from markserve.core.search import allowed_offers, complete
from markserve.core.spillover import warm_environments
from markserve.core.tunables import Tunables
from markserve.core.types import Instance, Offering

__all__ = ["CapacityPlan", "Drain", "Launch", "ModelDemand", "ModelPlan", "Rejected", "SpillTier", "Trigger", "WarmUp", "plan_capacity"]

REPLACEMENT_SAVING = 0.05
"""A plan that replaces running instances must be this much cheaper than one that keeps them: below it, forecast error
decides, and instances would be exchanged for nothing."""
MOST_REPLACEMENT_MOVES = 1_500
"""Moves rated for such a plan: it is made in every cycle and seldom adopted, and what replaces by little is not adopted at all."""
AT_RISK_EXTRA = 0.25
"""Extra demand that the instance added for an objective at risk is sized for, as a share of the present demand."""
AT_RISK_SPARE = 2.0
"""Capacity over the measured rate from which one more instance cannot be what the objective lacks."""


def plan_capacity(
    *,
    demands: Sequence[ModelDemand],
    instances: Sequence[Instance],
    offerings: Sequence[Offering],
    tunables: Tunables,
    unavailable: Collection[str],
    now_s: float,
    plan_id: str,
    trigger: Trigger,
    default_step_s: float = 60.0,
    default_steps: int = 60,
) -> CapacityPlan:
    """Choose the cheapest capacity that meets every model's demand path, within ceilings, and say why.

    1. Demand: the newsvendor quantile of the forecast at live prices, or `demand_quantile`; times `headroom`.
    2. Fill (Algorithm 1): running and pending instances are candidates with launch overhead 0. They are taken
       first; new offerings fill what is left; local search follows.
    3. A model with no launch or drain under way is also planned from scratch, running instances competing with
       offerings as in the paper. That plan wins if it saves more than `REPLACEMENT_SAVING`. While launches are
       pending, the plan that ordered them is kept to, so that planning twice buys once.
    4. What is running and not chosen is unwanted; it drains after `scale_in_cycles` plans (`scale_in`). What exceeds a
       ceiling that was lowered drains at once (`over_ceiling`).
    5. What is not met is declared spill-over: by choice where Lambda is cheaper, else because of a ceiling.

    Regimes: no forecast, the measured rate is held flat; nothing measured, `min_instances`; stranded requests, one; objective at risk, one
    more instance unless one is coming or capacity is ample; launches disabled, the plan says what it would buy.

    Parameters
    ----------
    demands
        One per registered model; instances of other models count towards the ceilings and drain.
    unavailable
        Keys of offerings that were dry within the last minutes; never chosen.
    tunables
        The stack's; the ceilings and `scale_in_cycles` are taken from here, the rest from each model's own.
    default_step_s, default_steps
        Horizon of a model without forecast.

    Notes
    -----
    Deterministic: ties go to what is there, then lower rent, more capacity, then the name. Not optimal: greedy and
    one move. Costs are what was expected at the time, not bills.

    References
    ----------
    Zhang et al., MArk (USENIX ATC '19), Algorithm 1. One-move search and headroom: arXiv 2604.07472.
    """
    prepared = [
        prepare(
            demand,
            instances=instances,
            offerings=offerings,
            unavailable=unavailable,
            now_s=now_s,
            trigger=trigger,
            default_step_s=default_step_s,
            default_steps=default_steps,
        )
        for demand in sorted(demands, key=lambda d: d.model)
    ]
    alive = [i for i in instances if i.is_alive]
    room = Room(
        instances=tunables.max_instances - len(alive),
        usd_per_hour=tunables.max_hourly_cost_usd - math.fsum(i.offering.price_usd_per_hour for i in alive),
    )
    notes = PlanNotes()
    choices = {p.model: p.choice() for p in prepared}
    pending = {p.model for p in prepared if p.has_pending}
    room = fill(list(choices.values()), room, launch=False)
    room = complete(list(choices.values()), room, notes, pending)
    for p in prepared:
        if p.existing and p.is_settled and not trigger.is_urgent:
            room = reconsider(choices[p.model], p.choice(may_replace=True), room, notes)
        if p.demand.at_risk:
            room = _add_for_risk(p, choices[p.model], room, notes)
    # A replacement may have made room under a ceiling, an instance more on demand room for one on spot.
    room = fill(list(choices.values()), room, on_bids=notes.chosen)
    for choice in choices.values():
        notes.refused(choice, room)
        notes.left_to_lambda(choice)
    if not tunables.launches_enabled:
        for choice in choices.values():
            notes.disabled(choice)
            choice.set_chosen(c for c in choice.chosen if not c.is_new)

    launches = tuple(launch for p in prepared for launch in _launches(choices[p.model], notes))
    drains, unwanted = _scale_in(prepared, choices, instances, tunables, trigger)
    drained = {drain.instance_id for drain in drains}
    models = tuple(_model_plan(p, choices[p.model], drained, notes) for p in prepared)
    hourly = math.fsum(i.offering.price_usd_per_hour for i in alive) + math.fsum(x.count * x.offering.price_usd_per_hour for x in launches)
    return CapacityPlan(
        plan_id=plan_id,
        created_at_s=now_s,
        trigger=trigger,
        models=models,
        launches=launches,
        drains=tuple(drains),
        warm_ups=tuple(warm for p, m in zip(prepared, models, strict=True) if (warm := _warm_up(p, m))),
        unwanted_cycles=unwanted,
        alternatives=bounded([*(r for p in prepared for r in p.rejected), *notes.rejected]),
        hourly_cost_usd=round(hourly, 6),
        reason=_plan_reason(trigger, models, launches, drains, hourly, tunables),
    )


def reconsider(choice: Choice, fresh: Choice, room: Room, notes: PlanNotes, *, saving: float = REPLACEMENT_SAVING) -> Room:
    """Adopt Algorithm 1's plan from scratch, made in `fresh`, if it is clearly cheaper than the one that keeps what runs."""
    fresh_notes = PlanNotes()
    fresh_room = complete([fresh], _given_back(room, choice), fresh_notes, most_moves=MOST_REPLACEMENT_MOVES)
    unserved, cost = choice.score()
    fresh_unserved, fresh_cost = fresh.score()
    if fresh_unserved > unserved or fresh_cost >= cost * (1 - saving):
        return room
    choice.set_chosen(fresh.chosen)
    notes.replace(choice, fresh_notes)
    notes.say(choice, [f"replacing instances costs ${fresh_cost:.4f} over the horizon, keeping them ${cost:.4f}"])
    return fresh_room


def _given_back(room: Room, choice: Choice) -> Room:
    for candidate, number in choice.launched:
        room = room.with_bought(candidate.offering, -number)
    return room


def _add_for_risk(p: Prepared, choice: Choice, room: Room, notes: PlanNotes) -> Room:
    """Add one instance for an objective at risk, unless it cannot help; size it for a quarter more demand."""
    present_rps = max(choice.task.demand_rps[0], p.demand.measured_rate_rps or 0.0)
    if choice.launched or p.has_pending:
        notes.say(choice, ["objective at risk: an instance is already on its way"])
        return room
    if present_rps <= 0:
        notes.say(choice, ["objective at risk, but nothing arrives that an instance could serve"])
        return room
    if p.serving_rps >= AT_RISK_SPARE * present_rps:
        notes.say(choice, [f"objective at risk, but {p.serving_rps:.1f} rps serve {present_rps:.1f} rps: one more instance would not help"])
        return room
    allowed = allowed_offers(choice, room)
    if not allowed:
        notes.say(choice, ["objective at risk, but no offering may be bought"])
        return room
    extra_rps = max(EPSILON_RPS, AT_RISK_EXTRA * present_rps)
    best = min(allowed, key=lambda c: (c.usd_per_s / min(c.capacity_rps, extra_rps), c.offering.price_usd_per_hour, -c.capacity_rps, c.key))
    choice.add(best)
    notes.why(choice, best.key, "the objective is at risk: one more instance")
    return room.with_bought(best.offering, 1)


def _launches(choice: Choice, notes: PlanNotes) -> list[Launch]:
    return [
        Launch(
            model=choice.task.model,
            offering=candidate.offering,
            count=number,
            reason=f"{notes.reason_for(choice.task.model, key)}; ${candidate.offering.price_usd_per_hour:.4f}/h for "
            f"{candidate.capacity_rps:.1f} rps each, serving in {candidate.offering.launch_overhead_s:.0f} s",
        )
        for key, (candidate, number) in sorted((c.key, (c, n)) for c, n in choice.launched)
    ]


def _scale_in(
    prepared: Sequence[Prepared], choices: Mapping[str, Choice], instances: Sequence[Instance], tunables: Tunables, trigger: Trigger
) -> tuple[list[Drain], dict[str, int]]:
    drains: list[Drain] = []
    unwanted: dict[str, int] = {}
    by_model = {p.model: p for p in prepared}
    for model in sorted({i.model for i in instances}):
        p = by_model.get(model)
        model_drains, counts = scale_in(
            [i for i in instances if i.model == model],
            wanted_ids=choices[model].kept_ids if p else frozenset(),
            capacities_rps=p.capacities_rps if p else {},
            needed_now_rps=p.needed_now_rps if p else 0.0,
            min_instances=p.demand.tunables.min_instances if p else 0,
            scale_in_cycles=tunables.scale_in_cycles,
            # A model whose objective is at risk is short of capacity, whatever asked for this plan.
            trigger=Trigger.SLO_AT_RISK if p and p.demand.at_risk else trigger,
            alone=choices[model].task.spill if p and not choices[model].chosen and not choices[model].task.min_instances else None,
        )
        drains += model_drains if p else [replace(d, reason=f"model {model} is not registered any more") for d in model_drains]
        unwanted |= counts
    capacities = {name: rate for p in prepared for name, rate in p.capacities_rps.items()}
    drains += over_ceiling(instances, leaving={d.instance_id for d in drains}, capacities_rps=capacities, tunables=tunables)
    return drains, unwanted


def _model_plan(p: Prepared, choice: Choice, drained: Collection[str], notes: PlanNotes) -> ModelPlan:
    holding = [(c, 1) for c in p.existing if c.instance_id not in drained] + choice.launched
    demand = choice.task.demand_rps
    left = choice.task.left_rps(holding)
    capacity = tuple(round(d - rest, 9) for d, rest in zip(demand, left, strict=True))
    lead = choice.task.lead_step
    summary = f"{p.model}: demand {demand[0]:.1f} rps now, {demand[lead]:.1f} in {lead * choice.task.step_s:.0f} s ({p.path.reason})"
    summary += f"; capacity {capacity[0]:.1f} now, {capacity[lead]:.1f} then"
    stranded = f"{p.demand.stranded} requests wait in its queue and nothing serves: at least one instance" if p.demand.stranded else None
    stopped = [text for text in (p.infeasible, p.demand.quarantined, stranded) if text]
    return ModelPlan(
        model=p.model,
        start_at_s=p.path.horizon.start_at_s,
        step_s=choice.task.step_s,
        lead_step=lead,
        demand_rps=demand,
        capacity_rps=capacity,
        spillover_rps=tuple(max(0.0, rest) for rest in left),
        infeasible=p.infeasible,
        quarantined=p.demand.quarantined,
        reason="; ".join([summary, *stopped, *notes.said(p.model)]),
        quantile=p.path.quantile,
    )


def _warm_up(p: Prepared, plan: ModelPlan) -> WarmUp | None:
    """Warm what the upper tail would spill before a launch made now could serve it."""
    spill, limit = p.demand.spill, p.demand.tunables.warm_environments_max
    if spill is None or limit == 0:
        return None
    reach = range(plan.lead_step + 1)
    rate_rps = max(max(0.0, p.path.upper_rps[step] - plan.capacity_rps[step]) for step in reach)
    environments = warm_environments(spill_rate_rps=min(rate_rps, spill.capacity_rps), spill_latency_s=spill.latency_s, limit=limit)
    if environments == 0 and plan.capacity_rps[0] > 0:
        return None
    return WarmUp(
        model=p.model,
        environments=max(1, environments),
        reason=f"up to {rate_rps:.1f} rps of the upper tail exceed capacity, {spill.latency_s:.3f} s each"
        if environments
        else "nothing serves: the first request will spill",
    )


def _plan_reason(
    trigger: Trigger, models: Sequence[ModelPlan], launches: Sequence[Launch], drains: Sequence[Drain], hourly: float, tunables: Tunables
) -> str:
    bought = ", ".join(f"{x.count} x {x.offering.key} for {x.model}" for x in launches) or "nothing"
    drained = ", ".join(drain.instance_id for drain in drains) or "nothing"
    head = f"{trigger}: launch {bought}; drain {drained}; ${hourly:.4f}/h of at most ${tunables.max_hourly_cost_usd:.4f}/h"
    return " | ".join([head, *(model.reason for model in models)])
