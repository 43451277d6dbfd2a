"""Try everything that can happen to a request: `python -m verification.exactly_once`.

Fronts, workers, queue, spill-over and results table in every order, with calls that fail before or after they took effect,
processes that die between any two calls, messages that come twice, and any amount of time passing anywhere. After each step the
invariants of `Protocol.check` must hold, and where nothing is left to happen, everybody must have been answered.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial

from verification.explorer import Explored, explore
from verification.parts import coarse_polls
from verification.protocol import Ask, Protocol, Scenario

RETRY, BOB, UNKEYED = (Ask(), Ask()), Ask(client="bob"), Ask(key=None)
BEFORE_SPILL_S = 0.05
"""A visibility timeout that ends while the front still waits: two workers hold the message, and neither is late."""

QUICK: tuple[Scenario, ...] = (
    Scenario(name="one request", workers=2),
    Scenario(name="one request, no spill-over, a call fails", spill=False, faults=1),
    Scenario(name="one request, front and worker die", front_crashes=1, worker_crashes=1),
    Scenario(name="one request, messages come twice", redeliveries=1, visibility_s=BEFORE_SPILL_S),
    Scenario(name="async, workers die twice", asks=(Ask(asynchronous=True),), worker_crashes=2),
    Scenario(name="async, a worker dies and a call fails", asks=(Ask(asynchronous=True),), worker_crashes=1, faults=1),
    Scenario(name="async, visibility extended, a worker dies", asks=(Ask(asynchronous=True),), workers=2, worker_crashes=1, extends=True),
    Scenario(name="async retried", asks=(Ask(asynchronous=True), Ask(asynchronous=True))),
)
"""Seconds together; these run with the tests."""
FULL: tuple[Scenario, ...] = (
    *QUICK,
    Scenario(name="one request, a call fails", faults=1),
    Scenario(name="one request without a key, a call fails", asks=(UNKEYED,), faults=1),
    Scenario(name="one request, no spill-over, all goes wrong", spill=False, worker_crashes=1, faults=1),
    Scenario(name="two workers hold the message", workers=2, visibility_s=BEFORE_SPILL_S),
    Scenario(name="retried while the first is under way", asks=RETRY, spill=False),
    Scenario(name="retried, with spill-over", asks=RETRY),
    Scenario(name="retried after the front died", asks=RETRY, front_crashes=1, spill=False),
    Scenario(name="retried, a call fails", asks=RETRY, faults=1, spill=False),
    Scenario(name="two clients, one key", asks=(Ask(), BOB), spill=False),
    Scenario(name="async, two workers, redelivered, one dies", asks=(Ask(asynchronous=True),), workers=2, worker_crashes=1, redeliveries=1),
    Scenario(name="one request, visibility extended, a call fails", extends=True, faults=1),
    Scenario(name="two workers, visibility extended late or not", workers=2, visibility_s=BEFORE_SPILL_S, extends=True),
    Scenario(name="one request, two calls fail", faults=2),
)


def check(scenario: Scenario, *, max_states: int, progress: Callable[[Explored], None] = lambda _: None) -> Explored:
    """Explore one scenario."""
    with coarse_polls():
        return explore(lambda: Protocol(scenario), max_states=max_states, progress=progress)


def main(argv: Sequence[str] | None = None) -> int:
    """Explore, print what was found; 1 when an invariant does not hold."""
    parser = argparse.ArgumentParser(
        prog="python -m verification.exactly_once",
        description="Explore the answer-exactly-once protocol on the code that ships.",
        epilog="example: python -m verification.exactly_once --quick --json",
    )
    parser.add_argument("--quick", action="store_true", help="only the scenarios that run with the tests")
    parser.add_argument("--only", metavar="TEXT", default="", help="scenarios with this in their name")
    parser.add_argument("--max-states", type=int, default=40_000, help="states per scenario (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of a table")
    options = parser.parse_args(argv)
    scenarios = [scenario for scenario in (QUICK if options.quick else FULL) if options.only in scenario.name]
    if not scenarios or options.max_states < 1:
        names = "; ".join(scenario.name for scenario in FULL)
        parser.error("--max-states must be positive" if scenarios else f"no scenario is called {options.only!r}; there are: {names}")
    found: list[tuple[Scenario, Explored]] = []
    for scenario in scenarios:
        found.append((scenario, check(scenario, max_states=options.max_states, progress=partial(_progress, scenario))))
        if not options.json:
            sys.stdout.write(_line(*found[-1]))
            sys.stdout.flush()
    if options.json:
        sys.stdout.write(json.dumps([{"scenario": asdict(scenario), **asdict(result)} for scenario, result in found], indent=1) + "\n")
    return int(any(result.violation for _, result in found))


def _line(scenario: Scenario, result: Explored) -> str:
    what = result.violation or ("all states" if result.complete else "bounded, no violation")
    counts = f"{result.states:7} states {result.transitions:8} steps, depth {result.depth:2}, {result.seconds:6.1f} s"
    head = f"{scenario.name:48} {counts}: {what}\n"
    return head + "".join(f"    {' '.join(action)}\n" for action in result.trace)


def _progress(scenario: Scenario, so_far: Explored) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(f"\r{scenario.name}: {so_far.states} states, depth {so_far.depth}, {so_far.seconds:.0f} s \033[K")


if __name__ == "__main__":
    sys.exit(main())
