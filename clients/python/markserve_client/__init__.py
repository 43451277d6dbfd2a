"""Client of markserve's inference API: numpy in, numpy out, retries that never compute twice."""

from __future__ import annotations

from markserve_client.clients import AsyncClient, Client
from markserve_client.codec import InferResult, Job, Model, TensorInfo
from markserve_client.errors import (
    BadRequest,
    ConnectionFailed,
    DeadlineMissed,
    MarkserveClientError,
    NotAuthorised,
    NotFound,
    Overloaded,
    ServerFailed,
    TimedOut,
)

__all__ = [
    "AsyncClient",
    "BadRequest",
    "Client",
    "ConnectionFailed",
    "DeadlineMissed",
    "InferResult",
    "Job",
    "MarkserveClientError",
    "Model",
    "NotAuthorised",
    "NotFound",
    "Overloaded",
    "ServerFailed",
    "TensorInfo",
    "TimedOut",
]
