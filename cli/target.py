"""Which system a command works on: the one its environment names, or the local one that runs.

`MARKSERVE_STACK_NAME` names a stack in the account and region of the shell's credentials. The names of its resources are read
from the stack itself, so nothing else needs to be set.
"""

from __future__ import annotations

import os

from cli.console import NOT_RUNNING, Problem
from local.supervisor import SystemState, log_path, read_state


def running_system() -> SystemState:
    """Return the local system, ready to use.

    Raises
    ------
    Problem
        If none runs, or it is not ready.
    """
    state = read_state()
    if state is None:
        raise Problem("no local system is running", next_step="start one with `markserve up`", code=NOT_RUNNING)
    if state.phase == "starting":
        doing = state.steps[-1] if state.steps else "starting"
        raise Problem(f"the local system is not ready yet: {doing}", next_step="wait, or look with `markserve status`")
    if state.phase == "failed":
        raise Problem(f"the local system did not start: {state.failure}", next_step=f"read {log_path()}, then `markserve up`")
    return state


def connect_to_stack() -> None:
    """Reach the stack that MARKSERVE_STACK_NAME names, else the local one.

    Raises
    ------
    Problem
        If there is no such stack, or no local system that is ready.
    """
    name = os.environ.get("MARKSERVE_STACK_NAME")
    if not name:
        from local.connection import connect  # boto3 takes a moment to import: not for --help

        connect(running_system().env)
    elif not os.environ.get("MARKSERVE_CONTROL_TABLE"):
        settings = settings_of(name)
        if not settings:
            step = "name one with MARKSERVE_STACK_NAME, in the region of AWS_REGION; unset it for the local system"
            region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "the shell's region"
            raise Problem(f"there is no stack {name} in {region}", next_step=step, code=NOT_RUNNING)
        os.environ.update(settings)


def settings_of(stack_name: str) -> dict[str, str]:
    """Read a stack's settings where its lifecycle function has them: it is given all of them. Empty when that is not there."""
    import boto3

    lambda_ = boto3.client("lambda")
    try:
        configuration = lambda_.get_function_configuration(FunctionName=f"{stack_name}-lifecycle")
    except lambda_.exceptions.ResourceNotFoundException:
        return {}
    variables = configuration.get("Environment", {}).get("Variables", {})
    return {name: value for name, value in variables.items() if name.startswith("MARKSERVE_")}


def stack_outputs() -> dict[str, str]:
    """Return the outputs of the stack that is connected to; empty where CloudFormation does not know it."""
    import boto3
    from botocore.exceptions import ClientError

    from markserve import wiring

    try:
        (stack,) = boto3.client("cloudformation").describe_stacks(StackName=wiring.settings().stack_name)["Stacks"]
    except ClientError as error:
        # CloudFormation has no code of its own for a stack that is not there.
        if error.response["Error"]["Code"] == "ValidationError":
            return {}
        raise
    return {output["OutputKey"]: output["OutputValue"] for output in stack.get("Outputs", [])}


def is_local() -> bool:
    """Tell whether commands work on the local system."""
    return not os.environ.get("MARKSERVE_STACK_NAME") or "127.0.0.1" in os.environ.get("AWS_ENDPOINT_URL", "")


def api_url(given: str | None) -> str:
    """Settle the base URL of the API: as given, from MARKSERVE_API_URL, the named stack's, or the local system's."""
    url = given or os.environ.get("MARKSERVE_API_URL") or _api_url_of_stack() or running_system().api_url
    if not url.startswith(("http://", "https://")):
        raise Problem(f"{url!r} is not a URL", next_step="give the API's base URL, such as http://127.0.0.1:47000", code=2)
    return url.rstrip("/")


def _api_url_of_stack() -> str | None:
    if not os.environ.get("MARKSERVE_STACK_NAME"):
        return None
    connect_to_stack()
    return stack_outputs().get("ApiEndpoint")
