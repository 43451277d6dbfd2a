"""How long one forecast takes on two weeks of history: `python -m benchmarks.forecast_cycle`.

CPU time of `ForecastCycle.run` on stores in memory, generated load, no trained forecaster: what the forecast function computes per
model and minute. S3 and DynamoDB add their round trips: three reads and one write of objects, two queries, two puts.
"""

from __future__ import annotations

import resource
import statistics
import sys
import time
from typing import NoReturn

import numpy as np

from markserve.adapters.memory import MemoryBlobStore, MemoryControlStore, MemoryWindowStore
from markserve.archive import StepArchive
from markserve.forecast_cycle import ForecastCycle
from markserve.history import REPORT_DELAY_S, StepGrid
from markserve.messages import ArrivalCounts, MetricsBatch

MODEL = "digits"
GRID = StepGrid(window_s=5.0, step_s=60.0, horizon_steps=60)
DAYS, CYCLES = 14, 130
"""Two refreshes of every error table and of the regression."""
NOW_S = 1_700_006_400.0


def main() -> int:
    """Run the benchmark and print one line."""
    rng = np.random.default_rng(0)
    blobs, windows, now_s = MemoryBlobStore(), MemoryWindowStore(), NOW_S
    end = round(now_s / GRID.step_s)
    minutes = np.arange(end - DAYS * 1440, end)
    means = 60 + 40 * np.sin(2 * np.pi * minutes / 1440)
    archive = StepArchive(blobs=blobs, model=MODEL, step_s=GRID.step_s)
    archive.append({int(minute): float(rate) for minute, rate in zip(minutes, rng.poisson(means * 5) / 5, strict=True)})
    _record(windows, now_s - 360 * GRID.step_s, now_s, rng)
    cycle = ForecastCycle(windows=windows, control=MemoryControlStore(), blobs=blobs, forecaster=_no_forecaster, grid=GRID, cache={})
    taken_ms = []
    for _ in range(CYCLES):
        began_s = time.process_time()
        cycle.run(MODEL, now_s + REPORT_DELAY_S)
        taken_ms.append(1000 * (time.process_time() - began_s))
        _record(windows, now_s, now_s + GRID.step_s, rng)
        now_s += GRID.step_s
    warm = sorted(taken_ms[1:])
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    state_kb = len(blobs.get(f"forecasters/{MODEL}/bank.npz")) / 1000
    sys.stdout.write(
        f"first {taken_ms[0]:.0f} ms (nothing stored: three hours are replayed); warm median {statistics.median(warm):.0f} ms, "
        f"worst {warm[-1]:.0f} ms of CPU; peak memory {peak_mb:.0f} MB; state {state_kb:.0f} kB\n"
    )
    return 0


def _record(windows: MemoryWindowStore, since_s: float, until_s: float, rng: np.random.Generator) -> None:
    arrivals = tuple(
        ArrivalCounts(model=MODEL, window_at_s=float(at_s), count=int(rng.poisson(300)))
        for at_s in np.arange(since_s, until_s, GRID.window_s)
    )
    windows.apply([MetricsBatch(batch_id=str(since_s), sent_at_s=until_s, arrivals=arrivals, tick_at_s=until_s)], expires_at_s=1e12)


def _no_forecaster() -> NoReturn:
    raise AssertionError("nothing is promoted")


if __name__ == "__main__":
    sys.exit(main())
