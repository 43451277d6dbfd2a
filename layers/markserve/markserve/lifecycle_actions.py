"""Carries out one action of a plan: launch, drain, terminate or warm up, once each."""

from __future__ import annotations

from dataclasses import replace
from typing import assert_never

import msgspec

from markserve.catalog import load_catalog
from markserve.core.capacity import Room
from markserve.core.types import CapacityType, Instance, InstanceState, Offering
from markserve.errors import CapacityUnavailable
from markserve.lifecycle_context import ALREADY_STARTED, DRY_POOL_S, LifecycleContext, Outcome
from markserve.messages import Action, DrainInstance, LaunchInstances, TerminateInstance, WarmSpillover

ACTION_MEMORY_S = 3600.0
"""How long a finished action is remembered: longer than any retry of the control cycle."""


def carry_out(action: Action, ctx: LifecycleContext) -> Outcome:
    """Carry out an action unless it is done.

    The claim is taken afterwards: a retry after a failure has to act. Two at the same time are told apart by
    the fleet's own idempotency and the registry's conditional writes.
    """
    name = f"action/{action.action_id}"
    if ctx.is_done(name):
        return Outcome(event="action_repeated", reason=f"{action.action_id} was done before", count=0)
    match action:
        case LaunchInstances():
            outcome = _launch(action, ctx)
        case DrainInstance():
            outcome = _drain(action, ctx)
        case TerminateInstance():
            outcome = _terminate(action, ctx)
        case WarmSpillover():
            ctx.spillover.warm(model=action.model, environments=action.environments)
            outcome = Outcome(event="spillover_warmed", reason=action.reason, count=action.environments)
            ctx.log(outcome, model=action.model, subject=action.plan_id, environments=action.environments)
        case _:
            assert_never(action)
    ctx.mark_done(name, for_s=ACTION_MEMORY_S)
    return outcome


def _launch(action: LaunchInstances, ctx: LifecycleContext) -> Outcome:
    """Buy in the pool that the plan chose; what it cannot give, in pools of the same type: other zones, then on demand.

    The same type serves at the same rate, so the plan holds wherever it runs. Another type would need its own batch
    limit and price; that is the next plan's choice, which sees the dry pools. Each pool's share of the action has an
    id of its own, so that a retry finds again what each of them gave.
    """
    missing, granted, refusal = action.count, 0, ""
    for offering in _pools(action.offering, ctx):
        is_chosen = offering == action.offering
        action_id = action.action_id if is_chosen else f"{action.action_id}/{offering.key}"
        part = msgspec.structs.replace(action, offering=offering, count=missing, action_id=action_id)
        allowed, refusal = within_ceilings(part, ctx)
        got = _buy(msgspec.structs.replace(part, count=allowed), ctx) if allowed else 0
        granted, missing = granted + got, missing - got
        if allowed == 0 or got == allowed:
            break  # a ceiling, or all that it lets through: no other pool changes that
    if granted:
        reason = f"{granted} of {action.count}: {refusal}" if refusal else action.reason
        return Outcome(event="instances_launched", reason=reason, count=granted)
    if refusal:
        return ctx.log(Outcome(event="launch_refused", reason=refusal, count=0), model=action.model, subject=action.plan_id)
    return Outcome(event="capacity_unavailable", reason=f"no pool of {action.offering.instance_type} has capacity for {action.count}")


def _pools(chosen: Offering, ctx: LifecycleContext) -> list[Offering]:
    """List the chosen pool and its substitutes, without those that were found dry a moment ago."""
    zones = [chosen.zone, *(zone for zone in ctx.fleet.zones() if zone != chosen.zone)]
    substitutes = [replace(chosen, zone=zone) for zone in zones[1:]]
    price = next((e.price_usd_per_hour for e in load_catalog().entries if e.instance_type == chosen.instance_type), None)
    if chosen.capacity_type is CapacityType.SPOT and price is not None:
        on_demand = replace(chosen, capacity_type=CapacityType.ON_DEMAND, price_usd_per_hour=price, interruption_rate_per_hour=0.0)
        substitutes += [replace(on_demand, zone=zone) for zone in zones]
    dry = set(ctx.control.claims("unavailable/", now_s=ctx.now_s))
    return [chosen, *(pool for pool in substitutes if f"unavailable/{pool.key}" not in dry)]


def _buy(action: LaunchInstances, ctx: LifecycleContext) -> int:
    """Buy in one pool, register and log what it gives; return how many that is."""
    key = action.offering.key
    try:
        launched = ctx.fleet.launch(action)
    except CapacityUnavailable as error:
        ctx.mark_dry(action.offering)
        outcome = Outcome(event="capacity_unavailable", reason=f"{error}; not bought from for {DRY_POOL_S:.0f} s")
        ctx.log(outcome, model=action.model, subject=key)
        return 0
    for seen in launched:
        ctx.instances.put(
            Instance(
                instance_id=seen.instance_id,
                model=action.model,
                offering=action.offering,
                state=InstanceState.REQUESTED,
                requested_at_s=ctx.now_s,
                reason=action.reason,
                plan_id=action.plan_id,
            )
        )
        outcome = Outcome(event="instance_launched", reason=action.reason)
        ctx.log(outcome, model=action.model, subject=seen.instance_id, offering=key, usd_per_hour=action.offering.price_usd_per_hour)
    if len(launched) < action.count:
        ctx.mark_dry(action.offering)
        short = Outcome(event="capacity_unavailable", reason=f"{key}: {len(launched)} of {action.count} instances granted")
        ctx.log(short, model=action.model, subject=key)
    return len(launched)


def within_ceilings(action: LaunchInstances, ctx: LifecycleContext) -> tuple[int, str]:
    """Tell how many of the action's instances the operator's ceilings allow now, and why not more.

    Counts what the cloud runs beside what is registered, since both are paid for.
    """
    tunables = ctx.parameters.get()
    if not tunables.launches_enabled:
        return 0, "launches-enabled is false"
    registered = ctx.instances.list()
    known = {i.instance_id for i in registered}
    prices = {entry.instance_type: entry.price_usd_per_hour for entry in load_catalog().entries}
    rents = [i.offering.price_usd_per_hour for i in registered if i.is_alive]
    rents += [
        prices.get(seen.instance_type, action.offering.price_usd_per_hour)
        for seen in ctx.fleet.describe()
        if seen.instance_id not in known and seen.cloud_state in ("pending", "running")
    ]
    room = Room(instances=tunables.max_instances - len(rents), usd_per_hour=tunables.max_hourly_cost_usd - sum(rents))
    for allowed in range(action.count):
        refusal = room.refusal(action.offering)
        if refusal is not None:
            return allowed, refusal
        room = room.with_bought(action.offering, 1)
    return action.count, ""


def _drain(action: DrainInstance, ctx: LifecycleContext) -> Outcome:
    if not ctx.transition(action.instance_id, InstanceState.DRAINING, action.reason):
        return Outcome(event="drain_superseded", reason=f"{action.instance_id} is draining or ended already", count=0)
    return ctx.log(Outcome(event="instance_draining", reason=action.reason), model=action.model, subject=action.instance_id)


def _terminate(action: TerminateInstance, ctx: LifecycleContext) -> Outcome:
    """End a failed, drained or unknown instance; one that still has work is left to drain first."""
    instance = ctx.find(action.instance_id)
    if instance is not None and not action.failed and instance.state in ALREADY_STARTED:
        outcome = Outcome(event="terminate_refused", reason=f"it is {instance.state} and has not drained", count=0)
        return ctx.log(outcome, model=action.model, subject=action.instance_id)
    ctx.fleet.terminate([action.instance_id])
    if instance is not None:
        ctx.transition(action.instance_id, InstanceState.FAILED if action.failed else InstanceState.TERMINATED, action.reason)
    event = "instance_failed" if action.failed else "instance_terminated"
    return ctx.log(Outcome(event=event, reason=action.reason), model=action.model, subject=action.instance_id)
