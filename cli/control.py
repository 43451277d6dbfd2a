"""`markserve params ...` and `markserve explain`: tune the controller, and ask it why."""

from __future__ import annotations

import time
from dataclasses import asdict, fields
from typing import Annotated

import typer

from cli.console import BAD_USAGE, Problem, emit_json, emit_table, explained, out
from cli.system import Json
from cli.target import connect_to_stack
from markserve.core.tunables import Tunables, parse_tunable, tunable_names

app = typer.Typer(help="Read and set the operator parameters; they take effect without a deployment.", no_args_is_help=True)

EXPLAINED_S = 3600.0
"""The decision log of the last hour is shown."""

Model = Annotated[str | None, typer.Option(help="The override of one model.")]


@app.command("get", epilog="Example: `markserve params get rt-max-s --model digits`")
@explained()
def get(name: Annotated[str | None, typer.Argument(help="Default: all.")] = None, model: Model = None, json: Json = False) -> None:
    """Show parameters as they are in force."""
    if name is not None:
        _check_name(name)
    connect_to_stack()
    from markserve import wiring

    tunables = asdict(wiring.parameters().get(model))
    values = {known: tunables[known.replace("-", "_")] for known in tunable_names() if name in (None, known)}
    if json:
        emit_json(values)
        return
    docs = {spec.name.replace("_", "-"): spec.metadata["doc"] for spec in fields(Tunables)}
    emit_table("Parameters", ("name", "value", "meaning"), [(known, value, docs[known]) for known, value in values.items()])


@app.command("set", epilog="Example: `markserve params set rt-max-s 0.5`")
@explained()
def set_parameter(
    name: Annotated[str, typer.Argument(help="Name of the parameter.")],
    value: Annotated[str, typer.Argument(help="Its new value.")],
    model: Model = None,
    json: Json = False,
) -> None:
    """Set a parameter; a bad value is refused here, before it is written."""
    _check_name(name)
    try:
        _, parsed = parse_tunable(name, value)
    except ValueError as error:
        raise Problem(str(error), next_step=f"see `markserve params get {name}`", code=BAD_USAGE) from error
    connect_to_stack()
    from markserve import wiring

    wiring.parameter_writer().put(name, value, model=model)
    if json:
        emit_json({name: parsed})
    else:
        out.print(f"{name} = {parsed}; in force within {wiring.settings().parameter_refresh_s:.0f} s", highlight=False)


def _check_name(name: str) -> None:
    if name not in tunable_names():
        raise Problem(f"there is no parameter {name!r}", next_step=f"known: {', '.join(tunable_names())}", code=BAD_USAGE)


@explained()
def explain(
    instance: Annotated[str | None, typer.Option(help="Tell the story of one instance instead of the latest plan.")] = None,
    json: Json = False,
) -> None:
    """Tell why: the latest plan with every rejected alternative, or one instance's story."""
    connect_to_stack()
    if instance is None:
        _explain_plan(as_json=json)
    else:
        _explain_instance(instance, as_json=json)


def _explain_plan(*, as_json: bool) -> None:
    from markserve import wiring

    plan = wiring.control().latest_plan()
    if plan is None:
        raise Problem("nothing was planned yet", next_step="a plan comes with the first control cycle")
    if as_json:
        emit_json(plan)
        return
    out.print(f"plan {plan.plan_id} ({plan.trigger}): {plan.reason}", markup=False, highlight=False, soft_wrap=True)
    demand = [(m, f"{rps:.1f}/s", f"{plan.capacity_rps.get(m, 0.0):.1f}/s") for m, rps in sorted(plan.demand_rps.items())]
    emit_table(f"Demand and capacity at {plan.hourly_cost_usd:.4f} USD/h", ("model", "demand", "capacity"), demand)
    forecasts = [found for m in sorted(plan.demand_rps) if (found := wiring.control().latest_forecast(m))]
    emit_table("Forecasts", ("model", "forecaster", "why"), [(f.model, f.forecaster, f.reason) for f in forecasts])
    emit_table("Actions", ("action", "model", "why"), [(type(action).__name__, action.model, action.reason) for action in plan.actions])
    emit_table(
        "Alternatives that were not chosen",
        ("offering", "cost", "why not"),
        [(a.offering, None if a.cost_usd is None else f"{a.cost_usd:.6f} USD", a.reason) for a in plan.alternatives],
    )


def _explain_instance(instance_id: str, *, as_json: bool) -> None:
    from markserve import wiring

    found = next((known for known in wiring.instances().list() if known.instance_id == instance_id), None)
    if found is None:
        raise Problem(f"there is no instance {instance_id}", next_step="`markserve status` lists them", code=BAD_USAGE)
    now_s = time.time()
    log = [d for d in wiring.control().decisions(since_s=now_s - EXPLAINED_S, until_s=now_s) if d.subject == instance_id]
    if as_json:
        emit_json({"instance": found, "decisions": log})
        return
    out.print(f"{instance_id} is {found.state}: {found.offering.key} for {found.model}", highlight=False, soft_wrap=True)
    story = [(found.requested_at_s, "requested", found.reason)]
    marks = (("running", found.running_at_s), ("serving", found.serving_at_s), ("draining", found.drain_at_s))
    story += [(at_s, name, "") for name, at_s in marks if at_s is not None]
    if found.terminated_at_s is not None:
        story.append((found.terminated_at_s, "terminated", found.end_reason or ""))
    story += [(d.at_s, d.event, d.reason) for d in log]
    emit_table("Story", ("ago", "what", "why"), [(f"{now_s - at_s:.0f} s", what, why) for at_s, what, why in sorted(story)])
