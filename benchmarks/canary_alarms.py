"""How often a good canary is ended, and how soon a bad one: `python -m benchmarks.canary_alarms` (a minute on one core).

The evidence of `core.canary` against Fisher's exact test, both asked again in every cycle at the same nominal rate of false alarms.
The table of ADR 17.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterable, Sequence

import numpy as np
from scipy.stats import hypergeom

from markserve.core.canary import MEASURES, Block, errors_of, judge_canary, log_evidence
from markserve.core.traffic import Served
from simulator.experiments.tables import markdown, percent

CYCLES, CYCLE_S = 60, 60.0
CANARY_SHARE = 0.1
NOMINAL = 0.01
"""Of the comparison. The default of `canary-false-alarm-rate` is a tenth of it."""
DEFAULT_RATE = 0.001
WINDOW_S = 10.0
SL_MIN, ERROR_MARGIN = 0.98, 0.01
FAILURES = (1.0, 0.5, 0.2, 0.1, 0.05)


def blocks_of(
    rng: np.random.Generator, *, windows: int, window_s: float, rate_rps: float, live_fails: float, canary_fails: float
) -> list[Block]:
    """Draw what both versions did in each window; requests arrive as Poisson processes and fail independently."""
    counts = [rng.poisson(rate_rps * window_s * share, windows) for share in (1 - CANARY_SHARE, CANARY_SHARE)]
    failed = [rng.binomial(n, p) for n, p in zip(counts, (live_fails, canary_fails), strict=True)]
    return [
        Block(live=_served(int(n_l), int(f_l)), canary=_served(int(n_c), int(f_c)))
        for n_l, f_l, n_c, f_c in zip(counts[0], failed[0], counts[1], failed[1], strict=True)
    ]


def _served(requests: int, failed: int) -> Served:
    return Served(ok=requests - failed, errors=failed, within_slo=requests - failed)


def fisher_ends_it(blocks: Sequence[Block], *, false_alarm_rate: float) -> bool:
    """Whether Fisher's one-sided test calls the canary worse at any of the looks, one after each block."""
    live, canary = (
        np.cumsum([(s.requests, s.errors) for s in side], axis=0) for side in zip(*((b.live, b.canary) for b in blocks), strict=True)
    )
    requests, failed = live[:, 0] + canary[:, 0], live[:, 1] + canary[:, 1]
    chances = hypergeom.sf(canary[:, 1] - 1, requests, failed, canary[:, 0])
    return bool(np.any(chances <= false_alarm_rate))


def evidence_ends_it(blocks: Sequence[Block], *, false_alarm_rate: float) -> bool:
    """Whether the evidence for more errors reaches what is needed at any look; margins left out, as Fisher's test has none."""
    needed = np.log(MEASURES / false_alarm_rate)
    return any(log_evidence(blocks[: look + 1], errors_of) >= needed for look in range(len(blocks)))


def requests_until_ended(rng: np.random.Generator, *, fails: float) -> float:
    """Count what a canary of a live version with 0.5 % errors answers before it is ended; infinite beyond an hour."""
    blocks = blocks_of(rng, windows=round(3600 / WINDOW_S), window_s=WINDOW_S, rate_rps=10.0, live_fails=0.005, canary_fails=fails)
    for look in range(1, len(blocks) + 1):
        if judge_canary(blocks[:look], sl_min=SL_MIN, false_alarm_rate=DEFAULT_RATE, error_margin=ERROR_MARGIN).is_worse:
            return float(sum(block.canary.requests for block in blocks[:look]))
    return float("inf")


def _share(ended: Iterable[bool]) -> float:
    return statistics.fmean(ended)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.canary_alarms", description=__doc__)
    parser.add_argument("--canaries", type=int, default=1000, help="good canaries of the comparison; a tenth of it for each bad one")
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    rng = np.random.default_rng(asked.seed)
    good = [
        blocks_of(rng, windows=CYCLES, window_s=CYCLE_S, rate_rps=10.0, live_fails=0.02, canary_fails=0.02) for _ in range(asked.canaries)
    ]
    rows = [
        ["Fisher's exact test, at each cycle", percent(_share(fisher_ends_it(b, false_alarm_rate=NOMINAL) for b in good), digits=1)],
        ["evidence of core.canary", percent(_share(evidence_ends_it(b, false_alarm_rate=NOMINAL) for b in good), digits=1)],
    ]
    sys.stdout.write(markdown([f"test at {NOMINAL:.0%}", "good canaries ended"], rows) + "\n\n")
    found = [
        [
            percent(fails, digits=0),
            f"{np.median([requests_until_ended(rng, fails=fails) for _ in range(max(1, asked.canaries // 10))]):.0f}",
        ]
        for fails in FAILURES
    ]
    sys.stdout.write(markdown(["canary's errors", "its requests until it is ended, median"], found) + "\n")


if __name__ == "__main__":
    main()
