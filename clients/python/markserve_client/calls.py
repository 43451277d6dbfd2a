"""What a call sends, waits for and returns, without doing either: the sync and the async client both drive it."""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Callable, Generator, Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Literal, TypedDict, TypeVar
from urllib.parse import quote

import httpx
import numpy.typing as npt

from markserve_client import codec
from markserve_client.errors import ConnectionFailed, MarkserveClientError, TimedOut, error_for

RETRIED = frozenset({429, 502, 503, 504})
BACKOFF_S, BACKOFF_MAX_S = 0.1, 5.0
POLL_S, POLL_MAX_S = 0.1, 5.0

Inputs = Mapping[str, npt.ArrayLike]
ResultT = TypeVar("ResultT")
Step = httpx.Request | float
"""A request to send, or seconds to wait."""
Steps = Generator[Step, "httpx.Response | httpx.TransportError | None", ResultT]


class Options(TypedDict, total=False):
    """What a call may say beyond model and inputs."""

    version: str | None
    """Default: the live one, or its canary."""
    outputs: Sequence[str]
    """Default: all."""
    slo: Literal["interactive", "standard", "batch"]
    idempotency_key: str | None
    """Default: one made for the call."""
    timeout_s: float | None


class Calls:
    """Builds the steps of every call.

    Parameters
    ----------
    attempts
        Of one request, the first included.
    timeout_s
        Of a whole call: attempts, pauses and polls together.
    """

    def __init__(
        self, build: Callable[..., httpx.Request], *, attempts: int, timeout_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._build = build
        self._attempts = attempts
        self._timeout_s = timeout_s
        self._clock = clock

    def infer(self, model: str, inputs: Inputs, options: Options, *, later: bool) -> Steps[codec.InferResult | codec.Job]:
        """Infer; a Job when it is accepted for later and `later` says that this is wanted."""
        ends_at_s = self._ends_at_s(options.get("timeout_s"))
        body, headers = codec.encode(inputs, options.get("outputs", ()))
        headers["Idempotency-Key"] = options.get("idempotency_key") or str(uuid.uuid4())
        if slo := options.get("slo"):
            headers["x-markserve-slo"] = slo
        if later:
            headers["Prefer"] = "respond-async"
        path = f"{_path(model, options.get('version'))}/infer"
        response, attempts = yield from self._send("POST", path, ends_at_s, headers=headers, content=body)
        if response.status_code == 202:
            job = codec.Job(request_id=response.headers["x-markserve-request-id"], model=model)
            return job if later else (yield from self._poll(job.request_id, ends_at_s, attempts))
        return codec.decode(response.content, response.headers, attempts=attempts)

    def fetch(self, request_id: str, *, timeout_s: float | None) -> Steps[codec.InferResult]:
        """Wait for the answer of an accepted request."""
        return self._poll(request_id, self._ends_at_s(timeout_s), 1)

    def model(self, model: str, version: str | None) -> Steps[codec.Model]:
        """Ask what a model takes and returns."""
        response, _ = yield from self._send("GET", _path(model, version), self._ends_at_s(None))
        return codec.model_of(response.json())

    def is_ready(self, model: str) -> Steps[bool]:
        """Ask once whether a request would be computed by anyone."""
        answer = yield self._build("GET", f"{_path(model, None)}/ready")
        return isinstance(answer, httpx.Response) and answer.status_code == 200

    def _poll(self, request_id: str, ends_at_s: float, attempts: int) -> Steps[codec.InferResult]:
        pause_s = POLL_S
        while True:
            path, headers = f"/v2/requests/{quote(request_id, safe='')}", {"Accept": "application/octet-stream"}
            response, _ = yield from self._send("GET", path, ends_at_s, headers=headers)
            if response.status_code != 202:
                return codec.decode(response.content, response.headers, attempts=attempts)
            if self._clock() + pause_s >= ends_at_s:
                raise TimedOut(f"request {request_id} is not answered yet; fetch it later", status=202)
            yield pause_s
            pause_s = min(1.5 * pause_s, POLL_MAX_S)

    def _send(self, method: str, path: str, ends_at_s: float, **parts: Any) -> Steps[tuple[httpx.Response, int]]:
        """Send until it is answered for good; returns the response and the number of attempts."""
        attempt = 0
        while True:
            attempt += 1
            left_s = ends_at_s - self._clock()
            if left_s <= 0:
                raise TimedOut(f"{method} {path}: no time is left")
            answer = yield self._build(method, path, timeout=httpx.Timeout(left_s), **parts)
            failure = _failure(answer)
            if failure is None:
                assert isinstance(answer, httpx.Response)  # noqa: S101  # what is no failure is an answer
                return answer, attempt
            pause_s = max(failure.retry_after_s or 0.0, random.uniform(0.5, 1) * min(BACKOFF_S * 2 ** (attempt - 1), BACKOFF_MAX_S))  # noqa: S311
            is_lasting = failure.status not in RETRIED and not isinstance(failure, ConnectionFailed)
            if is_lasting or attempt >= self._attempts or self._clock() + pause_s >= ends_at_s:
                raise failure
            yield pause_s

    def _ends_at_s(self, timeout_s: float | None) -> float:
        return self._clock() + (self._timeout_s if timeout_s is None else timeout_s)


def _path(model: str, version: str | None) -> str:
    return f"/v2/models/{quote(model, safe='')}" + (f"/versions/{quote(version, safe='')}" if version else "")


def _failure(answer: httpx.Response | httpx.TransportError | None) -> MarkserveClientError | None:
    if not isinstance(answer, httpx.Response):
        return ConnectionFailed(f"the server did not answer: {answer or 'nothing came'}")
    if answer.status_code < 400:
        return None
    try:
        message = answer.json()
        message = message.get("error") or message.get("message") or message.get("Message")
    except (ValueError, AttributeError):
        message = None
    return error_for(answer.status_code, str(message or f"HTTP {answer.status_code}"), _retry_after_s(answer))


def _retry_after_s(response: httpx.Response) -> float | None:
    """Seconds to wait; HTTP allows a number and a date."""
    text = response.headers.get("retry-after", "")
    if text.replace(".", "", 1).isdigit():
        return float(text)
    try:
        return max(0.0, (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError):
        return None
