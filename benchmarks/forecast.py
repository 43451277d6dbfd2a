"""Which forecaster costs least, on recorded loads: `python -m benchmarks.forecast --out docs` (`--quick`: two days of each).

Every forecaster goes through each trace as the product would, minute by minute; the second half is judged, the first only
teaches. Learned forecasters and MArk's recipe are trained on the first half. statsforecast's models are fitted anew at a few
origins. Writes the tables between the marks in forecasting.md and the plots beside it.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from rich.console import Console

from benchmarks.forecast_report import write_report
from benchmarks.forecast_rivals import fixed_rivals, statsforecast_rivals
from markserve.forecasters.bank import Terms
from markserve.forecasters.rolling import CHAMPION, Judgement, PreparedForecasts, Rolled, judge, judge_one, outcomes, roll
from markserve.forecasters.series import Floats
from simulator.assumptions import STEP_S, WINDOW_S
from simulator.steps import read_steps
from simulator.traces import open_trace

TRACES = Path(__file__).resolve().parents[2] / "shared/data/traces"
DAY = 1440
FILES = {
    "twitter_2021": "twitter_2021-08_first15d_1s.csv.gz",
    "twitter_may25": "twitter_may25_1s.csv.gz",
    "berkeley": "berkeley_1s.csv.gz",
    "wits": "wits_1s.csv.gz",
    "nasa": "nasa_http_1995_1min.csv.gz",
    "twitter_anomaly": "twitter_anomalydetection_1min.csv.gz",
}
STEPS_MAX = {"nasa": 14 * DAY}
"""The first weeks of a long trace say as much and take less time."""
QUICK_STEPS = 2 * DAY
QUANTILES_BOUGHT = (0.8, 0.9, 0.95)
CHAMPION_QUANTILE = 0.9
HORIZON_STEPS = 60
TERMS = Terms(day=DAY, window_s=WINDOW_S, step_s=STEP_S, horizon_steps=HORIZON_STEPS)
STATS_ORIGINS = 8
console = Console(stderr=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class TraceResult:
    """All judgements on one trace."""

    trace: str
    steps: int
    missing: int
    mean_rps: float
    row_s: float | None
    judged: list[Judgement]
    rivals: list[Judgement]
    """statsforecast's models and, at the same few origins, persistence and the champion."""
    served: Mapping[str, float]
    seconds: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--traces", default=",".join(FILES), help="NAME[,NAME...]")
    parser.add_argument("--quick", action="store_true", help="two days of each trace, no statsforecast")
    parser.add_argument("--out", type=Path, default=None, help="folder of forecasting.md; default: print alone")
    parser.add_argument("--results", type=Path, default=None, help="JSON of all judgements; traces found in it are not run again")
    options = parser.parse_args(arguments)
    names = [name for name in options.traces.split(",") if name]
    if unknown := [name for name in names if name not in FILES]:
        parser.error(f"{unknown[0]} is none of {', '.join(FILES)}")
    if absent := [name for name in names if not (TRACES / FILES[name]).exists()]:
        sys.stderr.write(f"skipped: no {', '.join(absent)} in {TRACES}\n")
    results = _kept(options.results)
    for name in names:
        if name in absent or any(one.trace == name for one in results):
            continue
        results.append(run(name, quick=options.quick))
        if options.results:
            options.results.write_bytes(msgspec.json.format(msgspec.json.encode(results)))
    if results:
        write_report(results, options.out)
    return 0


def _kept(path: Path | None) -> list[TraceResult]:
    if path is None or not path.exists():
        return []
    return msgspec.json.decode(path.read_bytes(), type=list[TraceResult], strict=False)


def run(name: str, *, quick: bool) -> TraceResult:
    """Judge everybody on one trace."""
    began_s = time.perf_counter()
    steps = read_steps(open_trace(TRACES / FILES[name]))
    rates = steps.rates_rps[: QUICK_STEPS if quick else STEPS_MAX.get(name)]
    split = len(rates) // 2
    console.print(f"{name}: {len(rates)} minutes, mean {np.nanmean(rates):.2f}/s, judged from minute {split} on")
    learned = learned_forecasts(rates, split)

    def tell(origin: int) -> None:
        if origin % DAY == 0:
            console.print(f"  day {origin // DAY}, {time.perf_counter() - began_s:.0f} s")

    rolled = roll(rates, terms=TERMS, since_s=steps.since_s, quantile=CHAMPION_QUANTILE, first_kept=split, learned=learned, progress=tell)
    rolled.said.update(fixed_rivals(rates, rolled, split))  # type: ignore[attr-defined]
    judged = judge(rolled, rates, quantiles=QUANTILES_BOUGHT)
    rivals = [] if quick else _rivals(rates, rolled)
    served = {one: rolled.served_by.count(one) / len(rolled.served_by) for one in dict.fromkeys(rolled.served_by)}
    return TraceResult(
        trace=name,
        steps=len(rates),
        missing=int(np.isnan(rates).sum()),
        mean_rps=float(np.nanmean(rates)),
        row_s=steps.row_s,
        judged=judged,
        rivals=rivals,
        served=served,
        seconds=time.perf_counter() - began_s,
    )


def learned_forecasts(rates: Floats, split: int) -> dict[str, PreparedForecasts]:
    """Forecasts of the trained forecasters that this checkout has: the shipped weights, and those refined on the first half."""
    if importlib.util.find_spec("torch") is None or importlib.util.find_spec("markserve.pretrained") is None:
        return {}
    from benchmarks.forecast_learned import lstm_forecasts

    return lstm_forecasts(rates, split, horizon_steps=HORIZON_STEPS)


def _rivals(rates: Floats, rolled: Rolled) -> list[Judgement]:
    """Judge statsforecast's models, and persistence and the champion at the same origins."""
    rows = np.linspace(0, len(rolled.origins) - HORIZON_STEPS - 1, STATS_ORIGINS).astype(np.int64)
    said = statsforecast_rivals(rates, rolled.origins[rows], rolled.ahead)
    said |= {name: rolled.said[name][rows] for name in (CHAMPION, "persistence")}
    outcome = outcomes(rolled, rates)[rows]
    near = (rolled.ahead >= 3) & (rolled.ahead <= 10)
    judged = []
    for name, one in said.items():
        for label, columns in (("launch", near), ("60", rolled.ahead == HORIZON_STEPS)):
            judgement = judge_one(name, label, one[:, columns], outcome[:, columns], QUANTILES_BOUGHT)
            judged += [judgement] if judgement else []
    return judged


if __name__ == "__main__":
    sys.exit(main())
