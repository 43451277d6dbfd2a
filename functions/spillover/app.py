"""Inference on Lambda: computes at once what the workers cannot finish in time.

Invoked by the front with an `InferenceRequest`, answered with an `Answer`; or by the lifecycle function with
`{"warmup": true, "model": "digits", "hold_s": 1.0}`, which loads the model and holds the environment so that concurrent
warm-ups take one each.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from aws_lambda_powertools.utilities.typing import LambdaContext

from markserve import wiring
from markserve.core.types import Tier
from markserve.errors import InferenceFailed, InvalidRequest, UnknownModel
from markserve.messages import Answer, AnswerError, InferenceRequest, ModelRecord, encode, from_plain
from markserve.payloads import fetch_inputs, offload_outputs
from markserve.ports import BlobStore, ModelRunner, ModelStore
from markserve.refusals import refusing
from markserve.telemetry import logger, tracer
from markserve.triggers import ModelWarmUp

THREADS = 2
"""Lambda gives the second vCPU at 3,538 MB; below it a second thread costs next to nothing."""


class Runners:
    """Loaded models of this environment; a model stays until the environment ends."""

    def __init__(self, models: ModelStore, load: Callable[[ModelRecord], ModelRunner]) -> None:
        self._models = models
        self._load = load
        self._loaded: dict[tuple[str, str], ModelRunner] = {}

    def get(self, model: str, version: str | None) -> tuple[ModelRunner, bool]:
        """Return the runner of a version (default: the live one), and whether it had to be loaded now."""
        version = version or self._models.get(model).version
        runner = self._loaded.get((model, version))
        if runner is not None:
            return runner, False
        runner = self._load(self._models.get(model, version))
        self._loaded[model, version] = runner
        return runner, True

    def ready(self, model: str) -> bool:
        """Load what answers a model's requests, a canary included; return whether the live version had to be loaded now."""
        traffic = self._models.traffic(model)
        _, cold_start = self.get(model, traffic.live)
        if traffic.canary is not None:
            self.get(model, traffic.canary)
        return cold_start


def parse(event: object) -> InferenceRequest | ModelWarmUp:
    """Read what is asked.

    Raises
    ------
    InvalidRequest
        Naming what is wrong with the event.
    """
    if isinstance(event, Mapping) and event.get("warmup"):
        return from_plain(event, ModelWarmUp)
    return from_plain(event, InferenceRequest)


def run(request: InferenceRequest, *, runners: Runners, blobs: BlobStore, now_s: Callable[[], float]) -> Answer:
    """Compute one request; what is wrong with the request, or what the model makes of it, is part of the answer.

    Raises
    ------
    ConfigurationError, Transient
        If the model cannot be loaded: the front may try again.
    """
    received_at_s = now_s()
    cold_start = False
    try:
        runner, cold_start = runners.get(request.model, request.model_version)
        request = fetch_inputs(request, blobs)
        started_at_s = now_s()
        result = runner.run([request])[0]
    except InvalidRequest as error:
        started_at_s, result = now_s(), error
    finished_at_s = now_s()
    answer = Answer(
        request_id=request.request_id,
        tier=Tier.LAMBDA,
        outputs=result.outputs if isinstance(result, Answer) else (),
        error=None if isinstance(result, Answer) else _error(result),
        batch_size=1,
        queued_s=received_at_s - request.arrival_at_s,
        batch_wait_s=started_at_s - received_at_s,
        compute_s=finished_at_s - started_at_s,
        finished_at_s=finished_at_s,
        cold_start=cold_start,
        model_version=request.model_version,
    )
    return offload_outputs(answer, blobs)


def warm_up(command: ModelWarmUp, *, runners: Runners, now_s: Callable[[], float], sleep: Callable[[float], None]) -> dict[str, Any]:
    """Load a model and hold this environment for a moment."""
    started_at_s = now_s()
    try:
        cold_start = runners.ready(command.model)
    except UnknownModel as error:
        # Deleted since it was planned for; nothing to warm, and nothing to retry.
        return {"warm": False, "reason": str(error)}
    sleep(max(0.0, command.hold_s - (now_s() - started_at_s)))
    return {"warm": True, "cold_start": cold_start}


def _error(outcome: Exception) -> AnswerError:
    if isinstance(outcome, InvalidRequest):
        return AnswerError(status=outcome.status, message=str(outcome))
    if isinstance(outcome, InferenceFailed):
        return AnswerError(status=500, message=str(outcome))
    logger.error("inference failed", exc_info=outcome)
    return AnswerError(status=500, message="inference failed")


Handler = Callable[[Mapping[str, Any], LambdaContext], dict[str, Any]]


def make_handler(wrap: Callable[[ModelRunner], ModelRunner] = lambda runner: runner, *, threads: int = THREADS) -> Handler:
    """Compose the function; `wrap` decorates each runner it loads (the local system emulates Lambda's CPU share so)."""

    @lru_cache(maxsize=1)
    def runners() -> Runners:
        return Runners(wiring.models(), lambda record: wrap(wiring.model_runner(record, tier=Tier.LAMBDA, threads=threads)))

    @logger.inject_lambda_context
    @tracer.capture_lambda_handler(capture_response=False)
    def compute_or_warm(event: Mapping[str, Any], context: LambdaContext) -> dict[str, Any]:  # noqa: ARG001
        """Compute one request, or warm this environment up."""
        with refusing("spill-over event", flush=True):
            command = parse(event)
        if isinstance(command, ModelWarmUp):
            warmed = warm_up(command, runners=runners(), now_s=time.time, sleep=time.sleep)
            logger.info("warmed up", extra=warmed)
            return warmed
        answer = run(command, runners=runners(), blobs=wiring.blobs(), now_s=time.time)
        logger.info(
            "computed",
            extra={
                "request_id": answer.request_id,
                "model": command.model,
                "cold_start": answer.cold_start,
                "compute_s": round(answer.compute_s, 4),
                "error": answer.error.message if answer.error else None,
            },
        )
        reply: dict[str, Any] = json.loads(encode(answer))
        return reply

    handler: Handler = compute_or_warm
    return handler


handler = make_handler()
