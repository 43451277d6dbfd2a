"""The front door, fed API Gateway events with bodies that real clients write, on ports in memory and a manual clock."""

from __future__ import annotations

import base64
import gzip
import heapq
import itertools
import json
import zlib
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
import msgspec
import numpy as np
import pytest
from botocore.awsrequest import AWSPreparedRequest, AWSResponse
from botocore.config import Config
from botocore.exceptions import ClientError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput, InferResult

from functions.api.app import handler, run
from markserve import wiring
from markserve.adapters.memory import (
    MemoryBlobStore,
    MemoryInstanceRegistry,
    MemoryMetricsSink,
    MemoryModelStore,
    MemoryParameterSource,
    MemoryResultStore,
    MemorySpilloverInvoker,
    MemoryWorkQueue,
)
from markserve.core.tunables import Tunables
from markserve.core.types import Tier
from markserve.errors import ConfigurationError, DependencyUnavailable, Throttled
from markserve.front import Front, FrontPorts
from markserve.messages import Answer, AnswerError, InferenceRequest, StoredResult, Tensor
from markserve.payloads import offload_outputs
from markserve.protocol import oip
from tests.builders import MODEL, NOW_S, a_model_record, a_profile, an_instance, profile_records, worker_stats
from worker.mailbox import RESULT_RETENTION_S

INFER = f"/v2/models/{MODEL}/infer"
KEYED = {"Idempotency-Key": "order-1"}
UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
EVENTS = Path(__file__).parents[2] / "events"


class ManualClock:
    """Time that passes in `sleep` only, running what is due on the way."""

    def __init__(self) -> None:
        self.now_s = NOW_S
        self._due: list[tuple[float, int, Callable[[], object]]] = []
        self._sequence = itertools.count()

    def __call__(self) -> float:
        return self.now_s

    def after(self, delay_s: float, action: Callable[[], object]) -> None:
        heapq.heappush(self._due, (self.now_s + delay_s, next(self._sequence), action))

    def sleep(self, duration_s: float) -> None:
        until_s = self.now_s + duration_s
        while self._due and self._due[0][0] <= until_s:
            self.now_s, _, action = heapq.heappop(self._due)
            action()
        self.now_s = max(self.now_s, until_s)  # what ran on the way may have slept longer


class World:
    """One front and everything around it.

    `worker_takes_s` is how long after a send the worker's answer is in the results table; None: never.
    """

    def __init__(
        self,
        *,
        worker_takes_s: float | None = 0.05,
        spill_takes_s: float = 0.03,
        instances: int = 1,
        spill_limit: int | None = None,
        spill_failure: Exception | None = None,
        results: MemoryResultStore | None = None,
        queue_faults: Mapping[str, Exception] | None = None,
        **tunables: Any,
    ) -> None:
        self.clock = ManualClock()
        self.worker_takes_s = worker_takes_s
        self.spill_takes_s = spill_takes_s
        self.sent: list[InferenceRequest] = []
        self.results = results or MemoryResultStore()
        # So fast that time for spilling costs it hardly any rate.
        fast = {"c5.large": profile_records(a_profile({1: 0.002, 8: 0.004}))}
        self.models = MemoryModelStore(a_model_record(profiles={**a_model_record().profiles, **fast}))
        self.instances = MemoryInstanceRegistry(*[an_instance(instance_id=f"i-{n}") for n in range(instances)])
        self.spillover = MemorySpilloverInvoker(self._on_lambda, max_concurrency=spill_limit, failure=spill_failure)
        self.parameters = MemoryParameterSource(Tunables(rt_max_s=0.2, **tunables))
        self.metrics = MemoryMetricsSink()
        self.blobs = MemoryBlobStore()
        self.worker_wrote: list[bool] = []
        self._queue_faults = queue_faults or {}
        self._ids = itertools.count(1)
        self.front = self.new_front()

    def new_front(self) -> Front:
        """Another environment of the same function."""
        ports = FrontPorts(
            models=self.models,
            results=self.results,
            instances=self.instances,
            work_queue=lambda _: _Observed(self, faults=self._queue_faults),
            spillover=self.spillover,
            parameters=self.parameters,
            metrics=self.metrics,
            blobs=self.blobs,
        )
        return Front(
            ports, window_s=5.0, heartbeat_timeout_s=15.0, now_s=self.clock, sleep=self.clock.sleep, new_id=lambda: f"id-{next(self._ids)}"
        )

    def on_worker(self, request: InferenceRequest) -> None:
        self.sent.append(request)
        if self.worker_takes_s is None:
            return
        finished_at_s = self.clock() + self.worker_takes_s
        self.clock.after(self.worker_takes_s, lambda: self.worker_answers(request, finished_at_s=finished_at_s))

    def worker_answers(self, request: InferenceRequest, *, finished_at_s: float) -> None:
        answer = self.answer(request, Tier.WORKER, finished_at_s=finished_at_s, batch_size=4)
        expires_at_s = self.clock() + RESULT_RETENTION_S
        self.worker_wrote.append(self.results.put_answer(answer, expires_at_s=expires_at_s, accepted_as=request.body_sha256))

    def _on_lambda(self, request: InferenceRequest) -> Answer:
        self.clock.sleep(self.spill_takes_s)
        return self.answer(request, Tier.LAMBDA, finished_at_s=self.clock())

    def answer(self, request: InferenceRequest, tier: Tier, **fields: Any) -> Answer:
        """Scores that tell who computed them, and for which input."""
        image = np.frombuffer(request.inputs[0].data, np.float32).reshape(request.inputs[0].shape[0], -1)
        scores = np.tile(np.arange(10, dtype=np.float32), (len(image), 1)) + image[:, :1] + (100 if tier is Tier.LAMBDA else 0)
        name = self.models.get(request.model).outputs[0].name
        output = Tensor(name=name, datatype="FP32", shape=scores.shape, data=scores.astype(np.float32).tobytes())
        answer = Answer(
            request_id=request.request_id, tier=tier, outputs=(output,), queued_s=0.01, batch_wait_s=0.02, compute_s=0.015, **fields
        )
        return offload_outputs(answer, self.blobs)

    def ask(self, event: Mapping[str, Any], *, front: Front | None = None) -> Reply:
        event = {**event, "requestContext": {**event["requestContext"], "timeEpoch": self.clock() * 1000}}
        return Reply(run(event, front=front or self.front, now_s=self.clock, sleep=self.clock.sleep))

    def get(self, path: str, **options: Any) -> Reply:
        return self.ask(an_event(path, method="GET", **options))

    def infer(self, **options: Any) -> Reply:
        return self.ask(a_triton_event(**options))


class _Observed(MemoryWorkQueue):
    def __init__(self, world: World, **options: Any) -> None:
        super().__init__(now=world.clock, **options)
        self._world = world

    def send(self, request: InferenceRequest) -> None:
        super().send(request)
        self._world.on_worker(request)


class Reply:
    """A response as the client sees it."""

    def __init__(self, event: dict[str, Any]) -> None:
        self.status: int = event["statusCode"]
        self.headers: dict[str, str] = event["headers"]
        self.body: bytes = base64.b64decode(event["body"]) if event["isBase64Encoded"] else event["body"].encode()

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        return str(self.json["error"])

    @property
    def tier(self) -> str:
        return self.headers["x-markserve-tier"]

    def triton(self) -> InferResult:
        size = self.headers.get(oip.HEADER_LENGTH)
        return InferenceServerClient.parse_response_body(self.body, header_length=size and int(size))

    def scores(self) -> list[list[float]]:
        values: list[list[float]] = self.triton().as_numpy("scores").tolist()
        return values


def an_event(
    path: str,
    *,
    method: str = "POST",
    body: bytes = b"",
    headers: Mapping[str, str] | None = None,
    client: str | None = None,
    stage: str = "$default",
) -> dict[str, Any]:
    context: dict[str, Any] = {"http": {"method": method, "path": path}, "stage": stage, "timeEpoch": NOW_S * 1000}
    if client is not None:
        context["authorizer"] = {"iam": {"userArn": client}}
    return {
        "version": "2.0",
        "rawPath": path,
        "headers": dict(headers or {}),
        "requestContext": context,
        "body": base64.b64encode(body).decode(),
        "isBase64Encoded": True,
    }


def an_image(first: float = 0.0, rows: int = 1) -> np.ndarray:
    image = np.zeros((rows, 64), np.float32)
    image[:, 0] = first
    return image


def a_triton_event(
    *,
    image: np.ndarray | None = None,
    binary: bool = True,
    path: str = INFER,
    headers: Mapping[str, str] | None = None,
    client: str | None = None,
    **options: Any,
) -> dict[str, Any]:
    image = an_image() if image is None else image
    tensor = InferInput("image", list(image.shape), "FP32").set_data_from_numpy(image, binary_data=binary)
    body, json_size = InferenceServerClient.generate_request_body([tensor], **options)
    size = {} if json_size is None else {"Inference-Header-Content-Length": str(json_size)}
    return an_event(path, body=body, headers={**size, **(headers or {})}, client=client)


# --- answers ----------------------------------------------------------------------------------------------


def test_tritonclient_gets_the_workers_answer_when_it_sends_its_defaults() -> None:
    world = World()

    reply = world.infer(image=an_image(5.0), request_id="mine")

    assert (reply.status, reply.tier, reply.headers["x-markserve-request-id"]) == (200, "worker", "id-1")
    assert reply.scores() == [[float(n + 5) for n in range(10)]]
    assert reply.triton().get_response()["id"] == "mine"
    assert world.spillover.invoked == []


def test_tritonclient_gets_json_when_it_asks_for_it() -> None:
    reply = World().infer(image=an_image(5.0), binary=False, outputs=[InferRequestedOutput("scores", binary_data=False)])

    assert reply.headers["content-type"] == "application/json"
    assert reply.json["outputs"][0]["data"] == [float(n + 5) for n in range(10)]


@pytest.mark.parametrize(("encoding", "compress"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_compressed_request_is_answered(encoding: str, compress: Callable[[bytes], bytes]) -> None:
    event = a_triton_event(headers={"Content-Encoding": encoding})
    event["body"] = base64.b64encode(compress(base64.b64decode(event["body"]))).decode()

    assert World().ask(event).status == 200


def test_message_carries_deadline_and_spill_time_of_the_arrival() -> None:
    world = World()

    world.infer()

    # Profiled p99 on Lambda 44 ms + 50 ms for the invocation + 10 ms margin.
    (sent,) = world.sent
    assert sent.deadline_at_s == pytest.approx(NOW_S + 0.2)
    assert sent.spill_at_s == pytest.approx(NOW_S + 0.2 - 0.094 - 0.01)
    assert (sent.model_version, sent.reply_overhead_s) == ("1", 0.02)


def test_server_timing_says_where_the_time_went() -> None:
    reply = World(worker_takes_s=0.07).infer()

    # First look at the predicted completion: 10 ms transport + 50 ms batch + 20 ms reply; the answer waited 10 ms for it.
    assert reply.headers["server-timing"] == "front;dur=0.0, queue;dur=10.0, batch;dur=20.0, compute;dur=15.0, reply;dur=10.0"
    assert reply.headers["x-markserve-batch-size"] == "4"


def test_front_looks_earlier_when_it_has_learnt_how_long_workers_take() -> None:
    world = World(worker_takes_s=0.02)
    first = world.clock()
    world.infer()
    taken_at_first_s, second = world.clock() - first, world.clock()

    world.infer()

    assert (taken_at_first_s, world.clock() - second) == (pytest.approx(0.08), pytest.approx(0.02))


def test_large_inputs_travel_by_reference() -> None:
    world = World()
    record = a_model_record()
    wide = msgspec.structs.replace(record.inputs[0], shape=(-1, 200_000))
    world.models.put(msgspec.structs.replace(record, inputs=(wide,)))
    image = np.zeros((1, 200_000), np.float32)
    world.worker_takes_s = None

    reply = world.infer(image=image)

    (sent,) = world.sent
    assert (sent.inputs, sent.inputs_ref) == ((), "payloads/id-1/inputs")
    assert msgspec.msgpack.decode(world.blobs.get("payloads/id-1/inputs"), type=tuple[Tensor, ...])[0].data == image.tobytes()
    assert reply.status == 500  # the spillover function of this test looks at inline inputs only


def test_large_outputs_come_back_from_where_they_were_put() -> None:
    world = World()
    scores = np.arange(100_000, dtype=np.float32).reshape(1, -1)
    output = Tensor(name="scores", datatype="FP32", shape=scores.shape, data=scores.tobytes())
    answer = offload_outputs(Answer(request_id="id-1", tier=Tier.WORKER, outputs=(output,), finished_at_s=NOW_S), world.blobs)
    world.results.put_answer(answer, expires_at_s=NOW_S + 60)

    reply = world.infer()

    assert answer.outputs == ()
    np.testing.assert_array_equal(reply.triton().as_numpy("scores"), scores)


def test_a_models_own_failure_is_an_error_of_that_request_only() -> None:
    world = World(worker_takes_s=None)
    failed = Answer(request_id="id-1", tier=Tier.WORKER, error=AnswerError(status=500, message="the model raised ValueError: no"))
    world.clock.after(0.01, lambda: world.results.put_answer(failed, expires_at_s=NOW_S + 60))

    reply = world.infer()

    assert (reply.status, reply.error, reply.tier) == (500, "the model raised ValueError: no", "worker")


# --- spilling ---------------------------------------------------------------------------------------------


def test_request_is_spilled_at_once_when_no_worker_serves() -> None:
    world = World(instances=0)

    reply = world.infer(image=an_image(5.0))

    assert (reply.status, reply.tier, world.sent) == (200, "lambda", [])
    assert reply.scores() == [[float(n + 105) for n in range(10)]]
    assert reply.headers["x-markserve-reason"] == "spilled: no worker serves"


def test_request_is_spilled_in_time_when_the_worker_is_late() -> None:
    world = World(worker_takes_s=0.5)

    reply = world.infer()

    assert (reply.status, reply.tier, reply.scores()[0][0]) == (200, "lambda", 100.0)
    assert world.clock() == pytest.approx(NOW_S + 0.2 - 0.104 + 0.03)
    assert reply.headers["x-markserve-reason"] == "spilled: no worker had answered 0.104 s before the deadline"


def test_the_workers_late_answer_is_refused_when_the_request_was_spilled() -> None:
    world = World(worker_takes_s=0.5)
    world.infer()

    world.clock.sleep(1.0)

    stored = world.results.get("id-1")
    assert world.worker_wrote == [False]
    assert stored is not None
    assert stored.answer is not None
    assert stored.answer.tier is Tier.LAMBDA


def test_the_workers_answer_is_returned_when_it_came_while_lambda_computed() -> None:
    # The last poll is 96 ms after arrival; the worker answers at 110 ms, Lambda at 126 ms.
    world = World(worker_takes_s=0.11)

    reply = world.infer()

    assert len(world.spillover.invoked) == 1
    assert world.worker_wrote == [True]
    assert (reply.tier, reply.scores()[0][0]) == ("worker", 0.0)


@UNHURRIED
@given(worker_takes_s=st.none() | st.floats(0.0, 1.5), spill_takes_s=st.floats(0.0, 0.3), spilling=st.booleans(), keyed=st.booleans())
def test_client_gets_the_one_answer_whoever_is_first(
    worker_takes_s: float | None, spill_takes_s: float, spilling: bool, keyed: bool
) -> None:
    world = World(worker_takes_s=worker_takes_s, spill_takes_s=spill_takes_s, spillover_max_concurrency=int(spilling))

    reply = world.infer(headers=KEYED if keyed else {})
    world.clock.sleep(5.0)

    stored = world.results.get(reply.headers["x-markserve-request-id"])
    assert stored is not None
    if keyed and reply.status == 504:
        return  # a failure of the system's own is not kept under a key: the retry may do better
    assert stored.answer is not None
    assert (reply.tier, reply.status) == (stored.answer.tier, stored.answer.error.status if stored.answer.error else 200)
    assert world.worker_wrote in ([], [stored.answer.tier is Tier.WORKER and stored.answer.error is None])


def test_version_that_workers_have_not_loaded_is_spilled_so_that_nobody_waits_for_a_load() -> None:
    world = World()
    world.models.put(a_model_record(version="2"))

    reply = world.ask(a_triton_event(path=f"/v2/models/{MODEL}/versions/1/infer"))

    assert (reply.status, reply.tier, reply.triton().get_response()["model_version"]) == (200, "lambda", "1")
    assert reply.headers["x-markserve-reason"] == "spilled: not every worker has loaded version 1"


def test_request_is_spilled_when_the_queue_does_not_take_it() -> None:
    world = World(queue_faults={"send": DependencyUnavailable("the queue does not answer")})

    reply = world.infer()

    assert (reply.status, reply.tier) == (200, "lambda")
    assert reply.headers["x-markserve-reason"] == "spilled: the work queue did not take it: the queue does not answer"


def test_front_waits_for_the_worker_when_spilling_is_throttled() -> None:
    world = World(worker_takes_s=0.15, spill_limit=0)

    reply = world.infer()

    assert (reply.status, reply.tier) == (200, "worker")


@pytest.mark.parametrize(
    ("options", "status", "error"),
    [
        ({"spill_limit": 0}, 503, "no answer within 1.200 s: workers and spill-over are at their limits"),
        ({"spill_failure": DependencyUnavailable("crashed")}, 503, "no answer within 1.200 s: workers were late and spill-over failed"),
        ({"spill_failure": ConfigurationError("no right")}, 503, "no answer within 1.200 s: workers were late and spill-over failed"),
        ({"spillover_max_concurrency": 0}, 504, "no answer within 1.200 s, and spill-over is off"),
    ],
)
def test_request_ends_in_an_explicit_error_when_nobody_answers(options: dict[str, Any], status: int, error: str) -> None:
    world = World(worker_takes_s=None, **options)

    reply = world.infer()

    stored = world.results.get("id-1")
    assert (reply.status, reply.error) == (status, error)
    assert reply.headers.get("retry-after") == ("1" if status == 503 else None)
    # It is the one answer: a worker that finishes now is refused.
    assert stored is not None
    assert stored.answer is not None
    assert stored.answer.error == AnswerError(status=status, message=error)


def test_late_answer_is_still_given_when_spilling_is_off() -> None:
    reply = World(worker_takes_s=0.6, spillover_max_concurrency=0).infer()

    assert (reply.status, reply.tier, reply.headers["x-markserve-reason"]) == (200, "worker", "answered late by a worker")


@pytest.mark.parametrize(
    ("instances", "status", "reason"), [(0, 503, "rejected: no worker serves or is starting, and spill-over is off"), (1, 429, "rejected:")]
)
def test_request_is_rejected_with_a_time_to_retry_when_nobody_can_serve_it(instances: int, status: int, reason: str) -> None:
    world = World(instances=instances, spillover_max_concurrency=0)
    if instances:
        world.instances.heartbeat("i-0", at_s=NOW_S, stats=worker_stats(queue_depth=500))

    reply = world.infer()

    assert reply.status == status
    assert reply.error.startswith(reason)
    assert int(reply.headers["retry-after"]) >= 1
    assert (world.sent, world.results.get("id-1")) == ([], None)


@pytest.mark.parametrize(("can_spill", "turned_away"), [(True, 8), (False, 0)])
def test_requests_are_spilled_at_arrival_when_more_is_admitted_than_workers_can_use(can_spill: bool, turned_away: int) -> None:
    """T(1) is so long that no time is set aside; the heartbeats say that 100 rps enter what can use a few."""
    world = World(**({} if can_spill else {"spillover_max_concurrency": 0}))
    slow = a_model_record(profiles={**a_model_record().profiles, "c5.large": profile_records(a_profile({1: 0.08, 2: 0.16}))})
    world.models = MemoryModelStore(slow)
    front = world.new_front()
    reasons = []
    for second in range(12):
        stats = worker_stats(service_rate_rps=12.5, batch_latency_s=0.08, completed=12 * second, dropped=88 * second)
        world.instances.heartbeat("i-0", at_s=world.clock(), stats=stats)
        reasons.append(world.ask(a_triton_event(), front=front).headers["x-markserve-reason"])
        world.clock.sleep(2.0)

    assert sum(reason.startswith("spilled at arrival: ") for reason in reasons) >= turned_away
    assert not reasons[0].startswith("spilled")
    assert len(world.sent) >= (1 if can_spill else 12)


class FlakyResults(MemoryResultStore):
    """Results whose first reads fail."""

    def __init__(self, failures: int) -> None:
        super().__init__()
        self.failures = failures

    def get(self, request_id: str) -> StoredResult | None:
        self.failures -= 1
        if self.failures >= 0:
            raise Throttled("results: throttled")
        return super().get(request_id)


def test_front_polls_on_when_a_read_fails() -> None:
    assert World(results=FlakyResults(1)).infer().tier == "worker"


# --- idempotency ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("headers", "is_recorded"), [({}, False), (KEYED, True), ({"Prefer": "respond-async"}, True)])
def test_message_says_whether_whoever_answers_it_finds_a_record(headers: dict[str, str], is_recorded: bool) -> None:
    world = World()
    told: list[tuple[bool, bool]] = []

    def on_worker(request: InferenceRequest) -> None:
        stored = world.results.get(request.request_id)
        told.append((bool(request.body_sha256), stored is not None))
        assert stored is None or stored.body_sha256 == request.body_sha256

    world.on_worker = on_worker  # type: ignore[method-assign]

    world.infer(headers=headers)

    assert told == [(is_recorded, is_recorded)]


def test_retry_gets_the_first_answer_when_it_repeats_key_and_body() -> None:
    world = World()
    first = world.infer(headers=KEYED)

    again = world.ask(a_triton_event(headers=KEYED), front=world.new_front())

    assert (again.status, again.body, len(world.sent)) == (200, first.body, 1)
    assert again.headers["x-markserve-request-id"] == first.headers["x-markserve-request-id"]


def test_retry_is_refused_when_the_body_differs() -> None:
    world = World()
    world.infer(headers=KEYED)

    reply = world.infer(image=an_image(1.0), headers=KEYED)

    assert (reply.status, reply.error) == (422, "Idempotency-Key: was used with a different request")


def test_same_key_is_another_request_when_the_client_differs() -> None:
    world = World()
    mine = world.infer(headers=KEYED, client="arn:alice")

    other = world.infer(image=an_image(1.0), headers=KEYED, client="arn:bob")

    assert other.scores()[0][0] == 1.0
    assert mine.headers["x-markserve-request-id"] != other.headers["x-markserve-request-id"]


def test_retry_waits_for_the_first_attempt_when_it_is_under_way() -> None:
    world = World(worker_takes_s=0.09)
    replies: list[Reply] = []
    other = world.new_front()
    world.clock.after(0.01, lambda: replies.append(world.ask(a_triton_event(headers=KEYED), front=other)))

    replies.append(world.infer(headers=KEYED))

    assert [reply.tier for reply in replies] == ["worker", "worker"]
    assert len(world.sent) == 1


def test_retry_takes_over_when_the_first_attempt_went_unanswered() -> None:
    world = World(worker_takes_s=None, spill_limit=0)
    failed = world.infer(headers=KEYED)
    world.worker_takes_s = 0.05
    world.clock.sleep(5.0)
    world.instances.heartbeat("i-0", at_s=world.clock(), stats=worker_stats())

    again = world.infer(headers=KEYED)

    assert (failed.status, again.status) == (503, 200)
    assert len({request.request_id for request in world.sent}) == 1


def test_message_of_a_key_s_former_use_does_not_answer_what_it_is_used_for_now() -> None:
    """A dead letter that is driven back after the day for which a key is kept: the id is the same, the body is not."""
    world = World(worker_takes_s=None, spill_limit=0)
    world.infer(image=an_image(1.0), headers={**KEYED, **ASYNC})
    world.results = MemoryResultStore()
    world.front = world.new_front()
    location = world.infer(image=an_image(2.0), headers={**KEYED, **ASYNC}).headers["location"]
    former, latest = world.sent

    world.worker_answers(former, finished_at_s=world.clock())
    assert world.get(location).status == 202
    world.worker_answers(latest, finished_at_s=world.clock())

    assert former.request_id == latest.request_id
    assert world.get(location).scores()[0][0] == 2.0


def test_rejected_request_leaves_nothing_under_its_key() -> None:
    world = World(instances=0, spillover_max_concurrency=0)
    rejected = world.infer(headers=KEYED)
    world.parameters.tunables = Tunables(rt_max_s=0.2)

    assert (rejected.status, world.infer(headers=KEYED).status) == (503, 200)


@pytest.mark.parametrize("key", ["", "k" * 256])
def test_key_of_a_wrong_length_is_refused(key: str) -> None:
    reply = World().infer(headers={"Idempotency-Key": key})

    assert (reply.status, reply.error) == (400, "Idempotency-Key: must have 1 to 255 characters")


# --- async ------------------------------------------------------------------------------------------------

ASYNC = {"Prefer": "respond-async"}


def test_async_request_is_accepted_and_fetched_by_its_client() -> None:
    world = World(worker_takes_s=3.0)

    accepted = world.infer(image=an_image(5.0), headers=ASYNC, client="arn:alice")
    pending = world.get(accepted.headers["location"], client="arn:alice")
    world.clock.sleep(3.0)
    done = world.get(accepted.headers["location"], client="arn:alice")

    assert (accepted.status, accepted.headers["location"], world.sent[0].deadline_at_s) == (202, "/v2/requests/id-1", None)
    assert (pending.status, pending.json["status"]) == (202, "pending")
    assert (done.status, done.scores(), done.json["model_name"]) == (200, [[float(n + 5) for n in range(10)]], MODEL)


def test_async_result_comes_in_binary_when_asked_for() -> None:
    world = World()
    location = world.infer(headers=ASYNC).headers["location"]
    world.clock.sleep(1.0)

    reply = world.get(location, headers={"Accept": "application/octet-stream"})

    assert reply.headers["content-type"] == "application/octet-stream"
    assert reply.scores()[0][1] == 1.0


def test_async_result_is_not_found_when_another_client_asks() -> None:
    world = World()
    location = world.infer(headers=ASYNC, client="arn:alice").headers["location"]
    world.clock.sleep(1.0)

    assert world.get(location, client="arn:bob").status == 404
    assert world.get(location).status == 404


def test_answer_of_a_synchronous_request_cannot_be_fetched() -> None:
    world = World()
    world.infer()

    assert world.get("/v2/requests/id-1").status == 404


def test_async_request_is_accepted_when_no_worker_serves() -> None:
    world = World(instances=0, worker_takes_s=None)

    assert (world.infer(headers=ASYNC).status, len(world.sent), world.spillover.invoked) == (202, 1, [])


def test_async_retry_is_sent_again_under_the_same_id_since_the_first_may_never_have_been() -> None:
    world = World(worker_takes_s=None)

    replies = [world.infer(headers={**ASYNC, **KEYED}) for _ in range(2)]

    assert [reply.status for reply in replies] == [202, 202]
    assert len({request.request_id for request in world.sent}) == 1


def test_async_request_is_not_accepted_when_the_queue_does_not_take_it() -> None:
    reply = World(queue_faults={"send": Throttled("slow down")}).infer(headers=ASYNC)

    assert (reply.status, reply.error, reply.headers["retry-after"]) == (503, "not accepted: slow down", "1")


# --- bad input and other paths ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body", "status", "error"),
    [
        ("/v2/models/none/infer", b"{}", 404, "model: no model 'none'"),
        (f"/v2/models/{MODEL}/versions/9/infer", b"{}", 404, f"model: no version '9' of model '{MODEL}'"),
        (INFER, b"{", 400, "body: not valid JSON: Input data was truncated"),
        (INFER, b'{"inputs": []}', 400, "inputs: missing 'image'"),
        (INFER, b" " * (10 * 1024 * 1024 + 1), 413, "body: has 10485761 bytes, the limit is 10485760"),
        ("/v1/models", b"", 404, "no such path: /v1/models"),
        ("/v2", b"", 405, "POST is not allowed here; use GET"),
        (f"/v2/models/{'m' * 3000}/infer", b"", 404, f"no such path: /v2/models/{'m' * 189}"),
    ],
)
def test_error_names_field_and_reason(path: str, body: bytes, status: int, error: str) -> None:
    world = World()

    reply = world.ask(an_event(path, body=body))

    assert (reply.status, reply.json, world.sent) == (status, {"error": error}, [])


@pytest.mark.parametrize(
    ("encoding", "body", "status", "error"),
    [
        ("gzip", gzip.compress(b" " * (11 * 1024 * 1024), mtime=0), 413, "body: expands to more than 10485760 bytes"),
        ("gzip", b"nonsense", 400, "body: not valid gzip data: Error -3 while decompressing data: incorrect header check"),
        ("gzip", gzip.compress(b"{}", mtime=0)[:-4], 400, "body: gzip data is cut off"),
        ("br", b"{}", 400, "Content-Encoding: 'br' is not supported; use gzip or deflate"),
    ],
)
def test_bad_compression_is_refused_before_it_is_expanded(encoding: str, body: bytes, status: int, error: str) -> None:
    reply = World().ask(an_event(INFER, body=body, headers={"content-encoding": encoding}))

    assert (reply.status, reply.error) == (status, error)


@UNHURRIED
@given(
    path=st.sampled_from([INFER, f"/endpoints/{MODEL}/invocations", "/v2/requests/1"]) | st.text(max_size=20).map("/v2/".__add__),
    method=st.sampled_from(["GET", "POST", "PUT"]),
    body=st.binary(max_size=60),
    headers=st.dictionaries(
        st.sampled_from(["content-type", "content-encoding", "inference-header-content-length", "prefer", "idempotency-key", "accept"]),
        st.text(max_size=12) | st.sampled_from(["gzip", "text/csv", "respond-async", "2"]),
    ),
)
def test_no_request_breaks_the_front(path: str, method: str, body: bytes, headers: dict[str, str]) -> None:
    assert World().ask(an_event(path, method=method, body=body, headers=headers)).status < 500


def test_metadata_and_health_follow_the_protocol() -> None:
    world = World()

    assert world.get("/v2").json["name"] == "markserve"
    assert world.get(f"/v2/models/{MODEL}").json["versions"] == ["1"]
    assert world.get(f"/v2/models/{MODEL}/versions/1").json["inputs"] == [{"name": "image", "datatype": "FP32", "shape": [-1, 64]}]
    assert [world.get(f"/v2/{path}").status for path in ("health/live", "health/ready", f"models/{MODEL}/ready")] == [200, 200, 200]


def test_readiness_is_denied_when_nobody_could_answer() -> None:
    world = World(instances=0, spillover_max_concurrency=0)
    assert world.get(f"/v2/models/{MODEL}/ready").status == 503
    world.models.delete(MODEL)
    assert world.get("/v2/health/ready").status == 503


def test_stage_is_not_part_of_the_path() -> None:
    assert World().get("/prod/v2/health/live", stage="prod").status == 200


def test_nothing_leaks_when_something_unexpected_breaks() -> None:
    world = World(instances=0, spill_failure=RuntimeError("secret at line 12"))

    reply = world.infer()

    assert (reply.status, reply.json) == (500, {"error": "internal error"})


def test_caller_is_told_to_retry_when_a_store_does_not_answer() -> None:
    world = World(results=MemoryResultStore(faults={"put_pending": DependencyUnavailable("table gone")}))

    reply = world.infer(headers=ASYNC)

    assert (reply.status, reply.error) == (503, "a service this depends on does not answer; try again")


def test_an_event_of_another_kind_is_refused() -> None:
    answer = run({"Records": []}, front=World().front, now_s=lambda: NOW_S, sleep=lambda _: None)

    assert answer["statusCode"] == 400


# --- metrics ----------------------------------------------------------------------------------------------


def test_arrivals_are_reported_while_waiting_and_outcomes_with_the_next_request() -> None:
    world = World()
    world.infer()
    world.clock.sleep(2.0)
    world.infer()

    first, second = world.metrics.batches
    assert [(arrival.window_at_s, arrival.count) for arrival in first.arrivals] == [(NOW_S, 1)]
    assert (first.outcomes, first.sent_at_s) == ((), NOW_S)
    assert [(counts.tier, counts.ok, counts.within_slo) for counts in second.outcomes] == [(Tier.WORKER, 1, 1)]


def test_report_is_sent_at_most_once_a_second() -> None:
    world = World()
    for _ in range(4):
        world.infer()

    assert len(world.metrics.batches) == 1


def test_report_keeps_its_id_when_the_queue_refused_it() -> None:
    world = World()
    failing = {"send": Throttled("slow down")}
    world.metrics = MemoryMetricsSink(faults=failing)
    world.front = world.new_front()
    world.infer()
    (unsent,) = world.front.metrics._unsent

    failing.clear()
    world.clock.sleep(2.0)
    world.infer()

    assert world.metrics.batches[0] == unsent
    assert sum(arrival.count for batch in world.metrics.batches for arrival in batch.arrivals) == 2


def test_outcomes_tell_rejected_failed_and_late_requests_apart() -> None:
    world = World(worker_takes_s=0.5, spillover_max_concurrency=0)
    world.infer()
    world.instances.heartbeat("i-0", at_s=world.clock(), stats=worker_stats(queue_depth=500))
    world.clock.sleep(1.5)
    world.infer()

    outcomes = {counts.tier: (counts.ok, counts.errors, counts.within_slo) for batch in world.metrics.batches for counts in batch.outcomes}
    assert outcomes == {Tier.WORKER: (1, 0, 0), None: (0, 1, 0)}


# --- SageMaker --------------------------------------------------------------------------------------------


def sagemaker_client(world: World) -> Any:
    """A real client whose HTTP exchange ends in the front."""
    client = boto3.client(
        "sagemaker-runtime", endpoint_url="http://localhost:9", config=Config(retries={"mode": "standard", "total_max_attempts": 1})
    )

    def exchange(request: AWSPreparedRequest, **_: Any) -> AWSResponse:
        headers = {name: value.decode() if isinstance(value, bytes) else str(value) for name, value in request.headers.items()}
        path = request.url.removeprefix("http://localhost:9")
        body = request.body.encode() if isinstance(request.body, str) else request.body
        reply = world.ask(an_event(path, body=body, headers=headers))
        raw = SimpleNamespace(stream=lambda *_, **__: iter([reply.body]), read=BytesIO(reply.body).read)
        return AWSResponse(request.url, reply.status, reply.headers, raw)

    client.meta.events.register("before-send.sagemaker-runtime.InvokeEndpoint", exchange)
    return client


def test_boto3_gets_predictions_for_instances() -> None:
    response = sagemaker_client(World()).invoke_endpoint(
        EndpointName=MODEL, ContentType="application/json", Body=json.dumps({"instances": an_image(5.0, rows=2).tolist()})
    )

    assert json.loads(b"".join(response["Body"]._raw_stream.stream())) == {"predictions": [[float(n + 5) for n in range(10)]] * 2}
    assert response["InvokedProductionVariant"] == "1"


def test_boto3_gets_predictions_for_csv() -> None:
    response = sagemaker_client(World()).invoke_endpoint(EndpointName=MODEL, ContentType="text/csv", Body=",".join(["2"] + ["0"] * 63))

    assert response["ContentType"] == "application/json"


@pytest.mark.parametrize(
    ("world", "endpoint", "code", "status", "message"),
    [
        (World(), "none", "ValidationError", 400, "model: no model 'none'"),
        (World(), MODEL, "ValidationError", 400, "instances: has 1 dimensions, expected 2 as in [-1, 64]"),
    ],
)
def test_boto3_raises_validation_errors(world: World, endpoint: str, code: str, status: int, message: str) -> None:
    with pytest.raises(ClientError) as failure:
        sagemaker_client(world).invoke_endpoint(EndpointName=endpoint, ContentType="application/json", Body=b'{"instances": [1]}')

    response = failure.value.response
    assert (response["Error"]["Code"], response["ResponseMetadata"]["HTTPStatusCode"]) == (code, status)
    assert response["Error"]["Message"] == message


@pytest.mark.parametrize(
    ("options", "code"), [({"spillover_max_concurrency": 0}, "ModelError"), ({"spill_limit": 0}, "ServiceUnavailable")]
)
def test_boto3_raises_what_sagemaker_would_when_nobody_answers(options: dict[str, Any], code: str) -> None:
    body = json.dumps({"instances": an_image().tolist()})
    with pytest.raises(ClientError) as failure:
        sagemaker_client(World(worker_takes_s=None, **options)).invoke_endpoint(
            EndpointName=MODEL, ContentType="application/json", Body=body
        )

    assert failure.value.response["Error"]["Code"] == code


# --- the handler ------------------------------------------------------------------------------------------


def test_warm_up_fills_the_caches_and_holds_the_environment() -> None:
    world = World()

    answer = run({"warmup": True, "hold_s": 1.0}, front=world.front, now_s=world.clock, sleep=world.clock.sleep)

    assert answer == {"warm": True}
    assert world.clock() == NOW_S + 1.0


@pytest.mark.parametrize("name", ["api_infer", "api_infer_binary", "api_async_infer", "api_sagemaker_invocation"])
def test_recorded_event_is_answered(name: str) -> None:
    world = World()
    record = a_model_record()
    image = msgspec.structs.replace(record.inputs[0], shape=(-1, 1, 8, 8))
    logits = msgspec.structs.replace(record.outputs[0], name="logits")
    world.models.put(msgspec.structs.replace(record, inputs=(image,), outputs=(logits,)))
    event = json.loads((EVENTS / f"{name}.json").read_text())
    world.clock.now_s = event["requestContext"]["timeEpoch"] / 1000
    world.instances.heartbeat("i-0", at_s=world.clock(), stats=worker_stats())

    reply = world.ask(event)

    assert reply.status == (202 if name == "api_async_infer" else 200)


def test_handler_answers_from_the_composed_front(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MODELS_TABLE", "RESULTS_TABLE", "INSTANCES_TABLE", "METRICS_QUEUE_URL", "ARTEFACTS_BUCKET", "SPILLOVER_FUNCTION"):
        monkeypatch.setenv(f"MARKSERVE_{name}", name.lower())
    monkeypatch.setenv("MARKSERVE_STACK_NAME", "markserve")
    for builder in vars(wiring).values():
        if hasattr(builder, "cache_clear"):
            builder.cache_clear()
    context = SimpleNamespace(
        function_name="markserve-api", memory_limit_in_mb=128, invoked_function_arn="arn:aws:lambda:::function", aws_request_id="r-1"
    )

    answer = handler(an_event("/v2/health/live", method="GET"), context)  # type: ignore[arg-type]

    assert Reply(answer).json == {"live": True}
