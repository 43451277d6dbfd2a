from __future__ import annotations

import pytest

from markserve.adapters.dynamodb_results import DynamoResultStore
from markserve.adapters.memory import MemoryResultStore
from markserve.core.types import Tier
from markserve.errors import PayloadTooLarge
from markserve.messages import StoredResult
from markserve.ports import ResultStore
from tests.builders import NOW_S, a_failed_answer, a_tensor, an_answer
from tests.contract.conftest import BACKENDS, create_table

REQUEST_ID = an_answer().request_id


@pytest.fixture(params=BACKENDS)
def store(request: pytest.FixtureRequest) -> ResultStore:
    if request.param == "memory":
        return MemoryResultStore()
    client = request.getfixturevalue("aws")("dynamodb")
    return DynamoResultStore(client, create_table(client, "results", keys=("request_id",)))


def put_pending(store: ResultStore, *, body_sha256: str = "abc", deadline_at_s: float | None = NOW_S + 0.2) -> bool:
    return store.put_pending(
        REQUEST_ID,
        body_sha256=body_sha256,
        accepted_at_s=NOW_S,
        deadline_at_s=deadline_at_s,
        expires_at_s=NOW_S + 3600.0,
        owner="client-1",
        model="digits",
        model_version="2",
    )


def test_result_store_keeps_the_first_answer_when_two_are_written(store: ResultStore) -> None:
    first, second = an_answer(tier=Tier.WORKER), an_answer(tier=Tier.LAMBDA)

    assert store.put_answer(first, expires_at_s=NOW_S + 60.0)
    assert not store.put_answer(second, expires_at_s=NOW_S + 60.0)

    stored = store.get(REQUEST_ID)
    assert stored is not None
    assert stored.answer == first


def test_result_store_confirms_the_answer_when_the_same_one_is_written_again(store: ResultStore) -> None:
    assert store.put_answer(an_answer(), expires_at_s=NOW_S + 60.0)
    assert store.put_answer(an_answer(), expires_at_s=NOW_S + 60.0)


def test_result_store_knows_nothing_when_an_id_was_never_written(store: ResultStore) -> None:
    assert store.get("never") is None


def test_result_store_keeps_who_asked_when_the_answer_comes(store: ResultStore) -> None:
    pending = StoredResult(
        request_id=REQUEST_ID,
        answer=None,
        body_sha256="abc",
        accepted_at_s=NOW_S,
        deadline_at_s=NOW_S + 0.2,
        owner="client-1",
        model="digits",
        model_version="2",
    )

    assert put_pending(store)
    assert store.get(REQUEST_ID) == pending
    assert store.put_answer(a_failed_answer(), expires_at_s=NOW_S + 60.0)

    stored = store.get(REQUEST_ID)
    assert stored is not None
    assert (stored.body_sha256, stored.owner, stored.accepted_at_s, stored.deadline_at_s) == ("abc", "client-1", NOW_S, NOW_S + 0.2)
    assert stored.answer == a_failed_answer()


def test_result_store_refuses_a_second_acceptance_of_the_same_id(store: ResultStore) -> None:
    assert put_pending(store, body_sha256="abc", deadline_at_s=None)
    assert not put_pending(store, body_sha256="def")

    stored = store.get(REQUEST_ID)
    assert stored is not None
    assert (stored.body_sha256, stored.deadline_at_s) == ("abc", None)


def test_result_store_refuses_acceptance_when_the_answer_is_already_there(store: ResultStore) -> None:
    store.put_answer(an_answer(), expires_at_s=NOW_S + 60.0)

    assert not put_pending(store)


def test_result_store_refuses_an_answer_that_no_item_can_hold(store: ResultStore) -> None:
    with pytest.raises(PayloadTooLarge, match="results table"):
        store.put_answer(an_answer(outputs=(a_tensor(values=(0.0,) * 100_000),)), expires_at_s=NOW_S)


def test_result_store_keeps_no_answer_whose_acceptance_is_gone_when_told_so(store: ResultStore) -> None:
    assert not store.put_answer(an_answer(), expires_at_s=NOW_S + 60.0, accepted_as="abc")

    assert store.get(REQUEST_ID) is None
    assert put_pending(store), "the key is free again"


def test_result_store_keeps_the_first_answer_beside_its_acceptance_when_told_so(store: ResultStore) -> None:
    put_pending(store)

    first, second = an_answer(tier=Tier.WORKER), an_answer(tier=Tier.LAMBDA)
    kept = [store.put_answer(answer, expires_at_s=NOW_S + 60.0, accepted_as="abc") for answer in (first, first, second)]

    assert kept == [True, True, False]
    stored = store.get(REQUEST_ID)
    assert stored is not None
    assert (stored.owner, stored.answer) == ("client-1", first)


def test_result_store_keeps_no_answer_to_what_the_same_id_was_used_for_before(store: ResultStore) -> None:
    put_pending(store, body_sha256="new")

    assert not store.put_answer(an_answer(), expires_at_s=NOW_S + 60.0, accepted_as="old")

    stored = store.get(REQUEST_ID)
    assert stored is not None
    assert stored.answer is None
