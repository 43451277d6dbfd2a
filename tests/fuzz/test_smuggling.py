"""What a client writes into lengths, paths and headers reaches nobody else's data and breaks no response."""

from __future__ import annotations

import json
import logging
from urllib.parse import quote, unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from markserve.messages import Answer
from tests.builders import MODEL
from tests.functions.test_api import INFER, World, a_triton_event, an_event, an_image
from tests.fuzz.handlers import listening, written
from tests.fuzz.profiles import fuzz

LENGTHS = ["-1", "+5", "0x10", "1e3", "1_0", "٣", "", " 12", "12 ", "12, 12", "9" * 400, "NaN", "0", "1", "99999999"]


@pytest.mark.parametrize("length", LENGTHS)
def test_a_length_that_is_not_the_json_parts_is_refused_before_anything_is_computed(length: str) -> None:
    world = World()

    reply = world.ask(a_triton_event(headers={"Inference-Header-Content-Length": length}))

    assert reply.status == 400, reply.body
    assert world.sent == []


@fuzz(50)
@given(st.integers(-(2**40), 2**40), st.binary(max_size=64))
def test_tensor_bytes_are_taken_exactly_or_not_at_all(size: int, blob: bytes) -> None:
    head = b'{"inputs":[{"name":"image","shape":[1,64],"datatype":"FP32","parameters":{"binary_data_size":%d}}]}' % size
    world = World()

    reply = world.ask(an_event(INFER, body=head + blob, headers={"Inference-Header-Content-Length": str(len(head))}))

    assert reply.status == 400
    assert world.sent == []


@fuzz(80)
@given(st.text(max_size=40), st.dictionaries(st.text(max_size=15), st.text(max_size=40), max_size=4))
def test_no_path_or_header_breaks_a_response_into_two(path: str, headers: dict[str, str]) -> None:
    reply = World().ask(an_event(f"/{path}", headers=headers))

    assert 200 <= reply.status < 500
    assert not [value for value in reply.headers.values() if "\r" in value or "\n" in value]


@pytest.mark.parametrize(
    "path", ["/v2/requests/../models/digits", "/v2/requests/%2e%2e%2fmodels", "/v2/requests/id-1%00", "/v2/requests//id-1"]
)
def test_a_crooked_path_leads_to_no_result(path: str) -> None:
    world = World()
    accepted = world.ask(a_triton_event(headers={"Prefer": "respond-async"}, client="alice"))
    assert accepted.status == 202

    assert world.get(path, client="bob").status == 404


@fuzz(30)
@given(st.text(min_size=1, max_size=255), st.lists(st.sampled_from(["alice", "bob", "carol"]), min_size=2, max_size=5))
def test_a_key_gives_each_client_its_own_first_answer_only(key: str, clients: list[str]) -> None:
    world, own, ids = World(), {"alice": 1.0, "bob": 2.0, "carol": 3.0}, {}

    for client in clients:
        reply = world.ask(a_triton_event(image=an_image(own[client]), headers={"Idempotency-Key": key}, client=client))
        assert reply.status == 200
        assert reply.scores()[0][0] % 100 == own[client]
        ids.setdefault(client, reply.headers["x-markserve-request-id"])
        assert ids[client] == reply.headers["x-markserve-request-id"]

    for client, request_id in ids.items():
        for other in own:
            assert world.get(f"/v2/requests/{request_id}", client=other).status == (200 if other == client else 404)


def test_an_answer_under_a_key_that_cannot_be_recorded_is_not_given_out() -> None:
    world = World(worker_takes_s=None)
    put_answer = world.results.put_answer

    def fails(answer: Answer, **options: float) -> bool:
        from markserve.errors import Throttled

        raise Throttled("results: throttled")

    world.results.put_answer = fails  # type: ignore[method-assign]
    first = world.ask(a_triton_event(headers={"Idempotency-Key": "k"}))
    world.results.put_answer = put_answer  # type: ignore[method-assign]
    second = world.ask(a_triton_event(headers={"Idempotency-Key": "k"}))

    assert (first.status, second.status) == (503, 200)
    assert "could not be recorded" in first.error


HOSTILE = [
    "a\r\nx-injected: 1",
    "a\nset-cookie: x=1",
    "\x00",
    "\x1b[31m",
    "\u2028",
    "../../etc/passwd",
    "..%2f..",
    "é" * 300,
    "x" * 9000,
    "%0d%0aX",
]
READ = ["idempotency-key", "prefer", "x-markserve-slo", "content-type", "content-encoding", "inference-header-content-length", "accept"]
READ += ["x-amzn-sagemaker-target-variant", "x-amzn-trace-id", "x-api-key"]


def assert_whole(headers: dict[str, str], path: str) -> None:
    """Hold a response to one status line: no header's name or value ends early, and none is a client's."""
    for name, value in headers.items():
        assert name.isascii(), (path, name)
        assert name.replace("-", "").isalnum(), (path, name)
        assert value.isprintable(), (path, name, value)
        assert "injected" not in name


@pytest.mark.parametrize("name", READ)
@pytest.mark.parametrize("path", [INFER, f"/endpoints/{MODEL}/invocations"])
def test_no_value_of_a_header_that_is_read_reaches_the_responses_head(name: str, path: str) -> None:
    for value in HOSTILE:
        reply = World().ask(a_triton_event(path=path, headers={name: value}))

        assert reply.status < 500
        assert_whole(reply.headers, path)


IDS = [*HOSTILE, ".", "..", "../id-1", "id-1/..", "id-1%00", "ID-1", " id-1", "id-1 ", "id-1\r\n", "id-1#", "id-1?x=1", "%69d-1/", "id-１"]


@pytest.mark.parametrize("route", ["/v2/requests/{}", "/v2/models/{}", f"/v2/models/{MODEL}/versions/{{}}", "/endpoints/{}/invocations"])
def test_crooked_ids_name_nothing_and_break_nothing(route: str) -> None:
    world = World()
    accepted = world.ask(a_triton_event(headers={"Prefer": "respond-async"}, client="alice"))
    assert accepted.headers["location"] == "/v2/requests/id-1"
    method = "POST" if "endpoints" in route else "GET"

    for crooked in IDS:
        for path in (route.format(crooked), route.format(quote(crooked, safe=""))):
            mine, anothers = (world.ask(an_event(path, method=method, client=client)) for client in ("alice", "bob"))
            names_it = route.startswith("/v2/requests") and unquote(path).strip("/").split("/") == ["v2", "requests", "id-1"]
            assert mine.status in ((200, 202) if names_it else (400, 404, 405)), path
            assert anothers.status in (400, 404, 405), path
            assert_whole(mine.headers, path)
    assert [request.request_id for request in world.sent] == ["id-1"]


def test_line_of_a_request_stays_one_line_whatever_its_path_holds() -> None:
    with listening(logging.INFO) as lines:
        World().get("/v2/\r\n" + json.dumps({"level": "INFO", "message": "request", "status": 200}) + "\u2028")

    (line,) = map(written, lines)
    told = json.loads(line)
    assert not {"\r", "\n"} & set(line)
    assert (told["message"], told["status"]) == ("request", 404)


def test_key_replayed_by_another_client_for_the_same_body_is_computed_anew_and_leaves_the_first_alone() -> None:
    world = World()
    first = world.ask(a_triton_event(headers={"Idempotency-Key": "k", "Prefer": "respond-async"}, client="alice"))
    replayed = world.ask(a_triton_event(headers={"Idempotency-Key": "k", "Prefer": "respond-async"}, client="bob"))
    world.clock.sleep(1.0)

    assert first.headers["location"] != replayed.headers["location"]
    for reply, owner, other in ((first, "alice", "bob"), (replayed, "bob", "alice")):
        assert world.get(reply.headers["location"], client=owner).status == 200
        assert world.get(reply.headers["location"], client=other).status == 404
        assert world.get(reply.headers["location"]).status == 404
