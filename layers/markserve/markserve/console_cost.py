"""The console's view of cost: what the interval's load costs here, and what other ways would charge for it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from markserve.catalog import load_catalog
from markserve.console_messages import Cost, WayCost
from markserve.console_service import latency_sum_s
from markserve.core.alternatives import STEP_S, WayToServe, all_lambda, sagemaker
from markserve.core.arrivals import ArrivalCount
from markserve.core.footprint import Footprint, Traffic, footprint
from markserve.core.tunables import Tunables
from markserve.core.types import Instance, Tier
from markserve.messages import ModelRecord, OutcomeCounts
from markserve.plan_inputs import LAMBDA
from markserve.profiling import batch_profile

FRONT_MEMORY_MB = 512
"""Of the api function; a test holds it equal to the template's."""
HOUR_S = 3600.0


def cost_view(
    record: ModelRecord,
    *,
    outcomes: Sequence[OutcomeCounts],
    arrivals: Mapping[float, int],
    instances: Sequence[Instance],
    tunables: Tunables,
    cycles: float,
    since_s: float,
    until_s: float,
    spillover_memory_mb: int,
    heartbeat_s: float,
) -> Cost:
    """Reckon an interval's cost per hour and per million requests.

    Parameters
    ----------
    outcomes
        Of the interval.
    arrivals
        Counts by window start.
    instances
        Of the model; ended ones too.
    cycles
        The model's share of the control cycles that ran.
    """
    traffic = _traffic(outcomes, instances, cycles)
    spill_s = _lambda_compute_s(record)
    ours = footprint(
        traffic,
        instances=instances,
        since_s=since_s,
        until_s=until_s,
        spill_compute_s=spill_s or 0.0,
        spillover_memory_mb=spillover_memory_mb,
        front_memory_mb=FRONT_MEMORY_MB,
        heartbeat_s=heartbeat_s,
    )
    hours, requests = (until_s - since_s) / HOUR_S, traffic.requests
    others, missing = _others(record, requests, arrivals, tunables, spill_s, spillover_memory_mb, since_s=since_s, until_s=until_s)
    here = WayToServe(
        name="markserve", compute_usd=ours.compute_usd, plumbing_usd=ours.plumbing_usd, basis="workers and Lambda as used, calls by count"
    )
    return Cost(
        since_s=since_s,
        workers_usd_per_hour=ours.workers_usd / hours,
        lambda_usd_per_hour=ours.lambda_usd / hours,
        plumbing_usd_per_hour=ours.plumbing_usd / hours,
        plumbing_by_kind_usd_per_hour={kind: usd / hours for kind, usd in ours.plumbing_by_kind_usd.items()},
        fleet_usd_per_hour=sum(i.offering.price_usd_per_hour for i in instances if i.is_alive),
        max_hourly_cost_usd=tunables.max_hourly_cost_usd,
        **_per_million(ours, requests),
        ways=[_way(way, hours, requests) for way in (here, *others)],
        missing=missing,
    )


def costed_since_s(windows: Sequence[ArrivalCount], *, since_s: float, until_s: float) -> float:
    """Return where to reckon from: whole minutes before `until_s`, not before the first known window.

    Before that nothing was paid for here, and an endpoint would have been: to count it would favour this system.
    """
    first_s = next((window.at_s for window in windows if window.count is not None), since_s)
    return max(since_s, until_s - STEP_S * max(1, math.ceil((until_s - first_s) / STEP_S - 1e-9)))


def _traffic(outcomes: Sequence[OutcomeCounts], instances: Sequence[Instance], cycles: float) -> Traffic:
    ended = {tier: sum(c.ok + c.errors for c in outcomes if c.tier is tier) for tier in (*Tier, None)}
    batches, completed = sum(i.stats.batches for i in instances), sum(i.stats.completed for i in instances)
    return Traffic(
        by_worker=ended[Tier.WORKER],
        by_lambda=ended[Tier.LAMBDA],
        rejected=ended[None],
        front_s=latency_sum_s(outcomes),
        mean_batch_size=completed / batches if batches and completed else 1.0,
        cycles=cycles,
    )


def _lambda_compute_s(record: ModelRecord) -> float | None:
    """Median measured time of one request on Lambda; None where it was not profiled there."""
    points = record.profiles.get(LAMBDA, ())
    return points[0].p50_s if points and points[0].batch_size == 1 else None


def _others(
    record: ModelRecord,
    requests: int,
    arrivals: Mapping[float, int],
    tunables: Tunables,
    spill_s: float | None,
    memory_mb: int,
    *,
    since_s: float,
    until_s: float,
) -> tuple[list[WayToServe], list[str]]:
    found: list[WayToServe] = []
    missing: list[str] = []
    if spill_s is None:
        missing.append("Lambda alone: the model has no profile of one request on Lambda; `markserve profile` measures it")
    else:
        found.append(all_lambda(requests, compute_s=spill_s, memory_mb=memory_mb))
    profiles = {name: batch_profile(name, points) for name, points in record.profiles.items() if name != LAMBDA and points}
    prices = {entry.instance_type: entry.price_usd_per_hour for entry in load_catalog().entries}
    per_step = _per_step(arrivals, since_s=since_s, until_s=until_s)
    endpoint = sagemaker(per_step, profiles=profiles, prices_usd_per_hour=prices, latency_s=tunables.rt_max_s)
    if endpoint is None:
        missing.append(f"SageMaker: no measured instance type answers one request within {tunables.rt_max_s:g} s")
    else:
        found.append(endpoint)
    return found, missing


def _per_step(arrivals: Mapping[float, int], *, since_s: float, until_s: float) -> list[float]:
    """Arrivals by minute of the interval, which is whole minutes long."""
    minutes = [0.0] * max(1, round((until_s - since_s) / STEP_S))
    for at_s, count in arrivals.items():
        index = math.floor((at_s - since_s) / STEP_S)
        if 0 <= index < len(minutes):
            minutes[index] += count
    return minutes


def _per_million(ours: Footprint, requests: int) -> dict[str, float | None]:
    parts = {"workers": ours.workers_usd, "lambda": ours.lambda_usd, "plumbing": ours.plumbing_usd}
    return {f"{part}_usd_per_million": usd / requests * 1e6 if requests else None for part, usd in parts.items()}


def _way(way: WayToServe, hours: float, requests: int) -> WayCost:
    return WayCost(
        name=way.name,
        compute_usd_per_hour=way.compute_usd / hours,
        plumbing_usd_per_hour=way.plumbing_usd / hours,
        total_usd_per_hour=way.total_usd / hours,
        usd_per_million=way.total_usd / requests * 1e6 if requests else None,
        least_usd_per_hour=None if way.least_usd is None else (way.least_usd + way.plumbing_usd) / hours,
        basis=way.basis,
    )
