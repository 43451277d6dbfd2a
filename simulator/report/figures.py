"""The figures that policies are compared by, and the decisions worth reading."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from simulator.report.reading import ControlStep, PolicyRun
from simulator.report.series import TIERS, tier_costs_usd
from simulator.summary import MINUTE_S, Summary

STEPS_SHOWN = 4
"""Largest changes of the fleet that are shown for each policy."""
TOLERANCE = 1e-6


def figures(run: PolicyRun) -> dict[str, Any]:
    """Return a run's figures by name, for programs; None where a run does not have one."""
    s = run.summary
    return {
        "label": run.label,
        "policy": s.policy,
        "folder": str(run.folder),
        "rt_max_s": s.rt_max_s,
        "sl_min": s.sl_min,
        "requests": s.requests,
        "compute_usd": s.cost_usd["compute"],
        "cost_over_bound": s.cost_over_bound,
        "lower_bound_usd": s.lower_bound_usd,
        "cost_by_tier_usd": tier_costs_usd(run),
        "total_usd": s.cost_usd["total"],
        "compute_usd_per_million": s.per_million_usd.get("compute"),
        "total_usd_per_million": s.per_million_usd.get("total"),
        "slo_attainment": s.slo_attainment,
        "worst_hour_attainment": s.worst_hour_attainment,
        "worst_minute_attainment": s.worst_minute_attainment,
        "unanswered_share": 1 - s.answered / max(1, s.requests),
        "spill_share": s.spill_share,
        **{f"latency_{name}": value for name, value in s.latency_s.items()},
        "launches": s.launches,
        "interruptions": s.interruptions,
        "cold_starts": s.cold_starts,
        "mean_batch_size": s.mean_batch_size,
        "recomputed": recomputed(run),
    }


def recomputed(run: PolicyRun) -> dict[str, bool]:
    """Whether figures of the summary follow from the other files; those that the files allow to be recomputed exactly."""
    s = run.summary
    checks = {
        "instances": math.isclose(math.fsum(i.cost_usd for i in run.instances), s.cost_usd["instances"], rel_tol=TOLERANCE, abs_tol=1e-9)
    }
    if run.requests is not None and run.requests.rows == s.requests:
        checks["attainment"] = math.isclose(run.requests.attainment, s.slo_attainment, abs_tol=TOLERANCE)
    return checks


def table(runs: Sequence[PolicyRun]) -> list[tuple[str, list[tuple[str, bool]]]]:
    """Return the rows of the comparison: a figure's name, and for each run its text and whether it misses the objective."""
    rows: list[tuple[str, list[tuple[str, bool]]]] = []
    for name, column in _COLUMNS:
        rows.append((name, [column(run.summary) for run in runs]))
    for tier in TIERS:
        costs = [tier_costs_usd(run)[tier] for run in runs]
        if any(cost > 0 for cost in costs):
            rows.append((f"{tier}, $", [(f"{cost:,.2f}", False) for cost in costs]))
    rows.append(("all-in, $", [(f"{run.summary.cost_usd['total']:,.2f}", False) for run in runs]))
    return rows


def _plain(text: str) -> tuple[str, bool]:
    return text, False


def _share(value: float | None, *, at_least: float = 0.0, digits: int = 2) -> tuple[str, bool]:
    """Round shares down, so that 100 % is written only where it is meant."""
    if value is None:
        return "–", False
    return f"{math.floor(value * 100 * 10**digits + 1e-9) / 10**digits:.{digits}f} %", value < at_least


def _ms(s: Summary, name: str) -> tuple[str, bool]:
    value = s.latency_s.get(name)
    return _plain("–" if value is None else f"{1000 * value:,.0f}")


def _per_million(s: Summary, part: str) -> tuple[str, bool]:
    value = s.per_million_usd.get(part)
    return _plain("–" if value is None else f"{value:,.2f}")


_COLUMNS: tuple[tuple[str, Callable[[Summary], tuple[str, bool]]], ...] = (
    ("compute, $", lambda s: _plain(f"{s.cost_usd['compute']:,.2f}")),
    ("compute / lower bound", lambda s: _plain("–" if s.cost_over_bound is None else f"{s.cost_over_bound:.2f}")),
    ("compute, $ per million", lambda s: _per_million(s, "compute")),
    ("all-in, $ per million", lambda s: _per_million(s, "total")),
    ("attainment", lambda s: _share(s.slo_attainment, at_least=s.sl_min, digits=3)),
    ("worst hour", lambda s: _share(s.worst_hour_attainment, at_least=s.sl_min)),
    ("worst minute", lambda s: _share(s.worst_minute_attainment, at_least=s.sl_min)),
    ("never answered", lambda s: _plain(f"{s.requests - s.answered:,}")),
    ("latency p50, ms", lambda s: _ms(s, "p50_s")),
    ("latency p98, ms", lambda s: _ms(s, "p98_s")),
    ("latency p99, ms", lambda s: _ms(s, "p99_s")),
    ("latency p99.9, ms", lambda s: _ms(s, "p999_s")),
    ("spilled to Lambda", lambda s: _share(s.spill_share)),
    ("launches", lambda s: _plain(f"{s.launches:,}")),
    ("spot interruptions", lambda s: _plain(f"{s.interruptions:,}")),
    ("mean batch size", lambda s: _plain(f"{s.mean_batch_size:.2f}")),
)


def headline(runs: Sequence[PolicyRun]) -> str:
    """Say in a sentence or two what the comparison shows."""
    good = [run for run in runs if run.summary.slo_attainment >= run.summary.sl_min]
    if not good:
        best = max(runs, key=lambda run: run.summary.slo_attainment)
        return f"None meets the objective; {best.label} comes closest with {_share(best.summary.slo_attainment, digits=3)[0]}."
    cheapest = min(good, key=lambda run: run.summary.cost_usd["compute"])
    s = cheapest.summary
    bound = f", {s.cost_over_bound:.2f} times the lower bound" if s.cost_over_bound is not None else ""
    answered = f"and answers {_share(s.slo_attainment, digits=3)[0]} in time"
    if len(runs) == 1:
        return f"{cheapest.label} meets the objective for ${s.cost_usd['compute']:,.2f} of compute{bound}, {answered}."
    said = f"{cheapest.label} is the cheapest that meets the objective: ${s.cost_usd['compute']:,.2f} of compute{bound}, {answered}."
    others = sorted((run for run in good if run is not cheapest), key=lambda run: run.summary.cost_usd["compute"])
    if others and s.cost_usd["compute"] > 0:
        dearer = [f"{run.label} {run.summary.cost_usd['compute'] / s.cost_usd['compute'] - 1:+.0%}" for run in others]
        said += f" Against it, compute costs {', '.join(dearer)}."
    missed = [run.label for run in runs if run not in good]
    return said + (f" {', '.join(missed)} {'misses' if len(missed) == 1 else 'miss'} it." if missed else "")


def notable_steps(run: PolicyRun) -> list[tuple[str, ControlStep]]:
    """Return control steps worth reading, with why: first, largest changes of the fleet, before the worst minute, last."""
    steps = run.control
    if not steps:
        return []
    chosen: dict[int, str] = {0: "first"}
    change = np.diff([step.instances for step in steps])
    order = np.argsort(-np.abs(change), kind="stable")[:STEPS_SHOWN]
    for index in order:
        if change[index]:
            chosen.setdefault(int(index) + 1, f"{_signed(int(change[index]))} instance{'' if abs(change[index]) == 1 else 's'}")
    worst = worst_minute(run)
    if worst is not None:
        before = [index for index, step in enumerate(steps) if step.at_s <= worst * MINUTE_S]
        chosen.setdefault(before[-1] if before else 0, "in force in the worst minute")
    chosen.setdefault(len(steps) - 1, "last")
    return [(why, steps[index]) for index, why in sorted(chosen.items())]


def _signed(change: int) -> str:
    return f"{'+' if change > 0 else '−'}{abs(change)}"


def worst_minute(run: PolicyRun) -> int | None:
    """Return the minute of lowest attainment; None where none missed, or it is not known."""
    if run.requests is None or not np.isfinite(run.requests.minute_attainment).any():
        return None
    minute = int(np.nanargmin(run.requests.minute_attainment))
    return minute if run.requests.minute_attainment[minute] < 1 else None


def fleet_used(run: PolicyRun) -> list[tuple[str, str, int, float, float, int]]:
    """Return what was rented: type, capacity type, instances, instance hours, dollars and interruptions, dearest first."""
    kinds: dict[tuple[str, str], list[float]] = {}
    names: dict[tuple[str, str], set[str]] = {}
    for i in run.instances:
        kind = (i.instance_type, i.capacity_type)
        total = kinds.setdefault(kind, [0.0, 0.0, 0.0])
        total[0] += (i.terminated_at_s - i.requested_at_s) / 3600
        total[1] += i.cost_usd
        total[2] += i.end_reason.startswith("interrupted")
        names.setdefault(kind, set()).add(i.instance_id)
    rows = [(*kind, len(names[kind]), hours, usd, int(cut)) for kind, (hours, usd, cut) in kinds.items()]
    return sorted(rows, key=lambda row: -row[4])
