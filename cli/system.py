"""`markserve up|down|demo`: the local system."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from cli.console import FAILED, Problem, emit_json, err, explained, out
from local.supervisor import SystemState, UpOptions, log_path, read_state, start_supervisor, stop_supervisor, work_dir

START_TIMEOUT_S = 300.0
POLL_S = 0.2
SLIDING_S = 300.0
"""Attainment is shown over the last five minutes."""

Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


@explained()
def up(
    rt_max: Annotated[float, typer.Option(min=0.01, max=29.0, help="Latency objective in seconds.")] = UpOptions().rt_max_s,
    sl_min: Annotated[float, typer.Option(min=0.5, max=0.9999, help="Share of requests to answer within it.")] = UpOptions().sl_min,
    max_instances: Annotated[int, typer.Option(min=0, max=16, help="Most worker processes.")] = UpOptions().max_instances,
    json: Json = False,
) -> None:
    """Start the local system in the background and keep it running."""
    state = read_state()
    if state is None or state.phase == "failed":
        start_supervisor(UpOptions(rt_max_s=rt_max, sl_min=sl_min, max_instances=max_instances))
    elif not json:
        err.print("a local system is running already")
    ready = _await_ready()
    if json:
        emit_json({"api_url": ready.api_url, "model": ready.model, "env": ready.env})
        return
    out.print(f"ready: {ready.api_url}", highlight=False, soft_wrap=True)
    out.print(_curl(ready), markup=False, highlight=False, soft_wrap=True)


def _await_ready() -> SystemState:
    shown = 0
    give_up_at_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < give_up_at_s:
        state = read_state()
        if state is not None:
            for step in state.steps[shown:]:
                err.print(step, markup=False, highlight=False)
            shown = len(state.steps)
            if state.phase == "ready":
                return state
            if state.phase == "failed":
                raise Problem(f"the local system did not start: {state.failure}", next_step=f"read {log_path()}")
        time.sleep(POLL_S)
    raise Problem(f"the local system was not ready within {START_TIMEOUT_S:.0f} s", next_step=f"read {log_path()}, then `markserve down`")


def _curl(state: SystemState) -> str:
    body = work_dir() / "digit.json"
    return f"curl -s {state.api_url}/v2/models/{state.model}/infer -H 'Content-Type: application/json' -d @{body}"


@explained()
def down(json: Json = False) -> None:
    """Stop the local system and everything it started."""
    state = read_state()
    if state is not None:
        stop_supervisor(state)
    if json:
        emit_json({"stopped": state is not None})
    else:
        out.print("stopped" if state is not None else "nothing was running")


@explained()
def demo(
    rt_max: Annotated[float | None, typer.Option(min=0.01, max=29.0, help="Latency objective in seconds.")] = None,
    rate: Annotated[float | None, typer.Option(min=0.5, max=200.0, help="Requests per second at the end of the ramp.")] = None,
    seconds: Annotated[float | None, typer.Option(min=10.0, max=3600.0, help="Length of the load.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the arrivals.")] = None,
    keep: Annotated[bool, typer.Option(help="Keep the system running after the report.")] = False,
    json: Json = False,
) -> None:
    """Run the whole system under load, interrupt a spot instance, and report; exit 1 if a promise was broken."""
    from local.demo import DemoSettings, run_demo
    from local.report_text import print_report

    chosen = {"rt_max_s": rt_max, "rate_rps": rate, "seconds": seconds, "seed": seed}
    settings = DemoSettings(**{name: value for name, value in chosen.items() if value is not None})  # type: ignore[arg-type]  # each by its name
    result = run_demo(settings, err if json else out, keep=keep, show=None if json else print_report)
    if json:
        emit_json(result)
    else:
        out.print(f"written: {settings.work_dir}/report.json, requests.csv, instances.csv", highlight=False, soft_wrap=True)
    if result.shortfalls:
        raise typer.Exit(FAILED)
