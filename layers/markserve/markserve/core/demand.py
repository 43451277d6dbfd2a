"""How much demand to buy capacity for: what the forecast makes worth its price, or what was measured without one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise

from markserve.core.cost import newsvendor_quantile
from markserve.core.newsvendor import equally_likely_rps, launch_share, lumpy_demand_rps, sustained_rps
from markserve.core.types import Forecast, require

MAX_STEPS = 500
"""Steps a plan looks ahead at most: more would cost time and change no decision of this cycle."""
UPPER_QUANTILE = 0.99
"""The forecast's upper tail: what to be prepared for, rather than to buy for."""
MISS_COST_RATIO = 0.05
"""Worth of a worker's place over that of a request which fails for want of one: capacity is bought while it is likelier than
this that it is needed. The objective allows 2 % to fail; with 5 % the excess beyond capacity stays well below that."""


class Trigger(StrEnum):
    """What asked for a plan."""

    SCHEDULE = "schedule"
    MANUAL = "manual"
    SLO_AT_RISK = "slo_at_risk"
    INTERRUPTION = "interruption"

    @property
    def is_urgent(self) -> bool:
        """Whether capacity is short now: no time to improve the fleet, and no time to shrink it."""
        return self in (Trigger.SLO_AT_RISK, Trigger.INTERRUPTION)


@dataclass(frozen=True, kw_only=True, slots=True)
class Horizon:
    """The steps a plan looks ahead; the first one may have begun before now."""

    start_at_s: float
    step_s: float

    def ready_step(self, ready_at_s: float, now_s: float) -> int:
        """First step that something ready at `ready_at_s` serves in full; 0 when it is ready now.

        >>> horizon = Horizon(start_at_s=0.0, step_s=60.0)
        >>> horizon.ready_step(180.0, now_s=0.0), horizon.ready_step(181.0, now_s=0.0), horizon.ready_step(5.0, now_s=10.0)
        (3, 4, 0)
        """
        if ready_at_s <= now_s:
            return 0
        return max(0, math.ceil((ready_at_s - self.start_at_s) / self.step_s - 1e-9))


@dataclass(frozen=True, kw_only=True, slots=True)
class DemandPath:
    """Rates to plan for, step by step."""

    horizon: Horizon
    rates_rps: tuple[float, ...]
    upper_rps: tuple[float, ...]
    """Upper tail, never below `rates_rps`."""
    reason: str
    quantile: float | None = None
    """The operator's quantile, or the newsvendor's critical one, by which forecasts are judged; None without a forecast."""

    def extended(self, steps: int) -> DemandPath:
        """Return the path over at least `steps` steps: beyond its end, its last rates hold."""
        missing = min(steps, MAX_STEPS) - len(self.rates_rps)
        if missing <= 0:
            return self
        return DemandPath(
            horizon=self.horizon,
            rates_rps=self.rates_rps + (self.rates_rps[-1],) * missing,
            upper_rps=self.upper_rps + (self.upper_rps[-1],) * missing,
            reason=self.reason,
            quantile=self.quantile,
        )


def quantile_path(forecast: Forecast, quantile: float) -> tuple[float, ...]:
    """Rates of a quantile, interpolated between the forecast's own and held beyond its outermost.

    >>> forecast = Forecast(model="m", origin_at_s=0.0, step_s=60.0, rates_rps={0.5: (10.0,), 0.9: (14.0,)}, forecaster="f", reason="")
    >>> quantile_path(forecast, 0.6), quantile_path(forecast, 0.99)
    ((11.0,), (14.0,))
    """
    known = sorted(forecast.rates_rps)
    if quantile <= known[0]:
        return tuple(forecast.rates_rps[known[0]])
    for low, high in pairwise(known):
        if quantile <= high:
            share = (quantile - low) / (high - low)
            pairs = zip(forecast.rates_rps[low], forecast.rates_rps[high], strict=True)
            return tuple(round(a + share * (b - a), 9) for a, b in pairs)
    return tuple(forecast.rates_rps[known[-1]])


@dataclass(frozen=True, kw_only=True, slots=True)
class Buying:
    """How much of an uncertain demand to buy capacity for."""

    quantile: float | None
    """The operator's; None for the newsvendor's rule."""
    lump_rps: float
    """Capacity of the instance that one more would be."""
    cost_ratio: float
    """Share of the lump that must be expected to be used: the cost of an instance's request over the cost of one that finds
    no instance, and what the launch adds to it."""
    reason: str
    spillable_rps: float = math.inf
    """What the spillover function takes at most: beyond, a request that finds no instance fails."""


def buying_rule(
    *,
    demand_quantile: float,
    spill_usd_per_request: float | None,
    worker_usd_per_request: float | None,
    lump_rps: float,
    spillable_rps: float = math.inf,
    launch_s: float = 0.0,
    review_s: float = 60.0,
) -> Buying:
    """Choose how much to buy: the operator's quantile, else the newsvendor's rule at live prices.

    Without a spillover tier a shortfall is a failed request; it counts as `1 / MISS_COST_RATIO` times its place on a worker,
    whatever a launch costs: that protects the objective, and does not weigh dollars.

    Parameters
    ----------
    spillable_rps
        Most that the spillover function takes.
    launch_s, review_s
        Rent that a launch costs, and the least time that an instance is held; see `newsvendor.launch_share`.

    Examples
    --------
    >>> rule = buying_rule(demand_quantile=0.0, spill_usd_per_request=2e-6, worker_usd_per_request=5e-7, lump_rps=40.0)
    >>> rule.cost_ratio, rule.reason
    (0.25, 'newsvendor: a million requests cost $2.000 spilled net of queue calls, $0.500 on a worker of 40.0 rps used to 25 % at least')
    """
    if demand_quantile > 0:
        return Buying(quantile=demand_quantile, lump_rps=lump_rps, cost_ratio=1 - demand_quantile, reason="set by demand-quantile")
    if worker_usd_per_request is None:
        return Buying(quantile=UPPER_QUANTILE, lump_rps=lump_rps, cost_ratio=0.0, reason="since no worker can be bought")
    if spill_usd_per_request is None:
        return Buying(
            quantile=None,
            lump_rps=lump_rps,
            cost_ratio=MISS_COST_RATIO,
            reason=f"newsvendor: nothing can spill, and a request that fails counts as {1 / MISS_COST_RATIO:.0f} on a worker",
        )
    ratio = 1 - newsvendor_quantile(spill_cost_per_request_usd=spill_usd_per_request, worker_cost_per_request_usd=worker_usd_per_request)
    share = launch_share(ratio, launch_s=launch_s, review_s=review_s)
    return Buying(
        quantile=None,
        lump_rps=lump_rps,
        cost_ratio=share,
        spillable_rps=spillable_rps,
        reason=f"newsvendor: a million requests cost ${spill_usd_per_request * 1e6:.3f} spilled net of queue calls, "
        f"${worker_usd_per_request * 1e6:.3f} on a worker of {lump_rps:.1f} rps used to {100 * share:.0f} % at least",
    )


def bought_path(forecast: Forecast, buying: Buying, *, window_s: float, shape: Sequence[float] = ()) -> tuple[float, ...]:
    """Rates to buy for: the operator's quantile of the highest window, or the newsvendor's rate of the load of all windows.

    Forecasts are of each step's highest window. How the others lie below it is `shape`, as measured; without it, as Poisson
    arrivals at a constant rate would.
    """
    if buying.quantile is not None:
        return quantile_path(forecast, buying.quantile)
    windows = max(1, round(forecast.step_s / window_s))
    rates: list[float] = []
    for step in range(min(forecast.steps, MAX_STEPS)):
        highest = equally_likely_rps({quantile: path[step] for quantile, path in forecast.rates_rps.items()})
        if shape:
            likely = [rate * ratio for rate in highest for ratio in shape]
        else:
            likely = [sustained_rps(rate, windows=windows, window_s=window_s) for rate in highest]
        rates.append(round(_rate_to_buy_for_rps(likely, buying), 9))
    return tuple(rates)


def _rate_to_buy_for_rps(likely_rps: Sequence[float], buying: Buying) -> float:
    """Apply the newsvendor's rule, and see to it that what the spillover function cannot take finds an instance.

    What fails for want of one counts `1 / MISS_COST_RATIO` times its place. The plan takes the rate that it is told for certain, and
    spills what fills less than `cost_ratio` of an instance, so as much is added. Where spilling is cheaper than any instance it is told of
    the whole rate, and buys for what is beyond the function's limit.
    """
    worth_rps = lumpy_demand_rps(likely_rps, lump_rps=buying.lump_rps, cost_ratio=buying.cost_ratio)
    if max(likely_rps) <= buying.spillable_rps:
        return worth_rps
    miss_ratio = min(MISS_COST_RATIO, buying.cost_ratio)
    not_to_miss_rps = lumpy_demand_rps(likely_rps, lump_rps=buying.lump_rps, cost_ratio=miss_ratio)
    if not_to_miss_rps <= buying.spillable_rps:
        return worth_rps
    if buying.cost_ratio >= 1:
        return not_to_miss_rps
    return max(worth_rps, not_to_miss_rps - buying.spillable_rps + (buying.cost_ratio - miss_ratio) * buying.lump_rps)


def demand_path(
    *,
    forecast: Forecast | None,
    measured_rate_rps: float | None,
    buying: Buying,
    headroom: float,
    trigger: Trigger,
    now_s: float,
    default_step_s: float,
    default_steps: int,
    window_s: float,
    shape: Sequence[float] = (),
) -> DemandPath:
    """Rates to buy for from now on, times `headroom`.

    With a forecast: what `buying` makes of it, from the step that contains `now_s`. A forecast whose steps all lie in the
    past is none. Without one: the measured rate held flat (persistence), and zero when nothing was measured, which
    leaves `min_instances` and spill-over. An urgent plan runs on a forecast that did not see the trouble, so its
    path is raised to the measured rate.
    """
    require(headroom > 0, f"headroom must be positive, got {headroom}")
    first = math.floor((now_s - forecast.origin_at_s) / forecast.step_s + 1e-9) if forecast else 0
    if forecast is None or first >= forecast.steps:
        return _path_without_forecast(
            forecast=forecast,
            measured_rate_rps=measured_rate_rps,
            headroom=headroom,
            horizon=Horizon(start_at_s=now_s, step_s=default_step_s),
            steps=default_steps,
        )
    first = max(0, first)
    floor = measured_rate_rps if trigger.is_urgent and measured_rate_rps is not None else 0.0
    rates = tuple(
        max(rate, floor) * headroom for rate in bought_path(forecast, buying, window_s=window_s, shape=shape)[first : first + MAX_STEPS]
    )
    upper = quantile_path(forecast, UPPER_QUANTILE)[first : first + MAX_STEPS]
    reason = f"{forecast.forecaster} at quantile {buying.quantile:.2f}, " if buying.quantile is not None else f"{forecast.forecaster}, "
    reason += buying.reason
    if headroom != 1:
        reason += f", times headroom {headroom:g}"
    if floor > 0:
        reason += f", at least the measured {floor:.1f} rps"
    return DemandPath(
        horizon=Horizon(start_at_s=forecast.origin_at_s + first * forecast.step_s, step_s=forecast.step_s),
        rates_rps=rates,
        upper_rps=tuple(max(u, r) for u, r in zip(upper, rates, strict=True)),
        reason=reason,
        quantile=buying.quantile if buying.quantile is not None else 1 - buying.cost_ratio,
    )


def _path_without_forecast(
    *, forecast: Forecast | None, measured_rate_rps: float | None, headroom: float, horizon: Horizon, steps: int
) -> DemandPath:
    missing = "no forecast yet" if forecast is None else f"the forecast of {forecast.origin_at_s:.0f} has run out"
    if measured_rate_rps is None:
        reason = f"{missing} and no rate measured: min-instances only"
    else:
        reason = f"{missing}: the measured {measured_rate_rps:.1f} rps held flat"
        reason += f", times headroom {headroom:g}" if headroom != 1 else ""
    rates = ((measured_rate_rps or 0.0) * headroom,) * min(steps, MAX_STEPS)
    return DemandPath(horizon=horizon, rates_rps=rates, upper_rps=rates, reason=reason)
