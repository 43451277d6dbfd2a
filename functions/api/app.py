"""The front door: validates, admits, enqueues or spills, and replies.

Triggered by the HTTP API (payload format 2.0), or by `{"warmup": true, "hold_s": 1.0}`, which readies an environment and
holds it so that concurrent warm-ups take one each.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from aws_lambda_powertools.metrics import MetricUnit
from aws_lambda_powertools.utilities.typing import LambdaContext

from markserve import wiring
from markserve.errors import InvalidRequest, Transient
from markserve.front import Front, FrontPorts
from markserve.messages import from_plain
from markserve.protocol.http import HttpRequest, HttpResponse, request_from_event
from markserve.refusals import log_refusal
from markserve.routes import internal_error, respond
from markserve.telemetry import REQUESTS, REQUESTS_FAILED, REQUESTS_REJECTED, RESPONSE_TIME, SPILLED, logger, metrics, tracer
from markserve.triggers import WarmUp


def run(event: object, *, front: Front, now_s: Callable[[], float], sleep: Callable[[float], None]) -> dict[str, Any]:
    """Answer one event and log one line about it; whatever goes wrong inside, the caller gets an error without a trace of it."""
    try:
        command = parse(event)
    except InvalidRequest as error:
        log_refusal("HTTP event", error)
        return HttpResponse(status=error.status, body=b'{"error":"not an HTTP request"}').to_event()
    if isinstance(command, WarmUp):
        return _warm_up(command, front=front, now_s=now_s, sleep=sleep)
    return _answer(command, front=front, now_s=now_s)


def parse(event: object) -> HttpRequest | WarmUp:
    """Read what is asked.

    Raises
    ------
    InvalidRequest
        If it is neither an HTTP request nor a warm-up.
    """
    if isinstance(event, Mapping) and event.get("warmup"):
        return from_plain(event, WarmUp)
    return request_from_event(event)


def _answer(request: HttpRequest, *, front: Front, now_s: Callable[[], float]) -> dict[str, Any]:
    try:
        response = respond(request, front)
    except Exception:  # noqa: BLE001  # the entry point: a stack trace belongs in the log only
        logger.exception("request failed")
        response = internal_error(request)
    _report(request, response, latency_s=now_s() - request.arrival_at_s)
    return response.to_event()


def _warm_up(command: WarmUp, *, front: Front, now_s: Callable[[], float], sleep: Callable[[float], None]) -> dict[str, Any]:
    started_at_s = now_s()
    try:
        front.warm_up()
    except Transient as error:
        # The environment is warm all the same; the first request reads what could not be read now.
        logger.warning("caches not filled", extra={"reason": str(error)})
    sleep(max(0.0, command.hold_s - (now_s() - started_at_s)))
    logger.info("warmed up", extra={"held_s": command.hold_s})
    return {"warm": True}


def _report(request: HttpRequest, response: HttpResponse, *, latency_s: float) -> None:
    facts = dict(response.facts)
    if response.status >= 400:
        facts.setdefault("reason", response.body.decode(errors="replace")[:500])
    logger.info(
        "request",
        extra={"method": request.method, "path": request.path[:200], "status": response.status, "latency_s": round(latency_s, 4), **facts},
    )
    if request.method != "POST":
        return
    metrics.add_dimension(name="model", value=str(facts.get("model", "none")))
    metrics.add_metric(name=REQUESTS, unit=MetricUnit.Count, value=1)
    metrics.add_metric(name=RESPONSE_TIME, unit=MetricUnit.Seconds, value=latency_s)
    metrics.add_metric(name=REQUESTS_REJECTED, unit=MetricUnit.Count, value=int(400 <= response.status < 500))
    metrics.add_metric(name=REQUESTS_FAILED, unit=MetricUnit.Count, value=int(response.status >= 500))
    metrics.add_metric(name=SPILLED, unit=MetricUnit.Count, value=int(facts.get("tier") == "lambda"))
    metrics.flush_metrics()


@lru_cache(maxsize=1)
def _front() -> Front:
    """Compose this environment's front; it lives as long as the environment."""
    ports = FrontPorts(
        models=wiring.models(),
        results=wiring.results(),
        instances=wiring.instances(),
        work_queue=wiring.work_queue,
        spillover=wiring.spillover(),
        parameters=wiring.parameters(),
        metrics=wiring.metrics_sink(),
        blobs=wiring.blobs(),
    )
    settings = wiring.settings()
    return Front(
        ports,
        window_s=settings.window_s,
        heartbeat_timeout_s=settings.heartbeat_timeout_s,
        reads_summaries=settings.shards > 1,
        now_s=time.time,
        sleep=time.sleep,
        new_id=lambda: str(uuid.uuid4()),
    )


@logger.inject_lambda_context
@tracer.capture_lambda_handler(capture_response=False)
def handler(event: Mapping[str, Any], context: LambdaContext) -> dict[str, Any]:  # noqa: ARG001
    """Answer one HTTP request, or warm this environment up."""
    return run(event, front=_front(), now_s=time.time, sleep=time.sleep)
