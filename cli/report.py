"""`markserve report`: of simulated runs as a page and pictures, or of the last demo on the terminal."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from cli.console import BAD_USAGE, Problem, emit_json, emit_table, err, explained, out
from cli.system import Json
from local.supervisor import state_dir


@explained()
def report(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[DIR...]", help="Folders that `markserve simulate` wrote; default: the last demo's report.json."),
    ] = None,
    out_path: Annotated[
        Path | None, typer.Option("--out", help="The page (.html), or a folder for it; default: report.html in the first DIR.")
    ] = None,
    png: Annotated[bool, typer.Option(help="Write the charts as PNG too, beside the page.")] = True,
    json: Json = False,
) -> None:
    """Set simulated runs side by side on one page; without DIR, print the report of the last demo again."""
    if not paths:
        _demo(state_dir() / "demo" / "report.json", json=json)
    elif len(paths) == 1 and paths[0].suffix == ".json":
        _demo(paths[0], json=json)
    else:
        _runs(paths, out_path, png=png, json=json)


def _demo(path: Path, *, json: bool) -> None:
    from local.report import read_report
    from local.report_text import print_report

    if not path.is_file():
        raise Problem(f"there is no report at {path}", next_step="make one with `markserve demo`, or name a folder of `markserve simulate`")
    try:
        found = read_report(path)
    except msgspec.MsgspecError as error:
        raise Problem(f"{path} is not a report: {error}", next_step="make one with `markserve demo`", code=BAD_USAGE) from error
    if json:
        emit_json(found)
    else:
        print_report(found, out)


def _runs(folders: list[Path], out_path: Path | None, *, png: bool, json: bool) -> None:
    missing = [name for name in ("matplotlib", "pyarrow", "numba") if importlib.util.find_spec(name) is None]
    if missing:
        raise Problem(f"a report of runs needs {', '.join(missing)}", next_step="pip install -e '.[simulate]'")
    from simulator.report.write import write_report

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    try:
        with Progress(*columns, console=err, transient=True) as bar:
            task = bar.add_task("looking for runs")
            written = write_report(folders, out=out_path, png=png, progress=lambda text: bar.update(task, description=text))
    except OSError as error:
        raise Problem(f"{error.filename}: {error.strerror}", code=BAD_USAGE) from error
    if json:
        emit_json(written)
        return
    emit_table("Policies", ("", *(one["label"] for one in written["policies"])), _rows(written["policies"]))
    out.print(f"page: {written['page']}", highlight=False, soft_wrap=True)
    for path in written["png"].values():
        out.print(f"      {path}", highlight=False, soft_wrap=True)


def _rows(policies: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    shown = (
        ("compute, $", "compute_usd", 1.0, ",.2f"),
        ("compute / bound", "cost_over_bound", 1.0, ".2f"),
        ("attainment", "slo_attainment", 1.0, ".3%"),
        ("worst hour", "worst_hour_attainment", 1.0, ".3%"),
        ("latency p98, ms", "latency_p98_s", 1000.0, ",.0f"),
        ("all-in, $", "total_usd", 1.0, ",.2f"),
    )
    return [(name, *("-" if one[key] is None else format(one[key] * scale, form) for one in policies)) for name, key, scale, form in shown]
