"""How much of the future a policy would have to know: `python -m benchmarks.policy_lookahead`, on recorded loads that jump.

A recorded load has no law that could be known, as the MMPP of `benchmarks.policy_bound` has. So the same planner is told the coming minutes
exactly, one or several of them, and forecasts as usual from there on: 0 minutes is `mark-on-demand`. Where even
the minutes that a launch takes do not bring the cost near `clairvoyant`'s, no better forecast of the present would.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.policy import PROFILES, ROOT, RT_MAX_S, SL_MIN, cells_of
from benchmarks.policy_traces import LOADS
from markserve.core.types import Forecast
from simulator.assumptions import HORIZON_STEPS, STEP_S
from simulator.experiments.tables import markdown, number, percent
from simulator.forecasting import BEST, forecaster
from simulator.policies import PlannedPolicy, View, stack_tunables
from simulator.registry import policies
from simulator.request import Request, scenario_of
from simulator.simulation import step_maxima, tried

JUMPY = ("twitter-2021", "autothrottle-bursty", "azure-llm-code")
KNOWN_MINUTES = (0, 2, 4, 6)
"""A launch takes three minutes and counts from the next whole one, so four is the first that can inform it."""


def told_ahead(
    usual: Callable[[View], Forecast | None], maxima_rps: Sequence[float], known_steps: int
) -> Callable[[View], Forecast | None]:
    """Return a forecaster that is told the next steps, and forecasts from their end on as if they had passed."""

    def forecast(view: View) -> Forecast | None:
        if view.is_first:
            return usual(view)
        first = round(view.history_until_s / STEP_S)
        known = tuple(maxima_rps[first : first + known_steps])
        made = usual(replace(view, history=(*view.history, *known), history_until_s=view.history_until_s + STEP_S * len(known)))
        if made is None:
            return None
        paths = {level: (*known, *path)[:HORIZON_STEPS] for level, path in made.rates_rps.items()}
        return replace(made, origin_at_s=view.history_until_s, rates_rps=paths)

    return forecast


def rows_of(name: str, request: Request) -> list[list[str]]:
    """Replay one load under `clairvoyant`, and under the planner that is told more and more."""
    scenario = scenario_of(replace(request, policies="clairvoyant"))
    maxima = step_maxima(scenario)
    (seer,) = policies(("clairvoyant",), scenario, forecaster_name=BEST)
    least_usd = tried(scenario, seer).cost_usd["compute"]
    tunables = stack_tunables(rt_max_s=RT_MAX_S, sl_min=SL_MIN, can_spill=scenario.profile.can_spill)
    rows = []
    for minutes in KNOWN_MINUTES:
        told = told_ahead(forecaster(scenario.profile.model, BEST), maxima, round(60 * minutes / STEP_S))
        found = tried(scenario, PlannedPolicy("lookahead", profile=scenario.known_profile, tunables=tunables, forecast=told))
        over = number(found.cost_usd["compute"] / least_usd)
        rows.append([request.profile.stem, name, f"{minutes} min", over, percent(found.slo_attainment, digits=2)])
        sys.stderr.write(" ".join(rows[-1]) + "\n")
    return rows


def main() -> None:
    """Print compute cost over `clairvoyant`'s by the minutes known ahead."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.policy_lookahead", description=__doc__)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared/data", help="folder with traces/")
    parser.add_argument("--out", type=Path, default=Path(".markserve/bench-policy"), help="where cut loads are kept")
    parser.add_argument("--only", default=",".join(JUMPY), help="loads, with commas")
    asked = parser.parse_args()
    chosen = [load for load in LOADS if load.name in asked.only.split(",")]
    rows = [
        row
        for cell in cells_of(chosen, PROFILES, ("mark-on-demand",), data=asked.data, out=asked.out)
        for row in rows_of(cell.value, cell.request)
    ]
    sys.stdout.write(markdown(["model", "load", "known ahead", "cost / clairvoyant", "attainment"], rows) + "\n")


if __name__ == "__main__":
    main()
