"""The result as a table: in the terminal, and as a section of docs/reliability.md."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from chaos.runner import Outcome
from chaos.scenario import FAMILIES, floor_cell
from chaos.session import Report

BEGIN, END = "<!-- chaos:begin -->", "<!-- chaos:end -->"
COLUMNS = ("scenario", "requests", "refused", "lost", "doubled", "wrong", "in time", "floor", "recovered", "verdict")


def cells(outcome: Outcome) -> tuple[str, ...]:
    """One row of the table."""
    return (
        outcome.name,
        str(outcome.requests),
        str(outcome.refused),
        str(outcome.lost),
        str(outcome.doubled),
        str(outcome.wrong),
        f"{outcome.attainment:.1%}",
        floor_cell(outcome.floor, outcome.unjudged),
        f"{outcome.recovery_s:.0f} s",
        "ok" if outcome.passed else "; ".join(outcome.breaches[:3]),
    )


def emit_outcomes(report: Report, console: Console) -> None:
    """Print the table for people."""
    table = Table(title=f"{len(report.outcomes)} scenarios in {report.seconds / 60:.1f} minutes", title_justify="left")
    for column in COLUMNS:
        table.add_column(column, overflow="fold")
    for outcome in report.outcomes:
        table.add_row(*cells(outcome))
    console.print(table)
    if report.not_run:
        console.print(f"not run, for lack of time: {', '.join(report.not_run)}", highlight=False)


def page_section(report: Report) -> str:
    """Write the tables, by family, with what each scenario is and the command that repeats it."""
    passed = sum(outcome.passed for outcome in report.outcomes)
    requests, lost = sum(o.requests for o in report.outcomes), sum(o.lost for o in report.outcomes)
    lines = [
        f"{len(report.outcomes)} scenarios in {report.seconds / 60:.1f} minutes, {passed} passed; {requests} requests, {lost} lost. "
        f"Seed {report.seed}.",
        "",
    ]
    for family, title in FAMILIES.items():
        outcomes = [outcome for outcome in report.outcomes if outcome.family == family]
        if outcomes:
            lines += _family(title, outcomes)
    if report.not_run:
        lines += [f"Not run, for lack of time: {', '.join(report.not_run)}.", ""]
    return "\n".join(lines)


def _family(title: str, outcomes: Sequence[Outcome]) -> list[str]:
    lines = [f"### {title.capitalize()}", "", f"| {' | '.join(COLUMNS)} |", f"|{'---|' * len(COLUMNS)}"]
    lines += [f"| {' | '.join((f'`{cells(o)[0]}`', *cells(o)[1:]))} |" for o in outcomes]
    lines.append("")
    for outcome in outcomes:
        found = f" Found: {'; '.join(outcome.notes)}." if outcome.notes else ""
        lines.append(f"- `markserve chaos {outcome.name}`: {outcome.summary}{found}")
    return [*lines, ""]


def write_page(report: Report, path: Path) -> None:
    """Put the section between its marks in a page, or make a page of it."""
    section = f"{BEGIN}\n\n{page_section(report)}\n{END}"
    text = path.read_text(encoding="utf-8") if path.exists() else f"# Reliability\n\n{BEGIN}\n{END}\n"
    if BEGIN not in text or END not in text:
        text += f"\n{BEGIN}\n{END}\n"
    head, rest = text.split(BEGIN, 1)
    path.write_text(head + section + rest.split(END, 1)[1], encoding="utf-8")
