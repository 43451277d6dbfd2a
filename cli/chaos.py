"""`markserve chaos`: break the local system on purpose, and prove that no request is lost."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.console import BAD_USAGE, FAILED, Problem, emit_json, emit_table, err, explained, out
from cli.system import Json

ALL, LIST, SHORT, SOAK = "all", "list", "short", "soak"


@explained()
def chaos(
    scenario: Annotated[
        list[str] | None,
        typer.Argument(help="Names of scenarios; or all (20 minutes), short, soak (load without faults), list.", show_default="list"),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the load.")] = 1,
    within: Annotated[float, typer.Option(min=3.0, max=120.0, help="Minutes for all; what would not end in time is not run.")] = 20.0,
    minutes: Annotated[float, typer.Option(min=1.0, max=240.0, help="Length of the soak.")] = 30.0,
    rate: Annotated[float, typer.Option(min=0.5, max=50.0, help="Requests per second of the soak.")] = 5.0,
    out_file: Annotated[Path | None, typer.Option("--out", help="Also write the result into a Markdown page.")] = None,
    json: Json = False,
) -> None:
    """Inject faults into a local system of its own under load; exit 1 if a request is lost, doubled or wrong, or too many are late."""
    from chaos.scenario import FAMILIES, floor_cell, load_scenarios

    known = load_scenarios()
    names = scenario or [LIST]
    if names == [LIST]:
        rows = [(s.name, FAMILIES[s.family], "yes" if s.short else "", floor_cell(s.floor, s.unjudged), s.summary) for s in known.values()]
        if json:
            told = ("short", "floor", "unjudged", "summary")
            emit_json([{"name": s.name, "family": FAMILIES[s.family], **{each: getattr(s, each) for each in told}} for s in known.values()])
        else:
            emit_table("Scenarios", ("name", "family", "short", "in time", "what happens, and what must come of it"), rows)
        return
    if names == [SOAK]:
        _soak(minutes=minutes, rate=rate, seed=seed, json=json)
        return
    chosen = list(known.values()) if names == [ALL] else [s for s in known.values() if s.short] if names == [SHORT] else []
    if not chosen:
        unknown = [name for name in names if name not in known]
        if unknown:
            raise Problem(f"there is no scenario {', '.join(unknown)}", next_step="`markserve chaos list` names them", code=BAD_USAGE)
        chosen = [known[name] for name in names]
    from chaos.report import emit_outcomes, write_page
    from chaos.session import run_scenarios

    def note(line: str) -> None:
        err.print(line, markup=False, highlight=False, soft_wrap=True)

    report = run_scenarios(chosen, seed=seed, note=note, budget_s=60 * within)
    if out_file is not None:
        write_page(report, out_file)
    if json:
        emit_json(report)
    else:
        emit_outcomes(report, out)
    if not report.passed:
        raise typer.Exit(FAILED)


def _soak(*, minutes: float, rate: float, seed: int, json: bool) -> None:
    from chaos.soak import emit_soak, run_soak

    result = run_soak(minutes=minutes, rate_rps=rate, seed=seed, note=lambda line: err.print(line, markup=False, highlight=False))
    if json:
        emit_json(result)
    else:
        emit_soak(result, out)
    if not result.passed:
        raise typer.Exit(FAILED)
