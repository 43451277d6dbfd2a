"""The weights that ship with the package, and the card that says what they were trained and judged on."""

from __future__ import annotations

from functools import lru_cache
from hashlib import sha256
from importlib.resources import files

import msgspec

from markserve.errors import InferenceFailed


class PretrainedCard(msgspec.Struct, frozen=True, kw_only=True):
    """How the shipped weights were made and judged; stored beside them."""

    version: str
    forecaster: str
    weights_sha256: str
    data: str
    """What was trained on."""
    step_s: float
    horizon_steps: int
    seed: int
    epochs: int
    samples: int
    parameters: int
    torch_version: str
    judged_on: str
    losses: dict[str, dict[str, float]]
    """By forecaster and step ahead: mean pinball loss over the series' mean rate."""


@lru_cache(maxsize=1)
def load_pretrained() -> tuple[PretrainedCard, bytes]:
    """Read the shipped card and weights.

    Raises
    ------
    InferenceFailed
        If the weights are not those the card describes.
    """
    data = files("markserve.data")
    card = msgspec.json.decode(data.joinpath("lstm.card.json").read_bytes(), type=PretrainedCard)
    weights = data.joinpath("lstm.safetensors").read_bytes()
    if sha256(weights).hexdigest() != card.weights_sha256:
        raise InferenceFailed(f"the shipped weights are not those the card of {card.version} describes: reinstall the package")
    return card, weights
