"""A day through the control plane in compressed time: `python -m benchmarks.control_day`.

One control cycle a minute on the functions' own code (ingest, forecast, plan, lifecycle) with ports in memory and a clock that
jumps: metrics delivered twice and out of order, launches that find no capacity, machines that never come up, spot interruptions
with and without their notice, events that come twice. What must hold is counted from outside, by a cloud and a load that the
controller does not see: every arrival counted once, no instance running that nobody knows, no cycle without a plan.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.control_day_load import generated_day, recorded_day
from benchmarks.control_day_world import Day, DayReport
from markserve.errors import MarkserveError
from markserve.telemetry import logger

TRACE = Path("../shared/data/traces/twitter_2021-08_first15d_1s.csv.gz")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a day and print what came of it; 1 when something that must hold did not."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.control_day",
        description="Run a day of control cycles in compressed time, with mishaps.",
        epilog="example: python -m benchmarks.control_day --generated --cycles 240 --json",
    )
    parser.add_argument("--trace", type=Path, default=TRACE, help="1 s count trace (default: %(default)s; generated where it is missing)")
    parser.add_argument("--generated", action="store_true", help="a generated day instead of a trace")
    parser.add_argument("--cycles", type=int, default=1440, help="control cycles, one a minute (default: %(default)s)")
    parser.add_argument("--scale", type=float, default=1.0, help="load times this (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the mishaps and the generated load (default: %(default)s)")
    parser.add_argument("--calm", action="store_true", help="without mishaps")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of text")
    options = parser.parse_args(argv)
    if options.cycles < 10 or options.scale <= 0:
        parser.error("--cycles must be at least 10 and --scale positive")
    recorded = not options.generated and options.trace.exists()
    if not recorded and not options.generated and options.trace != TRACE:
        parser.error(f"{options.trace}: no such file; --generated needs none")
    try:
        windows = (
            recorded_day(options.trace, cycles=options.cycles, scale=options.scale)
            if recorded
            else generated_day(cycles=options.cycles, scale=options.scale, seed=options.seed)
        )
    except MarkserveError as error:
        parser.error(str(error))
    level = logger.log_level
    logger.setLevel("CRITICAL")
    try:
        report = _run(Day(windows, seed=options.seed, has_mishaps=not options.calm), options.cycles)
    finally:
        logger.setLevel(level)
    load = options.trace.name if recorded else "generated"
    sys.stdout.write(json.dumps({"load": load, **asdict(report)}, indent=1) + "\n" if options.json else _text(load, report))
    return int(bool(report.violations))


def _run(day: Day, cycles: int) -> DayReport:
    began_s = time.monotonic()
    for number in range(cycles):
        day.cycle()
        if sys.stderr.isatty() and number % 20 == 0:
            sys.stderr.write(f"\rcycle {number} of {cycles}, {time.monotonic() - began_s:.0f} s \033[K")
    day.settle()
    return day.report(seconds=time.monotonic() - began_s, peak_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000)


def _text(load: str, report: DayReport) -> str:
    facts = {name: value for name, value in asdict(report).items() if name != "violations"}
    lines = [
        f"{name.replace('_', ' '):28} {value:,.4g}" if isinstance(value, float) else f"{name.replace('_', ' '):28} {value}"
        for name, value in facts.items()
    ]
    return "\n".join([f"{'load':28} {load}", *lines, *(f"VIOLATION: {violation}" for violation in report.violations)]) + "\n"


if __name__ == "__main__":
    sys.exit(main())
