"""`markserve simulate`: replay a trace against policies and price what they do, before anyone spends a dollar."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from cli.console import BAD_USAGE, Problem, emit_json, emit_table, err, explained, out
from cli.system import Json
from markserve.errors import InfeasibleSlo, InvalidRequest

if TYPE_CHECKING:
    from simulator.request import Request
    from simulator.simulation import Scenario
    from simulator.summary import Summary

PROGRESS_EVERY_S = 600.0
"""Of simulated time."""


@explained()
def simulate(
    trace: Annotated[
        str, typer.Option(help="CSV of t_s,count or a row per request (arrival_s, t_s, interarrival_us), or mmpp:RATES:MEAN_S:DURATION_S.")
    ],
    profile: Annotated[Path, typer.Option(help="Measured latencies by instance type: JSON, or CSV with --model.")],
    out_dir: Annotated[Path, typer.Option("--out", help="Folder for the audit files, one folder per policy.")],
    policy: Annotated[
        str,
        typer.Option(
            help="NAME[,NAME...]: mark[-on-demand], mark-paper[-on-demand|-no-standbys], sagemaker, reactive, static, all-lambda, "
            "clairvoyant."
        ),
    ] = "mark",
    model: Annotated[str | None, typer.Option(help="Which model of a CSV profile.")] = None,
    catalog: Annotated[Path | None, typer.Option(help="Prices: JSON or CSV instance_type,price_usd_per_hour; default: shipped.")] = None,
    rt_max: Annotated[float, typer.Option(min=0.01, max=29.0, help="Latency objective in seconds.")] = 0.2,
    sl_min: Annotated[float, typer.Option(min=0.5, max=0.9999, help="Share of requests to answer within it.")] = 0.98,
    scale: Annotated[float, typer.Option(help="Load times this.")] = 1.0,
    start: Annotated[float | None, typer.Option(help="Replay from this time of the trace on.")] = None,
    end: Annotated[float | None, typer.Option(help="Replay up to this time of the trace.")] = None,
    arrivals: Annotated[str, typer.Option(help="Within the steps of a count trace: poisson, cv=2.0 or map=FILE[#TRACE].")] = "poisson",
    launch_delay: Annotated[str | None, typer.Option(help="MEDIAN or MEDIAN:SIGMA of the launch delay; default 180:0.1.")] = None,
    surge: Annotated[list[str] | None, typer.Option(help="AT:FACTOR:FOR, seconds from the start; may be repeated.")] = None,
    spot: Annotated[bool, typer.Option("--spot", help="Offer spot at the catalog's typical savings and interruption rates.")] = False,
    spot_trace: Annotated[
        list[Path] | None,
        typer.Option(
            help="Spot prices (ts_utc,az,instance_type,spot_usd_per_h) or interruptions (SkyPilot JSON, node events); repeatable."
        ),
    ] = None,
    interrupt: Annotated[
        list[str] | None, typer.Option(help="AT:SHARE[:no-notice]: interrupt that share of the largest spot pool; repeatable.")
    ] = None,
    provisioned_concurrency: Annotated[int, typer.Option(min=0, help="Lambda environments that never start cold.")] = 0,
    max_instances: Annotated[
        int, typer.Option(min=0, max=100_000, help="Most instances a policy may have at once; SageMaker is not bound by it.")
    ] = 1000,
    lambda_concurrency: Annotated[
        int,
        typer.Option(
            min=1, max=100_000, help="Lambda invocations at once, beyond which they are refused; 1000 is an account's default quota."
        ),
    ] = 1000,
    sagemaker_prices: Annotated[str, typer.Option(help="current (1.20 x EC2 and such) or launch (1.40 x EC2, as in 2019).")] = "current",
    sagemaker_batch: Annotated[int, typer.Option(min=1, help="Most requests that SageMaker's model server takes at once.")] = 1,
    forecaster: Annotated[
        str,
        typer.Option(help="Of mark: best (by the champion rule) or one of the product's, such as persistence; see docs/forecasting.md."),
    ] = "best",
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same arrivals, latencies and launch delays.")] = 1,
    sample_requests: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Share of requests in requests.parquet; 0 leaves the file out.")
    ] = 1.0,
    requests: Annotated[bool, typer.Option(help="Write requests.parquet.")] = True,
    json: Json = False,
) -> None:
    """Replay a trace against policies: cost, attainment and latency, with files to check them by.

    markserve simulate --trace day.csv.gz --profile p.json --policy mark,sagemaker --spot --out runs/day
    markserve simulate --trace mmpp:20,200:300:7200 --profile p.csv --model resnet --out runs/mmpp
    """
    if importlib.util.find_spec("numba") is None or importlib.util.find_spec("pyarrow") is None:
        raise Problem("the simulator needs numba and pyarrow", next_step="pip install -e '.[simulate]'")
    from simulator.request import Request, scenario_of

    try:
        asked = Request(
            trace=trace,
            profile=profile,
            model=model,
            catalog=catalog,
            policies=policy,
            rt_max_s=rt_max,
            sl_min=sl_min,
            scale=scale,
            start_s=start,
            end_s=end,
            arrivals=arrivals,
            launch_delay=launch_delay,
            surges=tuple(surge or ()),
            spot=spot,
            spot_traces=tuple(spot_trace or ()),
            interrupts=tuple(interrupt or ()),
            provisioned=provisioned_concurrency,
            max_instances=max_instances,
            lambda_concurrency=lambda_concurrency,
            sagemaker_prices=sagemaker_prices,
            sagemaker_batch=sagemaker_batch,
            forecaster=forecaster,
            seed=seed,
            request_share=sample_requests if requests else 0.0,
        )
        scenario = scenario_of(asked)
        summaries = _run(scenario, asked, out_dir)
    except InfeasibleSlo as error:
        raise InvalidRequest(str(error)) from error
    except OSError as error:
        raise Problem(f"{error.filename}: {error.strerror}", code=BAD_USAGE) from error
    if json:
        emit_json(summaries)
        return
    _show(summaries, scenario, out_dir)


def _run(scenario: Scenario, asked: Request, out_dir: Path) -> list[Summary]:
    from simulator.request import policies_of
    from simulator.simulation import simulate as replay

    summaries: list[Summary] = []
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True) as progress:
        task = progress.add_task("reading the trace")
        for one in policies_of(asked, scenario):

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
    for bound in dict.fromkeys(summary.lower_bound for summary in summaries):
        names = ", ".join(summary.policy for summary in summaries if summary.lower_bound == bound)
        out.print(f"lower bound ({names}): {bound}", highlight=False)
    for summary in summaries:
        if summary.search is not None:
            out.print(f"{summary.policy}: {_searched(summary.search)}", highlight=False)
    if summaries[0].missing_s:
        out.print(f"missing from the trace, passed over as unknown: {summaries[0].missing_s:.0f} s", highlight=False)
    out.print(f"files: {out_dir}; docs/simulator.md says how to check the figures by them", highlight=False, soft_wrap=True)


def _searched(search: dict[str, Any]) -> str:
    found = (
        f"{search['instance_type']} at ${search['price_usd_per_hour']:g}/h ({search['price_source']}), target "
        f"{search['target_invocations_per_instance_per_minute']:g} invocations per instance and minute, "
        f"at least {search['min_instances']} instance(s)"
    )
    how = f"best of {search['settings_in_grid']} settings over {search['searched_s'] / 3600:.2f} h"
    return f"{found}; {how}" + ("" if search["meets_objective"] else "; none of them meets the objective")


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
        "interruptions": str(s.interruptions),
        "instances, $": f"{s.cost_usd['instances']:.3f}",
        "Lambda, $": f"{s.cost_usd['lambda'] + s.cost_usd['provisioned']:.3f}",
        "compute, $": f"{s.cost_usd['compute']:.3f}",
        "compute / bound": "-" if s.cost_over_bound is None else f"{s.cost_over_bound:.2f}",
        "plumbing, $": f"{s.cost_usd['plumbing']:.3f}",
        "all-in, $/million": f"{s.per_million_usd.get('total', 0.0):.2f}",
    }
