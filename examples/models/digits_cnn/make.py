"""Make a digit reader that takes grey images of any size: resizing and scaling are part of the artefact.

`python -m examples.models.digits_cnn.make [FOLDER]` trains it in a few seconds on scikit-learn's bundled digits, and puts one that
it has not seen beside it, as digit.npy.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

from examples.models.export import export, register_command

MODEL = "digits-cnn"
INPUTS = ("image:UINT8:-1,-1,-1",)
OUTPUTS = ("digit:INT64:-1", "probabilities:FP32:-1,10")
SIDE = 8
HELD_OUT = 360
EPOCHS = 12
UNSEEN = "digit.npy"


class DigitReader(nn.Module):  # type: ignore[misc]  # torch is untyped here
    """Grey images (n, height, width), 0 to 255, light on dark, to digits and their probabilities."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(64 * 16, 128),
            nn.ReLU(),
            nn.Linear(128, 10),
        )

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Read a batch."""
        probabilities = functional.softmax(self.layers(self.prepare(image)), 1)
        return probabilities.argmax(1), probabilities

    def prepare(self, image: torch.Tensor) -> torch.Tensor:
        """Resize to what the network was trained on, and scale to [0, 1]."""
        scaled = image.unsqueeze(1).float() / 255
        if scaled.shape[2] == 8 and scaled.shape[3] == 8:
            return scaled
        return functional.interpolate(scaled, size=[8, 8], mode="bilinear", align_corners=False, antialias=True)


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """All 1797 images as UINT8 (n, 8, 8), and what they show; the last `HELD_OUT` are not trained on."""
    bundle = load_digits()
    return torch.from_numpy((bundle.images / 16 * 255).astype("uint8")), torch.from_numpy(bundle.target)


def train(seed: int = 0) -> DigitReader:
    """Train the reader."""
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    images, labels = (part[:-HELD_OUT] for part in digits())
    reader = DigitReader()
    optimiser = torch.optim.Adam(reader.parameters(), lr=2e-3)
    for _ in range(EPOCHS):
        for chosen in torch.randperm(len(labels)).split(64):
            loss = functional.cross_entropy(reader.layers(reader.prepare(images[chosen])), labels[chosen])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return reader


def main(folder: Path) -> str:
    """Train, write the artefact and a digit to ask it for; return the command that registers it."""
    path = folder / f"{MODEL}.pt"
    export(train(), path)
    images, _ = digits()
    np.save(folder / UNSEEN, images[-HELD_OUT].numpy())
    return register_command(MODEL, path, inputs=INPUTS, outputs=OUTPUTS)


if __name__ == "__main__":
    print(main(Path(sys.argv[1] if len(sys.argv) > 1 else ".")))  # its output is the next command
