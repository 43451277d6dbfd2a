"""`markserve experiments`: the paper's evaluation, repeated in the simulator."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from cli.console import BAD_USAGE, Problem, emit_json, emit_table, err, explained, out
from cli.system import Json
from markserve.errors import InfeasibleSlo, InvalidRequest

if TYPE_CHECKING:
    from simulator.experiments.cells import Outcome
    from simulator.experiments.experiment import Experiment, Setup

NEEDED = ("numba", "pyarrow", "matplotlib")


@explained()
def experiments(
    out_dir: Annotated[Path, typer.Option("--out", help="Folder for results.json, results.csv, table.md and pictures, by experiment.")],
    name: Annotated[
        str, typer.Argument(metavar="[NAME|all]", help="macro, micro-surge, micro-spot, sensitivity; several with commas.")
    ] = "all",
    trace: Annotated[
        Path | None,
        typer.Option(help="Recorded load for macro and sensitivity, such as the Twitter trace; default: a generated one like it."),
    ] = None,
    start: Annotated[float | None, typer.Option(help="Replay the trace from this time of it on.")] = None,
    hours: Annotated[float, typer.Option(min=0.05, max=240.0, help="How much of each load macro and sensitivity replay.")] = 4.0,
    scale: Annotated[float, typer.Option(help="The recorded or generated load times this.")] = 4.0,
    spot_trace: Annotated[
        list[Path] | None, typer.Option(help="Spot prices or interruptions, as of simulate; default: the catalog's typical savings.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Minutes instead of hours: shows that it works, not what is true.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Keep the runs that are already there, and run what is missing.")] = False,
    jobs: Annotated[int, typer.Option(min=1, max=64, help="Processes at once.")] = 1,
    keep_files: Annotated[bool, typer.Option("--keep-files", help="Keep every run's audit files: gigabytes.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same results.")] = 1,
    json: Json = False,
) -> None:
    """Repeat MArk's evaluation in the simulator, with tables and pictures.

    macro: two workloads, five models, against SageMaker and MArk as published. micro-surge: constant load that surges by
    50, 100 and 300 %. micro-spot: one, half and all instances of a spot pool are taken back. sensitivity: launch delay,
    prices, wrong profiles and wrong forecasts.

    markserve experiments micro-surge --out runs/surge
    markserve experiments all --out runs/paper --trace twitter.csv.gz --scale 4 --jobs 4 --resume
    """
    missing = [module for module in NEEDED if importlib.util.find_spec(module) is None]
    if missing:
        raise Problem(f"experiments need {', '.join(missing)}", next_step="pip install -e '.[simulate]'")
    from simulator.experiments.experiment import QUICK_S, Setup
    from simulator.experiments.registry import experiments_named

    chosen = experiments_named(name)
    setup = Setup(
        folder=out_dir,
        trace=trace,
        start_s=start,
        span_s=QUICK_S if quick else hours * 3600,
        scale=scale,
        spot_traces=tuple(spot_trace or ()),
        is_quick=quick,
        seed=seed,
    )
    try:
        done = _run(chosen, setup, resume=resume, jobs=jobs, keep_files=keep_files)
    except InfeasibleSlo as error:
        raise InvalidRequest(str(error)) from error
    except OSError as error:
        raise Problem(f"{error.filename}: {error.strerror}", code=BAD_USAGE) from error
    if json:
        emit_json([results for _, _, results in done])
        return
    for experiment, outcomes, results in done:
        _show(experiment, outcomes, results, out_dir)


def _run(
    chosen: list[Experiment], setup: Setup, *, resume: bool, jobs: int, keep_files: bool
) -> list[tuple[Experiment, list[Outcome], dict[str, Any]]]:
    from simulator.experiments.write import run_experiment

    done = []
    with Progress(SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=err, transient=True) as progress:
        task = progress.add_task("preparing")

        def tell(text: str) -> None:
            progress.update(task, description=text)
            if " done: " in text:
                progress.console.print(text, highlight=False)

        for experiment in chosen:
            outcomes, results = run_experiment(experiment, setup, resume=resume, jobs=jobs, keep_files=keep_files, tell=tell)
            done.append((experiment, outcomes, results))
    return done


def _show(experiment: Experiment, outcomes: list[Outcome], results: dict[str, Any], out_dir: Path) -> None:
    from simulator.experiments.tables import NARROW, by_group, table

    out.print(f"{experiment.name}: {experiment.question}", highlight=False, style="bold")
    for group, mine in by_group(outcomes).items():
        header, rows = table(mine, NARROW)
        emit_table(group, header[1:], [row[1:] for row in rows])
    if results["note"]:
        out.print(results["note"], highlight=False)
    folder = out_dir / experiment.name
    out.print(
        f"files: {folder} (results.json, results.csv, table.md, {len(results['pictures'])} pictures)", highlight=False, soft_wrap=True
    )
