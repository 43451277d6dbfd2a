"""`markserve plan`: what the planner would do now, or a control cycle now."""

from __future__ import annotations

import json as json_codec
import time
from typing import Annotated, Literal

import typer

from cli.console import Problem, emit_json, emit_table, explained, out, working
from cli.system import Json
from cli.target import connect_to_stack
from markserve.messages import PlanRecord

Trigger = Literal["manual", "schedule", "slo_at_risk", "interruption"]


@explained()
def plan(
    dry_run: Annotated[
        bool, typer.Option("--dry-run/--run", help="Only say what would be done; --run starts a control cycle, which may buy.")
    ] = True,
    trigger: Annotated[Trigger, typer.Option(help="Why to plan; some reasons are urgent, and keep what would be given back.")] = "manual",
    model: Annotated[str | None, typer.Option(help="The model at risk, with --trigger slo_at_risk; default: whichever is.")] = None,
    json: Json = False,
) -> None:
    """Say what the planner would do now, why, and what it rejected; nothing is bought, stored or ended."""
    connect_to_stack()
    if not dry_run:
        _run(trigger, as_json=json)
        return
    from cli.preview import preview

    with working("planning"):
        record = preview(trigger, model=model, now_s=time.time())
    if json:
        emit_json(record)
        return
    out.print("dry run: nothing was changed", style="bold")
    show_plan(record)


def _run(trigger: str, *, as_json: bool) -> None:
    import boto3

    from markserve import wiring

    arn = wiring.settings().control_state_machine_arn
    if not arn:
        raise Problem("the stack's state machine is not known", next_step="set MARKSERVE_CONTROL_STATE_MACHINE_ARN, an output of the stack")
    started = boto3.client("stepfunctions").start_execution(stateMachineArn=arn, input=json_codec.dumps({"trigger": trigger}))
    if as_json:
        emit_json({"execution": started["executionArn"]})
    else:
        out.print("a control cycle has begun; `markserve explain` shows its plan in a moment")


def show_plan(record: PlanRecord) -> None:
    """Print a plan for people: demand, actions, and every alternative with its cost."""
    out.print(f"plan {record.plan_id} ({record.trigger}): {record.reason}", markup=False, highlight=False, soft_wrap=True)
    demand = [(m, f"{rps:.1f}/s", f"{record.capacity_rps.get(m, 0.0):.1f}/s") for m, rps in sorted(record.demand_rps.items())]
    emit_table(f"Demand and capacity at {record.hourly_cost_usd:.4f} USD/h", ("model", "demand", "capacity"), demand)
    emit_table("Actions", ("action", "model", "why"), [(type(action).__name__, action.model, action.reason) for action in record.actions])
    emit_table(
        "Alternatives that were not chosen",
        ("offering", "cost", "why not"),
        [(a.offering, None if a.cost_usd is None else f"{a.cost_usd:.6f} USD", a.reason) for a in record.alternatives],
    )
