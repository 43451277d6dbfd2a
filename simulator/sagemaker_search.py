"""Find the settings that serve SageMaker best (type, target, minimum capacity): a grid by a fluid model, the best few by simulation.

The opponent is tuned on the very trace that it is judged on, the whole of it: tuned on a quiet first part, it would miss the rest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from markserve.core.batching import BatchLimits
from markserve.core.profiles import batch_latency_s
from markserve.core.sagemaker_prices import Generation, sagemaker_price_usd_per_hour
from markserve.core.types import Offering
from markserve.errors import InfeasibleSlo
from simulator.arrivals import windows
from simulator.assumptions import REPLY_OVERHEAD_S, SAGEMAKER_LAUNCH, SAGEMAKER_OVERHEAD_S, STEP_S, TRANSPORT_S, WINDOWS_PER_STEP
from simulator.sagemaker import SageMakerPolicy, TargetTracking, ml_offering
from simulator.service import Kind, make_kind
from simulator.simulation import Scenario, tried
from simulator.summary import Summary

UTILIZATIONS = tuple(u / 100 for u in range(10, 100, 5))
"""Targets of the grid, as shares of what one instance can serve."""
MINIMA = (0.0, 0.25, 0.5, 0.75, 1.0, 1.1, 1.25, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)
"""Minimum capacities of the grid, as shares of what the busiest minute needs. The higher ones are fleets that never scale, which
serve best where load changes faster than alarms and launches follow."""
SIMULATED, SIMULATED_OF_LONG = 20, 10
"""Most settings that are simulated; the second, of traces with more than `LONG_REQUESTS`."""
LONG_REQUESTS = 5_000_000
COST_STEP = 0.02
"""Of settings of one type whose fluid costs lie within such a step, the one of best attainment stands for all."""
SEARCH_REQUESTS = 100_000_000
"""Beyond these the search ends: it then is about the trace's first part."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One instance type, target and minimum capacity, with what the fluid model makes of them."""

    offering: Offering
    limits: BatchLimits
    target: float
    least: int
    attainment: float
    cost_usd: float

    def policy(self, search: dict[str, Any] | None = None) -> SageMakerPolicy:
        """Return the policy at this setting."""
        return SageMakerPolicy(offering=self.offering, target=self.target, limits=self.limits, least=self.least, search=search)


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
    grid = [
        _fluid(minutes, offering, limits, kind, share, least, scenario)
        for offering, limits, kind in types
        for least in _minima(minutes, limits, kind)
        for share in UTILIZATIONS
    ]
    slo = scenario.slo.percentile
    part = replace(scenario, trace=replace(scenario.trace, end_s=min(scenario.trace.end_s, scenario.trace.start_s + until_s)))
    most = SIMULATED if sum(number or 0 for number in minutes) <= LONG_REQUESTS else SIMULATED_OF_LONG
    measured = _measured(grid, part, most)
    setting, figures = min(measured, key=lambda pair: _rank(pair[1], slo))
    price_source = sagemaker_price_usd_per_hour(setting.offering.instance_type.removeprefix("ml."), 1.0, generation)[1]
    record: dict[str, Any] = {
        "instance_type": setting.offering.instance_type,
        "target_invocations_per_instance_per_minute": round(setting.target, 1),
        "min_instances": setting.least,
        "price_usd_per_hour": setting.offering.price_usd_per_hour,
        "price_source": price_source,
        "searched_s": figures.simulated_s,
        "settings_in_grid": len(grid),
        "meets_objective": figures.slo_attainment >= slo,
        "simulated": [_row(s, figures) for s, figures in measured],
    }
    return setting.policy(record)


def _minima(minutes: Sequence[int | None], limits: BatchLimits, kind: Kind) -> list[int]:
    needed = max(number or 0 for number in minutes) / STEP_S / (limits.max_batch_size / kind.mean_s(limits.max_batch_size))
    return sorted({max(1, math.ceil(share * needed)) for share in MINIMA})


def _ladders(grid: Sequence[Setting]) -> list[list[Setting]]:
    """Return, of each type, the settings that may scale in to one instance and those that may not, by cost.

    They are apart because the fluid model errs differently about them.
    """
    kinds = dict.fromkeys((setting.offering, setting.least > 1) for setting in grid)
    return [_ladder([s for s in grid if (s.offering, s.least > 1) == kind]) for kind in kinds]


def _ladder(settings: Sequence[Setting]) -> list[Setting]:
    """Order settings by cost, the best of each step; what does worse than something cheaper is left out."""
    steps: dict[int, Setting] = {}
    for setting in settings:
        step = math.floor(math.log(max(setting.cost_usd, 1e-9)) / math.log1p(COST_STEP))
        steps[step] = max(steps.get(step, setting), setting, key=lambda s: (s.attainment, -s.least, s.target))
    kept: list[Setting] = []
    for _, setting in sorted(steps.items()):
        if not kept or setting.attainment >= kept[-1].attainment:
            kept.append(setting)
    return kept


def _measured(grid: Sequence[Setting], part: Scenario, most: int) -> list[tuple[Setting, Summary]]:
    """Simulate what may be best: within a ladder from where the fluid model puts the border, up or down until it is found.

    The one that the fluid model finds cheapest comes first; of the others only what it finds cheaper than the best so far.
    Steps double until the border lies between a setting that misses and one that meets, and then halve.
    """
    slo = part.slo.percentile
    measured: list[tuple[Setting, Summary]] = []
    best_usd = math.inf
    for ladder in sorted(_ladders(grid), key=lambda rungs: min((s.cost_usd for s in rungs if s.attainment >= slo), default=math.inf)):
        rungs = [setting for setting in ladder if setting.cost_usd < best_usd]
        at = next((i for i, s in enumerate(rungs) if s.attainment >= slo), len(rungs))
        if at == len(rungs):
            continue
        missing, meeting, step = -1, len(rungs), 1
        while meeting - missing > 1 and len(measured) < most:
            figures = tried(part, rungs[at].policy())
            measured.append((rungs[at], figures))
            if figures.slo_attainment >= slo:
                best_usd = min(best_usd, figures.cost_usd["compute"])
                meeting = at
            else:
                missing = at
            if missing >= 0 and meeting < len(rungs):
                at = (missing + meeting) // 2
            else:
                at = max(0, at - step) if meeting == at else min(len(rungs) - 1, at + step)
                step *= 2
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
        "min_instances": setting.least,
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
    if (known or number or not minutes) and total < SEARCH_REQUESTS:
        minutes.append(number)  # the last one, begun: a surge there is judged like any other
    return minutes


def _fluid(
    minutes: Sequence[int | None], offering: Offering, limits: BatchLimits, kind: Kind, utilization: float, least: int, scenario: Scenario
) -> Setting:
    """Follow target tracking minute by minute, with the M/D/c tail for who waits too long."""
    most = limits.max_batch_size
    capacity_rps = most / kind.mean_s(most)
    target = utilization * capacity_rps * STEP_S
    budget_s = scenario.slo.latency_s - SAGEMAKER_OVERHEAD_S - kind.mean_s(1)
    tracking = TargetTracking(target, least=least)
    tracking.desired = serving = max(least, math.ceil((minutes[0] or 0) / target))
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
                serving = max(least, serving + more)
        cost_usd += (serving + sum(count for _, count in starting)) * offering.price_usd_per_hour * STEP_S / 3600
        load = (number or 0) + backlog
        backlog = max(0.0, load - serving * capacity_rps * STEP_S)
        share = 0.0 if backlog > 0 else _in_time(load / STEP_S, serving, capacity_rps, kind.mean_s(1), budget_s)
        met, total = met + share * (number or 0), total + (number or 0)
    return Setting(offering, limits, target, least, met / total if total else 1.0, cost_usd)


def _in_time(rate_rps: float, servers: int, capacity_rps: float, service_s: float, budget_s: float) -> float:
    """Share that waits no longer than the budget: P(wait) of M/M/c after Sakasegawa, the tail halved twice as fast for constant service."""
    if budget_s < 0:
        return 0.0
    load = rate_rps / (servers * capacity_rps)
    if load >= 1:
        return 0.0
    waits = math.pow(load, math.sqrt(2 * (servers + 1)) - 1)
    return 1 - waits * math.exp(-2 * servers * (1 - load) * budget_s / service_s)
