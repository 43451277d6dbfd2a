"""The console: one page that shows an operator what the system does and why, the data it draws, and the change of a parameter.

Triggered by the HTTP API (payload format 2.0), by routes of its own: what operators look at must not slow requests down.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from aws_lambda_powertools.utilities.typing import LambdaContext

from markserve import wiring
from markserve.console_routes import CONTENT_TYPES, Page, respond
from markserve.errors import InvalidRequest
from markserve.protocol.http import HttpResponse, request_from_event
from markserve.refusals import log_refusal
from markserve.telemetry import logger, tracer


@lru_cache(maxsize=1)
def pages() -> dict[str, Page]:
    """Read the page's files, which lie beside this module."""
    files = sorted((Path(__file__).resolve().parent / "static").iterdir())
    return {path.name: Page(path.read_bytes(), CONTENT_TYPES[path.suffix]) for path in files if path.suffix in CONTENT_TYPES}


def run(event: object) -> dict[str, Any]:
    """Answer one event and log one line about it; a change of a parameter is logged with who, what, from and to."""
    try:
        request = request_from_event(event)
    except InvalidRequest as error:
        log_refusal("HTTP event", error)
        return HttpResponse(status=error.status, body=b'{"error":"not an HTTP request"}').to_event()
    try:
        response = respond(request, console=wiring.console, pages=pages())
    except Exception:  # noqa: BLE001  # the entry point: a stack trace belongs in the log only
        logger.exception("request failed")
        response = HttpResponse(status=500, body=b'{"error":"internal error"}')
    facts = dict(response.facts)
    told: dict[str, Any] = {"method": request.method, "path": request.path[:200], "status": response.status, **facts}
    logger.info(str(told.pop("audit", "request")), extra=told)
    return response.to_event()


@logger.inject_lambda_context
@tracer.capture_lambda_handler(capture_response=False)
def handler(event: Mapping[str, Any], context: LambdaContext) -> dict[str, Any]:  # noqa: ARG001
    """Answer one HTTP request."""
    return run(event)
