"""A plan as it is stored and handed on: its record and the actions that carry it out."""

from __future__ import annotations

from collections.abc import Sequence

from markserve.core.lifecycle import Decision, Step
from markserve.core.planning import CapacityPlan
from markserve.messages import (
    Action,
    Alternative,
    DrainInstance,
    LaunchInstances,
    PlanRecord,
    TerminateInstance,
    WarmSpillover,
)


def plan_actions(plan: CapacityPlan, decisions: Sequence[Decision]) -> tuple[Action, ...]:
    """Turn the plan into actions: first what ends, then what begins."""
    ended = tuple(
        TerminateInstance(
            action_id=f"{plan.plan_id}/terminate/{d.instance_id}",
            model=d.model,
            instance_id=d.instance_id,
            plan_id=plan.plan_id,
            reason=d.reason,
            failed=d.failed,
        )
        for d in decisions
        if d.step is Step.TERMINATE
    )
    drains = tuple(
        DrainInstance(
            action_id=f"{plan.plan_id}/drain/{d.instance_id}",
            model=d.model,
            instance_id=d.instance_id,
            plan_id=plan.plan_id,
            reason=d.reason,
        )
        for d in plan.drains
    )
    launches = tuple(
        LaunchInstances(
            action_id=f"{plan.plan_id}/launch/{number}",
            model=x.model,
            offering=x.offering,
            count=x.count,
            plan_id=plan.plan_id,
            reason=x.reason,
        )
        for number, x in enumerate(plan.launches)
    )
    warm_ups = tuple(
        WarmSpillover(
            action_id=f"{plan.plan_id}/warm/{w.model}",
            model=w.model,
            environments=w.environments,
            plan_id=plan.plan_id,
            reason=w.reason,
        )
        for w in plan.warm_ups
    )
    return (*ended, *drains, *launches, *warm_ups)


def plan_record(plan: CapacityPlan, version: int, actions: tuple[Action, ...]) -> PlanRecord:
    """Record the plan; demand and capacity are those of the step that its launches reach."""
    return PlanRecord(
        plan_id=plan.plan_id,
        version=version,
        created_at_s=plan.created_at_s,
        trigger=plan.trigger,
        demand_rps={m.model: m.demand_rps[m.lead_step] for m in plan.models},
        capacity_rps={m.model: m.capacity_rps[m.lead_step] for m in plan.models},
        hourly_cost_usd=plan.hourly_cost_usd,
        actions=actions,
        alternatives=tuple(Alternative(offering=r.offering, cost_usd=r.cost_usd, reason=r.reason) for r in plan.alternatives),
        reason=plan.reason,
        demand_quantiles={m.model: m.quantile for m in plan.models if m.quantile is not None},
    )
