"""Forecast the highest arrival rate of the coming steps, by quantile, without a trained model.

Decides which simple forecaster serves and how wide its quantiles are. Must not know where the history is kept, nor
of trained models: those are challengers, compared on the same back-test.
History and origin are as in `core.backtest`.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Mapping, Sequence
from math import sqrt
from statistics import NormalDist

from markserve.core.backtest import QUANTILES, History, Rates

Paths = list[tuple[float, ...] | None]
"""Per past step, the point forecast made at its end; None before anything was known."""
PointForecaster = Callable[[History, int], Paths]

RECENT_STEPS = 5
"""Memory of `recent_maximum`: longer than one burst's ebb, shorter than a launch pays off."""
LEVEL_GAIN, TREND_GAIN, TREND_DAMPING = 0.8, 0.1, 0.8
"""Damped trend: follows the newest step, because a maximum already smooths; a trend halves in 3 steps and so adds at most
4 steps' worth. Slower levels and longer trends lost on a public Twitter trace and on generated ramps."""
PRIOR_DRIFT = 0.047
"""Relative drift of the square root per step, before any is measured: MArk's constant factor 1.2 is then the
0.98-quantile one step ahead, as (1 + 2.05 * 0.047)^2 = 1.2."""
PRIOR_DRIFT_STEPS = 10
"""The prior stops widening here: an unbounded random walk would buy a fleet for a model's first minute."""


def persistence(history: History, horizon_steps: int) -> Paths:
    """Expect every coming step to be like the last known one.

    >>> persistence([None, 3.0, None], 2)
    [None, (3.0, 3.0), (3.0, 3.0)]
    """
    paths: Paths = []
    last: float | None = None
    for rate in history:
        last = last if rate is None else rate
        paths.append(None if last is None else (last,) * horizon_steps)
    return paths


def recent_maximum(history: History, horizon_steps: int) -> Paths:
    """Expect every coming step to be like the highest of the last `RECENT_STEPS`.

    >>> recent_maximum([5.0, 1.0, 1.0, 1.0, 1.0, 2.0], 1)[-2:]
    [(5.0,), (2.0,)]
    """
    paths: Paths = []
    peak: float | None = None
    for end in range(1, len(history) + 1):
        known = [rate for rate in history[max(0, end - RECENT_STEPS) : end] if rate is not None]
        peak = max(known) if known else peak
        paths.append(None if peak is None else (peak,) * horizon_steps)
    return paths


def damped_trend(history: History, horizon_steps: int) -> Paths:
    """Expect the smoothed level to go on along its recent trend, which dies out.

    Persistence trails a ramp by the whole launch lead; an undamped trend overshoots at its end. With level `l`, trend `b`:

        l' = (l + phi b) + alpha (y - (l + phi b)),   b' = phi b + beta (l' - l - phi b),   F_h = l' + (phi + ... + phi^h) b'

    A missing step follows the trend and lets it die out.

    References
    ----------
    Gardner and McKenzie, Forecasting trends in time series, Management Science 31 (1985).

    Examples
    --------
    >>> [round(rate, 2) for rate in damped_trend([1.0, 2.0, 3.0, 4.0], 3)[-1] or ()]
    [3.95, 4.08, 4.19]
    """
    damping = [sum(TREND_DAMPING**power for power in range(1, ahead + 1)) for ahead in range(1, horizon_steps + 1)]
    paths: Paths = []
    level: float | None = None
    trend = 0.0
    for rate in history:
        if level is None:
            level = rate
        else:
            trend *= TREND_DAMPING
            expected = level + trend
            updated = expected if rate is None else expected + LEVEL_GAIN * (rate - expected)
            trend += 0.0 if rate is None else TREND_GAIN * (updated - level - trend)
            level = max(0.0, updated)
        paths.append(None if level is None else tuple(max(0.0, level + factor * trend) for factor in damping))
    return paths


SIMPLE_FORECASTERS: Mapping[str, PointForecaster] = {
    "persistence": persistence,
    "recent_maximum": recent_maximum,
    "damped_trend": damped_trend,
}


def rolling_forecasts(
    forecaster: PointForecaster, history: History, *, horizon_steps: int, window_s: float, origins: Sequence[int]
) -> dict[int, Rates]:
    """Forecast at each origin from what was known then: point forecast plus the quantiles of its own past errors.

    Errors are taken between square roots. There Poisson noise is equally wide at every level (0.5/sqrt(window_s)),
    so errors of a quiet night and of a busy noon may be pooled; a history scaled by k has its errors scaled by
    sqrt(k), so the forecast scales by k. An empirical quantile is trusted by the number n(1-q) of errors expected
    above it, and a prior (Poisson noise and `PRIOR_DRIFT`) supplies the rest: 0.99 takes longer to earn than 0.5.

    Returns
    -------
    dict
        Rates by origin. Origins before anything was known are absent. All zero while only zeros are known: a model
        nobody calls must not buy anything.

    Notes
    -----
    O(steps * horizon_steps * log steps).

    Examples
    --------
    >>> made = rolling_forecasts(persistence, [4.0] * 50, horizon_steps=1, window_s=5.0, origins=[1, 50])
    >>> [round(made[origin][0.9][0], 2) for origin in (1, 50)]
    [5.34, 4.21]
    """
    paths = forecaster(history, horizon_steps)
    errors: list[list[float]] = [[] for _ in range(horizon_steps)]
    wanted = set(origins)
    forecasts: dict[int, Rates] = {}
    arrivals_seen = False
    for origin in range(1, len(history) + 1):
        rate = history[origin - 1]
        if rate is not None:
            arrivals_seen = arrivals_seen or rate > 0
            for ahead in range(min(horizon_steps, origin - 1)):
                earlier = paths[origin - 2 - ahead]
                if earlier is not None:
                    insort(errors[ahead], sqrt(rate) - sqrt(earlier[ahead]))
        path = paths[origin - 1]
        if origin in wanted and path is not None:
            forecasts[origin] = _with_quantiles(path, errors, window_s) if arrivals_seen else _constant(0.0, horizon_steps)
    return forecasts


def _constant(rate_rps: float, horizon_steps: int) -> Rates:
    return dict.fromkeys(QUANTILES, (rate_rps,) * horizon_steps)


def _with_quantiles(path: Sequence[float], errors: Sequence[Sequence[float]], window_s: float) -> Rates:
    by_step = [_step_quantiles(rate, errors[ahead], ahead, window_s) for ahead, rate in enumerate(path)]
    return {quantile: tuple(step[index] for step in by_step) for index, quantile in enumerate(QUANTILES)}


_NORMAL_QUANTILES = tuple(NormalDist().inv_cdf(quantile) for quantile in QUANTILES)


def _step_quantiles(rate_rps: float, errors: Sequence[float], ahead: int, window_s: float) -> list[float]:
    root = sqrt(rate_rps)
    spread = sqrt(0.25 / window_s + PRIOR_DRIFT**2 * rate_rps * min(ahead + 1, PRIOR_DRIFT_STEPS))
    rates: list[float] = []
    for quantile, deviation in zip(QUANTILES, _NORMAL_QUANTILES, strict=True):
        error = deviation * spread
        if errors:
            above = len(errors) * (1 - quantile)
            error += above / (above + 1) * (_empirical_quantile(errors, quantile) - error)
        rate = max(0.0, root + error) ** 2
        # Trust differs by quantile, so a blended tail can fall below a blended middle: keep the order.
        rates.append(max(rate, rates[-1]) if rates else rate)
    return rates


def _empirical_quantile(ascending: Sequence[float], quantile: float) -> float:
    """Interpolate at rank (n+1)q, which is unbiased in the tail; beyond the extremes, take the extreme."""
    position = min(max((len(ascending) + 1) * quantile - 1, 0.0), len(ascending) - 1.0)
    low = int(position)
    high = min(low + 1, len(ascending) - 1)
    return ascending[low] + (position - low) * (ascending[high] - ascending[low])
