"""A pre-trained LSTM that forecasts the quantiles of the coming steps, with torch, and its refinement on one model's history.

It sees steps (not windows) and seasons in steps, so the same network works with 5 s steps in a demo and with one-minute
steps in production. docs/forecasting-lstm.md is its model card.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch

from markserve.adapters.lstm_features import HORIZON_MAX, Lookback, Season
from markserve.adapters.lstm_network import QuantileLstm, load_network
from markserve.adapters.lstm_training import EPOCHS_MAX, fine_tune, single_thread
from markserve.core.backtest import QUANTILES, History, Rates
from markserve.errors import InferenceFailed, InvalidRequest
from markserve.ports import TrainedForecaster, TrainingRun

ORIGINS_PER_PASS = 512
"""Origins computed together: enough to fill the vector units, few enough to stay in the cache."""


class LstmForecaster:
    """Train and run one quantile LSTM per model."""

    name = "lstm"

    def __init__(self, *, step_s: float = 60.0, epochs_max: int = EPOCHS_MAX) -> None:
        self._season = Season.of(step_s)
        self._epochs_max = epochs_max

    def train(self, history: History, *, horizon_steps: int, seed: int, training: TrainingRun | None = None) -> TrainedForecaster | None:
        """Refine `training.start` (or random weights); the last steps decide when to stop. See `fine_tune`."""
        _require_horizon(horizon_steps)
        return fine_tune(
            history,
            season=self._season,
            horizon_steps=horizon_steps,
            seed=seed,
            epochs_max=self._epochs_max,
            training=training or TrainingRun(),
        )

    def forecast(self, weights: bytes, history: History, *, origins: Sequence[int], horizon_steps: int) -> dict[int, Rates]:
        """Forecast at each origin from what is known before it; zero where the last day holds no arrivals.

        Origins without one known step within the last day are absent.

        Raises
        ------
        InvalidRequest
            If a rate of the history is negative or not finite, or the horizon is longer than the network's.
        InferenceFailed
            If the weights do not load or give a rate that is not finite.
        """
        _require_horizon(horizon_steps)
        network = _network(weights)
        lookback = Lookback(history, self._season)
        ahead = torch.arange(horizon_steps)
        forecasts: dict[int, Rates] = {}
        with single_thread(), torch.inference_mode():
            for start in range(0, len(origins), ORIGINS_PER_PASS):
                part = origins[start : start + ORIGINS_PER_PASS]
                samples = lookback.samples(part, ahead)
                rates = (network(samples).clamp(min=0).double() * samples.scale.reshape(-1, 1, 1)).square()
                known = ~samples.scale.isnan()
                if not rates[known].isfinite().all():
                    raise InferenceFailed("the LSTM's forecast is not finite")
                for origin, is_known, paths in zip(part, known.tolist(), rates.transpose(1, 2).tolist(), strict=True):
                    if is_known:
                        forecasts[origin] = {quantile: tuple(path) for quantile, path in zip(QUANTILES, paths, strict=True)}
        return forecasts


@lru_cache(maxsize=8)
def _network(weights: bytes) -> QuantileLstm:
    return load_network(weights)


def _require_horizon(horizon_steps: int) -> None:
    if not 1 <= horizon_steps <= HORIZON_MAX:
        raise InvalidRequest(f"the LSTM forecasts 1 to {HORIZON_MAX} steps, not {horizon_steps}", field="horizon_steps")
