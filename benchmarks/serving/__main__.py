"""Serving engines compared: `python -m benchmarks.serving [--quick] [--only mosec,markserve] [--tune] [--page-only]`.

The server gets one core, the load generator another, on a machine that does nothing else. Peers are installed into venvs of their own under
`.bench-venvs/` first. What is finished is kept: a second start goes on. The page is written from the results file.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.serving import page
from benchmarks.serving.campaign import FULL, QUICK, TUNING, Campaign, Plan
from benchmarks.serving.contestants import CONTESTANTS, MARKSERVE, Contestant
from benchmarks.serving.selfcheck import check_generator
from benchmarks.serving.venvs import CannotInstall, ensure
from benchmarks.serving.workload import build

FOLDER = Path(".markserve/bench-serving")
TUNED = Path(__file__).parent / "tuned.json"
BEGAN = time.monotonic()


def say(text: str) -> None:
    """Report progress on stderr, with the minutes since the start."""
    sys.stderr.write(f"{(time.monotonic() - BEGAN) / 60:5.1f} min  {text}\n")
    sys.stderr.flush()


def main(argv: list[str]) -> int:
    """Run what is asked for; 2 for a bad argument."""
    args = _parser().parse_args(argv)
    wanted = [CONTESTANTS[name] for name in CONTESTANTS if not args.only or name in args.only.split(",")]
    unknown = sorted(set(args.only.split(",") if args.only else ()) - set(CONTESTANTS))
    if unknown:
        sys.stderr.write(f"error: no server called {', '.join(unknown)}\nnext:  choose from {', '.join(CONTESTANTS)}\n")
        return 2
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        sys.stderr.write(
            "error: this needs two cores, one for the server and one for the load\nnext:  run it without taskset, or on a larger machine\n"
        )
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the server under test ends with us
    plan = TUNING if args.tune else QUICK if args.quick else FULL
    campaign = _campaign(plan, cores[0], cores[1], is_fresh=args.fresh)
    if not args.page_only:
        _run(campaign, wanted, core=cores[0], is_tuning=args.tune)
    if not args.tune:
        target = args.page or (FOLDER / "serving-benchmark.md" if args.quick else Path("docs/serving-benchmark.md"))
        page.write(campaign.results, target)
        say(f"written: {target}, from {campaign.path}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serving", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: python -m benchmarks.serving --quick --only mosec,markserve",
    )  # fmt: skip
    parser.add_argument(
        "--quick",
        action="store_true",
        help="short runs, about a minute per server, to see that it works; wide of the mark by 10 %% and more",
    )
    parser.add_argument("--only", default="", metavar="NAMES", help=f"of {','.join(CONTESTANTS)}")
    parser.add_argument("--tune", action="store_true", help="search every peer's knobs (10 to 20 minutes) and keep the best in tuned.json")
    parser.add_argument("--fresh", action="store_true", help="measure again what the results file has")
    parser.add_argument(
        "--page", type=Path, help="where to write the page; default docs/serving-benchmark.md, with --quick beside the results"
    )
    parser.add_argument("--page-only", action="store_true", help="write the page from the results as they are")
    return parser


def _campaign(plan: Plan, server_core: int, generator_core: int, *, is_fresh: bool) -> Campaign:
    os.sched_setaffinity(0, {generator_core})
    workload = build(FOLDER)
    return Campaign(plan=plan, workload=workload, core=server_core, folder=FOLDER, tuned_path=TUNED, say=say, is_fresh=is_fresh)


def _run(campaign: Campaign, wanted: list[Contestant], *, core: int, is_tuning: bool) -> None:
    for contestant in wanted:  # before anything is timed
        _try(partial(ensure, contestant, say))
    rivals = [contestant for contestant in wanted if contestant is not MARKSERVE]
    for contestant in rivals:
        if campaign.plan is not QUICK and campaign.knobs(contestant)[1] is None:
            _try(partial(campaign.tune, contestant))
    if not is_tuning:
        campaign.results["generator"] = check_generator(core, say)
        campaign.save()
        _measure(campaign, rivals, with_markserve=len(rivals) < len(wanted))


def _measure(campaign: Campaign, rivals: list[Contestant], *, with_markserve: bool) -> None:
    finished = campaign.results["contestants"]
    if with_markserve and MARKSERVE.name not in finished:
        campaign.measure(MARKSERVE)
    for contestant in rivals:
        if contestant.name not in finished:
            campaign.measure(contestant)
            if with_markserve:
                campaign.recheck(contestant.name)


def _try(step: Callable[[], object]) -> None:
    """One peer that cannot be installed must not end the others' measuring; `measure` records why."""
    try:
        step()
    except CannotInstall as error:
        say(f"{error}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
