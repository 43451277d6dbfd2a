"""A real model for the local system: a small CNN that reads scikit-learn's bundled 8x8 digits.

Shaped like the networks that batching pays for: most weights sit in a dense head (13 MB), and reading them costs the
same for one image as for eight, so T(b) grows far slower than b.
"""

from __future__ import annotations

import io
import statistics
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.nn import functional

from markserve.messages import InferenceRequest, Tensor, TensorSpec

CHANNELS = 64
HIDDEN = 1536
EPOCHS = 8
BATCH_SIZE = 64
PEAK_LEARNING_RATE = 0.08
HELD_OUT = 360
COMPILING_RUNS = 10
"""TorchScript compiles in its first runs."""
SHIFTS = 3
"""Crops per axis of an image padded by one pixel: 3 x 3 one-pixel shifts."""

INPUTS = (TensorSpec(name="image", datatype="FP32", shape=(-1, 1, 8, 8)),)
OUTPUTS = (TensorSpec(name="logits", datatype="FP32", shape=(-1, 10)),)


@dataclass(frozen=True, kw_only=True, slots=True)
class DigitsModel:
    """A trained artefact and the digits it has not seen."""

    artefact: bytes
    """TorchScript; input `image` FP32 (n, 1, 8, 8) in [0, 1], output `logits` FP32 (n, 10)."""
    accuracy: float
    """Share of the held-out digits that the exported artefact reads correctly."""
    images: npt.NDArray[np.float32]
    """Held-out images, shape (360, 1, 8, 8)."""
    labels: npt.NDArray[np.int64]
    """Their digits, shape (360,)."""


class DigitsNet(nn.Module):  # type: ignore[misc]  # torch is untyped here
    """Convolutional features, averaged over one-pixel shifts when not training, and a wide dense head.

    Input: (n, 1, 8, 8). Output: (n, 10) logits.
    """

    def __init__(self) -> None:
        super().__init__()
        self.pad = nn.ReplicationPad2d(1)
        self.features = nn.Sequential(
            nn.Conv2d(1, CHANNELS, 3, padding=1),
            nn.BatchNorm2d(CHANNELS),
            nn.ReLU(),
            nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1),
            nn.BatchNorm2d(CHANNELS),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(CHANNELS, 2 * CHANNELS, 3, padding=1),
            nn.BatchNorm2d(2 * CHANNELS),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
        )
        self.head = nn.Sequential(
            nn.Linear(8 * CHANNELS, HIDDEN),
            nn.ReLU(),
            nn.Dropout(0.3),
            nn.Linear(HIDDEN, HIDDEN),
            nn.ReLU(),
            nn.Linear(HIDDEN, 10),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits of a batch of images."""
        padded = self.pad(images)
        if self.training:  # one random shift per pass: the same shifts that are averaged over below
            down, right = torch.randint(0, SHIFTS, (2,)).tolist()
            return self._head(self.features(padded[:, :, down : down + 8, right : right + 8]))
        shifted = [padded[:, :, down : down + 8, right : right + 8] for down in range(SHIFTS) for right in range(SHIFTS)]
        features = self.features(torch.stack(shifted, 1).flatten(0, 1))
        return self._head(features.unflatten(0, (-1, SHIFTS * SHIFTS)).mean(1))

    def _head(self, features: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(features)
        return logits


def train_digits(seed: int = 0) -> DigitsModel:
    """Train, export and test the model: about 10 s on one core, the same result for the same seed and torch build."""
    digits = load_digits()
    images = (digits.images[:, None] / 16).astype(np.float32)
    train_images, images, train_labels, labels = train_test_split(
        images, digits.target.astype(np.int64), test_size=HELD_OUT, stratify=digits.target, random_state=seed
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            artefact = _export(_fit(torch.from_numpy(train_images), torch.from_numpy(train_labels)))
        correct = _predict(artefact, torch.from_numpy(images)) == torch.from_numpy(labels)
    finally:
        torch.set_num_threads(threads)
    return DigitsModel(artefact=artefact, accuracy=float(correct.float().mean()), images=images, labels=labels)


def measure_digit_cpu_s(runs: int = 60) -> float:
    """Measure the CPU time that one digit takes on this machine; training changes nothing about it."""
    threads = torch.get_num_threads()
    module, image = _load(_export(DigitsNet().eval())), torch.zeros(1, 1, 8, 8)
    torch.set_num_threads(1)
    taken_s = []
    try:
        with torch.inference_mode():
            for _ in range(COMPILING_RUNS + runs):
                started_s = time.thread_time()
                module(image)
                taken_s.append(time.thread_time() - started_s)
    finally:
        torch.set_num_threads(threads)
    return statistics.median(taken_s[COMPILING_RUNS:])


def request_for(image: npt.NDArray[np.float32], *, request_id: str, model: str, version: str) -> InferenceRequest:
    """Wrap held-out images, shape (1, 8, 8) or (n, 1, 8, 8), as a request that arrived at zero and never expires."""
    rows = image.reshape(-1, 1, 8, 8)
    tensor = Tensor(name=INPUTS[0].name, datatype="FP32", shape=rows.shape, data=rows.astype("<f4").tobytes())
    return InferenceRequest(request_id=request_id, model=model, model_version=version, arrival_at_s=0.0, inputs=(tensor,))


def _fit(images: torch.Tensor, labels: torch.Tensor) -> DigitsNet:
    net = DigitsNet()
    net.train()
    optimiser = torch.optim.SGD(net.parameters(), lr=PEAK_LEARNING_RATE, momentum=0.9, nesterov=True, weight_decay=1e-3)
    steps = EPOCHS * -(-len(labels) // BATCH_SIZE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, PEAK_LEARNING_RATE, total_steps=steps)
    for chosen in _epochs(len(labels)):
        loss = functional.cross_entropy(net(images[chosen]), labels[chosen], label_smoothing=0.05)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    net.eval()
    return net


def _epochs(count: int) -> Iterator[torch.Tensor]:
    for _ in range(EPOCHS):
        yield from torch.randperm(count).split(BATCH_SIZE)


def _export(net: DigitsNet) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)  # of TorchScript as a whole; see adapters.torch_runner
        traced = torch.jit.trace(net, torch.zeros(2, 1, 8, 8))
        torch.jit.save(torch.jit.freeze(traced), buffer)
    return buffer.getvalue()


def _predict(artefact: bytes, images: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        predicted: torch.Tensor = _load(artefact)(images).argmax(1)
    return predicted


def _load(artefact: bytes) -> Any:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        return torch.jit.load(io.BytesIO(artefact))
