"""Makes the digits model servable: registers it, and measures T(b) on every tier that may serve it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from local.cpu_share import CpuShareRunner, SkippedIdle, cpu_shares
from local.digits import INPUTS, OUTPUTS, DigitsModel, request_for
from local.load import Sample
from markserve import wiring
from markserve.core.types import Tier
from markserve.errors import InferenceFailed
from markserve.messages import Answer, InferenceRequest, ModelRecord
from markserve.ports import SpilloverInvoker
from markserve.profiling import profile_runner, store_profile
from markserve.registration import ModelSpec, register_model

MODEL = "digits"
BATCH_SIZES = (1, 2, 4, 8, 16, 32)
SAMPLES = 50
"""Enough that p98 is the largest but one."""
LAMBDA_SAMPLES = 20
LAMBDA_PROFILE = "lambda"


@dataclass(frozen=True, kw_only=True)
class SpilloverRunner:
    """The spillover function as a runner: what a spilled request waits for, invocation included."""

    spillover: SpilloverInvoker

    def run(self, batch: Sequence[InferenceRequest]) -> list[Answer | Exception]:
        """Invoke once per request; the spillover function does not batch."""
        return [_computed(self.spillover.invoke(request)) for request in batch]


def _computed(answer: Answer) -> Answer | Exception:
    """Tell an answer from the report of a failure, which would be measured too short."""
    return InferenceFailed(answer.error.message) if answer.error else answer


def register_digits(model: DigitsModel, *, max_batch_size: int = BATCH_SIZES[-1]) -> ModelRecord:
    """Register the model with the connected stack."""
    spec = ModelSpec(model=MODEL, artefact=model.artefact, inputs=INPUTS, outputs=OUTPUTS, max_batch_size=max_batch_size)
    return register_model(
        spec,
        models=wiring.models(),
        blobs=wiring.blobs(),
        queues=wiring.work_queue_admin(),
        parameters=wiring.parameter_writer(),
        load=wiring.load_runner,
        now_s=time.time(),
    )


def profile_digits(record: ModelRecord, model: DigitsModel) -> ModelRecord:
    """Measure T(b) on the emulated instance sizes, on this machine."""
    requests = [request_for(image, request_id=f"profile-{i}", model=MODEL, version=record.version) for i, image in enumerate(model.images)]
    for instance_type in cpu_shares(os.environ):
        record = profile_on(record, requests, instance_type=instance_type, batch_sizes=BATCH_SIZES, samples=SAMPLES)
    return record


def profile_on(
    record: ModelRecord, requests: Sequence[InferenceRequest], *, instance_type: str, batch_sizes: Sequence[int], samples: int
) -> ModelRecord:
    """Measure T(b) here and store it as an instance type's, at the CPU share of that type where it is an emulated one."""
    runner = wiring.model_runner(record, tier=Tier.WORKER)
    clock: Callable[[], float] = time.perf_counter
    share = cpu_shares(os.environ).get(instance_type)
    if share is not None:
        idle = SkippedIdle()
        runner, clock = CpuShareRunner(runner, share, clock=idle.clock, sleep=idle.sleep), idle.clock
    points = profile_runner(runner, requests, batch_sizes=batch_sizes, samples=samples, clock=clock)
    return store_profile(wiring.models(), model=record.model, instance_type=instance_type, points=points)


def profile_spillover(record: ModelRecord, requests: Sequence[InferenceRequest], *, samples: int = LAMBDA_SAMPLES) -> ModelRecord:
    """Measure the spillover function from outside, invocation included; its first, cold, run is not timed."""
    runner = SpilloverRunner(spillover=wiring.spillover())
    points = profile_runner(runner, requests, batch_sizes=(1,), samples=samples)
    return store_profile(wiring.models(), model=record.model, instance_type=LAMBDA_PROFILE, points=points)


def profile_digits_spillover(record: ModelRecord, model: DigitsModel) -> ModelRecord:
    """Measure the spillover function on held-out digits."""
    requests = [
        request_for(image, request_id=f"profile-lambda-{i}", model=MODEL, version=record.version)
        for i, image in enumerate(model.images[:LAMBDA_SAMPLES])
    ]
    return profile_spillover(record, requests)


def held_out_samples(model: DigitsModel) -> list[Sample]:
    """Held-out digits as load samples."""
    return [
        Sample(tensor=np.ascontiguousarray(image[None]), label=int(label)) for image, label in zip(model.images, model.labels, strict=True)
    ]


def sample_body(model: DigitsModel) -> dict[str, Any]:
    """Write one held-out digit as the JSON body of an inference request."""
    (spec,) = INPUTS
    image = model.images[:1]
    return {"inputs": [{"name": spec.name, "datatype": spec.datatype, "shape": list(image.shape), "data": image.ravel().tolist()}]}
