"""Has the stack measure a model on instance types, and follows it."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import boto3
from rich.console import Console

from cli.console import BAD_USAGE, Problem
from markserve import wiring
from markserve.catalog import load_catalog

if TYPE_CHECKING:
    from mypy_boto3_stepfunctions import SFNClient

POLL_S = 2.0
progress = Console(stderr=True)


def measure_on(model: str, instance_types: Sequence[str]) -> list[str]:
    """Run the state machine `characterize` and return the types that were not measured, each with its reason.

    Raises
    ------
    Problem
        If a type is unknown, the run fails, or nothing was measured.
    """
    known = {entry.instance_type for entry in load_catalog().entries}
    wanted = list(dict.fromkeys(name.strip() for name in instance_types if name.strip()))
    if unknown := [name for name in wanted if name not in known]:
        raise Problem(f"not in the catalog: {', '.join(unknown)}", next_step="see `markserve catalog show`", code=BAD_USAGE)
    wiring.models().get(model)
    states: SFNClient = boto3.client("stepfunctions")
    machine = wiring.settings().characterize_state_machine_arn
    if not machine:
        raise Problem("this stack has no state machine to measure with", next_step="deploy this version of template.yaml")
    started = states.start_execution(stateMachineArn=machine, input=json.dumps({"model": model, "instance_types": wanted}))
    output = _follow(states, started["executionArn"], f"measuring {model} on {', '.join(wanted)}")
    failed = [f"{each['instance_type']}: {_why(each)}" for each in output["measured"] if each.get("step", {}).get("outcome") != "measured"]
    for line in failed:
        progress.print(f"not measured: {line}", style="yellow", markup=False, soft_wrap=True)
    if output["stored"]["count"] == 0:
        raise Problem(
            f"nothing was measured: {'; '.join(failed) or output['stored']['reason']}",
            next_step="launches must be on (`markserve params set launches-enabled true`) and within the ceilings",
        )
    return failed


def _why(measured: dict[str, Any]) -> str:
    if "failure" in measured:
        return str(measured["failure"].get("Cause", measured["failure"].get("Error", "failed")))
    return str(measured.get("step", {}).get("reason", "failed"))


def _follow(states: SFNClient, arn: str, title: str) -> dict[str, Any]:
    started_s = time.monotonic()
    with progress.status(title) as status:
        while (execution := states.describe_execution(executionArn=arn))["status"] == "RUNNING":
            status.update(f"{title}: {time.monotonic() - started_s:.0f} s (a launch takes minutes, and a measurement as long)")
            time.sleep(POLL_S)
    if execution["status"] != "SUCCEEDED":
        raise Problem(
            f"{arn.rsplit(':', 1)[-1]} {execution['status']}: {execution.get('cause', 'no cause given')}",
            next_step="look at the execution in Step Functions; what it launched is ended by the next control cycles at the latest",
        )
    output: dict[str, Any] = json.loads(execution["output"])
    return output
