"""Every request is answered once: at once, later, or again under its idempotency key."""

from __future__ import annotations

import uuid
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from local.system import LocalSystem
from markserve import wiring
from tests.system.live import Reply, call, eventually, expected_logits, infer, infer_all, messages_in

pytestmark = pytest.mark.system

ASYNC = {"Prefer": "respond-async"}
REQUESTS = 48


def test_async_request_is_accepted_and_answered_where_its_location_says(system: LocalSystem) -> None:
    rows = system.model.images[:2]

    accepted = infer(system, rows, ASYNC)
    assert accepted.status == 202
    location = accepted.headers["location"]
    assert location == f"/v2/requests/{accepted.request_id}"

    def fetched() -> Reply | None:
        reply = call(system.deployment.api_url + location)
        assert reply.status in (200, 202), reply.body
        return reply if reply.status == 200 else None

    answer = eventually("the asynchronous request is answered", fetched)
    np.testing.assert_allclose(answer.logits(), expected_logits(system, rows), rtol=1e-4, atol=1e-4)
    assert answer.tier == "worker"


def test_async_result_is_not_found_when_the_id_is_unknown(system: LocalSystem) -> None:
    reply = call(f"{system.deployment.api_url}/v2/requests/{uuid.uuid4()}")

    assert reply.status == 404
    assert "no request" in reply.body["error"]


# The API runs without an authoriser here, so every caller is the same anonymous one; a caller that shows a key is itself.
def test_async_result_is_not_found_when_another_client_asks(system: LocalSystem) -> None:
    accepted = infer(system, system.model.images[:1], {**ASYNC, "x-api-key": "mine"})
    url = system.deployment.api_url + accepted.headers["location"]

    assert call(url).status == 404
    assert call(url, headers={"x-api-key": "another"}).status == 404
    assert call(url, headers={"x-api-key": "mine"}).status in (200, 202)


def test_request_repeated_under_its_key_gets_the_first_answer(system: LocalSystem) -> None:
    key = {"Idempotency-Key": str(uuid.uuid4())}

    first, again = (infer(system, system.model.images[:1], key) for _ in range(2))

    assert first.status == again.status == 200
    assert first.request_id == again.request_id
    assert first.body == again.body
    assert "answered before" in again.headers["x-markserve-reason"]


def test_another_request_under_the_same_key_is_refused(system: LocalSystem) -> None:
    key = {"Idempotency-Key": str(uuid.uuid4())}
    infer(system, system.model.images[:1], key)

    reply = infer(system, system.model.images[1:2], key)

    assert reply.status == 422
    assert "Idempotency-Key" in reply.body["error"]


def test_duplicates_sent_at_once_get_one_computations_answer(system: LocalSystem) -> None:
    key = {"Idempotency-Key": str(uuid.uuid4())}

    with ThreadPoolExecutor(max_workers=4) as clients:
        replies = list(clients.map(lambda _: infer(system, system.model.images[:1], key), range(4)))

    assert [reply.status for reply in replies] == [200] * 4
    assert len({reply.request_id for reply in replies}) == 1
    assert all(reply.body == replies[0].body for reply in replies)
    stored = wiring.results().get(replies[0].request_id)
    assert stored is not None
    assert stored.answer is not None
    assert {reply.tier for reply in replies} == {str(stored.answer.tier)}


def completed_ever() -> int:
    """Count what the workers have answered, those that have ended included."""
    return sum(worker.stats.completed for worker in wiring.instances().list("digits"))


def test_concurrent_requests_are_each_answered_once_and_nothing_is_left_over(system: LocalSystem) -> None:
    images = [system.model.images[i : i + 1] for i in range(REQUESTS)]
    before = completed_ever()

    replies = infer_all(system, images)

    assert [reply.status for reply in replies] == [200] * REQUESTS
    direct = expected_logits(system, np.concatenate(images))
    np.testing.assert_allclose(np.concatenate([reply.logits() for reply in replies]), direct, rtol=1e-4, atol=1e-4)
    assert len({reply.request_id for reply in replies}) == REQUESTS
    stored = [wiring.results().get(reply.request_id) for reply in replies]
    tiers = [str(one.answer.tier) for one in stored if one is not None and one.answer is not None]
    assert tiers == [reply.tier for reply in replies]

    by_worker = tiers.count("worker")
    assert by_worker + tiers.count("lambda") == REQUESTS
    assert by_worker > 0
    eventually(f"workers report at least {by_worker} more answers", lambda: completed_ever() - before >= by_worker)
    eventually("the work queue is empty", lambda: messages_in(system.record.queue_url) == 0)
    assert messages_in(wiring.settings().dead_letter_queue_url) == 0
    assert messages_in(f"{wiring.settings().metrics_queue_url}-dlq") == 0
