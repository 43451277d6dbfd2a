"""Point forecasters: what each expects of the coming steps, for any number of origins at once.

A forecaster maps (series, origins, steps ahead) to one row per origin, in square roots; NaN where it knows too little.
It must use nothing from its origin on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from markserve.core.forecasting import LEVEL_GAIN, RECENT_STEPS, TREND_DAMPING, TREND_GAIN
from markserve.forecasters.series import Floats, Ints, Series

PointForecaster = Callable[[Series, Ints, Ints], Floats]

TREND_MEMORY = 40
"""Steps after which a damped trend has forgotten: (1 - LEVEL_GAIN)^40 is nothing."""
SMOOTHING_MEMORY = 60
SMOOTHING_GAIN = 0.25
"""Exponential smoothing: half of the weight lies on the last 2.4 steps. A customary value, not tuned."""
SEASON_HALF_WIDTH = 2
"""Yesterday's step is averaged with so many neighbours on each side: a day does not repeat to the minute."""
LEVEL_STEPS = 20
"""Steps that tell today's level, and yesterday's at the same time."""
RATIO_MAX = 2.0
"""Today's level over yesterday's is trusted up to this factor between roots, a factor 4 between rates."""
PROFILE_DAYS = 7
PROFILE_DECAY = 0.7
"""Weight of each day further back in a daily profile."""


def persistence(series: Series, origins: Ints, ahead: Ints) -> Floats:
    """Expect the last known step to go on."""
    return np.repeat(series.last(origins)[:, None], len(ahead), axis=1)


def recent_maximum(series: Series, origins: Ints, ahead: Ints) -> Floats:
    """Expect the highest of the last few steps."""
    peak = np.fmax.reduce(series.window(origins, RECENT_STEPS), axis=1)
    peak = np.where(np.isnan(peak), series.last(origins), peak)
    return np.repeat(peak[:, None], len(ahead), axis=1)


def damped_trend(series: Series, origins: Ints, ahead: Ints) -> Floats:
    """Expect the smoothed level to go on along its recent trend, which dies out; see `core.forecasting.damped_trend`."""
    window = series.window(origins, TREND_MEMORY)
    level, trend = np.full(len(origins), np.nan), np.zeros(len(origins))
    for value in window.T:
        known = ~np.isnan(value)
        started = ~np.isnan(level)
        trend = trend * TREND_DAMPING
        expected = level + trend
        updated = np.where(known & started, expected + LEVEL_GAIN * (value - expected), np.where(started, expected, value))
        trend = np.where(known & started, trend + TREND_GAIN * (updated - level - trend), trend)
        level = updated
    level = np.where(np.isnan(level), series.last(origins), level)
    damping = TREND_DAMPING * (1 - TREND_DAMPING**ahead) / (1 - TREND_DAMPING)
    return np.asarray(np.maximum(level[:, None] + trend[:, None] * damping, 0.0))


def exponential_smoothing(series: Series, origins: Ints, ahead: Ints) -> Floats:
    """Expect an exponentially weighted mean of the recent steps; missing ones carry no weight."""
    return np.repeat(_smoothed(series, origins)[:, None], len(ahead), axis=1)


def _smoothed(series: Series, origins: Ints) -> Floats:
    window = series.window(origins, SMOOTHING_MEMORY)
    weights = (1 - SMOOTHING_GAIN) ** np.arange(SMOOTHING_MEMORY - 1, -1, -1)
    known = ~np.isnan(window)
    total = known @ weights
    with np.errstate(invalid="ignore", divide="ignore"):
        level = (np.where(known, window, 0.0) @ weights) / total
    return np.where(total > 0, level, series.last(origins))


def same_time(series: Series, origins: Ints, ahead: Ints, period: int) -> Floats:
    """Mean around the same time one period (or as many as needed to be past) before each step ahead."""
    steps = origins[:, None] + ahead - 1 - period
    latest = np.minimum(steps + SEASON_HALF_WIDTH + 1, origins[:, None])
    return series.mean(steps - SEASON_HALF_WIDTH, latest)


def seasonal_day(series: Series, origins: Ints, ahead: Ints) -> Floats:
    """Expect what was at this time yesterday."""
    return same_time(series, origins, ahead, series.day)


def seasonal_week(series: Series, origins: Ints, ahead: Ints) -> Floats:
    """Expect what was at this time a week ago."""
    return same_time(series, origins, ahead, 7 * series.day)


def seasonal_level(series: Series, origins: Ints, ahead: Ints) -> Floats:
    """Expect yesterday's shape at today's level: yesterday's value times the ratio of the levels before the origin."""
    today = _smoothed(series, origins)
    yesterday = series.mean(origins - series.day - LEVEL_STEPS, origins - series.day)
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = np.clip(np.where(yesterday > 0, today / yesterday, np.nan), 1 / RATIO_MAX, RATIO_MAX)
    return np.asarray(seasonal_day(series, origins, ahead) * ratio[:, None])


def seasonal_smoothing(series: Series, origins: Ints, ahead: Ints) -> Floats:
    """Exponential smoothing with a season: the smoothed level plus how the daily profile moves from here.

    The profile is a weighted mean of the last days at that time, newer ones counting more.
    """
    there = _profile(series, origins, ahead)
    here = _profile(series, origins, np.zeros(1, dtype=np.int64))
    return np.asarray(np.maximum(_smoothed(series, origins)[:, None] + there - here, 0.0))


def _profile(series: Series, origins: Ints, ahead: Ints) -> Floats:
    total, weight = np.zeros((len(origins), len(ahead))), np.zeros((len(origins), len(ahead)))
    for day in range(1, PROFILE_DAYS + 1):
        there = same_time(series, origins, ahead, day * series.day)
        known = ~np.isnan(there)
        total += np.where(known, there, 0.0) * PROFILE_DECAY**day
        weight += known * PROFILE_DECAY**day
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(weight > 0, total / weight, np.nan))


POINT_FORECASTERS: Mapping[str, PointForecaster] = {
    "persistence": persistence,
    "recent_maximum": recent_maximum,
    "damped_trend": damped_trend,
    "exponential_smoothing": exponential_smoothing,
    "seasonal_day": seasonal_day,
    "seasonal_week": seasonal_week,
    "seasonal_level": seasonal_level,
    "seasonal_smoothing": seasonal_smoothing,
}
