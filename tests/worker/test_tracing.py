"""A sampled trace goes on behind the queue; others cost nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import count

import boto3
import pytest
from botocore.stub import Stubber

from markserve.adapters.xray import XRayTraceSink
from markserve.core.types import Tier
from markserve.errors import DependencyUnavailable
from markserve.messages import Answer
from markserve.settings import trace_header
from tests.builders import a_request
from worker.tracing import LIMIT, Tracing

ROOT = "1-65f2b6c1-0123456789abcdef01234567"
SAMPLED = f"Root={ROOT};Parent=53995c3f42cd8ad8;Sampled=1"


class MemoryTraceSink:
    def __init__(self) -> None:
        self.sent: list[list[dict[str, object]]] = []
        self.fails = False

    def send(self, segments: Sequence[str]) -> None:
        if self.fails:
            raise DependencyUnavailable("no X-Ray")
        self.sent.append([json.loads(document) for document in segments])


def an_answer() -> Answer:
    return Answer(
        request_id="r-1",
        tier=Tier.WORKER,
        instance_id="i-1",
        batch_size=4,
        queued_s=0.01,
        batch_wait_s=0.02,
        compute_s=0.05,
        finished_at_s=100.0,
    )


def a_tracing(sink: MemoryTraceSink | None) -> Tracing:
    ids = count(1)
    return Tracing(sink, name="markserve-worker", new_id=lambda: f"{next(ids):016x}")


def test_segment_hangs_below_the_fronts_and_tells_waiting_from_computing() -> None:
    sink = MemoryTraceSink()
    tracing = a_tracing(sink)

    tracing.note(a_request(request_id="r-1", trace_id=SAMPLED), an_answer())
    tracing.flush()

    ((segment,),) = sink.sent
    assert (segment["trace_id"], segment["parent_id"], segment["name"]) == (ROOT, "53995c3f42cd8ad8", "markserve-worker")
    assert (segment["start_time"], segment["end_time"]) == (pytest.approx(99.93), 100.0)
    assert segment["annotations"] == {"request_id": "r-1", "model": "digits", "instance_id": "i-1", "batch_size": 4, "queued_s": 0.01}
    waiting, computing = segment["subsegments"]  # type: ignore[misc]
    assert waiting["end_time"] == computing["start_time"] == pytest.approx(99.95)


@pytest.mark.parametrize("header", [None, "", f"Root={ROOT};Sampled=0", f"Root={ROOT}", "Sampled=1", "nonsense"])
def test_request_whose_trace_is_not_recorded_costs_no_call(header: str | None) -> None:
    sink = MemoryTraceSink()
    tracing = a_tracing(sink)

    tracing.note(a_request(trace_id=header), an_answer())
    tracing.flush()

    assert sink.sent == []


def test_traces_are_dropped_rather_than_kept_when_xray_does_not_answer_or_too_many_come() -> None:
    sink = MemoryTraceSink()
    tracing = a_tracing(sink)
    sink.fails = True
    tracing.note(a_request(trace_id=SAMPLED), an_answer())
    tracing.flush()

    sink.fails = False
    for _ in range(LIMIT + 1):
        tracing.note(a_request(trace_id=SAMPLED), an_answer())
    tracing.flush()

    assert [len(batch) for batch in sink.sent] == [LIMIT]


def test_xray_gets_at_most_fifty_segments_a_call_and_its_failure_is_transient() -> None:
    client = boto3.client("xray", region_name="us-east-1")
    with Stubber(client) as stub:
        stub.add_response("put_trace_segments", {}, {"TraceSegmentDocuments": ["{}"] * 50})
        stub.add_response("put_trace_segments", {}, {"TraceSegmentDocuments": ["{}"] * 2})
        XRayTraceSink(client).send(["{}"] * 52)
        stub.assert_no_pending_responses()
        stub.add_client_error("put_trace_segments", service_error_code="ThrottledException")
        with pytest.raises(DependencyUnavailable):
            XRayTraceSink(client).send(["{}"])


def test_front_passes_lambdas_trace_on_only_when_the_function_is_traced() -> None:
    invocation = {"_X_AMZN_TRACE_ID": SAMPLED, "AWS_LAMBDA_FUNCTION_NAME": "markserve-api"}

    assert trace_header({**invocation, "MARKSERVE_TRACING": "true"}) == SAMPLED
    assert trace_header(invocation) is None
