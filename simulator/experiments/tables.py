"""Outcomes as rows: for CSV, for people, and as Markdown."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from simulator.experiments.cells import Outcome

COLUMNS = (
    "attainment",
    "in the event",
    "worst hour",
    "p50, ms",
    "p98, ms",
    "spilled",
    "compute, $/million",
    "all-in, $/million",
    "compute / bound",
)
NARROW = ("attainment", "in the event", "p98, ms", "spilled", "compute, $/million", "all-in, $/million")
"""What fits a terminal of 80 columns."""


def figures(outcome: Outcome) -> dict[str, Any]:
    """Return an outcome's figures by name, without its curves; None where it has none."""
    s = outcome.summary
    found: dict[str, Any] = {
        "experiment": outcome.experiment,
        "group": outcome.group,
        "value": outcome.value,
        "policy": outcome.policy,
        "refused": outcome.refused,
        "event_requests": outcome.event_requests,
        "event_attainment": outcome.event_attainment,
    }
    if s is None:
        return found
    return {
        **found,
        "rt_max_s": s.rt_max_s,
        "sl_min": s.sl_min,
        "requests": s.requests,
        "answered": s.answered,
        "slo_attainment": s.slo_attainment,
        "worst_hour_attainment": s.worst_hour_attainment,
        "worst_minute_attainment": s.worst_minute_attainment,
        **{f"latency_{name}": value for name, value in s.latency_s.items()},
        "spill_share": s.spill_share,
        "instances_usd": s.cost_usd["instances"],
        "lambda_usd": s.cost_usd["lambda"],
        "compute_usd": s.cost_usd["compute"],
        "plumbing_usd": s.cost_usd["plumbing"],
        "total_usd": s.cost_usd["total"],
        "compute_usd_per_million": s.per_million_usd.get("compute"),
        "total_usd_per_million": s.per_million_usd.get("total"),
        "lower_bound_usd": s.lower_bound_usd,
        "cost_over_bound": s.cost_over_bound,
        "launches": s.launches,
        "interruptions": s.interruptions,
    }


def write_csv(path: Path, outcomes: Sequence[Outcome]) -> None:
    """Write a row for each outcome."""
    rows = [figures(outcome) for outcome in outcomes]
    header = list(dict.fromkeys(name for row in sorted(rows, key=len, reverse=True) for name in row))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, header)
        writer.writeheader()
        writer.writerows(rows)


def by_group(outcomes: Sequence[Outcome]) -> dict[str, list[Outcome]]:
    """Return outcomes by group, in order."""
    groups: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault(outcome.group, []).append(outcome)
    return groups


def table(outcomes: Sequence[Outcome], columns: Sequence[str] = COLUMNS) -> tuple[list[str], list[list[str]]]:
    """Return header and rows for people; columns that no row has are left out."""
    cells = [_cells(outcome) for outcome in outcomes]
    shown = [name for name in columns if any(row[name] != "–" for row in cells)]
    has_values = any(outcome.value for outcome in outcomes)
    header = ["", *(["value"] if has_values else []), "policy", *shown]
    rows = []
    for o, row in zip(outcomes, cells, strict=True):
        told = [f"cannot: {o.refused}"] if o.refused else [row[name] for name in shown]
        rows.append([o.group, *([o.value] if has_values else []), o.policy, *told])
    width = max(map(len, [header, *rows]))
    header += [""] * (width - len(header))
    return header, [row + [""] * (len(header) - len(row)) for row in rows]


def compact(outcomes: Sequence[Outcome]) -> tuple[list[str], list[list[str]]]:
    """Return a row for each value and columns for each policy, of outcomes that vary by both."""
    policies = list(dict.fromkeys(outcome.policy for outcome in outcomes))
    rows: dict[tuple[str, str], dict[str, Outcome]] = {}
    for outcome in outcomes:
        rows.setdefault((outcome.group, outcome.value), {})[outcome.policy] = outcome
    header = ["", "value", *(f"{p}: {name}" for p in policies for name in ("compute, $/million", "attainment"))]
    return header, [[group, value, *(cell for p in policies for cell in _pair(found.get(p)))] for (group, value), found in rows.items()]


def _pair(outcome: Outcome | None) -> tuple[str, str]:
    if outcome is None or outcome.summary is None:
        return "–", "cannot" if outcome else "–"
    return number(outcome.summary.per_million_usd.get("compute")), percent(outcome.summary.slo_attainment, digits=3)


def _cells(outcome: Outcome) -> dict[str, str]:
    s = outcome.summary
    if s is None:
        return dict.fromkeys(COLUMNS, "–")
    return {
        "attainment": percent(s.slo_attainment, digits=3),
        "in the event": percent(outcome.event_attainment),
        "worst hour": percent(s.worst_hour_attainment) if s.simulated_s > 3600 else "–",
        "p50, ms": _ms(s.latency_s["p50_s"]),
        "p98, ms": _ms(s.latency_s["p98_s"]),
        "spilled": percent(s.spill_share),
        "compute, $/million": number(s.per_million_usd.get("compute")),
        "all-in, $/million": number(s.per_million_usd.get("total")),
        "compute / bound": number(s.cost_over_bound),
    }


def percent(share: float | None, *, digits: int = 2) -> str:
    """Round down, so that 100 % is written only where it is meant.

    >>> percent(0.99999), percent(1.0), percent(None)
    ('99.99 %', '100.00 %', '–')
    """
    if share is None:
        return "–"
    return f"{math.floor(share * 100 * 10**digits + 1e-9) / 10**digits:.{digits}f} %"


def number(value: float | None) -> str:
    """Write a figure with two decimals.

    >>> number(1.234), number(None)
    ('1.23', '–')
    """
    return "–" if value is None else f"{value:,.2f}"


def _ms(latency_s: float | None) -> str:
    return "–" if latency_s is None else f"{1000 * latency_s:,.0f}"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    r"""Return a Markdown table.

    >>> print(markdown(["a", "b"], [["1", "2|3"]]))
    | a | b |
    |---|---|
    | 1 | 2\|3 |
    """
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(
        "|" + "|".join(cells) + "|" if cells[0] == "---" else "| " + " | ".join(c.replace("|", "\\|") for c in cells) + " |"
        for cells in lines
    )
