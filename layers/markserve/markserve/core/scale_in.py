"""When an instance that no plan wants is drained: with hysteresis, and never below what is needed now."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set

from markserve.core.capacity import SpillTier
from markserve.core.demand import Trigger
from markserve.core.plan import Drain
from markserve.core.types import Instance, InstanceState

STARTED_OR_STARTING = (InstanceState.REQUESTED, InstanceState.WARMING, InstanceState.SERVING)


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
    first. Urgent plans neither count nor drain: they are made because capacity is short.

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
    remaining = len(present)
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
        if remaining <= min_instances:
            continue
        serving_rps -= lost_rps
        remaining -= 1
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
    return f"Lambda alone is cheaper: its {extra_rps:.1f} rps cost ${usd_per_hour:.4f}/h there and ${rent:.4f}/h on it"


def _usd_per_request(instance: Instance, capacities_rps: Mapping[str, float]) -> float:
    capacity_rps = capacities_rps.get(instance.instance_id, 0.0)
    return instance.offering.price_usd_per_hour / 3600 / capacity_rps if capacity_rps > 0 else math.inf
