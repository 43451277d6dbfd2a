"""A small LSTM that forecasts the quantiles of the coming steps, with torch.

One network per model, trained on that model's own steps. It sees steps (not windows), so the same network works with
5 s steps in a demo and with one-minute steps in production, and a forecast costs one pass over `CONTEXT_STEPS`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from markserve.core.backtest import QUANTILES, History, Rates
from markserve.errors import InferenceFailed, InvalidRequest
from markserve.ports import TrainedForecaster

CONTEXT_STEPS = 60
"""Past steps the network sees: an hour at one-minute steps. Shorter histories are padded as missing."""
HIDDEN_UNITS = 32
"""As in MArk's prototype. On a public Twitter trace 16, 32 and 64 units differ less than two seeds of one size."""
EPOCHS_MAX = 40
PATIENCE_EPOCHS = 6
SAMPLES_PER_EPOCH_MIN, SAMPLES_PER_EPOCH_MAX = 1024, 4096
"""An epoch repeats a short history, so that it takes enough gradient steps to mean something to early stopping, and draws
from a long one, so that it takes a fraction of a second."""
BATCH_SAMPLES = 128
LEARNING_RATE = 5e-3
GRADIENT_NORM_MAX = 1.0
VALIDATION_SHARE = 0.2
"""Last share of the training steps, kept from fitting, that decides when to stop."""
START_SPREAD = 0.08
"""Untrained gap between neighbouring quantiles, relative and in square roots: the network starts as persistence
with plausible quantiles, so a short training can only refine a sane forecast."""


class QuantileLstm(nn.Module):  # type: ignore[misc]  # torch is untyped here
    """Map a masked, scaled context to quantiles of the coming steps, relative to the last known step.

    Inputs
    ------
    context : (batch, context_steps, 2), square root of the rate over the context's mean rate (0 where missing), and
        1 where known.
    anchor : (batch, 1), the same square root of the last known step.

    Outputs
    -------
    (batch, horizon_steps, quantiles), square roots in the same scale. Each quantile is the one below it plus a softplus,
    so they cannot cross.
    """

    def __init__(self, *, horizon_steps: int, hidden_units: int = HIDDEN_UNITS) -> None:
        super().__init__()
        self.lstm = nn.LSTM(input_size=2, hidden_size=hidden_units, batch_first=True)
        self.head = nn.Linear(hidden_units, horizon_steps * len(QUANTILES))
        nn.init.zeros_(self.head.weight)
        bias = torch.full((horizon_steps, len(QUANTILES)), START_SPREAD).expm1().log()  # inverse of softplus
        bias[:, 0] = 0.0
        with torch.no_grad():
            self.head.bias.copy_(bias.flatten())

    def forward(self, context: Tensor, anchor: Tensor) -> Tensor:
        """Return the quantiles' square roots."""
        _, (state, _) = self.lstm(context)
        raw = self.head(state[-1]).unflatten(1, (-1, len(QUANTILES)))
        steps = torch.cat([raw[..., :1], nn.functional.softplus(raw[..., 1:])], dim=-1)
        return anchor.unsqueeze(-1) + steps.cumsum(dim=-1)


@dataclass(frozen=True, slots=True)
class _Samples:
    """What the network sees at each origin, and what came of it."""

    context: Tensor
    anchor: Tensor
    scale: Tensor
    """Mean known rate of the context; dividing by it makes the forecast of k times a series k times the forecast."""
    target: Tensor
    """(origins, horizon_steps), square roots in scale, NaN where unknown."""

    def usable(self) -> Tensor:
        """Return the indices of the origins with something to scale by and something to learn from."""
        return ((self.scale > 0) & ~self.target.isnan().all(dim=1)).nonzero().flatten()

    def __getitem__(self, index: Tensor) -> _Samples:
        return _Samples(self.context[index], self.anchor[index], self.scale[index], self.target[index])

    def __len__(self) -> int:
        return len(self.scale)


class LstmForecaster:
    """Train and run one quantile LSTM per model."""

    name = "lstm"

    def __init__(self, *, hidden_units: int = HIDDEN_UNITS, epochs_max: int = EPOCHS_MAX) -> None:
        self._hidden_units = hidden_units
        self._epochs_max = epochs_max

    def train(self, history: History, *, horizon_steps: int, seed: int) -> TrainedForecaster:
        """Fit a network; its last steps decide when to stop. The same history and seed give the same weights.

        The loss is the pinball loss between square roots: quantiles commute with a monotone map, so the optimum is
        that of the rates themselves, and bursts do not drown the quiet hours.

        Raises
        ------
        InvalidRequest
            If no step with arrivals has a known successor.
        InferenceFailed
            If the loss is not finite.
        """
        split = len(history) - max(1, round(VALIDATION_SHARE * len(history)))
        fit = _samples(history[:split], range(1, split), horizon_steps)
        fit = fit[fit.usable()]
        check = _samples(history, range(split, len(history)), horizon_steps)
        check = check[check.usable()]
        if not len(fit):
            raise InvalidRequest(f"nothing to learn from: no step with arrivals and a known successor among {split} steps")
        with _single_thread(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = QuantileLstm(horizon_steps=horizon_steps, hidden_units=self._hidden_units)
            best_epoch, loss = self._fit(network, fit, check if len(check) else fit)
        return TrainedForecaster(
            weights=save({name: tensor.contiguous() for name, tensor in network.state_dict().items()}),
            epochs=best_epoch,
            samples=len(fit),
            parameters=sum(parameter.numel() for parameter in network.parameters()),
            validation_loss=loss,
        )

    def _fit(self, network: QuantileLstm, fit: _Samples, check: _Samples) -> tuple[int, float]:
        """Fit in place, leave the weights of the best epoch, and return that epoch and its loss; epoch 0 is untrained."""
        optimiser = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE)
        best_epoch, best_loss = 0, _mean_loss(network, check)
        best_state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        for epoch in range(1, self._epochs_max + 1):
            network.train()
            for batch in _epoch(len(fit)).split(BATCH_SAMPLES):
                optimiser.zero_grad()
                _pinball(network, fit[batch]).backward()
                nn.utils.clip_grad_norm_(network.parameters(), GRADIENT_NORM_MAX)
                optimiser.step()
            loss = _mean_loss(network, check)
            if loss < best_loss:
                best_epoch, best_loss = epoch, loss
                best_state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
            if epoch - best_epoch >= PATIENCE_EPOCHS:
                break
        network.load_state_dict(best_state)
        return best_epoch, best_loss

    def forecast(self, weights: bytes, history: History, *, origins: Sequence[int], horizon_steps: int) -> dict[int, Rates]:
        """Forecast at each origin from the `CONTEXT_STEPS` before it; zero where those hold no arrivals.

        Origins without one known step among those are absent.

        Raises
        ------
        InferenceFailed
            If the weights do not load, are of another horizon, or give a rate that is not finite.
        """
        network = _load(weights, horizon_steps)
        samples = _samples(history, origins, horizon_steps)
        with _single_thread(), torch.no_grad():
            roots = torch.cat([network(part.context, part.anchor) for part in _parts(samples)]) if len(samples) else torch.empty(0)
        rates = roots.clamp(min=0).double().square() * samples.scale.double().reshape(-1, 1, 1)
        known = samples.context[..., 1].any(dim=1)
        if not rates[known].isfinite().all():
            raise InferenceFailed("the LSTM's forecast is not finite")
        return {
            origin: {quantile: tuple(path) for quantile, path in zip(QUANTILES, rates[index].T.tolist(), strict=True)}
            for index, origin in enumerate(origins)
            if known[index]
        }


def _epoch(samples: int) -> Tensor:
    """Return the order in which one epoch shows the samples."""
    repeats = -(-SAMPLES_PER_EPOCH_MIN // samples)
    return torch.cat([torch.randperm(samples) for _ in range(repeats)])[:SAMPLES_PER_EPOCH_MAX]


def _load(weights: bytes, horizon_steps: int) -> QuantileLstm:
    try:
        tensors = load(weights)
        network = QuantileLstm(horizon_steps=horizon_steps, hidden_units=tensors["lstm.weight_hh_l0"].shape[1])
        network.load_state_dict(tensors)
    except (SafetensorError, KeyError, IndexError, RuntimeError) as error:
        raise InferenceFailed(f"weights do not fit an LSTM of {horizon_steps} steps: {error}") from error
    return network.eval()  # type: ignore[no-any-return]


def _samples(history: History, origins: Sequence[int], horizon_steps: int) -> _Samples:
    rates = torch.tensor([float("nan") if rate is None else rate for rate in history], dtype=torch.float64)
    missing = torch.full((max(CONTEXT_STEPS, horizon_steps),), float("nan"), dtype=torch.float64)
    padded = torch.cat([missing[:CONTEXT_STEPS], rates, missing[:horizon_steps]])
    at = torch.tensor(list(origins), dtype=torch.long).reshape(-1, 1)
    # Row `o` of the padded series starts CONTEXT_STEPS before origin `o`.
    past = padded[at + torch.arange(CONTEXT_STEPS)]
    future = padded[at + CONTEXT_STEPS + torch.arange(horizon_steps)]
    known = ~past.isnan()
    scale = past.nanmean(dim=1, keepdim=True).nan_to_num(0.0)
    divisor = torch.where(scale > 0, scale, 1.0)
    roots = (past / divisor).sqrt()
    last_known = (known * torch.arange(1, CONTEXT_STEPS + 1)).argmax(dim=1, keepdim=True)
    return _Samples(
        context=torch.stack([roots.nan_to_num(0.0), known.double()], dim=-1).float(),
        anchor=roots.gather(1, last_known).nan_to_num(0.0).float(),
        scale=scale.squeeze(1),
        target=(future / divisor).sqrt().float(),
    )


def _parts(samples: _Samples) -> Iterator[_Samples]:
    for index in torch.arange(len(samples)).split(1024):
        yield samples[index]


def _pinball(network: QuantileLstm, samples: _Samples) -> Tensor:
    known = ~samples.target.isnan()
    error = samples.target.nan_to_num(0.0).unsqueeze(-1) - network(samples.context, samples.anchor)
    quantiles = torch.tensor(QUANTILES)
    return torch.maximum(quantiles * error, (quantiles - 1) * error).mean(dim=-1)[known].mean()


def _mean_loss(network: QuantileLstm, samples: _Samples) -> float:
    network.eval()
    with torch.no_grad():
        loss = float(sum(_pinball(network, part) * len(part) for part in _parts(samples)) / len(samples))
    if loss != loss or loss == float("inf"):
        raise InferenceFailed("the LSTM's training diverged: its loss is not finite")
    return loss


@contextmanager
def _single_thread() -> Iterator[None]:
    """Run torch on one thread: 32 units leave nothing to share, and sums keep their order, so results repeat."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
