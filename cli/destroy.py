"""`markserve destroy`: take a stack down with everything that it made, and prove that nothing is left."""

from __future__ import annotations

import os
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from cli.console import BAD_USAGE, FAILED, Problem, emit_json, emit_table, err, explained, out
from cli.system import Json

if TYPE_CHECKING:
    from cli.teardown import Inventory


@explained()
def destroy(
    stack: Annotated[str | None, typer.Option(help="Name of the stack; default: MARKSERVE_STACK_NAME, else the local system's.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would go, and change nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for the stack's name.")] = False,
    under_load: Annotated[
        bool, typer.Option("--under-load", help="Go on though requests still come: the API closes first, what was accepted is answered.")
    ] = False,
    json: Json = False,
) -> None:
    """End every instance, delete queues, objects, parameters and the stack, and check that nothing is left."""
    stack_name = _connect(stack)
    from cli.teardown import NotGone, take_inventory, tear_down

    before = take_inventory(stack_name)
    if dry_run or before.is_empty:
        _show(stack_name, before, as_json=json)
        return
    if not under_load:
        refuse_under_load(stack_name)
    if not yes:
        _show(stack_name, before, as_json=False)
        typed = typer.prompt(f"All of this goes, models included. Type {stack_name} to go on", default="", show_default=False, err=True)
        if typed != stack_name:
            raise Problem("nothing was destroyed: that is not the stack's name", next_step="look with --dry-run", code=BAD_USAGE)
    try:
        left = tear_down(stack_name, lambda step: err.print(step, markup=False, highlight=False, soft_wrap=True))
    except NotGone as error:
        raise Problem(str(error), next_step=f"look in AWS's console, then run `markserve destroy --stack {stack_name}` again") from error
    _show(stack_name, left, as_json=json)
    if not left.is_empty:
        raise typer.Exit(FAILED)


def _connect(stack: str | None) -> str:
    """Settle on a stack: by name in the account of the shell's credentials, or the local one."""
    if stack or os.environ.get("MARKSERVE_STACK_NAME"):
        return stack or os.environ["MARKSERVE_STACK_NAME"]
    from cli.target import connect_to_stack

    connect_to_stack()
    return os.environ["MARKSERVE_STACK_NAME"]


def refuse_under_load(stack_name: str) -> None:
    """Stop unless the stack has been quiet for a minute, or its functions are gone already.

    Raises
    ------
    Problem
        Saying how many requests came.
    """
    from cli.target import settings_of
    from cli.traffic import recent_requests
    from markserve import wiring

    settings = settings_of(stack_name)
    if not settings:
        return
    os.environ.update(settings)
    requests = sum(recent_requests(record.model) for record in wiring.models().list())
    if requests:
        raise Problem(
            f"{stack_name} was asked {requests} times within the last minute; nothing was destroyed",
            next_step="stop its clients, or add --under-load: the API closes first, and what was accepted is answered",
        )


def _show(stack_name: str, inventory: Inventory, *, as_json: bool) -> None:
    if as_json:
        emit_json(asdict(inventory))
        return
    if inventory.is_empty:
        out.print(f"nothing of {stack_name} exists", highlight=False)
        return
    emit_table(
        f"Of {stack_name}",
        ("what", "there is"),
        [
            ("stack", inventory.stack_status),
            ("instances", ", ".join(inventory.instances) or "none"),
            ("work queues", ", ".join(url.rsplit("/", 1)[-1] for url in inventory.work_queues) or "none"),
            ("parameters of models", ", ".join(inventory.parameters) or "none"),
            ("objects", f"{inventory.objects} in {inventory.bucket}" if inventory.bucket else "none"),
        ],
    )
