"""What the product's forecasters are compared with and does not use itself: constant factors, MArk's recipe, statsforecast's models."""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from typing import Any

import numpy as np

from markserve.core.backtest import QUANTILES
from markserve.forecasters.rolling import Rolled
from markserve.forecasters.series import Floats, Ints, Series

FACTOR = 1.2
"""MArk's constant over-provisioning."""
CONTEXT_STEPS = 720
"""AutoETS and AutoARIMA are fitted to the last 12 hours: with a season of a day they would take minutes per origin."""
SEASONAL_CONTEXT_STEPS = 4 * 1440
LEVELS = [round(100 * (2 * quantile - 1)) for quantile in QUANTILES[1:]]
"""Central intervals whose upper ends are our quantiles."""


def fixed_rivals(rates: Floats, rolled: Rolled, split: int) -> dict[str, Floats]:
    """Rates that are bought as they are, whatever the quantile: persistence x 1.2 and, where torch is installed, MArk's recipe."""
    last = Series.of(rates, 1440).last(rolled.origins)[:, None] ** 2
    said = {"persistence x 1.2": _as_quantiles(FACTOR * np.repeat(last, len(rolled.ahead), axis=1))}
    if importlib.util.find_spec("torch") is not None and importlib.util.find_spec("benchmarks.mark_recipe") is not None:
        recipe = importlib.import_module("benchmarks.mark_recipe")
        history = [None if np.isnan(rate) else float(rate) for rate in rates]
        trained = recipe.MarkRecipe.train(history[:split])
        paths = trained.forecast(history, [int(origin) for origin in rolled.origins], int(rolled.ahead[-1]))
        rows = [paths.get(int(origin), (np.nan,) * int(rolled.ahead[-1])) for origin in rolled.origins]
        said["MArk's recipe"] = _as_quantiles(np.array(rows)[:, rolled.ahead - 1])
    return said


def _as_quantiles(rates: Floats) -> Floats:
    return np.repeat(rates[:, :, None], len(QUANTILES), axis=2)


def statsforecast_rivals(rates: Floats, origins: Ints, ahead: Ints) -> dict[str, Floats]:
    """Quantiles of AutoETS, AutoARIMA and MSTL, fitted anew at each origin between square roots."""
    if importlib.util.find_spec("statsforecast") is None:
        return {}
    from statsforecast.models import MSTL, AutoARIMA, AutoETS

    models: dict[str, tuple[Any, int]] = {
        "AutoETS": (AutoETS(season_length=1), CONTEXT_STEPS),
        "AutoARIMA": (AutoARIMA(season_length=1, approximation=True, max_p=3, max_q=3), CONTEXT_STEPS),
        "MSTL": (MSTL(season_length=[1440], trend_forecaster=AutoETS(model="ZZN")), SEASONAL_CONTEXT_STEPS),
    }
    filled = Series.of(rates, 1440).filled
    said: dict[str, Floats] = {}
    for name, (model, context) in models.items():
        made = np.full((len(origins), len(ahead), len(QUANTILES)), np.nan)
        for row, origin in enumerate(origins):
            past = filled[max(0, origin - context) : origin]
            if len(past) < (2 * 1440 if name == "MSTL" else 60):
                continue
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                path = model.forecast(y=past, h=int(ahead[-1]), level=LEVELS)
            roots = np.stack([path["mean"], *(path[f"hi-{level}"] for level in LEVELS)], axis=1)[ahead - 1]
            made[row] = np.maximum(roots, 0.0) ** 2
        said[name] = made
    return said
