"""Every failure this system raises on purpose; the class says what to do next.

MarkserveError
├── InvalidRequest          the caller's fault: answer with `status`, never retry
│   ├── UnknownModel        404
│   ├── PayloadTooLarge     413
│   └── IdempotencyMismatch 422: the key was used with another body
├── Overloaded              429/503 with `retry_after_s`: nothing was accepted
├── InferenceFailed         the model raised on this request's own input
├── InfeasibleSlo           no batch or plan can meet the objective: alarm
├── ConfigurationError      fail at start, naming all problems at once
│   ├── CredentialsRefused  there are none, or AWS does not accept them
│   └── PermissionDenied    they are good, and do not allow this call
├── Transient               retry is right; handlers re-raise it
│   ├── Throttled
│   └── DependencyUnavailable
├── CapacityUnavailable     this offering is dry: mark it, re-plan or spill
├── StaleWrite              somebody wrote first: re-read, then decide again
└── InvariantViolated       a bug: alarm
"""

from __future__ import annotations


class MarkserveError(Exception):
    """Base of every error raised on purpose here."""


class InvalidRequest(MarkserveError):
    """The request cannot be served as sent; `field` names what is wrong."""

    status = 400

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message if field is None else f"{field}: {message}")
        self.field = field


class UnknownModel(InvalidRequest):
    """No such model, or no such version of it."""

    status = 404


class PayloadTooLarge(InvalidRequest):
    """The body exceeds what the endpoint accepts."""

    status = 413


class IdempotencyMismatch(InvalidRequest):
    """An idempotency key came back with a different body."""

    status = 422


class Overloaded(MarkserveError):
    """Nothing was accepted; the caller may try again after `retry_after_s`."""

    def __init__(self, message: str, *, retry_after_s: float, status: int = 429) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.status = status


class InferenceFailed(MarkserveError):
    """The model raised while computing this request's answer."""


class InfeasibleSlo(MarkserveError):
    """No batch size, or no offering, can meet the latency objective."""


class ConfigurationError(MarkserveError):
    """Settings or parameters are missing or out of bounds; lists all problems."""


class CredentialsRefused(ConfigurationError):
    """AWS was not called for lack of credentials, or did not accept those it got."""


class PermissionDenied(ConfigurationError):
    """The credentials are good, but do not allow this call."""


class Transient(MarkserveError):
    """A dependency failed in a way that a retry may mend."""


class Throttled(Transient):
    """A dependency asked us to slow down."""


class DependencyUnavailable(Transient):
    """A dependency did not answer, or answered with a server error."""


class CapacityUnavailable(MarkserveError):
    """The cloud has no capacity for one offering right now."""

    def __init__(self, message: str, *, instance_type: str, capacity_type: str, zone: str | None = None) -> None:
        super().__init__(message)
        self.instance_type = instance_type
        self.capacity_type = capacity_type
        self.zone = zone


class StaleWrite(MarkserveError):
    """A conditional write lost: somebody wrote first."""


class InvariantViolated(MarkserveError):
    """Something that must never happen did: a bug."""
