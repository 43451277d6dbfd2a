"""Train forecasters from a shell, with the environment of the forecast function.

    python -m functions.forecast.train --model digits

The same use case as `{"action": "train"}`, without Lambda's time limit.
"""

from __future__ import annotations

import sys
import time
from argparse import ArgumentParser
from collections.abc import Sequence
from dataclasses import asdict

from markserve import wiring
from markserve.history import StepGrid
from markserve.messages import encode
from markserve.training import train_models


def train(names: Sequence[str] = ()) -> int:
    """Train these models, or all; write one JSON line each. Return 0 unless one could not be trained."""
    reports = train_models(
        names or [record.model for record in wiring.models().list()],
        windows=wiring.windows(),
        blobs=wiring.blobs(),
        control=wiring.control(),
        forecaster=wiring.learned_forecaster(),
        grid=StepGrid.of(wiring.settings()),
        now_s=time.time(),
    )
    for report in reports:
        sys.stdout.write(encode(asdict(report)).decode() + "\n")
    return int(any(report.version is None for report in reports))


def main() -> int:
    """Read the command line and train."""
    parser = ArgumentParser(description="Train the forecasters of one, several or all models on their recorded windows.")
    parser.add_argument("--model", action="append", default=[], help="model to train; may be repeated; default: all")
    return train(parser.parse_args().model)


if __name__ == "__main__":
    sys.exit(main())
