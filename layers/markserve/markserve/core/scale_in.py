"""When an instance drains: unwanted for long enough and not needed now, or above a ceiling that the operator has lowered."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence, Set

from markserve.core.capacity import SpillTier
from markserve.core.demand import Trigger
from markserve.core.plan import Drain
from markserve.core.tunables import Tunables
from markserve.core.types import Instance, InstanceState

STARTED_OR_STARTING = (InstanceState.REQUESTED, InstanceState.WARMING, InstanceState.SERVING)
ROUNDING_USD = 1e-6
"""Prices are summed in another order than when they were bought."""


def scale_in(
    instances: Sequence[Instance],
    *,
    wanted_ids: Set[str],
    capacities_rps: Mapping[str, float],
    needed_now_rps: float,
    min_instances: int,
    scale_in_cycles: int,
    trigger: Trigger,
    alone: SpillTier | None = None,
) -> tuple[list[Drain], dict[str, int]]:
    """Choose which of one model's instances to drain, and count how long each has been unwanted.

    An instance drains once `scale_in_cycles` consecutive plans did not want it, and only while the capacity that
    serves now, without it, still meets `needed_now_rps`, and `min_instances` stay. The dearest per request goes
    first. Urgent plans neither count nor drain: they are made because capacity is short. The last one that serves stays while
    requests wait in its queue: whatever the load to come, those without a deadline are answered by an instance alone.

    Scale to zero: where the plan wants no instance at all, the spillover function may take what is needed now, as long as it
    can and what an instance serves costs less there than the instance.

    Parameters
    ----------
    wanted_ids
        Instances that the present plan keeps.
    capacities_rps
        By instance id; an instance without capacity (its type cannot meet the objective) is no loss.
    alone
        The spillover function, where the plan leaves the whole model to it; else None.

    Returns
    -------
    (drains, unwanted_cycles)
        The count is by instance id, for every instance that may be drained.
    """
    present = [i for i in instances if i.state in STARTED_OR_STARTING]
    step = 0 if trigger.is_urgent else 1
    unwanted = {i.instance_id: 0 if i.instance_id in wanted_ids else i.unwanted_cycles + step for i in present}
    if trigger.is_urgent:
        return [], unwanted

    serving_rps = math.fsum(capacities_rps.get(i.instance_id, 0.0) for i in present if i.state is InstanceState.SERVING)
    remaining, serving = len(present), sum(i.state is InstanceState.SERVING for i in present)
    drains: list[Drain] = []
    due = [i for i in present if unwanted[i.instance_id] >= scale_in_cycles]
    for instance in sorted(due, key=lambda i: (-_usd_per_request(i, capacities_rps), i.instance_id)):
        lost_rps = capacities_rps.get(instance.instance_id, 0.0) if instance.state is InstanceState.SERVING else 0.0
        why = f"{serving_rps - lost_rps:.1f} rps serving without it meet the {needed_now_rps:.1f} rps needed now"
        if lost_rps > 0 and serving_rps - lost_rps < needed_now_rps:
            taken_over = None if alone is None else _taken_over(instance, alone, serving_rps, lost_rps, needed_now_rps)
            if taken_over is None:
                continue
            why = taken_over
        serves = instance.state is InstanceState.SERVING
        if remaining <= min_instances or (serves and serving == 1 and instance.stats.queue_depth):
            continue
        serving_rps -= lost_rps
        remaining -= 1
        serving -= serves
        cycles = unwanted[instance.instance_id]
        reason = f"not wanted by the last {cycles} plan{'s' if cycles > 1 else ''}; {why}"
        drains.append(Drain(model=instance.model, instance_id=instance.instance_id, reason=reason))
    return drains, unwanted


def _taken_over(instance: Instance, alone: SpillTier, serving_rps: float, lost_rps: float, needed_now_rps: float) -> str | None:
    """Why the spillover function takes over what an instance serves; None when it cannot, or not for less."""
    short_rps = needed_now_rps - (serving_rps - lost_rps)
    extra_rps = short_rps - max(0.0, needed_now_rps - serving_rps)
    usd_per_hour = 3600 * extra_rps * alone.usd_per_request
    if short_rps > alone.capacity_rps or usd_per_hour >= instance.offering.price_usd_per_hour:
        return None
    rent = instance.offering.price_usd_per_hour
    return f"Lambda alone is cheaper: its {extra_rps:.1f} rps cost ${usd_per_hour:.4f}/h there net of queue calls and ${rent:.4f}/h on it"


def over_ceiling(
    instances: Sequence[Instance], *, leaving: Collection[str], capacities_rps: Mapping[str, float], tunables: Tunables
) -> list[Drain]:
    """Choose what drains because the fleet exceeds a ceiling, whatever the demand: an operator's ceiling is a promise.

    Only lowering a ceiling leads here, since nothing is launched above one. First goes what does not serve yet, the
    youngest first; then the dearest per request. What drains already, or is in `leaving`, counts as gone: it ends by itself.

    Parameters
    ----------
    instances
        Of all models, registered or not: they share the ceilings.
    """
    staying = [i for i in instances if i.state in STARTED_OR_STARTING and i.instance_id not in leaving]
    count, usd_per_hour = len(staying), math.fsum(i.offering.price_usd_per_hour for i in staying)
    drains: list[Drain] = []
    for instance in sorted(staying, key=lambda i: _first_to_go(i, capacities_rps)):
        if count > tunables.max_instances:
            excess = f"{count} instances exceed max-instances {tunables.max_instances}"
        elif usd_per_hour > tunables.max_hourly_cost_usd + ROUNDING_USD:
            excess = f"${usd_per_hour:.4f}/h exceed max-hourly-cost-usd ${tunables.max_hourly_cost_usd:.4f}"
        else:
            break
        count, usd_per_hour = count - 1, usd_per_hour - instance.offering.price_usd_per_hour
        drains.append(Drain(model=instance.model, instance_id=instance.instance_id, reason=f"over a ceiling: {excess}"))
    return drains


def _first_to_go(instance: Instance, capacities_rps: Mapping[str, float]) -> tuple[bool, float, float, str]:
    serves = instance.state is InstanceState.SERVING
    return (serves, -_usd_per_request(instance, capacities_rps) if serves else 0.0, -instance.requested_at_s, instance.instance_id)


def _usd_per_request(instance: Instance, capacities_rps: Mapping[str, float]) -> float:
    capacity_rps = capacities_rps.get(instance.instance_id, 0.0)
    return instance.offering.price_usd_per_hour / 3600 / capacity_rps if capacity_rps > 0 else math.inf
