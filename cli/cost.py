"""`markserve cost`: what the stack costs now, and what another way to serve the same load would."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from cli.console import emit_json, emit_table, explained, out, working
from cli.instant import instant
from cli.spending import ModelLoad, Observed, Rival, Spending, spending
from cli.system import Json
from cli.target import connect_to_stack


@explained()
def cost(
    since: Annotated[str, typer.Option(help="Window that answers and load are taken from: 1h (ago), 14:30, 2026-01-31T14:30.")] = "1h",
    json: Json = False,
) -> None:
    """Show dollars per hour, per million answers by tier and plumbing, and per month; against SageMaker and Lambda alone."""
    now_s = time.time()
    since_s = instant(since, now_s=now_s)
    connect_to_stack()
    with working("adding up"):
        found = spending(_observe(since_s, now_s))
    if json:
        emit_json(found)
    else:
        _show(found)


def _observe(since_s: float, until_s: float) -> Observed:
    from markserve import wiring
    from markserve.catalog import load_catalog

    settings, windows, instances = wiring.settings(), wiring.windows(), wiring.instances().list()
    loads = [
        ModelLoad(
            record=record,
            rt_max_s=wiring.parameters().get(record.model).rt_max_s,
            arrivals=windows.arrivals(record.model, since_s=since_s, until_s=until_s),
            outcomes=windows.outcomes(record.model, since_s=since_s, until_s=until_s),
        )
        for record in wiring.models().list()
    ]
    # A stack that is younger than the window has no costs before its first sign of life.
    born_s = min([i.requested_at_s for i in instances] + [at_s for load in loads for at_s in load.arrivals], default=since_s)
    return Observed(
        since_s=min(max(since_s, born_s), until_s - 1.0),
        until_s=until_s,
        instances=instances,
        loads=loads,
        spillover_memory_mb=settings.spillover_memory_mb,
        step_s=settings.step_s,
        prices_usd_per_hour={entry.instance_type: entry.price_usd_per_hour for entry in load_catalog().entries},
    )


def _show(found: Spending) -> None:
    fleet = ", ".join(f"{number} x {offering}" for offering, number in sorted(found.fleet.items())) or "no instance"
    out.print(
        f"${found.usd_per_hour:.4f} an hour now, ${found.usd_per_month:,.2f} a month like this ({fleet})", highlight=False, soft_wrap=True
    )
    per_million, window = found.usd_per_million, found.window_usd
    rows = [
        ("workers", found.answered_by.get("worker", 0), window["instances"], per_million.get("worker")),
        ("Lambda", found.answered_by.get("lambda", 0), window["lambda"], per_million.get("lambda")),
        ("plumbing", None, window["plumbing"], per_million.get("plumbing")),
        ("all", found.requests, window["total"], per_million.get("total")),
    ]
    shown = [(part, number, f"{usd:.6f}", _usd(each)) for part, number, usd, each in rows]
    emit_table(f"The last {found.window_s / 60:.1f} minutes, USD", ("part", "answers", "cost", "per million of its answers"), shown)
    present = Rival(
        name="this stack",
        usd_per_hour=found.usd_per_hour,
        usd_per_million=per_million.get("total"),
        usd_per_month=found.usd_per_month,
        note="as it is now",
    )
    compared = [(r.name, _usd(r.usd_per_hour, 4), _usd(r.usd_per_million), _usd(r.usd_per_month), r.note) for r in (present, *found.rivals)]
    emit_table("The same load otherwise, USD", ("served by", "per hour", "per million", "per month", "how"), compared)
    for assumption in found.assumptions:
        out.print(f"- {assumption}", style="dim", markup=False, highlight=False, soft_wrap=True)


def _usd(usd: float | None, places: int = 2) -> str | None:
    return None if usd is None else f"{usd:,.{places}f}"
