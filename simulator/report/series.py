"""Series over time of one run: capacity that serves, money as it is spent."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from simulator.report.reading import InstanceRow, PolicyRun
from simulator.service import Floats

HOUR_S = 3600.0
ON_DEMAND, SPOT, LAMBDA, PLUMBING = "on demand", "spot", "Lambda", "plumbing"
TIERS = (ON_DEMAND, SPOT, LAMBDA, PLUMBING)


def capacity_rps(run: PolicyRun) -> Floats | None:
    """Mean capacity of the instances that serve, by bin; None where the run does not say what an instance can do."""
    if not run.summary.capacity_rps:
        return None
    capacity = np.zeros(run.edges_s.size)
    lives = {i.instance_id: i for i in run.instances}  # a row per instance, or per price that it had
    for i in lives.values():
        if i.serving_at_s is not None:
            rate_rps = run.summary.capacity_rps.get(i.instance_type, 0.0)
            until_s = i.terminated_at_s if i.drain_at_s is None else i.drain_at_s
            capacity += rate_rps * _elapsed_s(run.edges_s, i.serving_at_s, until_s)
    return np.diff(capacity) / run.bin_s


def usd_per_hour(run: PolicyRun) -> dict[str, Floats]:
    """Money by tier and bin, as a rate.

    An instance's bill is spread over its life; what Lambda cost, over the time that invocations ran; plumbing, over requests.
    """
    rates = {tier: np.zeros(run.edges_s.size) for tier in (ON_DEMAND, SPOT)}
    for i in run.instances:
        life_s = max(i.terminated_at_s - i.requested_at_s, 1.0)
        rates[_tier(i)] += i.cost_usd / life_s * _elapsed_s(run.edges_s, i.requested_at_s, i.requested_at_s + life_s)
    hours = run.bin_s / HOUR_S
    costs = tier_costs_usd(run)
    spilled = run.batches.lambda_s if run.batches else None
    return {
        **{tier: np.diff(spent) / hours for tier, spent in rates.items()},
        LAMBDA: costs[LAMBDA] * _shares(spilled, run) / hours,
        PLUMBING: costs[PLUMBING] * _shares(arrivals(run), run) / hours,
    }


def tier_costs_usd(run: PolicyRun) -> dict[str, float]:
    """Return the bill by tier; all that is computation and no instance, provisioned environments too, counts as Lambda.

    Disks of stopped standbys count with the instances on demand.
    """
    costs = run.summary.cost_usd
    rented = {tier: math.fsum(i.cost_usd for i in run.instances if _tier(i) == tier) for tier in (ON_DEMAND, SPOT)}
    disks = costs.get("standby_disks", 0.0)
    return {
        ON_DEMAND: rented[ON_DEMAND] + disks,
        SPOT: rented[SPOT],
        LAMBDA: max(0.0, costs["compute"] - costs["instances"] - disks),
        PLUMBING: costs["plumbing"],
    }


def arrivals(run: PolicyRun) -> Floats | None:
    """Return requests by bin; of batches, where requests were not recorded."""
    if run.requests is not None:
        return run.requests.arrived
    return run.batches.started if run.batches else None


def forecast_rps(run: PolicyRun, q: float) -> tuple[Floats, Floats]:
    """Return times that were forecast, and the forecast's quantile for each: made a launch's time before."""
    steps = [(step.at_s + run.lead_s, step.quantiles_rps[q]) for step in run.control if q in step.quantiles_rps]
    return _columns(steps)


def demand_rps(run: PolicyRun) -> tuple[Floats, Floats]:
    """Return times, and the demand that was bought for at each: decided a launch's time before."""
    return _columns([(step.at_s + run.lead_s, step.demand_rps) for step in run.control if step.demand_rps > 0])


def _tier(instance: InstanceRow) -> str:
    return SPOT if instance.capacity_type == "spot" else ON_DEMAND


def _columns(steps: Iterable[tuple[float, float]]) -> tuple[Floats, Floats]:
    rows = np.array(list(steps), np.float64).reshape(-1, 2)
    return rows[:, 0], rows[:, 1]


def _elapsed_s(edges_s: Floats, from_s: float, until_s: float) -> Floats:
    return np.asarray(np.clip(edges_s - from_s, 0.0, max(0.0, until_s - from_s)), np.float64)


def _shares(weights: Floats | None, run: PolicyRun) -> Floats:
    bins = run.edges_s.size - 1
    if weights is None or weights.sum() <= 0:
        return np.full(bins, 1 / bins)
    return np.asarray(weights / weights.sum(), np.float64)
