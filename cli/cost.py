"""`markserve cost`: what each model's load costs now, and what another way to serve it would."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Annotated

import typer

from cli.console import emit_json, emit_table, explained, out, working
from cli.instant import instant
from cli.system import Json
from cli.target import connect_to_stack

if TYPE_CHECKING:
    from markserve.console_messages import Cost

MONTH_H = 730.0
NAMES = {"markserve": "this stack", "lambda": "Lambda alone", "sagemaker": "SageMaker"}
NOTES = (
    "estimated from the stack's own counts, at list prices and live spot prices; no free tier, no savings plan, no data transfer",
    f"a month is {MONTH_H:.0f} hours of a load like this",
    "SageMaker: no batching, the target that AWS suggests to begin with, scaled without delay; a tuned one lies between that and "
    "`at least`; `markserve simulate` is the exact comparison",
)


@explained()
def cost(
    model: Annotated[str | None, typer.Argument(help="Default: every model.")] = None,
    since: Annotated[str, typer.Option(help="What the load is taken from: 1h (ago), 14:30, 2026-01-31T14:30.")] = "1h",
    json: Json = False,
) -> None:
    """Show dollars per hour, per million requests by tier and plumbing, and per month; against SageMaker and Lambda alone."""
    now_s = time.time()
    minutes = max(1, math.ceil((now_s - instant(since, now_s=now_s)) / 60))
    connect_to_stack()
    from markserve import wiring

    with working("adding up"):
        names = [model] if model else [record.model for record in wiring.models().list()]
        found = {name: seen for name in names if (seen := wiring.console().overview(name, minutes=minutes).cost) is not None}
    usd_per_hour = sum(each.ways[0].total_usd_per_hour for each in found.values())
    if json:
        emit_json({"usd_per_hour": usd_per_hour, "usd_per_month": usd_per_hour * MONTH_H, "models": found, "notes": NOTES})
        return
    out.print(f"${usd_per_hour:.4f} an hour, ${usd_per_hour * MONTH_H:,.2f} a month like this", highlight=False)
    for name, each in found.items():
        _show(name, each, now_s)
    for note in NOTES:
        out.print(f"- {note}", style="dim", markup=False, highlight=False, soft_wrap=True)


def _show(name: str, cost: Cost, now_s: float) -> None:
    parts = [
        ("workers", cost.workers_usd_per_hour, cost.workers_usd_per_million),
        ("Lambda", cost.lambda_usd_per_hour, cost.lambda_usd_per_million),
        ("plumbing", cost.plumbing_usd_per_hour, cost.plumbing_usd_per_million),
    ]
    emit_table(
        f"{name}, the last {(now_s - cost.since_s) / 60:.0f} minutes, USD",
        ("part", "per hour", "per million requests"),
        [(part, _usd(hourly, 4), _usd(each)) for part, hourly, each in parts],
    )
    rows = [
        (
            NAMES[way.name],
            _usd(way.total_usd_per_hour, 4),
            _usd(way.usd_per_million),
            _usd(way.total_usd_per_hour * MONTH_H),
            _usd(way.least_usd_per_hour, 4),
            way.basis,
        )
        for way in cost.ways
    ]
    emit_table("The same load otherwise, USD", ("served by", "per hour", "per million", "per month", "at least per hour", "how"), rows)
    for missing in cost.missing:
        out.print(f"not compared: {missing}", style="yellow", markup=False, highlight=False, soft_wrap=True)


def _usd(usd: float | None, places: int = 2) -> str | None:
    return None if usd is None else f"{usd:,.{places}f}"
