"""The network: an LSTM encoder of two resolutions, and one small decoder that every step of the horizon shares."""

from __future__ import annotations

import math

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.nn.functional import relu, softmax, softplus

from markserve.adapters.lstm_features import AHEAD_CHANNELS, CANDIDATES, COARSE_CHANNELS, FINE_CHANNELS, SCALES, STATIC_CHANNELS, Samples
from markserve.core.backtest import QUANTILES
from markserve.errors import InferenceFailed

FINE_UNITS, COARSE_UNITS, CONTEXT_UNITS, DECODER_UNITS = 32, 16, 32, 48
START_SHARE = 1.5
"""Untrained preference, in log-odds, for the mean of the last 5 steps: training starts from a sane forecast."""
START_INCREMENT = 0.7
"""Untrained gap between neighbouring quantiles, in spreads."""
UNKNOWN = -30.0
"""Log-odds of a candidate that is unknown; finite, so that an origin without any does not divide by zero."""


class QuantileLstm(nn.Module):  # type: ignore[misc]  # torch is untyped here
    """Quantiles of the coming steps, in square roots over the origin's scale.

    The median is a weighted mean of the candidates (recent levels, the same time of earlier seasons) plus a correction in
    units of the spread; the network chooses weights and correction for each step ahead. Each higher quantile is the one
    below it plus a softplus, so that none crosses. Every term is linear in the scale or free of it: level invariance is
    a property of the form, not something to be learned.
    """

    def __init__(self) -> None:
        super().__init__()
        self.coarse = nn.LSTM(COARSE_CHANNELS, COARSE_UNITS, batch_first=True)
        self.start = nn.Linear(COARSE_UNITS, FINE_UNITS)
        self.fine = nn.LSTM(FINE_CHANNELS, FINE_UNITS, batch_first=True)
        self.context = nn.Linear(FINE_UNITS + COARSE_UNITS + STATIC_CHANNELS, CONTEXT_UNITS)
        self.from_context = nn.Linear(CONTEXT_UNITS, DECODER_UNITS)
        self.from_ahead = nn.Linear(AHEAD_CHANNELS, DECODER_UNITS, bias=False)
        self.mix = nn.Linear(DECODER_UNITS, DECODER_UNITS)
        self.head = nn.Linear(DECODER_UNITS, len(CANDIDATES) + len(SCALES) + len(QUANTILES))
        nn.init.zeros_(self.head.weight)
        with torch.no_grad():
            self.head.bias.zero_()
            self.head.bias[CANDIDATES.index("mean_5")] = START_SHARE
            self.head.bias[1 - len(QUANTILES) :] = math.log(math.expm1(START_INCREMENT))  # inverse of softplus

    def forward(self, samples: Samples) -> Tensor:
        """Return (B, H, quantiles)."""
        _, (day, _) = self.coarse(samples.coarse)
        start = torch.tanh(self.start(day))
        _, (hour, _) = self.fine(samples.fine, (start, torch.zeros_like(start)))
        context = relu(self.context(torch.cat([hour[-1], day[-1], samples.static], dim=-1)))
        hidden = relu(self.from_context(context).unsqueeze(1) + self.from_ahead(samples.ahead))
        raw = self.head(hidden + relu(self.mix(hidden)))
        of_candidates, of_scales, steps = raw.split([len(CANDIDATES), len(SCALES), len(QUANTILES)], dim=-1)
        median = _weighted(samples.candidates, of_candidates, samples.known)
        spread = _weighted(samples.spreads, of_scales, samples.spreads_known)
        return median + spread * torch.cat([steps[..., :1], softplus(steps[..., 1:])], dim=-1).cumsum(dim=-1)

    def to_bytes(self) -> bytes:
        """Return the weights as safetensors."""
        return bytes(save({name: tensor.contiguous() for name, tensor in self.state_dict().items()}))

    @property
    def parameter_count(self) -> int:
        """Number of weights."""
        return sum(parameter.numel() for parameter in self.parameters())


def _weighted(values: Tensor, odds: Tensor, known: Tensor) -> Tensor:
    return (softmax(odds.masked_fill(~known, UNKNOWN), dim=-1) * values).sum(dim=-1, keepdim=True)


def load_network(weights: bytes) -> QuantileLstm:
    """Build the network of these weights.

    Raises
    ------
    InferenceFailed
        If they are damaged, or of another network.
    """
    network = QuantileLstm()
    try:
        network.load_state_dict(load(weights))
    except (SafetensorError, RuntimeError) as error:
        raise InferenceFailed(f"weights do not fit this version's LSTM: {str(error).splitlines()[0]}") from error
    return network.eval()  # type: ignore[no-any-return]
