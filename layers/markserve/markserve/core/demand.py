"""How much demand to buy capacity for: a quantile of the forecast, or what was measured when there is none."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise

from markserve.core.cost import newsvendor_quantile
from markserve.core.types import Forecast, require

MAX_STEPS = 500
"""Steps a plan looks ahead at most: more would cost time and change no decision of this cycle."""
UPPER_QUANTILE = 0.99
"""The forecast's upper tail: what to be prepared for, rather than to buy for."""


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
    """Quantile of the forecast that is bought for; None without a forecast."""

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


def buying_quantile(
    *, demand_quantile: float, spill_usd_per_request: float | None, worker_usd_per_request: float | None
) -> tuple[float, str]:
    """Choose the forecast quantile to buy for: the operator's, else the newsvendor's at live prices.

    Without a spillover tier, a shortfall is a failed request, so the upper tail is bought.

    >>> buying_quantile(demand_quantile=0.0, spill_usd_per_request=2e-6, worker_usd_per_request=5e-7)
    (0.75, 'newsvendor: a million requests cost $2.000 spilled, $0.500 on a worker')
    """
    if demand_quantile > 0:
        return demand_quantile, "set by demand-quantile"
    if spill_usd_per_request is None:
        return UPPER_QUANTILE, "since nothing can spill"
    if worker_usd_per_request is None:
        return UPPER_QUANTILE, "since no worker can be bought"
    q = newsvendor_quantile(spill_cost_per_request_usd=spill_usd_per_request, worker_cost_per_request_usd=worker_usd_per_request)
    return (
        q,
        f"newsvendor: a million requests cost ${spill_usd_per_request * 1e6:.3f} spilled, ${worker_usd_per_request * 1e6:.3f} on a worker",
    )


def demand_path(
    *,
    forecast: Forecast | None,
    measured_rate_rps: float | None,
    quantile: float,
    quantile_reason: str,
    headroom: float,
    trigger: Trigger,
    now_s: float,
    default_step_s: float,
    default_steps: int,
) -> DemandPath:
    """Rates to buy for from now on, times `headroom`.

    With a forecast: its quantile, from the step that contains `now_s`. A forecast whose steps all lie in the past
    is none. Without one: the measured rate held flat (persistence), and zero when nothing was measured, which
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
    rates = tuple(max(rate, floor) * headroom for rate in quantile_path(forecast, quantile)[first : first + MAX_STEPS])
    upper = quantile_path(forecast, UPPER_QUANTILE)[first : first + MAX_STEPS]
    reason = f"{forecast.forecaster} at quantile {quantile:.2f}, {quantile_reason}"
    if headroom != 1:
        reason += f", times headroom {headroom:g}"
    if floor > 0:
        reason += f", at least the measured {floor:.1f} rps"
    return DemandPath(
        horizon=Horizon(start_at_s=forecast.origin_at_s + first * forecast.step_s, step_s=forecast.step_s),
        rates_rps=rates,
        upper_rps=tuple(max(u, r) for u, r in zip(upper, rates, strict=True)),
        reason=reason,
        quantile=quantile,
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
