"""Direct multi-step linear regression on recent levels, the last hours, yesterday and last week.

One ridge regression per step ahead, between square roots. Targets and features are differences from the recent level,
without an intercept, so a history times k forecasts k times as much, and with nothing learned the forecast is that level.
"""

from __future__ import annotations

import numpy as np

from markserve.forecasters.points import same_time
from markserve.forecasters.series import Floats, Ints, Series

ROWS_MAX = 4000
"""Fitted on at most so many origins, evenly spread: more change the weights little and cost time in a control cycle."""
ROWS_MIN = 240
"""Fewer say more about chance; other forecasters serve meanwhile."""
RIDGE = 0.01
"""Share of the features' mean square that is added to the diagonal, per step ahead: errors far ahead overlap, so the same number of
rows says less. Chosen on four public traces, not on a trace kept apart."""
ROBUST_ROUNDS = 3
"""Refits in which far misses weigh less (Huber): a surge must not teach what an ordinary minute is like."""
HALF_LIFE_DAYS = 5.0
"""Of the weight of older origins."""
MEANS = (1, 3, 10, 30, 120, 720)
"""Widths of the recent means, in steps; the level itself is a mean of `LEVEL`."""
LEVEL = 5
MAXIMA = (5, 15)
HOURS = 4


def features(series: Series, origins: Ints, ahead: Ints) -> tuple[Floats, Floats]:
    """Level of each origin, and features by (origin, step ahead, feature) as differences from it; zero where unknown."""
    level = series.recent_mean(origins, LEVEL)
    level = np.where(np.isnan(level), series.last(origins), level)
    flat = [series.recent_mean(origins, width) for width in MEANS] + [series.recent_mean(origins, series.day)]
    window = series.window(origins, max(MAXIMA))
    flat += [np.fmax.reduce(window[:, -width:], axis=1) for width in MAXIMA]
    shape = (len(origins), len(ahead))
    parts = [np.broadcast_to((column - level)[:, None], shape) for column in flat]
    parts += [_hourly(series, origins, ahead) - level[:, None]]
    for period in (series.day, 2 * series.day, 7 * series.day):
        there = same_time(series, origins, ahead, period)
        then = series.mean(origins - period - LEVEL, origins - period)[:, None]
        parts += [there - level[:, None], there - then]
    return level, np.nan_to_num(np.stack(parts, axis=-1))


def _hourly(series: Series, origins: Ints, ahead: Ints) -> Floats:
    """Mean at the same minute of the last hours: scheduled jobs come on the hour."""
    steps = origins[:, None] + ahead - 1
    past = [steps - hours * (series.day // 24) for hours in range(1, HOURS + 1)]
    back = np.stack([series.at(np.where(step < origins[:, None], step, -1)) for step in past])
    known = ~np.isnan(back)
    count = known.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(count > 0, np.where(known, back, 0.0).sum(axis=0) / count, np.nan))


def fit(series: Series, ahead: Ints) -> Floats | None:
    """Return weights by (step ahead, feature); None while too little is known."""
    first = max(LEVEL, len(series) - 14 * series.day)
    usable = len(series) - first
    if usable < ROWS_MIN:
        return None
    origins = np.arange(len(series) - 1, first, -max(1, usable // ROWS_MAX))[::-1]
    level, columns = features(series, origins, ahead)
    targets = series.at(origins[:, None] + ahead - 1) - level[:, None]
    weights = 0.5 ** ((len(series) - origins) / (HALF_LIFE_DAYS * series.day))
    usable_rows = ~np.isnan(targets) & ~np.isnan(level)[:, None]
    if usable_rows.sum(axis=0).min() < ROWS_MIN // 2:
        return None
    fitted = np.zeros((len(ahead), columns.shape[2]))
    for step in range(len(ahead)):
        rows = usable_rows[:, step]
        x, w = columns[rows, step], weights[rows]
        fitted[step] = _robust_ridge(x, targets[rows, step], w, RIDGE * float(ahead[step]))
    return fitted


def _robust_ridge(x: Floats, y: Floats, weights: Floats, ridge: float) -> Floats:
    scale = weights
    solution = np.zeros(x.shape[1])
    for _ in range(1 + ROBUST_ROUNDS):
        gram = x.T @ (x * scale[:, None])
        penalty = ridge * np.trace(gram) / len(gram) + 1e-12
        solution = np.linalg.solve(gram + penalty * np.eye(len(gram)), x.T @ (scale * y))
        miss = np.abs(y - x @ solution)
        scale = weights / np.maximum(miss / (np.median(miss) + 1e-12), 1.0)
    return solution


def predict(series: Series, origins: Ints, ahead: Ints, weights: Floats) -> Floats:
    """Forecast with fitted weights."""
    level, columns = features(series, origins, ahead)
    return np.asarray(np.maximum(level[:, None] + np.einsum("ohf,hf->oh", columns, weights), 0.0))
