"""The console's HTTP surface: its page, its data, and the change of a parameter.

The page holds no data and is public; data goes to operators alone. `Access-Control-*` headers are never sent, so a page of another
origin can read nothing; what a browser says about another site's request is refused as well, for stacks without authorisation.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from markserve.console_messages import ParameterChange
from markserve.console_view import Console
from markserve.errors import InvalidRequest, MarkserveError, Overloaded, StaleWrite, Transient
from markserve.messages import encode
from markserve.protocol.http import HttpRequest, HttpResponse

CONTENT_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
"""Of the page's files; nothing else is served."""
INDEX = "index.html"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
PAGE_HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    # Asked for again each time, answered 304 while it has not changed: a new release is there at once.
    "cache-control": "no-cache",
}
DATA_HEADERS = {"content-type": "application/json", "cache-control": "no-store", "x-content-type-options": "nosniff"}
MINUTES = {"5": 5, "15": 15, "60": 60}
"""Intervals that may be asked for; each is whole minutes, and one query page or two."""
DEFAULT_MINUTES = "15"
RETRY_AFTER_S = 2


@dataclass(frozen=True, slots=True)
class Page:
    """One static file."""

    body: bytes
    content_type: str

    @property
    def etag(self) -> str:
        """Name of this content."""
        return f'"{hashlib.sha256(self.body).hexdigest()[:16]}"'


def respond(request: HttpRequest, *, console: Callable[[], Console], pages: Mapping[str, Page]) -> HttpResponse:
    """Answer one request of the console; `console` is not made for static files."""
    try:
        if request.segments[:1] == ("console",):
            return _static(request, pages)
        _refuse_strangers(request)
        if request.over_quota:
            raise Overloaded(request.over_quota, retry_after_s=max(1.0, request.retry_after_s))
        if not request.operator:
            message = "this caller is no operator: the console's data is for operators alone (docs/console.md says how to become one)"
            return _failed(403, message)
        return _data(request, console())
    except Overloaded as error:
        return replace(_failed(error.status, str(error)), headers={**DATA_HEADERS, "retry-after": f"{error.retry_after_s:.0f}"})
    except InvalidRequest as error:
        return _failed(error.status, str(error))
    except StaleWrite as error:
        return _failed(409, str(error))
    except Transient as error:
        response = _failed(503, "a service this depends on does not answer; try again")
        return replace(response, headers={**response.headers, "retry-after": str(RETRY_AFTER_S)}, facts={"reason": str(error)})
    except MarkserveError as error:
        return replace(_failed(500, "internal error"), facts={"reason": f"{type(error).__name__}: {error}"})


def _static(request: HttpRequest, pages: Mapping[str, Page]) -> HttpResponse:
    name = INDEX if len(request.segments) == 1 else request.segments[-1]
    if request.path.endswith("/"):
        # Relative links of the page start from `/console`, without the slash.
        return HttpResponse(status=308, headers={"content-type": "text/plain", "location": "../console"})
    page = pages.get(name) if len(request.segments) <= 2 else None
    if page is None:
        return replace(_failed(404, f"no such file: {request.path[:200]}"), headers={**PAGE_HEADERS, "content-type": "application/json"})
    headers = {**PAGE_HEADERS, "etag": page.etag, "content-type": page.content_type}
    if page.etag in request.headers.get("if-none-match", ""):
        return HttpResponse(status=304, headers=headers)
    return HttpResponse(status=200, body=page.body, headers=headers)


def _refuse_strangers(request: HttpRequest) -> None:
    """Refuse what a browser sends for another site's page: without authorisation that page could change parameters."""
    if request.headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
        raise InvalidRequest("requests of other sites' pages are not answered", field="Sec-Fetch-Site")


def _data(request: HttpRequest, console: Console) -> HttpResponse:
    query, rest = request.query, request.segments[2:]
    model = query.get("model") or None
    match (request.method, *rest):
        case ("GET", "overview"):
            return _ok(console.overview(model, minutes=_minutes(query)))
        case ("GET", "decisions"):
            return _ok(console.decisions(minutes=_minutes(query)))
        case ("GET", "parameters"):
            return _ok(console.parameters(model))
        case ("PUT", "parameters", str(name)):
            changed = console.set_parameter(name, _change(request), by=request.client)
            audit = {"audit": "parameter_set", "parameter": name, "model": changed.model}
            return replace(_ok(changed), facts={**audit, "by": changed.by, "old": changed.old, "new": changed.new})
    return _failed(404, f"no such path: {request.path[:200]}")


def _minutes(query: Mapping[str, str]) -> int:
    text = query.get("minutes", DEFAULT_MINUTES)
    if text not in MINUTES:
        raise InvalidRequest(f"{text[:20]!r} is not offered; use {', '.join(MINUTES)}", field="minutes")
    return MINUTES[text]


def _change(request: HttpRequest) -> ParameterChange:
    if not request.headers.get("content-type", "").startswith("application/json"):
        raise InvalidRequest("must be application/json", field="Content-Type")
    try:
        return msgspec.json.decode(request.body(), type=ParameterChange)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise InvalidRequest(f'not a change such as {{"value": "0.5"}}: {error}', field="body") from error


def _ok(content: Any) -> HttpResponse:
    return HttpResponse(status=200, body=encode(content), headers=DATA_HEADERS)


def _failed(status: int, message: str) -> HttpResponse:
    return HttpResponse(status=status, body=encode({"error": message}), headers=DATA_HEADERS, facts={"reason": message})
