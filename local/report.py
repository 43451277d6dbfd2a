"""What a run amounted to: every figure from the records of the run, and the verdict on it."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from local.bill import Bill, FunctionUsage, instance_usd, make_bill
from local.figures import BREAKDOWN, LoadFigures, PhaseFigures, breakdown, load_figures, phase_figures
from local.load import RequestRecord
from markserve.core.types import Instance, InstanceState, Slo
from markserve.messages import DecisionRecord, ForecastRecord, LaunchInstances, PlanRecord, WarmSpillover

MINIMUM_ACCURACY = 0.95
"""The demo's model reaches more on held-out digits; below this, answers got mixed up."""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Everything a run left behind."""

    slo: Slo
    seed: int
    started_at_s: float
    ended_at_s: float
    records: Sequence[RequestRecord]
    instances: Sequence[Instance]
    interrupted: Mapping[str, float]
    """Instance id to the instant of its interruption notice."""
    forecasts: Sequence[ForecastRecord]
    plans: Sequence[PlanRecord]
    decisions: Sequence[DecisionRecord]
    functions: Sequence[FunctionUsage]
    spillover_function: str
    units: Mapping[str, float]
    state_transitions: int


class InstanceLine(msgspec.Struct, frozen=True, kw_only=True):
    """Life of one instance; instants count from the start of the load."""

    instance_id: str
    offering: str
    price_usd_per_hour: float
    state: str
    requested_s: float
    serving_s: float | None
    drain_s: float | None
    terminated_s: float | None
    interrupted: bool
    completed: int
    mean_batch_size: float | None
    cost_usd: float
    reason: str
    end_reason: str


class CycleLine(msgspec.Struct, frozen=True, kw_only=True):
    """One control cycle."""

    at_s: float
    trigger: str
    forecaster: str
    demand_rps: float
    capacity_rps: float
    launches: int
    environments: int
    """Spillover environments asked to be warm."""
    reason: str


class EventLine(msgspec.Struct, frozen=True, kw_only=True):
    """Something that happened, from the decision log."""

    at_s: float
    event: str
    subject: str
    reason: str


class Report(LoadFigures, frozen=True, kw_only=True):
    """Figures of a run."""

    rt_max_s: float
    sl_min: float
    seed: int
    load_s: float
    setup_s: float | None = None
    """From nothing to a system that serves."""
    peak_memory_mb: float | None = None
    """Of all processes together."""
    mean_batch_size: float | None
    """Of the workers' batches, counted per batch."""
    breakdown_s: dict[str, float]
    """Medians of the server's own account of a request, worker tier."""
    phases: tuple[PhaseFigures, ...]
    instances: tuple[InstanceLine, ...]
    cycles: tuple[CycleLine, ...]
    events: tuple[EventLine, ...]
    bill: Bill
    shortfalls: tuple[str, ...]
    """What the run did not keep; empty when all is well."""


def build_report(evidence: Evidence) -> Report:
    """Add up a run."""
    records = evidence.records
    answered = [record for record in records if record.is_answered]
    figures = load_figures(records, rt_max_s=evidence.slo.latency_s)
    bill = make_bill(
        instances=evidence.instances,
        functions=evidence.functions,
        spillover_function=evidence.spillover_function,
        units=evidence.units,
        state_transitions=evidence.state_transitions,
        answered=len(answered),
        until_s=evidence.ended_at_s,
    )
    batches = sum(instance.stats.batches for instance in evidence.instances)
    completed = sum(instance.stats.completed for instance in evidence.instances)
    return Report(
        rt_max_s=evidence.slo.latency_s,
        sl_min=evidence.slo.percentile,
        seed=evidence.seed,
        load_s=evidence.ended_at_s - evidence.started_at_s,
        **msgspec.structs.asdict(figures),
        mean_batch_size=completed / batches if batches else None,
        breakdown_s=breakdown(answered),
        phases=phase_figures(records, evidence.slo.latency_s),
        instances=tuple(_instance_line(instance, evidence) for instance in evidence.instances),
        cycles=_cycles(evidence),
        events=tuple(_event_line(decision, evidence) for decision in evidence.decisions),
        bill=bill,
        shortfalls=shortfalls(figures, evidence.slo),
    )


def shortfalls(figures: LoadFigures, slo: Slo) -> tuple[str, ...]:
    """List what a run did not keep of: every request answered, rightly, once, and in time."""
    sent = figures.sent
    checks = [
        (sent == 0, "no request was sent"),
        (figures.lost > 0, f"{figures.lost} of {sent} requests got no response"),
        (figures.failed > 0, f"{figures.failed} of {sent} requests got an error or a malformed result{_failures(figures)}"),
        (figures.doubled > 0, f"{figures.doubled} answers were given twice"),
        (figures.accuracy < MINIMUM_ACCURACY, f"accuracy {figures.accuracy:.3f} is below {MINIMUM_ACCURACY}"),
        (
            figures.attainment < slo.percentile,
            f"only {figures.attainment:.2%} of requests were answered within {slo.latency_s:g} s; the objective is {slo.percentile:.2%}",
        ),
    ]
    return tuple(text for missed, text in checks if missed)


def _failures(figures: LoadFigures) -> str:
    by_status = ", ".join(f"{count} with {status}" for status, count in figures.failures.items())
    return f": {by_status}; the first: {figures.first_failure}"


def write_report(report: Report, records: Sequence[RequestRecord], directory: Path) -> None:
    """Write report.json, and for audit requests.csv and instances.csv."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "report.json").write_bytes(msgspec.json.format(msgspec.json.encode(report)))
    rows = [{**msgspec.to_builtins(record), "latency_s": record.latency_s, **_timing_columns(record)} for record in records]
    _write_csv(directory / "requests.csv", rows)
    _write_csv(directory / "instances.csv", [msgspec.to_builtins(line) for line in report.instances])


def read_report(path: Path) -> Report:
    """Read a report.json."""
    return msgspec.json.decode(path.read_bytes(), type=Report)


def _instance_line(instance: Instance, evidence: Evidence) -> InstanceLine:
    def since_start(at_s: float | None) -> float | None:
        return None if at_s is None else at_s - evidence.started_at_s

    stats = instance.stats
    return InstanceLine(
        instance_id=instance.instance_id,
        offering=instance.offering.key,
        price_usd_per_hour=instance.offering.price_usd_per_hour,
        state=str(instance.state),
        requested_s=instance.requested_at_s - evidence.started_at_s,
        serving_s=since_start(instance.serving_at_s),
        drain_s=since_start(instance.drain_at_s),
        terminated_s=since_start(instance.terminated_at_s),
        interrupted=instance.instance_id in evidence.interrupted,
        completed=stats.completed,
        mean_batch_size=stats.completed / stats.batches if stats.batches else None,
        cost_usd=instance_usd(instance, until_s=evidence.ended_at_s),
        reason=instance.reason,
        end_reason=instance.end_reason or ("still running" if instance.state is not InstanceState.TERMINATED else ""),
    )


def _cycles(evidence: Evidence) -> tuple[CycleLine, ...]:
    lines = []
    for plan in evidence.plans:
        earlier = [forecast for forecast in evidence.forecasts if forecast.origin_at_s <= plan.created_at_s]
        lines.append(
            CycleLine(
                at_s=plan.created_at_s - evidence.started_at_s,
                trigger=plan.trigger,
                forecaster=earlier[-1].forecaster if earlier else "",
                demand_rps=sum(plan.demand_rps.values()),
                capacity_rps=sum(plan.capacity_rps.values()),
                launches=sum(action.count for action in plan.actions if isinstance(action, LaunchInstances)),
                environments=sum(action.environments for action in plan.actions if isinstance(action, WarmSpillover)),
                reason=plan.reason,
            )
        )
    return tuple(lines)


def _event_line(decision: DecisionRecord, evidence: Evidence) -> EventLine:
    at_s = decision.at_s - evidence.started_at_s
    return EventLine(at_s=at_s, event=decision.event, subject=decision.subject, reason=decision.reason)


def _timing_columns(record: RequestRecord) -> dict[str, Any]:
    return {f"{part}_s": record.timing_s.get(part, "") for part in BREAKDOWN}


def _write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    columns = [name for name in (rows[0] if rows else {}) if name != "timing_s"]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
