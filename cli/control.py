"""`markserve params ...`: the operator parameters, and who changed them."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Annotated

import typer

from cli.console import BAD_USAGE, Problem, emit_json, emit_table, explained, out, when
from cli.system import Json
from cli.target import connect_to_stack
from markserve.core.tunables import Tunables, parse_tunable, tunable_names

app = typer.Typer(help="Read and set the operator parameters; they take effect without a deployment.", no_args_is_help=True)

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


@app.command("history", epilog="Example: `markserve params history rt-max-s`")
@explained()
def history(
    name: Annotated[str | None, typer.Argument(help="Default: all.")] = None,
    model: Model = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Most changes shown, newest first.")] = 50,
    json: Json = False,
) -> None:
    """Show who changed a parameter, when, from what to what."""
    if name is not None:
        _check_name(name)
    connect_to_stack()
    import boto3

    from cli.parameter_history import changes
    from markserve import wiring

    names = tunable_names() if name is None else (name,)
    found = changes(boto3.client("ssm"), wiring.settings().stack_name, names, model=model)[:limit]
    if json:
        emit_json(found)
        return
    rows = [(when(c.at_s), c.name, c.old, c.new, c.who) for c in found]
    emit_table("Changes, newest first", ("when", "parameter", "from", "to", "by"), rows)


def _check_name(name: str) -> None:
    if name not in tunable_names():
        raise Problem(f"there is no parameter {name!r}", next_step=f"known: {', '.join(tunable_names())}", code=BAD_USAGE)
