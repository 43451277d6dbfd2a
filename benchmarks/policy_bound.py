"""What no forecaster can know: `python -m benchmarks.policy_bound`, on the MMPP, whose law is known.

`clairvoyant` is told the coming quarter of an hour. A policy that is told all that the present and the past can tell, the state of the
MMPP at this instant and its exact law, is the best that forecasting can do; the rest of the distance to `clairvoyant` is the
price of not knowing the future. The planner is the same for all, so this is no bound on every policy.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from bisect import bisect_left
from collections.abc import Callable
from itertools import accumulate

from benchmarks.policy import ROOT
from markserve.core.newsvendor import MAXIMUM_OF_NORMALS, SAMPLES
from markserve.core.types import Forecast
from simulator.assumptions import HORIZON_STEPS, STEP_S, WINDOW_S, WINDOWS_PER_STEP
from simulator.experiments.tables import markdown, number, percent
from simulator.experiments.workloads import MMPP_MEAN_S, MMPP_RATES_RPS, mmpp
from simulator.mmpp import Mmpp
from simulator.policies import PlannedPolicy, Policy, View, stack_tunables
from simulator.registry import policies
from simulator.request import Request, scenario_of
from simulator.simulation import Scenario, tried
from simulator.summary import Summary

PROFILES = ("squeezenet", "resnet-cifar10")
RT_MAX_S, SL_MIN = 0.2, 0.98
LOCAL = ("mark-on-demand", "reactive")
"""Set beside `oracle` and `clairvoyant`."""


def highest_rates(state: int, ahead: int, *, rates_rps: tuple[float, ...], mean_s: float) -> dict[float, float]:
    """Return the chance of each highest rate of the `ahead`-th minute from now, the state being known now.

    The chain leaves a state at rate `1 / mean_s`, to each other one alike. More than one change within the minute is left out.

    >>> chances = highest_rates(0, 1, rates_rps=(50.0, 400.0), mean_s=600.0)
    >>> {rate: round(chance, 3) for rate, chance in chances.items()}
    {50.0: 0.905, 400.0: 0.095}
    """
    count = len(rates_rps)
    mixed = 1 - math.exp(-(ahead - 1) * STEP_S * count / ((count - 1) * mean_s))
    changes = 1 - math.exp(-STEP_S / mean_s)
    chances = dict.fromkeys(rates_rps, 0.0)
    for first in range(count):
        is_first = mixed / count + (1 - mixed) * (first == state)
        for then in range(count):
            follows = 1 - changes if then == first else changes / (count - 1)
            chances[max(rates_rps[first], rates_rps[then])] += is_first * follows
    return chances


def oracle(load: Mmpp) -> Callable[[View], Forecast | None]:
    """Return the forecast of whoever knows the law and the present state, in `SAMPLES` quantiles."""
    means = [mean for _, mean in load.rows()]
    levels = [(index + 0.5) / SAMPLES for index in range(SAMPLES)]
    noise = MAXIMUM_OF_NORMALS[WINDOWS_PER_STEP - 1]

    def forecast(view: View) -> Forecast:
        present_rps = means[min(len(means) - 1, int(view.now_s))]
        state = min(range(len(load.rates_rps)), key=lambda index: abs(load.rates_rps[index] - present_rps))
        paths: dict[float, list[float]] = {level: [] for level in levels}
        for ahead in range(1, HORIZON_STEPS + 1):
            chances = sorted(highest_rates(state, ahead, rates_rps=load.rates_rps, mean_s=load.mean_s).items())
            passed = list(accumulate(chance for _, chance in chances))
            for level in levels:
                rate_rps, _ = chances[min(bisect_left(passed, level), len(chances) - 1)]
                paths[level].append(rate_rps + noise * math.sqrt(rate_rps / WINDOW_S))
        return Forecast(
            model="oracle",
            origin_at_s=view.now_s,
            step_s=STEP_S,
            rates_rps={level: tuple(path) for level, path in paths.items()},
            forecaster="oracle",
            reason="",
        )

    return forecast


def run(profile: str, seed: int, hours: float) -> dict[str, Summary]:
    """Replay one MMPP under every policy."""
    request = Request(
        trace=mmpp(hours * 3600.0),
        profile=ROOT / f"simulator/examples/{profile}.json",
        rt_max_s=RT_MAX_S,
        sl_min=SL_MIN,
        policies=",".join((*LOCAL, "clairvoyant")),
        seed=seed,
    )
    scenario = scenario_of(request)
    found = policies((*LOCAL, "clairvoyant"), scenario, forecaster_name=request.forecaster)
    load = Mmpp(MMPP_RATES_RPS, MMPP_MEAN_S, hours * 3600.0, seed)
    return {policy.name: tried(scenario, policy) for policy in (*found, _told(scenario, oracle(load)))}


def _told(scenario: Scenario, forecast: Callable[[View], Forecast | None]) -> Policy:
    tunables = stack_tunables(rt_max_s=RT_MAX_S, sl_min=SL_MIN, can_spill=scenario.profile.can_spill)
    return PlannedPolicy("oracle", profile=scenario.known_profile, tunables=tunables, forecast=forecast)


def main() -> None:
    """Print compute cost over `clairvoyant`'s, the mean and the range over the seeds."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.policy_bound", description=__doc__)
    parser.add_argument("--seeds", type=int, default=5, help="loads drawn")
    parser.add_argument("--hours", type=float, default=4.0, help="length of each")
    asked = parser.parse_args()
    rows: list[list[str]] = []
    for profile in PROFILES:
        runs = [run(profile, seed, asked.hours) for seed in range(1, asked.seeds + 1)]
        for name in (*LOCAL, "oracle"):
            over = [one[name].cost_usd["compute"] / one["clairvoyant"].cost_usd["compute"] for one in runs]
            least = min(one[name].slo_attainment for one in runs)
            rows.append([profile, name, number(statistics.mean(over)), f"{min(over):.2f}-{max(over):.2f}", percent(least, digits=2)])
    sys.stdout.write(markdown(["model", "policy", "cost / clairvoyant, mean", "range", "least attainment"], rows) + "\n")


if __name__ == "__main__":
    main()
