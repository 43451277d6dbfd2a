"""A quick profile at start, from which threads and batch limit follow: nothing of it is set by hand."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import msgspec

from markserve.core.batch_limits import SERVE_RATE_TOLERANCE, choose_batch_limits
from markserve.core.profiles import LatencyEstimate
from markserve.errors import InfeasibleSlo, InferenceFailed
from markserve.messages import ModelRecord, ProfilePointRecord
from markserve.ports import StackRunner
from markserve.profiling import batch_profile, profile_runner, sample_request
from server.channel import Load

LARGEST_BATCH = 1024
MIN_SAMPLES, MAX_SAMPLES = 8, 40
TRIAL_SAMPLES = 3
HERE = "here"
"""Name of this machine's profile."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """What measuring found."""

    points: tuple[ProfilePointRecord, ...]
    threads: int
    max_batch_size: int
    reason: str


def measure(load: Load, record: ModelRecord, runner: StackRunner, say: Callable[[str], None]) -> Measured:
    """Choose threads and batch sizes from trial runs, then measure T(b) at them.

    Raises
    ------
    InfeasibleSlo
        If not even one request alone meets the objective.
    """
    trials = {}
    for threads in [load.threads] if load.threads else _thread_counts():
        say(f"trying {threads} CPU thread{'s'[: threads > 1]}")
        runner.use_threads(threads)
        trials[threads] = _trial(load, record, runner)
    threads = max(trials, key=lambda count: (round(trials[count][1] / _best_rate(trials), 2), -count))
    runner.use_threads(threads)
    sizes = trials[threads][0]
    samples, spent_s = MAX_SAMPLES, sum(size / trials[threads][1] for size in sizes)
    samples = int(min(MAX_SAMPLES, max(MIN_SAMPLES, load.profile_s / max(spent_s, 1e-6))))
    say(f"measuring T(b) at {', '.join(map(str, sizes))}: {samples} runs each")
    points = _steadied(profile_runner(runner, [sample_request(record)], batch_sizes=sizes, samples=samples))
    estimate = LatencyEstimate(batch_profile(HERE, points))
    limits = choose_batch_limits(
        estimate=estimate, latency_budget_s=load.latency_budget_s, max_batch_size=sizes[-1], rate_tolerance=SERVE_RATE_TOLERANCE
    )
    return Measured(points=points, threads=threads, max_batch_size=sizes[-1], reason=limits.reason)


def _steadied(points: tuple[ProfilePointRecord, ...]) -> tuple[ProfilePointRecord, ...]:
    """Replace each size's p98, which a few runs leave to chance, by its median times what p98 is to the median across sizes."""
    spread = median(point.p98_s / point.p50_s for point in points)
    return tuple(
        msgspec.structs.replace(point, p98_s=spread * point.p50_s, p99_s=max(point.p99_s, spread * point.p50_s)) for point in points
    )


def _trial(load: Load, record: ModelRecord, runner: StackRunner) -> tuple[list[int], float]:
    """Double the batch while two of them fit the budget; return the sizes and the best rate."""
    sizes: list[int] = []
    best_rate = 0.0
    size = 1
    most = load.max_batch_size or record.max_batch_size or LARGEST_BATCH
    while True:
        latency_s = min(_timed(record, runner, size) for _ in range(TRIAL_SAMPLES + (2 if size == 1 else 0)))
        if size == 1 and latency_s > load.latency_budget_s:
            raise InfeasibleSlo(f"one request alone takes {latency_s:.3f} s, the objective leaves {load.latency_budget_s:.3f} s")
        sizes.append(size)  # the first one beyond the budget too: the best size may lie just before it
        best_rate = max(best_rate, size / latency_s)
        if size == most or 2 * latency_s > load.latency_budget_s:
            break
        size = min(2 * size, most)
    return sizes, best_rate


def _timed(record: ModelRecord, runner: StackRunner, size: int) -> float:
    started_s = time.perf_counter()
    results = runner.run([sample_request(record)] * size)
    elapsed_s = time.perf_counter() - started_s
    for result in results:
        if isinstance(result, Exception):
            raise InferenceFailed(f"{record.model} fails on a batch of {size} rows of zeros: {result}")
    return elapsed_s


def _best_rate(trials: dict[int, tuple[list[int], float]]) -> float:
    return max(rate for _, rate in trials.values())


def _thread_counts() -> list[int]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    counts = [1]
    while counts[-1] * 2 <= cores:
        counts.append(counts[-1] * 2)
    return counts
