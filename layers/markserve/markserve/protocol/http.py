"""HTTP as API Gateway hands it over (payload format 2.0): one request in, one response out.

Decides who is calling and what they sent; must not know what the body means.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from markserve.errors import InvalidRequest, PayloadTooLarge

MAX_BODY_BYTES = 10 * 1024 * 1024
"""API Gateway's own limit; it also bounds what a compressed body may expand to."""

EPOCH_END_MS = 1e14
"""Of instants that are taken; beyond, a float no longer tells milliseconds apart."""

ANONYMOUS = "anonymous"

OPERATE_SCOPE = "markserve:operate"
"""Scope of a token (ApiAuth=jwt) whose bearer is an operator."""

_ENCODING_WBITS = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
"""HTTP's deflate is the zlib container (RFC 9110 §8.4.1.2), not a raw deflate stream."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HttpRequest:
    """One request: path segments decoded, header names in lower case, body as sent."""

    method: str
    path: str
    arrival_at_s: float
    """API Gateway's clock."""
    headers: Mapping[str, str] = field(default_factory=dict)
    raw_body: bytes = b""
    client: str = ANONYMOUS
    """Identity that results and idempotency keys are bound to."""
    over_quota: str = ""
    """Why the authoriser wants the request refused; empty when it does not."""
    retry_after_s: float = 0.0
    """When the client may try again."""
    query: Mapping[str, str] = field(default_factory=dict)
    operator: bool = False
    """Whether the caller may see and change how the system is run, not only ask it for answers."""

    @property
    def segments(self) -> tuple[str, ...]:
        """Path as its non-empty segments."""
        return tuple(segment for segment in self.path.split("/") if segment)

    def body(self) -> bytes:
        """Body with its Content-Encoding undone.

        Raises
        ------
        PayloadTooLarge
            If it is, or expands to, more than `MAX_BODY_BYTES`.
        InvalidRequest
            If the encoding is unknown or the data does not follow it.
        """
        if len(self.raw_body) > MAX_BODY_BYTES:
            raise PayloadTooLarge(f"has {len(self.raw_body)} bytes, the limit is {MAX_BODY_BYTES}", field="body")
        encoding = self.headers.get("content-encoding", "identity").strip().lower()
        if encoding in ("", "identity"):
            return self.raw_body
        if encoding not in _ENCODING_WBITS:
            raise InvalidRequest(f"{encoding[:32]!r} is not supported; use gzip or deflate", field="Content-Encoding")
        return _inflate(self.raw_body, encoding)


@dataclass(frozen=True, kw_only=True, slots=True)
class HttpResponse:
    """One response, not yet in API Gateway's form."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What the log should say about it; not sent."""

    def to_event(self) -> dict[str, Any]:
        """Convert to what API Gateway expects of a Lambda function."""
        headers = {"content-type": "application/json", **self.headers}
        if headers["content-type"].startswith(("application/json", "text/")):
            return {"statusCode": self.status, "headers": headers, "body": self.body.decode(), "isBase64Encoded": False}
        return {"statusCode": self.status, "headers": headers, "body": base64.b64encode(self.body).decode(), "isBase64Encoded": True}


def request_from_event(event: Any) -> HttpRequest:
    """Read an API Gateway event of payload format 2.0.

    Raises
    ------
    InvalidRequest
        If it is no such event.
    """
    try:
        context = event["requestContext"]
        headers = {str(name).lower(): str(value) for name, value in (event.get("headers") or {}).items()}
        return HttpRequest(
            method=str(context["http"]["method"]),
            path=_path(str(event["rawPath"]), str(context.get("stage", "$default"))),
            arrival_at_s=_instant_s(context["timeEpoch"]),
            headers=headers,
            raw_body=_body(event.get("body") or "", is_base64=bool(event.get("isBase64Encoded"))),
            client=_client(context.get("authorizer") or {}, headers),
            query={str(name): str(value) for name, value in (event.get("queryStringParameters") or {}).items()},
            operator=_is_operator(context.get("authorizer") or {}),
            **_quota((context.get("authorizer") or {}).get("lambda") or {}),
        )
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError) as error:
        raise InvalidRequest(f"not an HTTP API event of payload format 2.0: {repr(error)[:200]}", field="event") from error


def _instant_s(epoch_ms: float) -> float:
    if not 0 <= epoch_ms < EPOCH_END_MS:
        raise ValueError(f"timeEpoch {epoch_ms}")
    return epoch_ms / 1000


def _path(raw_path: str, stage: str) -> str:
    # Every stage but $default is part of the path.
    prefix = f"/{stage}/"
    path = raw_path[len(prefix) - 1 :] if raw_path.startswith(prefix) else raw_path
    return unquote(path)


def _body(text: str, *, is_base64: bool) -> bytes:
    if not is_base64:
        return text.encode()
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise InvalidRequest(f"not valid base64: {error}", field="body") from error


def _client(authorizer: Mapping[str, Any], headers: Mapping[str, str]) -> str:
    """Identity of the caller, from whatever authoriser the stage uses."""
    if iam := authorizer.get("iam"):
        return f"iam:{iam['userArn']}"
    if jwt := authorizer.get("jwt"):
        return f"jwt:{jwt['claims'].get('iss', '')}#{jwt['claims']['sub']}"
    if context := authorizer.get("lambda"):
        return f"lambda:{context['principalId']}"
    if key := headers.get("x-api-key"):
        # A stored identity must not give the key away.
        return f"key:{hashlib.sha256(key.encode()).hexdigest()[:32]}"
    return ANONYMOUS


def _is_operator(authorizer: Mapping[str, Any]) -> bool:
    """Tell whether the caller operates the system, by what the stage's authoriser says of it.

    IAM decides by itself: a policy names the methods and paths that a principal may call. Where nobody is authorised, everybody is.
    """
    if jwt := authorizer.get("jwt"):
        return OPERATE_SCOPE in str(jwt["claims"].get("scope", "")).split()
    if context := authorizer.get("lambda"):
        return bool(context.get("operator") == "true")
    return True


def _quota(context: Mapping[str, Any]) -> dict[str, Any]:
    """Read what the Lambda authoriser says of the client's quota."""
    if "retryAfterS" not in context:
        return {}
    return {"over_quota": str(context.get("reason", "quota used up")), "retry_after_s": float(context["retryAfterS"])}


def _inflate(data: bytes, encoding: str) -> bytes:
    stream = zlib.decompressobj(_ENCODING_WBITS[encoding])
    try:
        body = stream.decompress(data, MAX_BODY_BYTES + 1)
    except zlib.error as error:
        raise InvalidRequest(f"not valid {encoding} data: {error}", field="body") from error
    if len(body) > MAX_BODY_BYTES:
        raise PayloadTooLarge(f"expands to more than {MAX_BODY_BYTES} bytes", field="body")
    if not stream.eof:
        raise InvalidRequest(f"{encoding} data is cut off", field="body")
    return body
