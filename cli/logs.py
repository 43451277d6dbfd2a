"""`markserve logs`: what functions and workers wrote."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from cli.console import BAD_USAGE, Problem, emit_json, err, explained, out, when, working
from cli.instant import instant
from cli.system import Json
from cli.target import connect_to_stack, is_local

if TYPE_CHECKING:
    from cli.log_lines import Line

FOLLOW_EVERY_S = 2.0
OVERLAP_S = 10.0
"""CloudWatch shows a line up to seconds after it was written; what was shown is not shown again."""
PLAIN = ("level", "location", "message", "timestamp", "service", "xray_trace_id", "cold_start", "function_name", "function_arn")
PLAIN_TOO = ("function_memory_size", "function_request_id")
"""Fields of a structured line that say nothing about what happened."""
_JOURNAL = (
    "the console of {instance}: how it started; the worker's own lines are in its journal, while it runs: "
    "`aws ssm start-session --target {instance}`, then `sudo journalctl -u markserve-worker`"
)


@explained()
def logs(
    function: Annotated[str | None, typer.Option(help="One function: api, ingest, forecast, plan, lifecycle, spillover.")] = None,
    instance: Annotated[
        str | None, typer.Option(help="One worker, by instance id; in AWS its console, which has no line of the worker itself.")
    ] = None,
    request: Annotated[str | None, typer.Option(help="Lines that name this request, wherever they are.")] = None,
    since: Annotated[str, typer.Option(help="From when on: 10m (ago), 14:30, 2026-01-31T14:30.")] = "10m",
    follow: Annotated[bool, typer.Option("--follow", help="Go on showing new lines, until interrupted.")] = False,
    everything: Annotated[bool, typer.Option("--all", help="Also Lambda's own lines and metrics.")] = False,
    json: Json = False,
) -> None:
    """Show log lines by time, of every function unless told which."""
    since_s = instant(since, now_s=time.time())
    connect_to_stack()
    if instance is not None and not is_local():
        err.print(_JOURNAL.format(instance=instance), markup=False, highlight=False, soft_wrap=True)
    shown: set[Line] = set()
    while True:
        with working("reading logs"):
            lines = _read(function, instance, request, since_s=since_s)
        new = [line for line in lines if line not in shown and (everything or not line.is_noise)]
        if json and not follow:
            emit_json(new)
            return
        for line in new:
            out.print(_text(line), markup=False, highlight=False, soft_wrap=True)
        if not follow:
            if not new:
                out.print("no lines; look further back with --since 2h", highlight=False)
            return
        shown = {line for line in lines if line.at_s > time.time() - 2 * OVERLAP_S - FOLLOW_EVERY_S}
        since_s = max(since_s, time.time() - OVERLAP_S - FOLLOW_EVERY_S)
        time.sleep(FOLLOW_EVERY_S)


def _read(function: str | None, instance: str | None, request: str | None, *, since_s: float) -> list[Line]:
    import boto3

    from cli.log_lines import FUNCTIONS, console_output, of_files, of_functions, workers_with_files
    from local.supervisor import work_dir
    from markserve import wiring

    if function is not None and function not in FUNCTIONS:
        raise Problem(f"there is no function {function!r}", next_step=f"known: {', '.join(FUNCTIONS)}", code=BAD_USAGE)
    stack_name, until_s, containing = wiring.settings().stack_name, time.time() + 1, request or ""
    functions = [] if instance else [function] if function else list(FUNCTIONS)
    lines = of_functions(boto3.client("logs"), stack_name, functions, since_s=since_s, until_s=until_s, containing=containing)
    if is_local():
        workers = [instance] if instance else workers_with_files(work_dir()) if request else []
        lines += of_files(work_dir(), stack_name, [*functions, *workers], since_s=since_s, containing=containing)
    elif instance:
        lines += console_output(boto3.client("ec2"), instance, at_s=until_s)
    return sorted(lines, key=lambda line: line.at_s)


def _text(line: Line) -> str:
    """Write a line for people: time, source, message, and what a structured line adds to it."""
    said = line.fields()
    if not said:
        return f"{when(line.at_s)} {line.source:<10} {line.text}"
    more = " ".join(f"{name}={value}" for name, value in said.items() if name not in (*PLAIN, *PLAIN_TOO) and value is not None)
    level = "" if said.get("level") in (None, "INFO") else f"{said['level']} "
    return f"{when(line.at_s)} {line.source:<10} {level}{said.get('message', '')} {more}".rstrip()
