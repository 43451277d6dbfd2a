"""The model and its inputs: an LSTM text classifier, the same bytes of it on every machine, with outputs known beforehand.

`python -m benchmarks.serving.workload ceiling MODEL.pt` prints T(b) on the core that it is pinned to, as JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch

VOCABULARY, TOKENS, EMBEDDING, HIDDEN, CLASSES = 5000, 48, 128, 512, 8
SEED = 6
INPUTS = 512
TOLERANCE = 1e-3
"""Absolute, per score. The order of sums changes with the batch: that moves scores by 1e-6; two inputs differ by more than 0.05."""
CEILING_BATCHES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128)
MODEL_NAME = "lstm"


class Classifier(torch.nn.Module):  # type: ignore[misc]  # torch is untyped here
    """Token identifiers (batch, 48) to scores (batch, 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(VOCABULARY, EMBEDDING)
        self.lstm = torch.nn.LSTM(EMBEDDING, HIDDEN, batch_first=True)
        self.scores = torch.nn.Linear(HIDDEN, CLASSES)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Score the sequence by the state after its last token."""
        states, _ = self.lstm(self.embedding(tokens))
        scores: torch.Tensor = self.scores(states[:, -1])
        return scores


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A TorchScript file, inputs, and the output that each input must produce."""

    model: Path
    inputs: tuple[tuple[int, ...], ...]
    expected: tuple[tuple[float, ...], ...]


def build(folder: Path) -> Workload:
    """Write the model to `folder` and compute the expected outputs, one input at a time."""
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    classifier = Classifier().eval()
    # Larger than the usual initialisation, so that different inputs get clearly different scores and a swapped reply shows.
    with torch.no_grad():
        classifier.scores.weight.mul_(20)
    folder.mkdir(parents=True, exist_ok=True)
    model = folder / f"{MODEL_NAME}.pt"
    with warnings.catch_warnings():
        # Deprecated in favour of torch.export, whose archives hold pickles; every server here loads TorchScript.
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        script = torch.jit.script(classifier)
        script.save(str(model))
    manifest = {"inputs": [{"name": "tokens", "datatype": "INT64", "shape": [-1, TOKENS]}]}
    model.with_suffix(".json").write_text(json.dumps(manifest), encoding="utf-8")
    tokens = torch.randint(0, VOCABULARY, (INPUTS, TOKENS))
    with torch.inference_mode():
        outputs = torch.cat([script(row.unsqueeze(0)) for row in tokens])
    nearest = float(torch.pdist(outputs, p=float("inf")).min())
    if nearest < 20 * TOLERANCE:
        raise ValueError(f"two inputs' scores differ by {nearest:.4f} only: a swapped reply could pass for the right one")
    return Workload(model=model, inputs=tuple(map(tuple, tokens.tolist())), expected=tuple(map(tuple, outputs.tolist())))


def measure_ceiling(model: Path, repeats: int) -> dict[str, object]:
    """Time the model alone on this core; returns median seconds by batch size and `max_b b / T(b)` in requests/s."""
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        script = torch.jit.load(str(model)).eval()
    times: dict[int, list[float]] = {batch: [] for batch in CEILING_BATCHES}
    with torch.inference_mode():
        for batch in CEILING_BATCHES * 2:  # the profiling executor optimises over the first passes
            script(torch.randint(0, VOCABULARY, (batch, TOKENS)))
        for _ in range(repeats):  # sizes in turn, so that a slow moment of the machine does not fall on one size alone
            for batch in CEILING_BATCHES:
                tokens = torch.randint(0, VOCABULARY, (batch, TOKENS))
                begin = time.perf_counter()
                script(tokens)
                times[batch].append(time.perf_counter() - begin)
    medians = {batch: sorted(seen)[len(seen) // 2] for batch, seen in times.items()}
    best = max(medians, key=lambda batch: batch / medians[batch])
    return {"latency_s": {str(b): t for b, t in medians.items()}, "ceiling_rps": best / medians[best], "ceiling_batch": best}


def main(argv: list[str]) -> int:
    """Print the ceiling as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving.workload", description=__doc__)
    parser.add_argument("what", choices=["ceiling"])
    parser.add_argument("model", type=Path)
    parser.add_argument("--repeats", type=int, default=9)
    args = parser.parse_args(argv)
    sys.stdout.write(json.dumps(measure_ceiling(args.model, args.repeats)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
