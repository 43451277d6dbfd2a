"""MArk's prototype forecaster, to compare with: one differenced input, an LSTM of 32 units, 50 steps ahead, MSE, x 1.2.

The differences of the minutes' highest rates, scaled to [-1, 1] by the training part, enter one at a time; the state runs
through the whole series. The output is the next 50 differences. What lies beyond stays at the last of them.
Missing minutes are filled with the last known rate, as the prototype does not know of missing data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from markserve.adapters.lstm_training import single_thread
from markserve.core.backtest import History

Floats = NDArray[np.float64]
UNITS, STEPS_AHEAD, OVER_PROVISIONING = 32, 50, 1.2
WINDOW_STEPS, WARM_UP_STEPS = 180, 60
"""Training unrolls windows of three hours; the first hour only warms the state up."""
BATCH_WINDOWS, EPOCHS, LEARNING_RATE = 32, 30, 3e-3


class _Network(nn.Module):  # type: ignore[misc]  # torch is untyped here
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(1, UNITS, batch_first=True)
        self.head = nn.Linear(UNITS, STEPS_AHEAD)

    def forward(self, differences: Tensor) -> Tensor:
        states, _ = self.lstm(differences.unsqueeze(-1))
        return self.head(states)


@dataclass(frozen=True, slots=True)
class MarkRecipe:
    """The recipe, trained."""

    network: _Network
    low: float
    high: float

    @classmethod
    def train(cls, history: History, *, seed: int = 0) -> MarkRecipe:
        """Fit to a history, on one thread."""
        differences = np.diff(_filled(history))
        low, high = float(differences.min()), float(differences.max())
        scaled = torch.tensor(_scaled(differences, low, high), dtype=torch.float32)
        targets = scaled.unfold(0, STEPS_AHEAD, 1)[1:]  # row t: the 50 differences after t
        inputs = scaled[: len(targets)]
        starts = np.arange(0, max(1, len(inputs) - WINDOW_STEPS), WINDOW_STEPS - WARM_UP_STEPS)
        with single_thread(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = _Network()
            optimiser = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE)
            for _ in range(EPOCHS):
                for batch in torch.randperm(len(starts)).split(BATCH_WINDOWS):
                    window = torch.tensor(starts)[batch].unsqueeze(1) + torch.arange(min(WINDOW_STEPS, len(inputs)))
                    error = network(inputs[window])[:, WARM_UP_STEPS:] - targets[window][:, WARM_UP_STEPS:]
                    optimiser.zero_grad()
                    error.square().mean().backward()
                    optimiser.step()
        return cls(network=network.eval(), low=low, high=high)

    def forecast(self, history: History, origins: Sequence[int], horizon_steps: int) -> dict[int, tuple[float, ...]]:
        """Rate to provision for, in requests/s, of each step from each origin; origins before the second step are absent."""
        rates = _filled(history)
        with single_thread(), torch.no_grad():
            scaled = torch.tensor(_scaled(np.diff(rates), self.low, self.high), dtype=torch.float32)
            ahead = self.network(scaled.unsqueeze(0))[0].double().numpy()
        differences = (ahead + 1) / 2 * (self.high - self.low or 1.0) + self.low
        paths = np.maximum(0.0, rates[1:, None] + differences.cumsum(axis=1)) * OVER_PROVISIONING
        steps = np.minimum(np.arange(horizon_steps), STEPS_AHEAD - 1)
        return {origin: tuple(paths[origin - 2][steps].tolist()) for origin in origins if origin >= 2}


def forecast(history: History, origins: Sequence[int], horizon_steps: int, *, seed: int = 0) -> dict[int, tuple[float, ...]]:
    """Train on what is known at the first origin, forecast from all: `{origin: rates in requests/s}`."""
    return MarkRecipe.train(history[: min(origins)], seed=seed).forecast(history, origins, horizon_steps)


def _filled(history: History) -> Floats:
    filled: list[float] = []
    for rate in history:
        filled.append((filled[-1] if filled else 0.0) if rate is None else rate)
    return np.array(filled)


def _scaled(differences: Floats, low: float, high: float) -> Floats:
    return 2 * (differences - low) / (high - low or 1.0) - 1
