"""Every failure the client raises.

MarkserveClientError
├── BadRequest        4xx: the request cannot be served as sent
│   ├── NotAuthorised 401, 403
│   └── NotFound      404: no such model, version or request
├── Overloaded        429, 503: nothing was accepted; `retry_after_s` says when to come again
├── DeadlineMissed    504: accepted, and not answered in time
├── ServerFailed      other 5xx, or an answer that is none
├── ConnectionFailed  no answer at all
└── TimedOut          the call's own `timeout_s` is used up
"""

from __future__ import annotations


class MarkserveClientError(Exception):
    """Base of every error raised here; `status` is HTTP's, 0 where there was no answer."""

    def __init__(self, message: str, *, status: int = 0, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after_s = retry_after_s


class BadRequest(MarkserveClientError):
    """The request cannot be served as sent; trying again does not help."""


class NotAuthorised(BadRequest):
    """Credentials are missing, unknown or not enough."""


class NotFound(BadRequest):
    """There is no such model, version or request."""


class Overloaded(MarkserveClientError):
    """Nothing was accepted; come again after `retry_after_s`."""


class DeadlineMissed(MarkserveClientError):
    """The request was accepted and not answered in time."""


class ServerFailed(MarkserveClientError):
    """The server, or the model, failed on this request."""


class ConnectionFailed(MarkserveClientError):
    """The server could not be reached, or the connection broke."""


class TimedOut(MarkserveClientError):
    """The call's own time is used up."""


_BY_STATUS: dict[int, type[MarkserveClientError]] = {
    401: NotAuthorised,
    403: NotAuthorised,
    404: NotFound,
    429: Overloaded,
    503: Overloaded,
    504: DeadlineMissed,
}


def error_for(status: int, message: str, retry_after_s: float | None) -> MarkserveClientError:
    """Return the error that an answer's status stands for."""
    kind = _BY_STATUS.get(status, BadRequest if 400 <= status < 500 else ServerFailed)
    return kind(message, status=status, retry_after_s=retry_after_s)
