"""How much demand to hold capacity for when demand is uncertain and capacity comes in lumps.

Turns a forecast's quantiles of a step into the one rate against which Algorithm 1, which knows only certain demand, makes
the decisions that a newsvendor would make. Knows no instances: a lump is a rate.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise

from markserve.core.types import require

SAMPLES = 20
"""Equally likely rates that stand for a step's distribution; more change the result by less than the forecast is worth."""
MAXIMUM_OF_NORMALS = (0.0, 0.564, 0.846, 1.029, 1.163, 1.267, 1.352, 1.424, 1.485, 1.539, 1.586, 1.629)
"""Expected maximum of 1 to 12 independent standard normal variables."""


def sustained_rps(highest_rps: float, *, windows: int, window_s: float) -> float:
    """Rate of a step whose highest window had `highest_rps`, if arrivals are Poisson at that rate.

    The highest of n counts lies above the mean by `d_n sqrt(rate / window_s)` even when the rate is constant. Capacity that
    is sized for the highest window *and* by queueing theory, which knows of that noise, would be paid for it twice.

    Load that is burstier than Poisson within a step falls further below its highest window, so the correction is the least
    there can be.

    >>> round(sustained_rps(100.0, windows=12, window_s=5.0), 1), sustained_rps(0.0, windows=12, window_s=5.0)
    (93.0, 0.0)
    """
    require(windows >= 1 and window_s > 0, f"windows must be at least 1 and window_s positive, got {windows} and {window_s}")
    noise = MAXIMUM_OF_NORMALS[min(windows, len(MAXIMUM_OF_NORMALS)) - 1] / math.sqrt(window_s)
    return (math.sqrt(noise * noise / 4 + highest_rps) - noise / 2) ** 2


def equally_likely_rps(rates_by_quantile: Mapping[float, float]) -> tuple[float, ...]:
    """Return `SAMPLES` equally likely rates, ascending, that a step's quantiles describe.

    Between quantiles it interpolates, beyond the outermost it holds. Forecasts say nothing below the median, which does not
    matter for what is bought but for what is worth keeping: it is taken as the mirror image, between square roots.

    >>> rates = equally_likely_rps({0.5: 100.0, 0.9: 144.0})
    >>> [round(rates[index], 1) for index in (0, 9, 10, 19)]
    [64.0, 97.3, 102.8, 144.0]
    """
    known = sorted(rates_by_quantile)
    median_root = math.sqrt(_interpolated(known, rates_by_quantile, 0.5))
    result: list[float] = []
    for index in range(SAMPLES):
        share = (index + 0.5) / SAMPLES
        if share >= known[0]:
            result.append(_interpolated(known, rates_by_quantile, share))
        else:
            mirrored = math.sqrt(_interpolated(known, rates_by_quantile, 1 - share))
            result.append(max(0.0, 2 * median_root - mirrored) ** 2)
    return tuple(sorted(result))


def _interpolated(known: Sequence[float], rates: Mapping[float, float], quantile: float) -> float:
    if quantile <= known[0]:
        return rates[known[0]]
    for low, high in pairwise(known):
        if quantile <= high:
            return rates[low] + (quantile - low) / (high - low) * (rates[high] - rates[low])
    return rates[known[-1]]


def launch_share(cost_ratio: float, *, launch_s: float, review_s: float) -> float:
    """Share of its capacity that one more lump must be expected to serve to be worth a launch.

    The rent during the launch is paid too, and it is lost when the lump is given up soon. What is launched is held until a
    review, `review_s` later, finds it needless. A lump that is expected to serve the share u is taken to be found needed with
    probability u each time, so it is held for `1 / (1 - u)` reviews on average. With r the rent of a served request over the
    cost of spilling it and `rho = launch_s / review_s` it pays from

        u = r (1 + rho (1 - u)),    that is    u = r (1 + rho) / (1 + r rho)

    Regimes: no launch time, r; needed nearly always, r too, as the launch is paid once; r small, `r (1 + rho)`.

    References
    ----------
    Dixit, Entry and exit decisions under uncertainty, Journal of Political Economy 97 (1989): with a cost of switching,
    break-even is not enough to enter. The holding time is our approximation.

    Examples
    --------
    >>> [round(launch_share(ratio, launch_s=180.0, review_s=120.0), 3) for ratio in (0.05, 0.2, 0.9)]
    [0.116, 0.385, 0.957]
    >>> launch_share(0.2, launch_s=0.0, review_s=120.0)
    0.2
    """
    require(launch_s >= 0 and review_s > 0, f"launch_s must not be negative and review_s positive, got {launch_s} and {review_s}")
    rho = launch_s / review_s
    return min(1.0, cost_ratio * (1 + rho) / (1 + cost_ratio * rho))


def lumpy_demand_rps(rates_rps: Sequence[float], *, lump_rps: float, cost_ratio: float) -> float:
    """Rate to meet with lumps of `lump_rps` when each of `rates_rps` is equally likely.

    One more lump on top of capacity K is worth it when it is expected to serve at least what it costs:

        E[min(max(D - K, 0), C)] / C >= r,    r = cost of an instance's request / cost of spilling one

    With K* the capacity where both sides are equal, the result is `K* + r C`: a planner that takes demand as certain and
    buys a lump that is used to the share r buys it exactly when K < K*.

    Regimes: lumps small against the spread, the (1 - r)-quantile, as for a newspaper; lumps large against it, the mean of
    the demand, since the lump's own size covers the spread; r >= 1, nothing.

    References
    ----------
    Arrow, Harris and Marschak, Optimal inventory policy, Econometrica 19 (1951).

    Examples
    --------
    >>> rates = [80.0, 90.0, 100.0, 110.0, 120.0]
    >>> [round(lumpy_demand_rps(rates, lump_rps=lump, cost_ratio=0.3), 1) for lump in (0.1, 20.0, 1000.0)]
    [110.0, 106.0, 100.0]
    """
    if cost_ratio >= 1 or not rates_rps:
        return 0.0
    rates = sorted(rates_rps)
    below = [0.0, *accumulate(rates)]
    low, high = rates[0] - lump_rps, rates[-1]
    wanted = cost_ratio * len(rates)
    for _ in range(24):
        middle = (low + high) / 2
        partly, fully = bisect_right(rates, middle), bisect_left(rates, middle + lump_rps)
        used = len(rates) - fully + (below[fully] - below[partly] - (fully - partly) * middle) / lump_rps
        low, high = (middle, high) if used >= wanted else (low, middle)
    return max(0.0, low + cost_ratio * lump_rps)
