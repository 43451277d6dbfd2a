"""Measure T(b): how long a batch of each size takes here, for the planner, the scheduler and admission.

Upper quantiles, not means: a mean would be exceeded by half of the batches.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from itertools import cycle, islice

import msgspec

from markserve.core.types import BatchProfile, ProfilePoint
from markserve.errors import InferenceFailed, InvalidRequest
from markserve.messages import InferenceRequest, ModelRecord, ProfilePointRecord, Tensor
from markserve.padding import completed
from markserve.ports import ModelRunner, ModelStore
from markserve.protocol.tensors import ELEMENT_BYTES

WARM_UP_RUNS = 2
"""Untimed runs per size: TorchScript profiles the first and compiles in the second."""


def profile_runner(
    runner: ModelRunner,
    requests: Sequence[InferenceRequest],
    *,
    batch_sizes: Sequence[int],
    samples: int,
    clock: Callable[[], float] = time.perf_counter,
    between: Callable[[], object] = lambda: None,
    on_progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> tuple[ProfilePointRecord, ...]:
    """Measure each batch size with `samples` runs of batches drawn from `requests` in turn.

    In rounds over all sizes, not size by size: what disturbs the machine for a moment then slows all of them alike, and
    T(b) keeps its shape.

    Parameters
    ----------
    requests
        Single-row requests with realistic inputs; reused in a circle when a batch needs more.
    between
        Called before every run, untimed. Back to back, a run finds its caches warm; after a pause, as between the
        batches of a worker that is not saturated, it takes up to a third longer.
    on_progress
        Called after every round with the rounds done and their total.

    Raises
    ------
    InferenceFailed
        If the model fails on one of the requests: such a run would be measured too short.
    """
    if not requests or samples < 1 or min(batch_sizes, default=0) < 1:
        raise InvalidRequest("a profile needs requests, at least one sample, and batch sizes from 1")
    supply = cycle(requests)
    durations_s: dict[int, list[float]] = {size: [] for size in sorted(set(batch_sizes))}
    for size in durations_s:
        for _ in range(WARM_UP_RUNS):
            _timed_run(runner, list(islice(supply, size)), clock, between)
    for done in range(1, samples + 1):
        for size, measured in durations_s.items():
            measured.append(_timed_run(runner, list(islice(supply, size)), clock, between))
        on_progress(done, samples)
    return tuple(_point(size, sorted(measured)) for size, measured in durations_s.items())


def store_profile(models: ModelStore, *, model: str, instance_type: str, points: Sequence[ProfilePointRecord]) -> ModelRecord:
    """Make a measurement the profile of the model's live version on an instance type."""
    record = models.get(model)
    updated = msgspec.structs.replace(record, profiles={**record.profiles, instance_type: tuple(points)})
    models.store(updated)
    return updated


def batch_profile(instance_type: str, points: Sequence[ProfilePointRecord]) -> BatchProfile:
    """Convert stored points to the policy's value object."""
    return BatchProfile(
        instance_type=instance_type,
        points=tuple(ProfilePoint(batch_size=p.batch_size, p50_s=p.p50_s, p98_s=p.p98_s, p99_s=p.p99_s, samples=p.samples) for p in points),
    )


def sample_request(record: ModelRecord, *, rows: int = 1, bucket: int = -1) -> InferenceRequest:
    """Build a request of zeros that fits the model, free dimensions being 1: for warm-up and trial runs.

    Parameters
    ----------
    bucket
        Index of the bucket whose length padded inputs have. The last by default: T(b) is measured at what a batch costs at most.
    """
    inputs = {}
    for spec in record.inputs:
        if spec.is_optional:
            continue
        free = spec.pad.buckets[min(bucket, len(spec.pad.buckets) - 1)] if spec.pad else 1
        shape = (rows, *(free if size == -1 else size for size in spec.shape[1:]))
        element = b"\x00" * ELEMENT_BYTES.get(spec.datatype, 4)  # four zero bytes are also one empty BYTES element
        inputs[spec.name] = Tensor(name=spec.name, datatype=spec.datatype, shape=shape, data=element * math.prod(shape))
    return InferenceRequest(
        request_id=f"sample-{rows}",
        model=record.model,
        model_version=record.version,
        arrival_at_s=0.0,
        inputs=completed(inputs, record),
    )


def _timed_run(runner: ModelRunner, batch: Sequence[InferenceRequest], clock: Callable[[], float], between: Callable[[], object]) -> float:
    between()
    started_s = clock()
    results = runner.run(batch)
    elapsed_s = clock() - started_s
    for result in results:
        if isinstance(result, Exception):
            raise InferenceFailed(f"profiling with batches of {len(batch)}: {result}") from result
    return elapsed_s


def _point(batch_size: int, ascending_s: Sequence[float]) -> ProfilePointRecord:
    p50_s, p98_s, p99_s = (_quantile(ascending_s, q) for q in (0.5, 0.98, 0.99))
    return ProfilePointRecord(batch_size=batch_size, p50_s=p50_s, p98_s=p98_s, p99_s=p99_s, samples=len(ascending_s))


def _quantile(ascending: Sequence[float], q: float) -> float:
    # Nearest rank: an observed value, never one interpolated to below what really happened.
    return ascending[max(0, math.ceil(q * len(ascending) - 1e-9) - 1)]
