"""Which system a command works on: the one its environment names, or the local one that runs."""

from __future__ import annotations

import os

from cli.console import Problem
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
        raise Problem("no local system is running", next_step="start one with `markserve up`")
    if state.phase == "starting":
        doing = state.steps[-1] if state.steps else "starting"
        raise Problem(f"the local system is not ready yet: {doing}", next_step="wait, or look with `markserve status`")
    if state.phase == "failed":
        raise Problem(f"the local system did not start: {state.failure}", next_step=f"read {log_path()}, then `markserve up`")
    return state


def connect_to_stack() -> None:
    """Reach the stack that MARKSERVE_STACK_NAME and its companions name, else the local one."""
    if os.environ.get("MARKSERVE_STACK_NAME"):
        return
    from local.connection import connect  # boto3 takes a moment to import: not for --help

    connect(running_system().env)


def api_url(given: str | None) -> str:
    """Settle the base URL of the API: as given, from MARKSERVE_API_URL, or the local system's."""
    url = given or os.environ.get("MARKSERVE_API_URL") or running_system().api_url
    if not url.startswith(("http://", "https://")):
        raise Problem(f"{url!r} is not a URL", next_step="give the API's base URL, such as http://127.0.0.1:47000", code=2)
    return url.rstrip("/")
