"""Find the instance type and the target that serve SageMaker best: a grid by a fluid model, then the best few by simulation.

The opponent is tuned on the very trace that it is judged on, the whole of it: tuned on a quiet first part, it would miss the rest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from markserve.core.batching import BatchLimits
from markserve.core.profiles import batch_latency_s
from markserve.core.types import Offering
from markserve.errors import InfeasibleSlo
from simulator.arrivals import windows
from simulator.assumptions import REPLY_OVERHEAD_S, SAGEMAKER_LAUNCH, SAGEMAKER_OVERHEAD_S, STEP_S, TRANSPORT_S, WINDOWS_PER_STEP
from simulator.sagemaker import SageMakerPolicy, TargetTracking, ml_offering
from simulator.sagemaker_prices import Generation, sagemaker_price_usd_per_hour
from simulator.service import Kind, make_kind
from simulator.simulation import Scenario, tried
from simulator.summary import Summary

UTILIZATIONS = tuple(u / 100 for u in range(10, 100, 5))
"""Targets of the grid, as shares of what one instance can serve."""
SIMULATED, SIMULATED_OF_LONG = 16, 8
"""Most settings that are simulated; the second, of traces with more than `LONG_REQUESTS`."""
LONG_REQUESTS = 5_000_000
SAME_COST = 0.005
"""Settings of one type whose fluid costs lie within this share of each other are one setting."""
SEARCH_REQUESTS = 100_000_000
"""Beyond these the search ends: it then is about the trace's first part."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One instance type and target, with what the fluid model makes of it."""

    offering: Offering
    limits: BatchLimits
    target: float
    attainment: float
    cost_usd: float

    def policy(self, search: dict[str, Any] | None = None) -> SageMakerPolicy:
        """Return the policy at this setting."""
        return SageMakerPolicy(offering=self.offering, target=self.target, limits=self.limits, search=search)


def best_setting(scenario: Scenario, *, generation: Generation = "current", batch: int = 1) -> SageMakerPolicy:
    """Choose the cheapest setting that meets the objective, else the one of best attainment.

    Raises
    ------
    InfeasibleSlo
        If no instance type meets the objective even alone.
    """
    types = _types(scenario, generation, batch)
    minutes = _minutes(scenario)
    until_s = len(minutes) * STEP_S
    grid = [_fluid(minutes, offering, limits, kind, share, scenario) for offering, limits, kind in types for share in UTILIZATIONS]
    slo = scenario.slo.percentile
    part = replace(scenario, trace=replace(scenario.trace, end_s=min(scenario.trace.end_s, scenario.trace.start_s + until_s)))
    most = SIMULATED if sum(number or 0 for number in minutes) <= LONG_REQUESTS else SIMULATED_OF_LONG
    measured = _measured(grid, part, most)
    setting, figures = min(measured, key=lambda pair: _rank(pair[1], slo))
    price_source = sagemaker_price_usd_per_hour(setting.offering.instance_type.removeprefix("ml."), 1.0, generation)[1]
    record: dict[str, Any] = {
        "instance_type": setting.offering.instance_type,
        "target_invocations_per_instance_per_minute": round(setting.target, 1),
        "price_usd_per_hour": setting.offering.price_usd_per_hour,
        "price_source": price_source,
        "searched_s": figures.simulated_s,
        "settings_in_grid": len(grid),
        "meets_objective": figures.slo_attainment >= slo,
        "simulated": [_row(s, figures) for s, figures in measured],
    }
    return setting.policy(record)


def _ladder(grid: Sequence[Setting], offering: Offering) -> list[Setting]:
    """Order settings of one type from the highest target, which costs least, to the lowest; near doubles left out."""
    kept: list[Setting] = []
    for setting in sorted((s for s in grid if s.offering == offering), key=lambda s: -s.target):
        if not kept or abs(setting.cost_usd - kept[-1].cost_usd) > SAME_COST * kept[-1].cost_usd:
            kept.append(setting)
    return kept


def _measured(grid: Sequence[Setting], part: Scenario, most: int) -> list[tuple[Setting, Summary]]:
    """Simulate what may be best: within a type from where the fluid model puts the border, up or down until it is found.

    The type that the fluid model finds cheapest comes first; of the others only what it finds cheaper than the best so far.
    """
    slo = part.slo.percentile
    measured: list[tuple[Setting, Summary]] = []
    best_usd = math.inf
    ladders = [_ladder(grid, offering) for offering in dict.fromkeys(s.offering for s in grid)]
    for ladder in sorted(ladders, key=lambda rungs: min((s.cost_usd for s in rungs if s.attainment >= slo), default=math.inf)):
        rungs = [setting for setting in ladder if setting.cost_usd < best_usd]
        promising = next((i for i, s in enumerate(rungs) if s.attainment >= slo), len(rungs))
        at, step = promising, 0
        while 0 <= at < len(rungs) and len(measured) < most:
            figures = tried(part, rungs[at].policy())
            measured.append((rungs[at], figures))
            meets = figures.slo_attainment >= slo
            if meets:
                best_usd = min(best_usd, figures.cost_usd["compute"])
            if step and meets != (step < 0):
                break  # the border between meeting and missing lies between the last two
            step = -1 if meets else 1
            at += step
    if not measured:  # the fluid model lets nothing meet the objective
        best = max(grid, key=lambda s: (s.attainment, -s.cost_usd))
        measured.append((best, tried(part, best.policy())))
    return measured


def _rank(figures: Summary, slo: float) -> tuple[float, float]:
    """Cheapest of those that meet the objective; else best attainment, then cheapest."""
    if figures.slo_attainment >= slo:
        return (0.0, figures.cost_usd["compute"])
    return (1 - figures.slo_attainment, figures.cost_usd["compute"])


def _row(setting: Setting, figures: Summary) -> dict[str, Any]:
    return {
        "instance_type": setting.offering.instance_type,
        "target": round(setting.target, 1),
        "slo_attainment": figures.slo_attainment,
        "cost_usd": figures.cost_usd["compute"],
        "fluid_attainment": round(setting.attainment, 6),
        "fluid_cost_usd": round(setting.cost_usd, 6),
    }


def _types(scenario: Scenario, generation: Generation, batch: int) -> list[tuple[Offering, BatchLimits, Kind]]:
    budget_s = scenario.slo.latency_s - TRANSPORT_S - REPLY_OVERHEAD_S
    found: list[tuple[Offering, BatchLimits, Kind]] = []
    for offering in scenario.offerings:
        profile = scenario.profile.profile(offering.instance_type)
        sizes = [b for b in range(1, min(batch, scenario.profile.max_batch_size) + 1) if batch_latency_s(profile, b) <= budget_s]
        if sizes:
            longest_s = batch_latency_s(profile, sizes[-1])
            limits = BatchLimits(
                max_batch_size=sizes[-1],
                max_queue_delay_s=0.0,
                service_rate_rps=sizes[-1] / longest_s,
                batch_latency_s=longest_s,
                reason=f"the model server takes up to {sizes[-1]}",
            )
            found.append((ml_offering(offering, generation), limits, make_kind(profile, limits)))
    if not found:
        names = scenario.profile.instance_types
        failing = (f"T(1) = {batch_latency_s(scenario.profile.profile(name), 1):.3f} s on {name}" for name in names)
        raise InfeasibleSlo(f"sagemaker: no instance type can: {'; '.join(failing)}; the latency budget is {budget_s:.3f} s")
    return found


def _minutes(scenario: Scenario) -> list[int | None]:
    """Count the requests of every minute of the searched part, None where unknown."""
    minutes: list[int | None] = []
    number, known, total = 0, 0, 0
    for index, window in enumerate(windows(scenario.trace, seed=scenario.seed)):
        number, known = number + window.arrivals_s.size, known + window.is_known
        if (index + 1) % WINDOWS_PER_STEP == 0:
            minutes.append(number if 2 * known >= WINDOWS_PER_STEP else None)
            total, number, known = total + number, 0, 0
            if total >= SEARCH_REQUESTS:
                break
    if not minutes:
        minutes.append(number)
    return minutes


def _fluid(
    minutes: Sequence[int | None], offering: Offering, limits: BatchLimits, kind: Kind, utilization: float, scenario: Scenario
) -> Setting:
    """Follow target tracking minute by minute, with the M/D/c tail for who waits too long."""
    most = limits.max_batch_size
    capacity_rps = most / kind.mean_s(most)
    target = utilization * capacity_rps * STEP_S
    budget_s = scenario.slo.latency_s - SAGEMAKER_OVERHEAD_S - kind.mean_s(1)
    tracking = TargetTracking(target)
    tracking.desired = serving = max(1, math.ceil((minutes[0] or 0) / target))
    starting: list[tuple[float, int]] = []
    met = total = backlog = cost_usd = 0.0
    for index, number in enumerate(minutes):
        now_s = index * STEP_S
        serving += sum(count for at_s, count in starting if at_s <= now_s)
        starting = [(at_s, count) for at_s, count in starting if at_s > now_s]
        if index:
            desired = tracking.follow(minutes[index - 1], in_service=serving, now_s=now_s)
            more = desired - serving - sum(count for _, count in starting)
            if more > 0:
                starting.append((now_s + SAGEMAKER_LAUNCH.median_s, more))
            elif more < 0:
                serving = max(1, serving + more)
        cost_usd += (serving + sum(count for _, count in starting)) * offering.price_usd_per_hour * STEP_S / 3600
        load = (number or 0) + backlog
        backlog = max(0.0, load - serving * capacity_rps * STEP_S)
        share = 0.0 if backlog > 0 else _in_time(load / STEP_S, serving, capacity_rps, kind.mean_s(1), budget_s)
        met, total = met + share * (number or 0), total + (number or 0)
    return Setting(offering, limits, target, met / total if total else 1.0, cost_usd)


def _in_time(rate_rps: float, servers: int, capacity_rps: float, service_s: float, budget_s: float) -> float:
    """Share that waits no longer than the budget: P(wait) of M/M/c after Sakasegawa, the tail halved twice as fast for constant service."""
    if budget_s < 0:
        return 0.0
    load = rate_rps / (servers * capacity_rps)
    if load >= 1:
        return 0.0
    waits = math.pow(load, math.sqrt(2 * (servers + 1)) - 1)
    return 1 - waits * math.exp(-2 * servers * (1 - load) * budget_s / service_s)
