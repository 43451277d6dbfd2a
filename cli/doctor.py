"""`markserve doctor`: what stands in the way, and what to do about it."""

from __future__ import annotations

import os
from collections import Counter

import typer

from cli.checks import Check, local_checks
from cli.console import FAILED, Problem, emit_json, emit_table, explained, out, working
from cli.system import Json
from cli.target import connect_to_stack, is_local, stack_outputs
from local.supervisor import read_state, state_dir

MARKS = {"ok": "[green]ok[/]", "warn": "[yellow]warn[/]", "fail": "[red]fail[/]"}


@explained()
def doctor(json: Json = False) -> None:
    """Check this machine and, where there is one, the stack: account, permissions, quotas, capacity, images; exit 1 if one fails."""
    state = read_state()
    with working("checking"):
        found = list(local_checks(state_dir(), state.phase if state else None))
        if os.environ.get("MARKSERVE_STACK_NAME") or (state is not None and state.phase == "ready"):
            found += _stack()
    if json:
        emit_json(found)
    else:
        emit_table("Checks", ("check", "", "found", "next step"), [(c.name, MARKS[c.result], c.found, c.next_step or None) for c in found])
        counts = Counter(c.result for c in found)
        out.print(f"{counts['ok']} ok, {counts['warn']} to look at, {counts['fail']} failed", highlight=False)
    if any(c.result == "fail" for c in found):
        raise typer.Exit(FAILED)


def _stack() -> list[Check]:
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        connect_to_stack()
        from cli.aws_checks import stack_checks

        return stack_checks(stack_outputs(), local=is_local())
    except Problem as problem:
        return [Check(name="stack", result="fail", found=str(problem), next_step=problem.next_step)]
    except (BotoCoreError, ClientError) as error:
        step = "put credentials of the account into your shell: `aws sts get-caller-identity` must work"
        return [Check(name="account", result="fail", found=str(error), next_step=step)]
