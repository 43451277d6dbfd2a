"""Answers written many to a call: in memory, and on DynamoDB as the embedded AWS emulates it, since moto's PartiQL knows no conditions."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import Any

import boto3
import pytest
from botocore.stub import Stubber

from local.embedded_aws import ACCOUNT_ID, REGION, EmbeddedAws, start_embedded_aws
from local.processes import ProcessLedger
from markserve.adapters.dynamodb_results import MAX_STATEMENTS, DynamoResultStore
from markserve.adapters.memory import MemoryResultStore
from markserve.core.types import Tier
from markserve.errors import ConfigurationError, PayloadTooLarge, Throttled
from markserve.messages import Answer
from markserve.ports import ResultStore
from tests.builders import NOW_S, a_tensor, an_answer
from tests.contract.conftest import create_table

EXPIRES_AT_S = NOW_S + 60.0
numbers = count()


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedAws]:
    work_dir = tmp_path_factory.mktemp("aws")
    aws = start_embedded_aws(ledger=ProcessLedger(work_dir / "processes.json"), work_dir=work_dir)
    try:
        yield aws
    finally:
        aws.stop()


@pytest.fixture(params=["memory", "embedded"])
def make_store(request: pytest.FixtureRequest) -> Callable[[], ResultStore]:
    if request.param == "memory":
        return MemoryResultStore
    client = client_of(request.getfixturevalue("embedded").endpoint_url)
    return lambda: DynamoResultStore(client, create_table(client, f"results-{next(numbers)}", keys=("request_id",)))


@pytest.fixture
def store(make_store: Callable[[], ResultStore]) -> ResultStore:
    return make_store()


def client_of(endpoint_url: str) -> Any:
    session = boto3.Session(region_name=REGION, aws_access_key_id=ACCOUNT_ID, aws_secret_access_key="local")
    return session.client("dynamodb", endpoint_url=endpoint_url)


def answers(number: int, *, tier: Tier = Tier.WORKER) -> list[Answer]:
    return [an_answer(request_id=f"r-{n}", tier=tier) for n in range(number)]


def accept(store: ResultStore, request_id: str) -> None:
    assert store.put_pending(
        request_id, body_sha256="abc", accepted_at_s=NOW_S, deadline_at_s=None, expires_at_s=EXPIRES_AT_S, owner="alice"
    )


def stored(store: ResultStore, request_id: str) -> Answer | None:
    known = store.get(request_id)
    return known.answer if known else None


@pytest.mark.parametrize("number", [0, 1, 2, MAX_STATEMENTS, MAX_STATEMENTS + 5])
def test_all_answers_are_stored(store: ResultStore, number: int) -> None:
    assert store.put_answers(answers(number), expires_at_s=EXPIRES_AT_S) == [True] * number

    assert [stored(store, answer.request_id) for answer in answers(number)] == answers(number)


def test_only_the_answer_that_came_second_is_refused(store: ResultStore) -> None:
    spilled = an_answer(request_id="r-1", tier=Tier.LAMBDA)
    store.put_answer(spilled, expires_at_s=EXPIRES_AT_S)

    assert store.put_answers(answers(3), expires_at_s=EXPIRES_AT_S) == [True, False, True]

    assert stored(store, "r-1") == spilled


def test_the_same_answers_are_confirmed_when_they_are_written_again(store: ResultStore) -> None:
    store.put_answers(answers(3), expires_at_s=EXPIRES_AT_S)

    assert store.put_answers(answers(3), expires_at_s=EXPIRES_AT_S) == [True, True, True]


@pytest.mark.parametrize("accepted_as", [(), ("abc", "")], ids=["unknown", "known"])
def test_what_was_accepted_keeps_who_asked_whether_the_writer_knows_or_not(store: ResultStore, accepted_as: tuple[str, ...]) -> None:
    accept(store, "r-0")

    assert store.put_answers(answers(2), expires_at_s=EXPIRES_AT_S, accepted_as=accepted_as) == [True, True]

    known = store.get("r-0")
    assert known is not None
    assert (known.owner, known.answer) == ("alice", answers(1)[0])
    assert stored(store, "r-1") == answers(2)[1]


def test_an_answer_whose_acceptance_is_gone_is_kept_for_nobody(store: ResultStore) -> None:
    accept(store, "r-0")

    assert store.put_answers(answers(3), expires_at_s=EXPIRES_AT_S, accepted_as=["abc", "abc", ""]) == [True, False, True]

    assert (stored(store, "r-0"), store.get("r-1"), stored(store, "r-2")) == (answers(1)[0], None, answers(3)[2])


def test_one_of_two_answers_to_one_request_in_a_call_is_the_answer(store: ResultStore) -> None:
    first, second = an_answer(request_id="r-0"), an_answer(request_id="r-0", tier=Tier.LAMBDA)

    assert store.put_answers([first, an_answer(request_id="r-1"), second, first], expires_at_s=EXPIRES_AT_S) == [True, True, False, True]

    assert stored(store, "r-0") == first


def test_an_answer_that_no_item_can_hold_is_refused(store: ResultStore) -> None:
    large = an_answer(request_id="large", outputs=(a_tensor(values=(0.0,) * 150_000),))

    with pytest.raises(PayloadTooLarge):
        store.put_answers([an_answer(request_id="r-0"), large], expires_at_s=EXPIRES_AT_S)


@pytest.mark.parametrize("seed", range(5))
def test_many_answers_come_out_as_one_by_one(make_store: Callable[[], ResultStore], seed: int) -> None:
    chance = random.Random(seed)
    together, alone = make_store(), make_store()
    for _ in range(6):
        for request_id in chance.sample([f"r-{n}" for n in range(6)], 2):
            fields = {"body_sha256": "abc", "accepted_at_s": NOW_S, "deadline_at_s": None, "expires_at_s": EXPIRES_AT_S}
            assert together.put_pending(request_id, **fields) == alone.put_pending(request_id, **fields)  # type: ignore[arg-type]
        written = [
            an_answer(request_id=f"r-{chance.randrange(6)}", tier=chance.choice([Tier.WORKER, Tier.LAMBDA]))
            for _ in range(chance.randrange(1, 6))
        ]
        bodies = [chance.choice(["", "abc", "def"]) for _ in written]

        outcomes = together.put_answers(written, expires_at_s=EXPIRES_AT_S, accepted_as=bodies)

        assert outcomes == [
            alone.put_answer(one, expires_at_s=EXPIRES_AT_S, accepted_as=body) for one, body in zip(written, bodies, strict=True)
        ]
    assert [together.get(f"r-{n}") for n in range(6)] == [alone.get(f"r-{n}") for n in range(6)]


def test_one_writer_of_each_request_wins_when_two_write_at_once(store: ResultStore) -> None:
    with ThreadPoolExecutor(max_workers=4) as pool:
        writers = [answers(20, tier=tier) for tier in (Tier.WORKER, Tier.LAMBDA)]
        ours, theirs = pool.map(lambda written: store.put_answers(written, expires_at_s=EXPIRES_AT_S), writers)

    assert [mine != yours for mine, yours in zip(ours, theirs, strict=True)] == [True] * 20
    winners = [Tier.WORKER if mine else Tier.LAMBDA for mine in ours]
    assert [answer.tier for n in range(20) if (answer := stored(store, f"r-{n}"))] == winners


# --- failures that no emulator makes ------------------------------------------------------------------------


@pytest.fixture
def stubbed() -> Iterator[tuple[DynamoResultStore, Stubber]]:
    client = client_of("http://127.0.0.1:1")
    with Stubber(client) as stubber:
        yield DynamoResultStore(client, "results"), stubber


def test_only_the_statement_that_was_throttled_is_to_be_tried_again(stubbed: tuple[DynamoResultStore, Stubber]) -> None:
    store, stubber = stubbed
    done, throttled, taken = {"TableName": "results"}, {"Error": {"Code": "ThrottlingError"}}, {"Error": {"Code": "DuplicateItem"}}
    stubber.add_response("batch_execute_statement", {"Responses": [done, throttled, taken]})
    stubber.add_client_error("update_item", "ConditionalCheckFailedException")

    first, second, third = store.put_answers(answers(3), expires_at_s=EXPIRES_AT_S)

    assert (first, third) == (True, False)
    assert isinstance(second, Throttled)
    stubber.assert_no_pending_responses()


def test_a_statement_that_is_refused_is_a_mistake_of_ours(stubbed: tuple[DynamoResultStore, Stubber]) -> None:
    store, stubber = stubbed
    stubber.add_response("batch_execute_statement", {"Responses": [{"Error": {"Code": "AccessDenied"}}] * 2})

    with pytest.raises(ConfigurationError, match="AccessDenied"):
        store.put_answers(answers(2), expires_at_s=EXPIRES_AT_S)


def test_all_are_to_be_tried_again_when_the_call_failed(stubbed: tuple[DynamoResultStore, Stubber]) -> None:
    store, stubber = stubbed
    stubber.add_client_error("batch_execute_statement", "ThrottlingException")

    with pytest.raises(Throttled):
        store.put_answers(answers(2), expires_at_s=EXPIRES_AT_S)
