"""Write a torch module as the artefact that markserve registers, and say how to register it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn


def export(module: nn.Module, path: Path) -> None:
    """Write `module` as TorchScript: no Python is needed to run it, and none of it is run on loading."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        # Deprecated in favour of torch.export, whose archives are not accepted everywhere yet.
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        torch.jit.save(torch.jit.freeze(torch.jit.script(module.eval())), str(path))


def register_command(model: str, path: Path, *, inputs: Sequence[str], outputs: Sequence[str]) -> str:
    """Return the command that registers what was written."""
    tensors = [f"--input {text}" for text in inputs] + [f"--output {text}" for text in outputs]
    return f"markserve models register {model} {path} {' '.join(tensors)}"
