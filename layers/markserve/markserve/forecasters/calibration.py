"""Keep each quantile exceeded as often as it says, whatever drifts, and tell when it is not.

Adaptive conformal inference by online sub-gradient on the pinball loss: an outcome above the q-quantile raises it by
`q`, one below lowers it by `1 - q`, times a small step. In the long run the share of outcomes above is `1 - q` for any sequence.

References
----------
Gibbs and Candes, Adaptive conformal inference under distribution shift, NeurIPS 2021; Angelopoulos, Candes and
Tibshirani, Conformal PID control for time series prediction, NeurIPS 2023 (the quantile tracker).
"""

from __future__ import annotations

import numpy as np

from markserve.core.backtest import QUANTILES
from markserve.forecasters.series import Floats, Ints
from markserve.forecasters.state import BankState

STEP = 0.03
"""Of calibration, in units of a forecaster's error spread, one step ahead. Further ahead outcomes come late and overlap, so the
step falls with the square root of the distance."""
OFFSET_MAX = 2.0
"""In the same units."""
COVERAGE_HALF_LIFE_STEPS = 1440.0
JUDGED_AHEAD = 10
TRIED_MIN = 300.0
"""Outcomes before coverage is judged."""
CHANCE = 4.0
"""Standard errors of a share that are put down to chance; neighbouring outcomes overlap."""
_LEVELS = np.array(QUANTILES)


def calibrate(state: BankState, root: float, said: Floats, at: Ints) -> None:
    """Move the offsets of every forecaster by what has become known; (due step ahead, forecaster, quantile)."""
    unit = state.unit[:, at, None] * STEP / np.sqrt(np.array(state.ahead)[at])[None, :, None]
    told = np.swapaxes(said, 0, 1)
    above = np.greater(root, told).astype(np.float64)
    move = np.where(np.isnan(told), 0.0, above - (1 - _LEVELS))
    limit = OFFSET_MAX * state.unit[:, at, None]
    state.offsets[:, at] = np.clip(state.offsets[:, at] + unit * move, -limit, limit)


def note_coverage(state: BankState, root: float, served: Floats, at: Ints) -> None:
    """Count whether the outcome was at or below what had been served; (due step ahead, quantile)."""
    fade = 0.5 ** (1 / COVERAGE_HALF_LIFE_STEPS)
    known = np.asarray(~np.isnan(served).any(axis=1))
    state.covered[at] = fade * state.covered[at] + (known[:, None] & np.less_equal(np.full_like(served, root), served + 1e-9))
    state.tried[at] = fade * state.tried[at] + known


def coverage(state: BankState) -> Floats:
    """Share of outcomes at or below each served quantile, (step ahead, quantile); NaN until enough are known."""
    with np.errstate(invalid="ignore", divide="ignore"):
        share = state.covered / state.tried[:, None]
    return np.asarray(np.where(state.tried[:, None] >= TRIED_MIN, share, np.nan))


def worst_miscalibration(state: BankState) -> float | None:
    """Largest distance of a coverage from its quantile beyond chance, over the next steps; None until known."""
    near = np.array(state.ahead) <= JUDGED_AHEAD
    shares = coverage(state)[near]
    if not len(shares) or np.isnan(shares).any():
        return None
    chance = CHANCE * np.sqrt(_LEVELS * (1 - _LEVELS) / state.tried[near, None])
    return float(np.maximum(np.abs(shares - _LEVELS) - chance, 0.0).max())
