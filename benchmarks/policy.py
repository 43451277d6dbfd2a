"""Policies against one another on the developers' traces: `python -m benchmarks.policy` (`make bench-policy`).

One file of results for each profile, load and policy in --out, so that an interrupted run goes on where it stopped. After a
change of policy or simulator start afresh: --fresh, with --policies for what changed. Writes its tables into docs/results.md
and its pictures beside it, from all results that are there.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.policy_tables import charts, page_section
from benchmarks.policy_traces import LOADS, SPOT_PRICES, Load
from benchmarks.results_page import PAGE, fill, picture
from markserve.errors import MarkserveError
from simulator.experiments.cells import Cell
from simulator.experiments.runner import read_outcomes, run_cells
from simulator.report.style import save_png
from simulator.request import Request

ROOT = Path(__file__).resolve().parents[1]
PROFILES = ("squeezenet", "resnet-cifar10")
POLICIES = (
    "mark",
    "mark-on-demand",
    "mark-paper",
    "mark-paper-on-demand",
    "sagemaker",
    "reactive",
    "static",
    "all-lambda",
    "clairvoyant",
)
RT_MAX_S, SL_MIN = 0.2, 0.98


def cells_of(loads: Sequence[Load], profiles: Sequence[str], policies: Sequence[str], *, data: Path, out: Path) -> list[Cell]:
    """Return what is to be run; loads whose file is not there are left out."""
    found = [(load, trace) for load in loads if (trace := load.trace(data, out / "loads")) is not None]
    prices = data / SPOT_PRICES
    return [
        Cell(
            experiment="policy",
            group=profile,
            value=load.name,
            request=Request(
                trace=trace,
                profile=ROOT / f"simulator/examples/{profile}.json",
                rt_max_s=RT_MAX_S,
                sl_min=SL_MIN,
                policies=policy,
                scale=load.scale,
                start_s=load.start_s,
                end_s=load.end_s,
                spot=True,
                spot_traces=(prices,) if prices.is_file() else (),
            ),
        )
        for profile in profiles
        for load, trace in found
        for policy in policies
    ]


def write_page(page: Path, cells: Sequence[Cell], out: Path) -> int:
    """Put what has run into the page, and its pictures beside it; return how many results there are: 0 leaves the page as it is."""
    outcomes = read_outcomes(cells, out)
    if not outcomes:
        return 0
    images = page.parent / "img"
    images.mkdir(parents=True, exist_ok=True)
    pictures: list[str] = []
    for name, about, figure in charts(outcomes):
        save_png(figure, images / f"{name}.png")
        pictures.append(picture(page, images / f"{name}.png", about=about))
    fill(page, {"policy": "\n\n".join([page_section(outcomes), *pictures])})
    return len(outcomes)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is missing, then write the page."""
    asked = _parser().parse_args(arguments)
    loads = [load for load in LOADS if asked.only is None or load.name in asked.only]
    for name, chosen, known in (
        ("only", asked.only, [load.name for load in LOADS]),
        ("profiles", asked.profiles, PROFILES),
        ("policies", asked.policies, POLICIES),
    ):
        if unknown := sorted(set(chosen or ()) - set(known)):
            return _refuse(f"--{name}: {', '.join(unknown)} is none of {', '.join(known)}")
    missing = [load.name for load in loads if load.trace(asked.data, asked.out / "loads") is None]
    if missing:
        _say(f"left out, no such file below {asked.data}: {', '.join(missing)}")
    cells = cells_of(loads, asked.profiles, asked.policies, data=asked.data, out=asked.out)
    if not cells:
        return _refuse(f"nothing to run: {asked.data} has none of these traces; --data names the folder that has traces/")
    began_s = time.monotonic()

    def tell(text: str) -> None:
        if " done: " in text:
            _say(f"{time.monotonic() - began_s:6.0f} s  {text}")

    try:
        if not asked.page_only:
            run_cells(cells, asked.out, resume=not asked.fresh, jobs=asked.jobs, tell=tell)
        everything = cells_of(LOADS, PROFILES, POLICIES, data=asked.data, out=asked.out)
        number = write_page(asked.page, everything, asked.out)
    except (MarkserveError, ValueError, OSError) as error:
        return _refuse(str(error))
    except KeyboardInterrupt:
        _say("interrupted; the same command goes on from here")
        return 130
    _say(f"{asked.page}: {number} of {len(everything)} results" if number else "no results yet; the page is left as it is")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.policy", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(".markserve/bench-policy"), help="results, one file each")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared/data", help="folder with traces/ and spot/")
    parser.add_argument("--only", type=_names, help=f"loads, with commas: {', '.join(load.name for load in LOADS)}")
    parser.add_argument("--profiles", type=_names, default=list(PROFILES), help=", ".join(PROFILES))
    parser.add_argument("--policies", type=_names, default=list(POLICIES), help=", ".join(POLICIES))
    parser.add_argument("--jobs", type=int, choices=range(1, 65), metavar="N", default=1, help="processes at once")
    parser.add_argument("--fresh", action="store_true", help="run what was asked for again, though it is there")
    parser.add_argument("--page", type=Path, default=PAGE, help="page with the markers `policy:begin` and `policy:end`")
    parser.add_argument("--page-only", action="store_true", help="run nothing, write the page")
    return parser


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


def _refuse(text: str) -> int:
    _say(f"error: {text}")
    return 2


if __name__ == "__main__":
    sys.exit(main())
