"""What the LSTM is compared with: persistence and the same time yesterday, each with quantiles of its own past errors."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from markserve.core.backtest import QUANTILES

Floats = NDArray[np.float64]
DAY, HORIZON = 1440, 60
ERRORS_MAX = 7 * DAY
"""Past errors behind the quantiles: a week."""
REFRESHED_STEPS = 720
"""How often they are measured anew."""
ERRORS_MIN = 20
Kind = Literal["persistence", "seasonal-naive"]


def forecast_naively(rates_rps: Floats, origins: NDArray[np.int64], kind: Kind) -> Floats:
    """Forecast 60 steps from each origin, ascending; (origins, 60, quantiles) in requests/s, NaN without a day of history.

    Errors are those of square roots, by step ahead, and known before the origin.
    """
    roots = np.sqrt(rates_rps)
    last = filled(roots)
    future = np.concatenate([roots, np.full(HORIZON, np.nan)])
    every = np.arange(1, len(roots))
    quantiles = np.array(QUANTILES)
    period = (origins - origins[0]) // REFRESHED_STEPS
    made = np.full((len(origins), HORIZON, len(quantiles)), np.nan)
    for ahead in range(HORIZON):
        errors = future[every + ahead] - _point(last, every, ahead, kind)
        for number in np.unique(period):
            now = origins[period == number]
            past = errors[: max(0, now[0] - 1 - ahead)]  # the last target known is the one before the origin
            past = past[~np.isnan(past)][-ERRORS_MAX:]
            spread = np.quantile(past, quantiles) if len(past) >= ERRORS_MIN else np.zeros(len(quantiles))
            made[period == number, ahead] = np.maximum(_point(last, now, ahead, kind)[:, None] + spread, 0) ** 2
    return made


def filled(values: Floats) -> Floats:
    """Replace what is missing by the last that is not."""
    at = np.maximum.accumulate(np.where(np.isnan(values), -1, np.arange(len(values))))
    return np.where(at < 0, np.nan, values[at])


def mean_pinball(rates_rps: Floats, origins: NDArray[np.int64], made: Floats) -> Floats:
    """Mean pinball loss by step ahead, in requests/s."""
    quantiles = np.array(QUANTILES)
    future = np.concatenate([rates_rps, np.full(HORIZON, np.nan)])[origins[:, None] + np.arange(HORIZON)]
    error = future[..., None] - made
    losses = np.maximum(quantiles * error, (quantiles - 1) * error).mean(axis=-1)
    return np.asarray(np.nanmean(losses, axis=0))


def coverage(rates_rps: Floats, origins: NDArray[np.int64], made: Floats, steps: slice) -> Floats:
    """Share of outcomes at or below each quantile, over some steps ahead."""
    future = np.concatenate([rates_rps, np.full(HORIZON, np.nan)])[origins[:, None] + np.arange(HORIZON)][:, steps, None]
    below = np.where(np.isnan(future), np.nan, future <= made[:, steps])
    return np.asarray(np.nanmean(below, axis=(0, 1)))


def _point(last: Floats, origins: NDArray[np.int64], ahead: int, kind: Kind) -> Floats:
    if kind == "persistence":
        return np.asarray(last[origins - 1])
    at = origins + ahead - DAY
    return np.where(at >= 0, last[np.maximum(at, 0)], np.nan)
