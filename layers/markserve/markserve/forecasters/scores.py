"""How forecasters have been doing: discounted pinball losses of forecasts that were really made, and what follows from them."""

from __future__ import annotations

import numpy as np

from markserve.core.backtest import QUANTILES
from markserve.forecasters.series import Floats, Ints
from markserve.forecasters.state import BankState

HALF_LIFE_STEPS = 1440.0
"""Of a loss: a day judges every hour."""
LAUNCH_STEPS = (3, 10)
"""Steps ahead that a launch made now serves before the next decisions can correct it: MArk's launch takes 3 minutes, and
what proves unnecessary is kept for 6 cycles."""
SCORED_MIN = 8
"""Outcomes before forecasters are compared."""
PRIOR_STEPS = 60.0
"""Every forecaster begins as good as persistence, with the weight of so many outcomes."""
SHARPNESS = 25.0
"""Combination: a forecaster 4 % worse than the best has 1/e of its weight."""
WORSE_MAX = 1.25
_LEVELS = np.array(QUANTILES)


def pinball(outcome: Floats, said: Floats) -> Floats:
    """Pinball loss of quantiles along the last axis."""
    error = outcome - said
    return np.asarray(np.maximum(_LEVELS * error, (_LEVELS - 1) * error))


def score(state: BankState, root: float, said: Floats, at: Ints) -> None:
    """Add the losses of what was said of a step, as (due step ahead, forecaster, quantile), once it is known."""
    loss = np.swapaxes(pinball(np.array(root**2), said**2), 0, 1)
    reference = loss[state.names.index("persistence")]
    known = ~np.isnan(loss) & ~np.isnan(reference)
    fade = 0.5 ** (1 / HALF_LIFE_STEPS)
    state.losses[:, at] = fade * state.losses[:, at] + np.where(known, loss, 0.0)
    state.reference[:, at] = fade * state.reference[:, at] + np.where(known, reference, 0.0)
    state.scored[:, at] = fade * state.scored[:, at] + known[:, :, 0]


def costs_of(state: BankState, quantile: float) -> dict[str, float]:
    """Newsvendor cost by forecaster over persistence's, at the steps that a launch reaches.

    The cost at the buying quantile is interpolated between the losses at the quantiles that are kept. Empty until
    persistence itself has been scored often enough.
    """
    steps = launch_steps(state)
    reference = state.names.index("persistence")
    if state.scored[reference, steps].min() < SCORED_MIN:
        return {}
    mean = state.losses[reference, steps].sum(axis=0) / state.scored[reference, steps].sum()
    prior = PRIOR_STEPS * mean * len(steps)
    ratio = (state.losses[:, steps].sum(axis=1) + prior + 1e-12) / (state.reference[:, steps].sum(axis=1) + prior + 1e-12)
    enough = state.scored[:, steps].min(axis=1) >= SCORED_MIN
    return {name: float(np.interp(quantile, _LEVELS, ratio[position])) for position, name in enumerate(state.names) if enough[position]}


def launch_steps(state: BankState) -> list[int]:
    """Positions of the steps ahead that a launch reaches; the last ones where the horizon is shorter."""
    first, last = LAUNCH_STEPS
    return [at for at, ahead in enumerate(state.ahead) if first <= ahead <= last] or [len(state.ahead) - 1]


def combination_weights(state: BankState, combined: int) -> Floats:
    """Weights by (forecaster, step ahead, quantile): they fall exponentially with the loss over the best one's.

    Averaging quantiles of those that are nearly as good cancels errors that they do not share; the pinball loss is convex,
    so the average is never worse than the average loss.
    """
    reference = state.names.index("persistence")
    prior = PRIOR_STEPS * state.losses[reference] / np.maximum(state.scored[reference], 1.0)[:, None] + 1e-12
    ratio = (state.losses + prior) / (state.reference + prior)
    ratio[combined] = np.inf
    excess = ratio / ratio.min(axis=0) - 1
    weights = np.where(excess <= WORSE_MAX - 1, np.exp(-SHARPNESS * excess), 0.0)
    weights[combined] = 0.0
    return np.asarray(weights)
