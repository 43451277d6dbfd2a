"""The client against the real routes and front (ports in memory), and what it does when the way there fails."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from email.utils import formatdate
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

import markserve_client
from markserve_client import (
    AsyncClient,
    BadRequest,
    Client,
    ConnectionFailed,
    DeadlineMissed,
    Job,
    NotAuthorised,
    NotFound,
    Overloaded,
    ServerFailed,
    TensorInfo,
    TimedOut,
    codec,
)
from tests.builders import MODEL
from tests.client.socket_server import served
from tests.functions.test_api import World, an_event, an_image

URL = "http://api"
IMAGE = {"image": an_image(5.0)}
SCORES = [[float(n + 5) for n in range(10)]]
Fault = Callable[[httpx.Request], httpx.Response]


class Routes(httpx.BaseTransport, httpx.AsyncBaseTransport):
    """Hands requests to the API's handler; `faults` are what happens to the first ones instead."""

    def __init__(self, world: World, *faults: Fault) -> None:
        self.world = world
        self.requests: list[httpx.Request] = []
        self._faults = list(faults)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        request.read()
        return self._answer(request)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        await request.aread()
        return self._answer(request)

    def _answer(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        if self._faults:
            return self._faults.pop(0)(request)
        return self.deliver(request)

    def deliver(self, request: httpx.Request) -> httpx.Response:
        path = request.url.raw_path.decode()
        reply = self.world.ask(an_event(path, method=request.method, body=request.content, headers=dict(request.headers), client="me"))
        return httpx.Response(reply.status, headers=reply.headers, content=reply.body)

    @property
    def keys(self) -> set[str]:
        return {request.headers["idempotency-key"] for request in self.requests}


def answering(status: int, **headers: str) -> Fault:
    return lambda _: httpx.Response(status, headers=headers, json={"error": f"it is {status}"})


def refusing(request: httpx.Request) -> httpx.Response:
    raise httpx.ConnectError("connection refused", request=request)


def losing(routes: Sequence[Routes]) -> Fault:
    """The request arrives and is computed; its answer is lost on the way back."""

    def lose(request: httpx.Request) -> httpx.Response:
        routes[0].deliver(request)
        raise httpx.ReadError("connection reset", request=request)

    return lose


class Driven:
    """A client whose pauses pass at once, the sync or the async one by the same calls."""

    def __init__(self, kind: str, routes: Routes, **options: Any) -> None:
        self.pauses: list[float] = []
        self._kind = kind
        if kind == "sync":
            self._client: Any = Client(URL, transport=routes, sleep=self._sleep, **options)
        else:
            self._client = AsyncClient(URL, transport=routes, sleep=self._asleep, **options)
        self._world = routes.world

    def __call__(self, method: str, *arguments: Any, **options: Any) -> Any:
        called = getattr(self._client, method)(*arguments, **options)
        return called if self._kind == "sync" else asyncio.run(called)

    def _sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self._world.clock.sleep(seconds)

    async def _asleep(self, seconds: float) -> None:
        self._sleep(seconds)


Drive = Callable[..., Driven]


@pytest.fixture(params=["sync", "async"])
def drive(request: pytest.FixtureRequest) -> Drive:
    return lambda routes, **options: Driven(request.param, routes, **options)


# --- answers ----------------------------------------------------------------------------------------------


def test_arrays_come_back_with_how_they_came_about(drive: Drive) -> None:
    result = drive(Routes(World()))("infer", MODEL, IMAGE)

    assert result["scores"].tolist() == SCORES
    assert result["scores"].dtype == np.float32
    assert (result.model, result.model_version, result.tier, result.request_id != "", result.attempts) == (MODEL, "1", "worker", True, 1)
    assert result.reason.startswith("enqueued")


def test_answer_can_be_written_to(drive: Drive) -> None:
    scores = drive(Routes(World()))("infer", MODEL, IMAGE)["scores"]

    scores += 1

    assert scores[0, 0] == 6.0


def test_model_tells_what_it_takes(drive: Drive) -> None:
    client = drive(Routes(World()))

    model = client("model", MODEL)

    assert model.inputs == (TensorInfo("image", "FP32", (-1, 64)),)
    assert model.versions == ("1",)
    assert client("is_ready", MODEL) is True
    assert client("is_ready", "other") is False


def test_class_version_and_outputs_are_asked_for(drive: Drive) -> None:
    routes = Routes(World())

    result = drive(routes)("infer", MODEL, IMAGE, version="1", outputs=["scores"], slo="standard")

    (request,) = routes.requests
    assert (request.url.path, request.headers["x-markserve-slo"]) == (f"/v2/models/{MODEL}/versions/1/infer", "standard")
    assert list(result.outputs) == ["scores"]


def test_submitted_request_is_fetched_by_job_or_by_id(drive: Drive) -> None:
    world = World(worker_takes_s=3.0)
    client = drive(Routes(world))

    job = client("submit", MODEL, IMAGE)
    result = client("fetch", job)

    assert isinstance(job, Job)
    assert result["scores"].tolist() == client("fetch", job.request_id)["scores"].tolist() == SCORES
    assert client.pauses == sorted(client.pauses)
    assert 3.0 <= sum(client.pauses) < 6.0


def test_batch_request_is_waited_for_by_polling(drive: Drive) -> None:
    client = drive(Routes(World(worker_takes_s=3.0)))

    assert client("infer", MODEL, IMAGE, slo="batch")["scores"].tolist() == SCORES


def test_fetch_gives_up_in_time_and_can_be_repeated(drive: Drive) -> None:
    world = World(worker_takes_s=3.0)
    client = drive(Routes(world))
    job = client("submit", MODEL, IMAGE)

    with pytest.raises(TimedOut, match=f"request {job.request_id} is not answered yet"):
        client("fetch", job, timeout_s=0.0005)
    world.clock.sleep(5)

    assert client("fetch", job)["scores"].tolist() == SCORES


# --- retries ----------------------------------------------------------------------------------------------


PASSING = {**{str(status): answering(status) for status in (429, 502, 503, 504)}, "refused": refusing}


@pytest.mark.parametrize("fault", PASSING.values(), ids=PASSING)
def test_passing_failure_is_tried_again_under_the_same_key(drive: Drive, fault: Fault) -> None:
    routes = Routes(World(), fault, fault)
    client = drive(routes)

    result = client("infer", MODEL, IMAGE)

    assert result["scores"].tolist() == SCORES
    assert (result.attempts, len(routes.requests), len(routes.keys)) == (3, 3, 1)
    assert 0.05 <= client.pauses[0] <= 0.1 <= client.pauses[1] <= 0.2


def test_lost_answer_is_fetched_and_not_computed_again(drive: Drive) -> None:
    holder: list[Routes] = []
    routes = Routes(World(), losing(holder))
    holder.append(routes)

    result = drive(routes)("infer", MODEL, IMAGE)

    assert result["scores"].tolist() == SCORES
    assert len(routes.world.sent) == 1
    assert "answered before under the same idempotency key" in result.reason


@pytest.mark.parametrize(("text", "low_s", "high_s"), [("2", 2.0, 2.0), ("date", 1.0, 4.0)])
def test_retry_after_is_waited_for(drive: Drive, text: str, low_s: float, high_s: float) -> None:
    header = formatdate(time.time() + 3, usegmt=True) if text == "date" else text
    client = drive(Routes(World(), answering(503, **{"retry-after": header})))

    client("infer", MODEL, IMAGE)

    (pause_s,) = client.pauses
    assert low_s <= pause_s <= high_s


def test_real_overload_is_told_with_when_to_come_again(drive: Drive) -> None:
    world = World(instances=0, spillover_max_concurrency=0)
    client = drive(Routes(world), attempts=2)

    with pytest.raises(Overloaded, match="no worker serves or is starting") as caught:
        client("infer", MODEL, IMAGE)

    assert (caught.value.status, caught.value.retry_after_s) == (503, 30.0)
    assert client.pauses == [30.0]


def test_call_does_not_wait_beyond_its_own_time(drive: Drive) -> None:
    client = drive(Routes(World(), answering(503, **{"retry-after": "60"})), timeout_s=5.0)

    with pytest.raises(Overloaded):
        client("infer", MODEL, IMAGE)

    assert client.pauses == []


def test_attempts_are_limited(drive: Drive) -> None:
    routes = Routes(World(), *[refusing] * 5)

    with pytest.raises(ConnectionFailed, match="connection refused"):
        drive(routes, attempts=3)("infer", MODEL, IMAGE)

    assert len(routes.requests) == 3


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, BadRequest), (401, NotAuthorised), (403, NotAuthorised), (404, NotFound), (413, BadRequest), (500, ServerFailed)],
)
def test_lasting_failure_is_not_tried_again(drive: Drive, status: int, kind: type[Exception]) -> None:
    routes = Routes(World(), answering(status))

    with pytest.raises(kind, match=f"it is {status}"):
        drive(routes)("infer", MODEL, IMAGE)

    assert len(routes.requests) == 1


def test_missed_deadline_is_told_when_it_lasts(drive: Drive) -> None:
    world = World(worker_takes_s=None, spillover_max_concurrency=0)

    with pytest.raises(DeadlineMissed, match="no answer within"):
        drive(Routes(world), attempts=1)("infer", MODEL, IMAGE)


# --- what the server refuses, and what cannot be sent -----------------------------------------------------


def test_servers_words_reach_the_caller(drive: Drive) -> None:
    client = drive(Routes(World()))

    with pytest.raises(BadRequest, match=r"input 'image': .*"):
        client("infer", MODEL, {"image": np.zeros((1, 3), np.float32)})
    with pytest.raises(NotFound, match="no model 'other'"):
        client("infer", "other", IMAGE)
    with pytest.raises(BadRequest, match="is not one of interactive, standard, batch"):
        client("infer", MODEL, IMAGE, slo="urgent")
    with pytest.raises(NotFound, match="no request 'nobody'"):
        client("fetch", "nobody")


def test_array_that_the_protocol_has_not_is_refused_here(drive: Drive) -> None:
    with pytest.raises(BadRequest, match="input 'image': arrays of complex128 cannot be sent"):
        drive(Routes(World()))("infer", MODEL, {"image": np.zeros(1, complex)})


@pytest.mark.parametrize("body", [b"<html>", b"{}", b'{"outputs": [{"name": "x", "datatype": "BF16", "shape": [1], "data": [1]}]}'])
def test_answer_that_is_none_is_the_servers_failure(drive: Drive, body: bytes) -> None:
    with pytest.raises(ServerFailed, match="not an inference answer"):
        drive(Routes(World(), lambda _: httpx.Response(200, content=body)))("infer", MODEL, IMAGE)


@pytest.mark.parametrize("dtype", ["?", "u1", "<u2", "<u4", "<u8", "i1", "<i2", "<i4", "<i8", "<f2", "<f4", "<f8", ">f4", ">i8"])
def test_every_type_reads_back_as_it_was_written(dtype: str) -> None:
    array = np.arange(6).reshape(2, 3).astype(dtype)
    body, headers = codec.encode({"x": array})

    answer = body.replace(b'"inputs"', b'"outputs"')
    size = {codec.LENGTH: str(int(headers[codec.LENGTH]) + 1)}
    found = codec.decode(answer, size, attempts=1)["x"]

    np.testing.assert_array_equal(found, array)


def test_strings_and_bytes_travel_as_bytes() -> None:
    body, headers = codec.encode({"x": np.array(["naïve", ""], dtype=object)})

    answer = body.replace(b'"inputs"', b'"outputs"')
    found = codec.decode(answer, {codec.LENGTH: str(int(headers[codec.LENGTH]) + 1)}, attempts=1)["x"]

    assert found.tolist() == ["naïve".encode(), b""]


# --- a real socket ----------------------------------------------------------------------------------------


@pytest.fixture
def server() -> Iterator[str]:
    """The same routes behind a real HTTP server that drops its first connection after reading the request."""
    with served(World(), drops_first=True) as url:
        yield url


def test_dropped_connection_is_survived_on_a_real_socket(server: str) -> None:
    with Client(server) as client:
        result = client.infer(MODEL, IMAGE)

    assert (result["scores"].tolist(), result.attempts) == (SCORES, 2)


def test_unreachable_server_is_told_as_such() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    with Client(url, attempts=2, sleep=lambda _: None) as client, pytest.raises(ConnectionFailed, match="the server did not answer"):
        client.infer(MODEL, IMAGE)


def test_async_client_on_a_real_socket_answers_many_at_once(server: str) -> None:
    async def ask() -> list[Any]:
        async with AsyncClient(server) as client:
            return await asyncio.gather(*(client.infer(MODEL, {"image": an_image(float(n))}) for n in range(8)))

    results = asyncio.run(ask())

    assert [result["scores"][0, 0] for result in results] == [float(n) for n in range(8)]


def test_package_is_typed_and_names_what_it_exports() -> None:
    assert Path(markserve_client.__file__).with_name("py.typed").exists()
    assert sorted(markserve_client.__all__) == markserve_client.__all__
    assert all(hasattr(markserve_client, name) for name in markserve_client.__all__)
