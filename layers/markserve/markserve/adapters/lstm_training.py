"""Fit the network: pinball loss between square roots, early stopping, and a state that another process can go on from."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from markserve.adapters.lstm_features import Lookback, Samples, Season
from markserve.adapters.lstm_network import QuantileLstm, load_network
from markserve.core.backtest import QUANTILES, History
from markserve.errors import InferenceFailed, InvalidRequest
from markserve.ports import TrainedForecaster, TrainingRun

EPOCHS_MAX = 40
PATIENCE_EPOCHS = 8
SAMPLES_PER_EPOCH = 4096
"""Origins drawn anew for each epoch: of two weeks, a fifth. An epoch then takes about half a second, and a pause costs as little."""
STEPS_PER_SAMPLE = 12
"""Steps ahead drawn for each: neighbours teach the same."""
BATCH_SAMPLES = 256
LEARNING_RATE = 1e-3
"""A third of what pre-training starts with: fine-tuning refines."""
GRADIENT_NORM_MAX = 1.0
VALIDATION_SHARE = 0.2
"""Last share of the history, kept from fitting, that decides when to stop."""
VALIDATION_ORIGINS_MAX = 1500
CHECKED_STEPS = (1, 2, 3, 5, 7, 10, 15, 20, 30, 40, 50, 60)


def pinball(network: QuantileLstm, samples: Samples, unit: Tensor | float) -> Tensor:
    """Mean pinball loss between square roots of rates, in `unit`s (square roots of requests/s) of each sample's series.

    Quantiles commute with a monotone map, so the optimum is that of the rates, and surges do not drown the quiet hours.
    """
    known = ~samples.target.isnan()
    error = samples.target.nan_to_num(0.0).unsqueeze(-1) - network(samples)
    quantiles = torch.tensor(QUANTILES)
    loss = torch.maximum(quantiles * error, (quantiles - 1) * error).mean(dim=-1)
    weight = (samples.scale / unit).float().clamp(max=20).unsqueeze(1)
    return ((loss * weight).where(known, 0.0).sum(dim=1) / known.sum(dim=1)).mean()


def step_optimiser(network: QuantileLstm, optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
    """Take one step down the gradient, clipped."""
    optimiser.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(network.parameters(), GRADIENT_NORM_MAX)
    optimiser.step()


@dataclass(slots=True)
class _State:
    """Everything the next epoch depends on."""

    network: QuantileLstm
    optimiser: torch.optim.Adam
    best: dict[str, Tensor]
    best_loss: float
    best_epoch: int = 0
    epoch: int = 0

    @classmethod
    def begin(cls, network: QuantileLstm, loss: float) -> _State:
        return cls(network, torch.optim.Adam(network.parameters(), lr=LEARNING_RATE), _copied(network), loss)

    def to_bytes(self) -> bytes:
        """Return weights, best weights and Adam's moments as safetensors."""
        tensors = {f"best.{name}": tensor for name, tensor in self.best.items()}
        tensors |= {f"network.{name}": tensor for name, tensor in _copied(self.network).items()}
        for index, moments in self.optimiser.state_dict()["state"].items():
            tensors |= {f"adam.{index}.{name}": tensor.clone().reshape(-1) for name, tensor in moments.items()}
        counters = {"epoch": str(self.epoch), "best_epoch": str(self.best_epoch), "best_loss": repr(self.best_loss)}
        tensors |= {f"counter.{name}": torch.tensor([float(value)], dtype=torch.float64) for name, value in counters.items()}
        return bytes(save(tensors))

    def restore(self, checkpoint: bytes) -> None:
        """Take over the state of `checkpoint`.

        Raises
        ------
        InferenceFailed
            If it is damaged or of another network.
        """
        try:
            tensors = load(checkpoint)
            best = {name: tensors[f"best.{name}"] for name in self.best}
            self.network.load_state_dict({name: tensors[f"network.{name}"] for name in self.best})
            adam = self.optimiser.state_dict()
            for index, parameter in enumerate(self.network.parameters()):
                adam["state"][index] = {
                    "step": tensors[f"adam.{index}.step"].reshape(()),
                    **{name: tensors[f"adam.{index}.{name}"].reshape(parameter.shape) for name in ("exp_avg", "exp_avg_sq")},
                }
            self.optimiser.load_state_dict(adam)
            self.epoch, self.best_epoch = (int(tensors[f"counter.{name}"]) for name in ("epoch", "best_epoch"))
            self.best, self.best_loss = best, float(tensors["counter.best_loss"])
        except (SafetensorError, KeyError, RuntimeError) as error:
            raise InferenceFailed(f"the checkpoint does not fit this training: {error}") from error


def fine_tune(
    history: History, *, season: Season, horizon_steps: int, seed: int, epochs_max: int, training: TrainingRun
) -> TrainedForecaster | None:
    """Fit to one history; None when `training.keep_going` ended it before the last epoch.

    The last steps of the history decide when to stop; the start itself counts as epoch 0, so what leaves here is no worse
    on them. Each epoch draws by (seed, epoch), so a run that was interrupted ends with the weights of one that was not.

    Raises
    ------
    InvalidRequest
        If no step with arrivals has a known successor.
    InferenceFailed
        If the loss is not finite, or a state to go on from does not fit.
    """
    data = _Data.of(history, season, horizon_steps)
    with single_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = QuantileLstm() if training.start is None else load_network(training.start)
        state = _State.begin(network, data.validation_loss(network))
        if training.checkpoint is not None:
            state.restore(training.checkpoint)
        while state.epoch < epochs_max and state.epoch - state.best_epoch < PATIENCE_EPOCHS:
            if not training.keep_going():
                return None
            _fit_epoch(state, data, seed)
            training.save(state.to_bytes())
        network.load_state_dict(state.best)
    return TrainedForecaster(
        weights=network.to_bytes(),
        epochs=state.best_epoch,
        samples=data.fit_origins.numel(),
        parameters=network.parameter_count,
        validation_loss=state.best_loss,
    )


def _fit_epoch(state: _State, data: _Data, seed: int) -> None:
    state.epoch += 1
    state.network.train()
    for batch in data.draw(seed * 1_000_003 + state.epoch):
        step_optimiser(state.network, state.optimiser, pinball(state.network, batch, data.unit))
    loss = data.validation_loss(state.network)
    if loss < state.best_loss:
        state.best, state.best_loss, state.best_epoch = _copied(state.network), loss, state.epoch


@dataclass(frozen=True, slots=True)
class _Data:
    """A history cut by time: what is fitted, and what decides when to stop."""

    fit: Lookback
    """Ends where the check begins, so that no target of the one is seen by the other."""
    fit_origins: Tensor
    checks: Samples
    unit: float
    horizon_steps: int

    @classmethod
    def of(cls, history: History, season: Season, horizon_steps: int) -> _Data:
        split = len(history) - max(1, round(VALIDATION_SHARE * len(history)))
        fit = Lookback(history[:split], season)
        every = torch.arange(1, max(1, split))
        origins = every[fit.learnable(every, horizon_steps)]
        if not len(origins):
            raise InvalidRequest(f"nothing to learn from: no step with arrivals and a known successor among {max(0, split)} steps")
        stride = max(1, (len(history) - split) // VALIDATION_ORIGINS_MAX)
        ahead = torch.tensor([step - 1 for step in CHECKED_STEPS if step <= horizon_steps])
        checks = Lookback(history, season).samples(range(split, len(history), stride), ahead).usable()
        if not len(checks):
            checks = fit.samples(origins[-VALIDATION_ORIGINS_MAX:], ahead).usable()
        known = [rate for rate in history if rate is not None]
        return cls(fit, origins, checks, max(known) ** 0.5 * fit.mean_root, horizon_steps)

    def draw(self, seed: int) -> Iterator[Samples]:
        """Draw one epoch's batches."""
        generator = torch.Generator().manual_seed(seed)
        chosen = self.fit_origins[torch.randint(len(self.fit_origins), (SAMPLES_PER_EPOCH,), generator=generator)]
        ahead = torch.randint(self.horizon_steps, (SAMPLES_PER_EPOCH, min(STEPS_PER_SAMPLE, self.horizon_steps)), generator=generator)
        ahead[:, 0] = 0
        for index in torch.arange(SAMPLES_PER_EPOCH).split(BATCH_SAMPLES):
            batch = self.fit.samples(chosen[index], ahead[index]).usable()
            if len(batch):
                yield batch

    def validation_loss(self, network: QuantileLstm) -> float:
        """Return the mean loss over the checked origins."""
        network.eval()
        with torch.no_grad():
            parts = [(float(pinball(network, part, self.unit)), len(part)) for part in in_parts(self.checks)]
        loss = sum(loss * size for loss, size in parts) / len(self.checks)
        if not math.isfinite(loss):
            raise InferenceFailed("the LSTM's training diverged: its loss is not finite")
        return loss


def in_parts(samples: Samples, size: int = 1024) -> Iterator[Samples]:
    """Split samples, for memory's sake."""
    for index in torch.arange(len(samples)).split(size):
        yield samples[index]


def _copied(network: QuantileLstm) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}


@contextmanager
def single_thread() -> Iterator[None]:
    """Run torch on one thread: 32 units leave nothing to share, and sums keep their order, so results repeat."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
