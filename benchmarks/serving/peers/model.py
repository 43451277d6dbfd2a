"""What every peer runs: the TorchScript model on one thread, counting its calls, rows and seconds for the benchmark.

Imported by each peer's server inside that peer's own venv; needs torch alone. The garbage collector is frozen after the warm-up for
all of them: else a full collection stops the process for more than 100 ms, which a team that tunes would find and fix.
"""

from __future__ import annotations

import gc
import mmap
import os
import struct
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

TOKENS = 48
METER = struct.Struct("=qqdd")
"""Calls, rows, seconds on the clock, seconds of CPU."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the benchmark hands to a server; the batch and the wait are the two knobs that are searched over."""

    port: int
    batch: int
    wait_s: float
    model: Path
    meter: Path


def settings() -> Settings:
    """Read the benchmark's environment variables."""
    env = os.environ
    return Settings(
        port=int(env["BENCH_PORT"]),
        batch=int(env.get("BENCH_BATCH", "1")),
        wait_s=float(env.get("BENCH_WAIT_S", "0")),
        model=Path(env["BENCH_MODEL"]),
        meter=Path(env["BENCH_METER"]),
    )


class Model:
    """The classifier, loaded, warm for every batch size up to the largest."""

    def __init__(self, path: Path, meter: Path, largest_batch: int) -> None:
        torch.set_num_threads(1)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            self._script = torch.jit.load(str(path)).eval()
        meter.write_bytes(bytes(METER.size))
        with meter.open("r+b") as file:
            self._meter = mmap.mmap(file.fileno(), METER.size)
        for batch in (*(2**i for i in range(largest_batch.bit_length())), largest_batch):
            for _ in range(2):
                self([[0] * TOKENS] * batch)
        self._calls, self._rows, self._wall_s, self._cpu_s = 0, 0, 0.0, 0.0
        gc.collect()
        gc.freeze()

    _calls, _rows, _wall_s, _cpu_s = 0, 0, 0.0, 0.0

    def __call__(self, rows: Sequence[Sequence[int]]) -> list[list[float]]:
        """Score token rows, (batch, 48), in one pass."""
        return self.run(torch.tensor(rows, dtype=torch.int64)).tolist()

    def run(self, tokens: torch.Tensor) -> torch.Tensor:
        """Score a tensor, (batch, 48)."""
        wall_s, cpu_s = time.perf_counter(), time.thread_time()
        with torch.inference_mode():
            scores: torch.Tensor = self._script(tokens)
        self._calls += 1
        self._rows += len(tokens)
        self._wall_s += time.perf_counter() - wall_s
        self._cpu_s += time.thread_time() - cpu_s
        METER.pack_into(self._meter, 0, self._calls, self._rows, self._wall_s, self._cpu_s)
        return scores


def load() -> Model:
    """Load the model as the benchmark says."""
    given = settings()
    return Model(given.model, given.meter, given.batch)
