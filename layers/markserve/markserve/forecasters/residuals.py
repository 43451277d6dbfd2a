"""Quantiles of a forecaster's own past errors, by step ahead and by where the load stood (split conformal prediction).

Errors are differences of square roots. What comes after a high step differs from what comes after a low one: load that has
jumped falls back rather than jumps again. An empirical quantile is trusted by the number of errors expected beyond it: those
of this standing are shrunk to those of all, those to a prior.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from markserve.core.backtest import QUANTILES
from markserve.forecasters.series import Floats, Ints, Series

ORIGINS_MAX = 1600
"""Past origins that errors are taken from, evenly spread over `DAYS_MAX`."""
DAYS_MAX = 7
STANDINGS = (-0.5, 0.5, 1.5)
"""Standard deviations above the day's mean at which one standing ends and the next begins: low, usual, high, very high."""
POOLED_TRUST, STANDING_TRUST = 1.0, 12.0
"""Errors beyond a quantile that weigh as much as the prior, and as much as those of all standings."""
TAIL = np.minimum(1 - np.array(QUANTILES), np.array(QUANTILES))


@dataclass(frozen=True)
class ErrorTable:
    """Error quantiles, and the share by which they are to be trusted over the prior."""

    quantiles: Floats
    """(standing, step ahead, quantile)"""
    trust: Floats
    """(step ahead, quantile), 0 to 1"""
    unit: Floats
    """(step ahead): half the distance from the median to the 0.98 quantile, the size of a step of calibration."""


def standing_of(series: Series, origins: Ints) -> Ints:
    """Which of the standings the load had at each origin, from 0."""
    return np.digitize(series.standing(origins), STANDINGS)


def origins_to_learn_from(series: Series) -> Ints:
    """Return past origins, evenly spread, oldest first."""
    first = max(1, len(series) - DAYS_MAX * series.day)
    stride = max(1, -(-(len(series) - first) // ORIGINS_MAX))
    return np.arange(len(series) - 1, first - 1, -stride)[::-1]


def error_table(series: Series, origins: Ints, paths: Floats, ahead: Ints) -> ErrorTable:
    """Quantiles of what the forecaster got wrong from these origins.

    Parameters
    ----------
    paths
        Its point forecasts, (origin, step ahead).
    """
    errors = series.at(origins[:, None] + ahead - 1) - paths
    pooled, count = _quantiles(errors)
    beyond = count[:, None] * TAIL
    standings = standing_of(series, origins)
    table = np.repeat(pooled[None], len(STANDINGS) + 1, axis=0)
    for standing in range(len(table)):
        rows = errors[standings == standing]
        if len(rows) < 20:
            continue
        own, own_count = _quantiles(rows)
        trust = own_count[:, None] * TAIL
        trust = trust / (trust + STANDING_TRUST)
        table[standing] += trust * (own - pooled)
    # Trust differs by quantile, so what was ordered may no longer be.
    table = np.maximum.accumulate(table, axis=2)
    unit = np.maximum((pooled[:, QUANTILES.index(0.98)] - pooled[:, 0]) / 2, 1e-6)
    return ErrorTable(table, beyond / (beyond + POOLED_TRUST), unit)


def _quantiles(errors: Floats) -> tuple[Floats, Floats]:
    """Quantiles by column at rank (n+1)q, which is unbiased in the tail; beyond the extremes, the extreme."""
    ascending = np.sort(errors, axis=0)  # NaN last
    count = (~np.isnan(ascending)).sum(axis=0)
    position = np.clip((count[:, None] + 1) * np.array(QUANTILES) - 1, 0, np.maximum(count - 1, 0)[:, None])
    low = position.astype(np.int64)
    high = np.minimum(low + 1, np.maximum(count - 1, 0)[:, None])
    column = np.arange(errors.shape[1])[:, None]
    below, above = ascending[low, column], ascending[high, column]
    return np.nan_to_num(below + (position - low) * (above - below)), count.astype(np.float64)
