"""`markserve simulate`: replay a trace against policies and price what they do, before anyone spends a dollar."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from cli.console import BAD_USAGE, Problem, emit_json, emit_table, err, explained, out
from cli.system import Json
from markserve.core.types import Slo
from markserve.errors import InfeasibleSlo, InvalidRequest

if TYPE_CHECKING:
    from simulator.simulation import Scenario
    from simulator.summary import Summary

PROGRESS_EVERY_S = 600.0
"""Of simulated time."""


@explained()
def simulate(
    trace: Annotated[Path, typer.Option(help="CSV of t_s,count or of one row per request (arrival_s or t_s); gzip or not.")],
    profile: Annotated[Path, typer.Option(help="JSON of measured latencies by instance type; see docs/simulator.md.")],
    out_dir: Annotated[Path, typer.Option("--out", help="Folder for the audit files, one folder per policy.")],
    policy: Annotated[str, typer.Option(help="NAME[,NAME...]: mark, mark-paper, reactive, static, all-lambda, clairvoyant.")] = "mark",
    catalog: Annotated[Path | None, typer.Option(help="Instance catalog; default: the one that ships with markserve.")] = None,
    rt_max: Annotated[float, typer.Option(min=0.01, max=29.0, help="Latency objective in seconds.")] = 0.2,
    sl_min: Annotated[float, typer.Option(min=0.5, max=0.9999, help="Share of requests to answer within it.")] = 0.98,
    scale: Annotated[float, typer.Option(help="Load times this.")] = 1.0,
    start: Annotated[float | None, typer.Option(help="Replay from this time of the trace on.")] = None,
    end: Annotated[float | None, typer.Option(help="Replay up to this time of the trace.")] = None,
    launch_delay: Annotated[float | None, typer.Option(min=0.0, help="Median launch delay in seconds; default 180.")] = None,
    surge: Annotated[list[str] | None, typer.Option(help="AT:FACTOR:FOR, seconds from the start; may be repeated.")] = None,
    forecaster: Annotated[
        str,
        typer.Option(help="Of mark: best (by the champion rule) or one of the product's, such as persistence; see docs/forecasting.md."),
    ] = "best",
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same arrivals, latencies and launch delays.")] = 1,
    requests: Annotated[bool, typer.Option(help="Write requests.parquet, one row per request.")] = True,
    json: Json = False,
) -> None:
    """Replay a trace against policies: cost, attainment and latency, with files to check them by."""
    if importlib.util.find_spec("numba") is None or importlib.util.find_spec("pyarrow") is None:
        raise Problem("the simulator needs numba and pyarrow", next_step="pip install -e '.[simulate]'")
    from simulator.assumptions import LAUNCH_DELAY_S
    from simulator.registry import on_demand_offerings, policy_names
    from simulator.service import read_profile
    from simulator.simulation import Scenario
    from simulator.traces import Surge, open_trace

    names = policy_names(policy)
    read = read_profile(profile)
    delay_s = LAUNCH_DELAY_S if launch_delay is None else launch_delay
    scenario = Scenario(
        trace=open_trace(trace, scale=scale, start_s=start, end_s=end, surges=tuple(Surge.parse(text) for text in surge or ())),
        profile=read,
        offerings=on_demand_offerings(read, catalog, launch_delay_s=delay_s),
        slo=Slo(latency_s=rt_max, percentile=sl_min),
        launch_delay_s=delay_s,
        seed=seed,
        keep_requests=requests,
    )
    try:
        summaries = _run(scenario, names, out_dir, forecaster)
    except InfeasibleSlo as error:
        raise InvalidRequest(str(error)) from error
    except OSError as error:
        raise Problem(f"{error.filename}: {error.strerror}", code=BAD_USAGE) from error
    if json:
        emit_json(summaries)
        return
    _show(summaries, scenario, out_dir)


def _run(scenario: Scenario, names: list[str], out_dir: Path, forecaster: str) -> list[Summary]:
    from simulator.registry import policies
    from simulator.simulation import simulate as replay

    summaries: list[Summary] = []
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True) as progress:
        task = progress.add_task("reading the trace")
        for one in policies(names, scenario, forecaster_name=forecaster):

            def tell(at_s: float, done: int, name: str = one.name) -> None:
                if at_s % PROGRESS_EVERY_S == 0:
                    progress.update(task, description=f"{name}: hour {at_s / 3600:.1f}, {done:,} requests")

            summaries.append(replay(scenario, one, out_dir / one.name, progress=tell))
    (out_dir / "comparison.json").write_bytes(msgspec.json.format(msgspec.json.encode(summaries), indent=2) + b"\n")
    return summaries


def _show(summaries: list[Summary], scenario: Scenario, out_dir: Path) -> None:
    title = f"{summaries[0].requests:,} requests over {summaries[0].simulated_s / 3600:.2f} h"
    figures = [_figures(summary) for summary in summaries]
    rows = [(name, *(column[name] for column in figures)) for name in figures[0]]
    emit_table(title, ("", *(summary.policy for summary in summaries)), rows)
    out.print(f"objective: {scenario.slo.percentile:.2%} within {scenario.slo.latency_s:g} s", highlight=False)
    out.print(f"lower bound: {summaries[0].lower_bound}", highlight=False)
    if summaries[0].missing_s:
        out.print(f"missing from the trace, passed over as unknown: {summaries[0].missing_s:.0f} s", highlight=False)
    out.print(f"files: {out_dir}; docs/simulator.md says how to check the figures by them", highlight=False, soft_wrap=True)


def _figures(s: Summary) -> dict[str, str]:
    def ms(name: str) -> str:
        latency_s = s.latency_s[name]
        return "-" if latency_s is None else f"{latency_s * 1000:.0f}"

    def share(value: float | None) -> str:
        return "-" if value is None else f"{value:.2%}"

    return {
        "attainment": f"{s.slo_attainment:.3%}",
        "worst hour": share(s.worst_hour_attainment),
        "worst minute": share(s.worst_minute_attainment),
        "latency p50, ms": ms("p50_s"),
        "latency p98, ms": ms("p98_s"),
        "latency p99.9, ms": ms("p999_s"),
        "spilled": share(s.spill_share),
        "not answered": share(1 - s.answered / max(1, s.requests)),
        "launches": str(s.launches),
        "instances, $": f"{s.cost_usd['instances']:.3f}",
        "Lambda, $": f"{s.cost_usd['lambda']:.3f}",
        "compute, $": f"{s.cost_usd['compute']:.3f}",
        "compute / bound": "-" if s.cost_over_bound is None else f"{s.cost_over_bound:.2f}",
        "plumbing, $": f"{s.cost_usd['plumbing']:.3f}",
        "all-in, $/million": f"{s.per_million_usd.get('total', 0.0):.2f}",
    }
