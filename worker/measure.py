"""What an instance does that was launched to measure a model: measure, store the result, end."""

from __future__ import annotations

import os
from collections.abc import Callable

from markserve import wiring
from markserve.core.types import Tier
from markserve.measuring import measurement_key
from markserve.messages import MeasuredLatencies, encode
from markserve.ports import ModelRunner
from markserve.profiling import profile_runner, sample_request
from markserve.settings import Settings
from markserve.telemetry import logger

SAMPLES = 50
"""Enough that p98 is the largest but one."""


def measure(settings: Settings, wrap: Callable[[ModelRunner], ModelRunner], *, threads: int) -> None:
    """Measure T(b) of the model's live version at 1, 2, 4, ... up to its largest batch, and leave it for the state machine.

    With inputs of zeros: models whose time depends on the input's values need `markserve profile` with inputs of their own.
    """
    record = wiring.models().get(settings.model)
    runner = wrap(wiring.model_runner(record, tier=Tier.WORKER, threads=threads))
    points = profile_runner(
        runner,
        [sample_request(record)],
        batch_sizes=batch_sizes(record.max_batch_size),
        samples=SAMPLES,
        on_progress=lambda done, total: logger.info("measuring: round %d of %d", done, total),
    )
    result = MeasuredLatencies(model=record.model, model_version=record.version, instance_type=settings.instance_type, points=points)
    wiring.blobs().put(measurement_key(record.model, settings.purpose), encode(result))
    logger.info("measured %s on %s with %d cores: %s", record.model, settings.instance_type, os.cpu_count() or 1, points)


def batch_sizes(largest: int) -> list[int]:
    """List the powers of two up to `largest`, and `largest`.

    >>> batch_sizes(12)
    [1, 2, 4, 8, 12]
    """
    sizes = [1]
    while sizes[-1] * 2 <= largest:
        sizes.append(sizes[-1] * 2)
    return sizes if sizes[-1] == largest else [*sizes, largest]
