"""The worker's part of a traced request: one segment per sampled answer, under the front's, although a queue lies between.

The trace header travels in the message. Segments are kept until the next heartbeat and sent together; a trace is worth
neither a retry nor a delay, so what cannot be sent is dropped.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable

from markserve.errors import Transient
from markserve.messages import Answer, InferenceRequest, encode
from markserve.ports import TraceSink
from markserve.telemetry import logger

LIMIT = 500
"""Segments kept between two heartbeats; beyond it a trace is left out."""


def segment(request: InferenceRequest, answer: Answer, *, name: str, new_id: Callable[[], str]) -> str | None:
    """Return a request's segment document, or None when its trace is not recorded.

    https://docs.aws.amazon.com/xray/latest/devguide/xray-api-segmentdocuments.html

    Examples
    --------
    >>> segment(InferenceRequest(request_id="r", model="m", model_version="1", arrival_at_s=0.0), Answer(request_id="r", tier="worker"),
    ...         name="worker", new_id=lambda: "0" * 16) is None
    True
    """
    header = dict(part.strip().split("=", 1) for part in (request.trace_id or "").split(";") if "=" in part)
    if header.get("Sampled") != "1" or "Root" not in header:
        return None
    started_s = answer.finished_at_s - answer.compute_s
    received_s = started_s - answer.batch_wait_s
    document = {
        "name": name,
        "id": new_id(),
        "trace_id": header["Root"],
        **({"parent_id": header["Parent"]} if "Parent" in header else {}),
        "origin": "AWS::EC2::Instance",
        "start_time": received_s,
        "end_time": answer.finished_at_s,
        "fault": answer.error is not None,
        "annotations": {
            "request_id": request.request_id,
            "model": request.model,
            "instance_id": answer.instance_id,
            "batch_size": answer.batch_size,
            "queued_s": answer.queued_s,
        },
        "subsegments": [
            {"name": "wait for batch", "id": new_id(), "start_time": received_s, "end_time": started_s},
            {"name": "compute", "id": new_id(), "start_time": started_s, "end_time": answer.finished_at_s},
        ],
    }
    return encode(document).decode()


class Tracing:
    """Collects segments, and sends them when told to. Safe to share between threads."""

    def __init__(self, sink: TraceSink | None, *, name: str, new_id: Callable[[], str] = lambda: secrets.token_hex(8)) -> None:
        self._sink = sink
        self._name = name
        self._new_id = new_id
        self._lock = threading.Lock()
        self._segments: list[str] = []

    def note(self, request: InferenceRequest, answer: Answer) -> None:
        """Keep the segment of an answered request, if its trace is recorded."""
        if self._sink is None or (document := segment(request, answer, name=self._name, new_id=self._new_id)) is None:
            return
        with self._lock:
            if len(self._segments) < LIMIT:
                self._segments.append(document)

    def flush(self) -> None:
        """Send what is kept."""
        with self._lock:
            due, self._segments = self._segments, []
        if self._sink is None or not due:
            return
        try:
            self._sink.send(due)
        except Transient as error:
            logger.warning("traces dropped: %s", error)
