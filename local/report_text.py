"""The report as a person reads it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from local.figures import BREAKDOWN
from local.report import InstanceLine, Report
from markserve.catalog import load_catalog

ROUTINE_EVENTS = frozenset(
    {"instance_launched", "instance_warming", "instance_serving", "instance_draining", "instance_terminated", "spillover_warmed"}
)
"""Told with the instances and the cycles."""
BREAKDOWN_LABELS = {"front": "front", "queue": "queue", "batch": "batch wait", "compute": "inference", "reply": "reply"}


def print_report(report: Report, console: Console) -> None:
    """Print a report, verdict last."""
    console.print(Group(*_sections(report)))


def _sections(report: Report) -> Iterator[RenderableType]:
    yield _summary(report)
    yield _phases(report)
    yield from _instances(report)
    yield from _cycles(report)
    yield from _events(report)
    yield _cost(report)
    yield _verdict(report)


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value * 1000:.0f} ms"


def _instant(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} s"


def _summary(report: Report) -> Table:
    table = Table(title="Result", title_justify="left", show_header=False, title_style="bold")
    refused = f"; {report.retries} refusals (429, 503) were followed by another try" if report.retries else ""
    table.add_row("requests", f"{report.sent} sent, {report.answered} answered, {report.lost} lost, {report.failed} failed{refused}")
    table.add_row("exactly once", f"{report.doubled} answered twice" if report.doubled else "yes")
    table.add_row("accuracy", f"{report.accuracy:.2%}")
    table.add_row("in time", f"{report.attainment:.2%} within {report.rt_max_s:g} s; objective {report.sl_min:.2%}")
    table.add_row("latency", f"p50 {_seconds(report.p50_s)}, p98 {_seconds(report.p98_s)}, p99 {_seconds(report.p99_s)}")
    table.add_row("answered by", ", ".join(f"{tier} {share:.1%}" for tier, share in report.tier_share.items()) or "-")
    table.add_row("mean batch size", "-" if report.mean_batch_size is None else f"{report.mean_batch_size:.2f}")
    parts = [f"{BREAKDOWN_LABELS[part]} {_seconds(report.breakdown_s[part])}" for part in BREAKDOWN if part in report.breakdown_s]
    table.add_row("medians of a worker's answer", ", ".join(parts) or "-")
    table.add_row("load", f"{report.load_s:.0f} s, seed {report.seed}")
    if report.setup_s is not None and report.peak_memory_mb is not None:
        table.add_row("set-up", f"{report.setup_s:.0f} s; peak memory {report.peak_memory_mb / 1000:.1f} GB")
    return table


def _phases(report: Report) -> Table:
    table = Table(title="Phases", title_justify="left", title_style="bold")
    for column in ("phase", "sent", "rate", "in time", "p98", "by Lambda"):
        table.add_column(column, justify="left" if column == "phase" else "right")
    for phase in report.phases:
        table.add_row(
            phase.phase,
            str(phase.sent),
            f"{phase.rate_rps:.1f}/s",
            f"{phase.attainment:.1%}",
            _seconds(phase.p98_s),
            f"{phase.lambda_share:.1%}",
        )
    return table


def _heading(text: str) -> Text:
    return Text(f"\n{text}", style="bold")


def _instances(report: Report) -> Iterator[Text]:
    lines = report.instances
    drained = sum(line.drain_s is not None for line in lines)
    interrupted = sum(line.interrupted for line in lines)
    yield _heading(f"Instances: {len(lines)} launched, {interrupted} interrupted, {drained} drained")
    for line in lines:
        yield _instance_text(line)


def _instance_text(line: InstanceLine) -> Text:
    marks = (("requested", line.requested_s), ("serving", line.serving_s), ("draining", line.drain_s), ("ended", line.terminated_s))
    life = ", ".join(f"{name} {_instant(at_s)}" for name, at_s in marks if at_s is not None)
    batch = "" if line.mean_batch_size is None else f" in batches of {line.mean_batch_size:.2f}"
    text = Text(f"{line.instance_id} {line.offering} {line.price_usd_per_hour:.4f} USD/h: {life}; {line.completed} answers{batch}")
    text.append(f"\n  launched because {line.reason}", style="dim")
    if line.end_reason:
        text.append(f"\n  {'interrupted' if line.interrupted else 'end'}: {line.end_reason}", style="dim")
    return text


def _cycles(report: Report) -> Iterator[Text]:
    forecasters = Counter(cycle.forecaster or "no forecast" for cycle in report.cycles)
    used = ", ".join(f"{name} in {count}" for name, count in forecasters.most_common())
    triggers = ", ".join(f"{count} by {trigger}" for trigger, count in Counter(cycle.trigger for cycle in report.cycles).most_common())
    warmed = [cycle.environments for cycle in report.cycles if cycle.environments]
    yield _heading(f"Control cycles: {len(report.cycles)} ({triggers or 'none'}); forecaster used: {used or 'none'}")
    yield Text(f"warm-ups of Lambda: {len(warmed)}, of at most {max(warmed, default=0)} environments")
    for cycle in report.cycles:
        if cycle.launches or cycle.trigger != "schedule":
            yield Text(
                f"{_instant(cycle.at_s)} {cycle.trigger}, forecast by {cycle.forecaster or 'nobody'}: demand {cycle.demand_rps:.1f}/s, "
                f"capacity {cycle.capacity_rps:.1f}/s, launched {cycle.launches}, warmed {cycle.environments}"
            )


def _events(report: Report) -> Iterator[Text]:
    shown = [event for event in report.events if event.event not in ROUTINE_EVENTS]
    yield _heading(f"Events out of the ordinary: {len(shown)} (report.json has the whole decision log, {len(report.events)} entries)")
    for event in shown:
        yield Text(f"{_instant(event.at_s)} {event.event} {event.subject}: {event.reason}")


def _cost(report: Report) -> Table:
    bill, catalog = report.bill, load_catalog()
    prices = {line.offering: line.price_usd_per_hour for line in report.instances}
    stated = ", ".join(f"{offering} {price:.4f} USD/h" for offering, price in sorted(prices.items()))
    table = Table(title="Cost at AWS list prices (us-east-1), USD", title_justify="left", title_style="bold")
    table.add_column("part")
    table.add_column("this run", justify="right")
    table.add_column("per million answers", justify="right")
    per_million = bill.per_million_usd
    table.add_row("compute: instances", f"{bill.instances_usd:.6f}", "")
    table.add_row("compute: spill-over Lambda", f"{bill.spillover_usd:.6f}", "")
    for kind, usd in sorted(bill.plumbing_by_kind_usd.items()):
        table.add_row(f"plumbing: {kind}", f"{usd:.6f}", "")
    for part, usd in (("compute", bill.compute_usd), ("plumbing", bill.plumbing_usd), ("total", bill.total_usd)):
        table.add_row(part, f"{usd:.6f}", f"{per_million[part]:.2f}" if part in per_million else "-", style="bold")
    table.caption = (
        f"instances: {stated or 'none'}; on-demand prices of {catalog.prices_on}, spot discounts of {catalog.spot_on}. "
        "Durations are those of the emulated services on this machine, which are slower than AWS's."
    )
    return table


def _verdict(report: Report) -> Text:
    if not report.shortfalls:
        return Text("All requests answered, rightly, exactly once, and within the objective.", style="bold green")
    return Text("\n".join(f"FAILED: {shortfall}" for shortfall in report.shortfalls), style="bold red")
