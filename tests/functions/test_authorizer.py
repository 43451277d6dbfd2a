"""The authoriser on a store in memory: no key, a wrong one, a good one, and one that is used up."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from functions.authorizer.app import run
from markserve.adapters.memory_clients import MemoryClientStore
from markserve.errors import DependencyUnavailable
from markserve.messages import ClientRecord
from markserve.protocol.http import request_from_event

EVENTS = Path(__file__).resolve().parents[2] / "events"
NOW_S = 6010.0


def event(**headers: str) -> dict[str, Any]:
    recorded: dict[str, Any] = json.loads((EVENTS / "authorizer_request.json").read_text())
    return {**recorded, "headers": headers}


def clients(*, requests_per_minute: int = 2) -> MemoryClientStore:
    store = MemoryClientStore()
    digest = hashlib.sha256(b"a-key").hexdigest()
    store.put(ClientRecord(client="shop", key_sha256=digest, requests_per_minute=requests_per_minute))
    return store


def test_recorded_request_is_authorised_as_its_client() -> None:
    recorded = json.loads((EVENTS / "authorizer_request.json").read_text())

    assert run(recorded, clients=clients(), now_s=NOW_S) == {"isAuthorized": True, "context": {"principalId": "shop"}}


def test_request_without_a_key_or_with_an_unknown_one_is_refused() -> None:
    assert run(event(), clients=clients(), now_s=NOW_S) == {"isAuthorized": False}
    assert run(event(**{"x-api-key": "guessed"}), clients=clients(), now_s=NOW_S) == {"isAuthorized": False}


def test_client_over_its_quota_is_told_when_to_try_again_and_admitted_then() -> None:
    store, request = clients(), event(**{"X-Api-Key": "a-key"})

    answers = [run(request, clients=store, now_s=NOW_S) for _ in range(3)]

    assert ["retryAfterS" in answer["context"] for answer in answers] == [False, False, True]
    assert answers[2]["context"]["retryAfterS"] == "50"
    assert "retryAfterS" not in run(request, clients=store, now_s=NOW_S + 50.0)["context"]


def test_a_counter_that_does_not_answer_turns_nobody_away() -> None:
    class Uncounted(MemoryClientStore):
        def count(self, client: str, *, window_at_s: float) -> int:
            raise DependencyUnavailable(f"no counter of {client} at {window_at_s}")

    store = Uncounted()
    for record in clients().list():
        store.put(record)

    assert run(event(**{"x-api-key": "a-key"}), clients=store, now_s=NOW_S)["isAuthorized"]


def test_front_takes_client_and_quota_from_the_authorisers_context() -> None:
    proxied = json.loads((EVENTS / "api_infer.json").read_text())
    proxied["requestContext"]["authorizer"] = {"lambda": {"principalId": "shop", "retryAfterS": "50", "reason": "used up"}}

    request = request_from_event(proxied)

    assert (request.client, request.over_quota, request.retry_after_s) == ("lambda:shop", "used up", 50.0)


def test_operator_is_told_apart_and_nobody_else() -> None:
    store = clients()
    digest = hashlib.sha256(b"master").hexdigest()
    store.put(ClientRecord(client="ops", key_sha256=digest, requests_per_minute=2, operator=True))

    assert run(event(**{"x-api-key": "master"}), clients=store, now_s=NOW_S)["context"] == {"principalId": "ops", "operator": "true"}
    assert "operator" not in run(event(**{"x-api-key": "a-key"}), clients=store, now_s=NOW_S)["context"]
