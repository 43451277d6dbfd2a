"""The LSTM as a contestant: the weights that ship, and the same refined on what comes before the judged part."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence

import numpy as np

from markserve.adapters.lstm import LstmForecaster
from markserve.core.backtest import History, Rates
from markserve.forecasters.rolling import PreparedForecasts
from markserve.forecasters.series import Floats
from markserve.ports import LearnedForecaster

CHUNK = 512
"""Origins computed together."""
HISTORY_STEPS = 14 * 1440
SEED = 0


def lstm_forecasts(rates: Floats, split: int, *, horizon_steps: int) -> dict[str, PreparedForecasts]:
    """Bind both to the history. Before `split` they say nothing, so the champion rule meets them like a new promotion."""
    history: History = [None if np.isnan(rate) else float(rate) for rate in rates]
    forecaster = LstmForecaster()
    # By name, since a checkout may come without the shipped weights.
    _, shipped = importlib.import_module("markserve.pretrained").load_pretrained()
    run = importlib.import_module("markserve.ports").TrainingRun(start=shipped)
    found: dict[str, PreparedForecasts] = {"lstm shipped": _Chunked(forecaster, shipped, history, split, horizon_steps)}
    known = history[max(0, split - HISTORY_STEPS) : split]
    refined = getattr(forecaster, "train")(known, horizon_steps=horizon_steps, seed=SEED, training=run)  # noqa: B009
    if refined is not None:
        found["lstm refined"] = _Chunked(forecaster, refined.weights, history, split, horizon_steps)
    return found


class _Chunked:
    """Compute forecasts for a stretch of origins at a time."""

    def __init__(self, forecaster: LearnedForecaster, weights: bytes, history: History, split: int, horizon_steps: int) -> None:
        self._forecaster, self._weights, self._history = forecaster, weights, history
        self._split, self._horizon_steps = split, horizon_steps
        self._made: dict[int, Rates] = {}

    def __call__(self, origins: Sequence[int]) -> Mapping[int, Rates]:
        wanted = [origin for origin in origins if origin >= self._split]
        missing = [origin for origin in wanted if origin not in self._made]
        if missing:
            first = missing[0]
            chunk = range(first, min(first + CHUNK, len(self._history) + 1))
            start = max(0, first - HISTORY_STEPS)
            made = self._forecaster.forecast(
                self._weights, self._history[start:], origins=[origin - start for origin in chunk], horizon_steps=self._horizon_steps
            )
            self._made = {origin + start: rates for origin, rates in made.items()}
        return {origin: self._made[origin] for origin in wanted if origin in self._made}
