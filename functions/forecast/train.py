"""Train forecasters from a shell, with the environment of the forecast function.

    python -m functions.forecast.train --model digits --minutes 10

The same use case as `{"action": "train"}`, without Lambda's time limit unless one is given. What is not finished by then
goes on with the next call, here or in the function.
"""

from __future__ import annotations

import math
import sys
import time
from argparse import ArgumentParser
from collections.abc import Sequence
from dataclasses import asdict

from markserve import wiring
from markserve.history import StepGrid
from markserve.messages import encode
from markserve.training import train_models


def train(names: Sequence[str] = (), *, for_s: float = math.inf) -> int:
    """Train these models, or all; write one JSON line each. Return 0 unless one could not be trained."""
    ends_at_s = time.monotonic() + for_s
    reports = train_models(
        names or [record.model for record in wiring.models().list()],
        windows=wiring.windows(),
        blobs=wiring.blobs(),
        control=wiring.control(),
        forecaster=wiring.learned_forecaster(),
        grid=StepGrid.of(wiring.settings()),
        now_s=time.time(),
        time_left_s=lambda: ends_at_s - time.monotonic(),
    )
    for report in reports:
        sys.stdout.write(encode(asdict(report)).decode() + "\n")
    return int(any(report.version is None for report in reports))


def main() -> int:
    """Read the command line and train."""
    parser = ArgumentParser(description="Train the forecasters of one, several or all models on their recorded windows.")
    parser.add_argument("--model", action="append", default=[], help="model to train; may be repeated; default: all")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop after this time; the next call goes on")
    arguments = parser.parse_args()
    return train(arguments.model, for_s=60 * arguments.minutes)


if __name__ == "__main__":
    sys.exit(main())
