"""Lambda authoriser for API keys: who calls, and whether the client's quota has room.

Triggered by the HTTP API (payload format 2.0, simple responses) before every request, without a cache: a cached answer would
not count. A client over its quota is let through with the time to wait, as only the front can answer 429.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from typing import Any

from aws_lambda_powertools.utilities.typing import LambdaContext

from markserve import wiring
from markserve.core.quota import check_quota, window_of
from markserve.errors import InvalidRequest, Transient
from markserve.messages import from_plain
from markserve.ports import ClientStore
from markserve.refusals import log_refusal
from markserve.telemetry import logger, tracer
from markserve.triggers import AuthorizerRequest

REFUSED: Mapping[str, Any] = {"isAuthorized": False}


def run(event: object, *, clients: ClientStore, now_s: float) -> dict[str, Any]:
    """Say whose key it is, and how long the client has to wait; a key that is missing or unknown is refused."""
    try:
        headers = from_plain(event, AuthorizerRequest).headers or {}
    except InvalidRequest as error:
        log_refusal("authorisation event", error)
        return dict(REFUSED)
    key = {name.lower(): value for name, value in headers.items()}.get("x-api-key", "")
    client = clients.find(hashlib.sha256(key.encode(errors="surrogatepass")).hexdigest()) if key else None
    if client is None:
        logger.info("refused", extra={"reason": "no such key" if key else "no key"})
        return dict(REFUSED)
    try:
        used = clients.count(client.client, window_at_s=window_of(now_s))
    except Transient as error:
        # The key is good. A counter that does not answer must not turn paying callers away.
        logger.warning("not counted", extra={"client": client.client, "reason": str(error)})
        used = 0
    decision = check_quota(used=used, requests_per_minute=client.requests_per_minute, now_s=now_s)
    logger.info("admitted" if decision.allowed else "over quota", extra={"client": client.client, "reason": decision.reason})
    context = {"principalId": client.client}
    if client.operator:
        context |= {"operator": "true"}
    if not decision.allowed:
        context |= {"retryAfterS": f"{decision.retry_after_s:.0f}", "reason": decision.reason}
    return {"isAuthorized": True, "context": context}


@logger.inject_lambda_context
@tracer.capture_lambda_handler(capture_response=False)
def handler(event: Mapping[str, Any], context: LambdaContext) -> dict[str, Any]:  # noqa: ARG001
    """Authorise one request."""
    return run(event, clients=wiring.clients(), now_s=time.time())
