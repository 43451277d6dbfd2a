from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from botocore.awsrequest import AWSResponse
from hypothesis import given, settings
from hypothesis import strategies as st
from moto import mock_aws

from markserve.adapters.dynamodb_windows import DynamoWindowStore
from markserve.adapters.memory import MemoryWindowStore
from markserve.core.types import Tier
from markserve.errors import DependencyUnavailable
from markserve.messages import ArrivalCounts
from markserve.ports import WindowStore
from tests.builders import NOW_S, a_metrics_batch, some_outcomes
from tests.contract.conftest import BACKENDS, create_table, session

EXPIRES_AT_S = NOW_S + 86_400.0


@pytest.fixture(params=[*BACKENDS, "moto, sharded"])
def store(request: pytest.FixtureRequest) -> WindowStore:
    if request.param == "memory":
        return MemoryWindowStore()
    client = request.getfixturevalue("aws")("dynamodb")
    return DynamoWindowStore(client, create_table(client, "windows"), shards=1 if request.param == "moto" else 5)


def arrivals(*counts: int, model: str = "digits", first_at_s: float = NOW_S) -> tuple[ArrivalCounts, ...]:
    return tuple(ArrivalCounts(model=model, window_at_s=first_at_s + 5.0 * i, count=count) for i, count in enumerate(counts))


def test_window_store_sums_batches_of_the_same_window(store: WindowStore) -> None:
    assert store.apply([a_metrics_batch(batch_id="a")], expires_at_s=EXPIRES_AT_S) == [True]
    assert store.apply([a_metrics_batch(batch_id="b", arrivals=arrivals(7, 3))], expires_at_s=EXPIRES_AT_S) == [True]

    assert store.arrivals("digits", since_s=NOW_S, until_s=NOW_S + 60.0) == {NOW_S: 17, NOW_S + 5.0: 3}
    assert store.outcomes("digits", since_s=NOW_S, until_s=NOW_S + 60.0) == [
        some_outcomes(ok=20, within_slo=20, latency_histogram={"130": 20})
    ]


def test_window_store_counts_a_batch_once_when_it_is_delivered_twice(store: WindowStore) -> None:
    batch = a_metrics_batch(tick_at_s=NOW_S + 1.0)

    assert store.apply([batch], expires_at_s=EXPIRES_AT_S) == [True]
    assert store.apply([batch], expires_at_s=EXPIRES_AT_S) == [False]

    assert store.arrivals("digits", since_s=NOW_S, until_s=NOW_S + 5.0) == {NOW_S: 10}
    assert store.ticks(since_s=NOW_S, until_s=NOW_S + 5.0) == [NOW_S + 1.0]


def test_window_store_counts_everything_once_when_a_batch_exceeds_a_transaction(store: WindowStore) -> None:
    batch = a_metrics_batch(arrivals=arrivals(*range(1, 121)), outcomes=())

    assert store.apply([batch], expires_at_s=EXPIRES_AT_S) == [True]
    assert store.apply([batch], expires_at_s=EXPIRES_AT_S) == [False]

    counted = store.arrivals("digits", since_s=0.0, until_s=NOW_S + 1e6)
    assert list(counted.values()) == list(range(1, 121))


def test_window_store_merges_entries_of_one_window_within_a_batch(store: WindowStore) -> None:
    batch = a_metrics_batch(
        arrivals=(*arrivals(2), *arrivals(3)),
        outcomes=(some_outcomes(ok=1, latency_histogram={"1": 1}), some_outcomes(ok=2, errors=1, latency_histogram={"1": 1, "-2": 1})),
    )

    store.apply([batch], expires_at_s=EXPIRES_AT_S)

    assert store.arrivals("digits", since_s=NOW_S, until_s=NOW_S + 5.0) == {NOW_S: 5}
    assert store.outcomes("digits", since_s=NOW_S, until_s=NOW_S + 5.0) == [
        some_outcomes(ok=3, errors=1, within_slo=20, latency_histogram={"1": 2, "-2": 1})
    ]


def test_window_store_keeps_tiers_and_models_apart(store: WindowStore) -> None:
    outcomes = (some_outcomes(tier=Tier.WORKER), some_outcomes(tier=Tier.LAMBDA), some_outcomes(tier=None), some_outcomes(model="other"))

    store.apply([a_metrics_batch(outcomes=outcomes, arrivals=(*arrivals(1), *arrivals(2, model="other")))], expires_at_s=EXPIRES_AT_S)

    assert [counts.tier for counts in store.outcomes("digits", since_s=NOW_S, until_s=NOW_S + 5.0)] == [None, Tier.LAMBDA, Tier.WORKER]
    assert store.arrivals("other", since_s=NOW_S, until_s=NOW_S + 5.0) == {NOW_S: 2}


def test_window_store_includes_the_start_and_excludes_the_end_of_an_interval(store: WindowStore) -> None:
    store.apply([a_metrics_batch(arrivals=arrivals(1, 2, 3), tick_at_s=NOW_S + 10.0)], expires_at_s=EXPIRES_AT_S)

    assert store.arrivals("digits", since_s=NOW_S + 5.0, until_s=NOW_S + 10.0) == {NOW_S + 5.0: 2}
    assert store.ticks(since_s=NOW_S, until_s=NOW_S + 10.0) == []
    assert store.ticks(since_s=NOW_S + 10.0, until_s=NOW_S + 11.0) == [NOW_S + 10.0]


def test_window_store_returns_window_starts_exactly_when_they_are_not_whole(store: WindowStore) -> None:
    at_s = 3 * 0.1  # 0.30000000000000004

    store.apply(
        [a_metrics_batch(arrivals=(ArrivalCounts(model="digits", window_at_s=at_s, count=1),), outcomes=())], expires_at_s=EXPIRES_AT_S
    )

    assert store.arrivals("digits", since_s=at_s, until_s=1.0) == {at_s: 1}


def test_window_store_remembers_a_batch_when_it_is_empty(store: WindowStore) -> None:
    empty = a_metrics_batch(arrivals=(), outcomes=())

    assert store.apply([empty], expires_at_s=EXPIRES_AT_S) == [True]
    assert store.apply([empty], expires_at_s=EXPIRES_AT_S) == [False]


def test_window_store_knows_a_window_when_its_counts_are_zero(store: WindowStore) -> None:
    store.apply(
        [a_metrics_batch(arrivals=arrivals(0), outcomes=(some_outcomes(ok=0, within_slo=0, latency_histogram={}),))], expires_at_s=1.0
    )

    assert store.outcomes("digits", since_s=NOW_S, until_s=NOW_S + 5.0) == [some_outcomes(ok=0, within_slo=0, latency_histogram={})]


def test_window_store_counts_each_batch_of_a_delivery_once(store: WindowStore) -> None:
    known = a_metrics_batch(batch_id="known", arrivals=arrivals(1))
    twice = a_metrics_batch(batch_id="twice", arrivals=arrivals(10))
    new = a_metrics_batch(batch_id="new", arrivals=arrivals(100), tick_at_s=NOW_S + 1.0)
    store.apply([known], expires_at_s=EXPIRES_AT_S)

    assert store.apply([twice, known, new, twice], expires_at_s=EXPIRES_AT_S) == [True, False, True, False]
    assert store.apply([new, known, twice], expires_at_s=EXPIRES_AT_S) == [False, False, False]

    assert store.arrivals("digits", since_s=NOW_S, until_s=NOW_S + 5.0) == {NOW_S: 111}
    assert [counts.ok for counts in store.outcomes("digits", since_s=NOW_S, until_s=NOW_S + 5.0)] == [30]
    assert store.ticks(since_s=NOW_S, until_s=NOW_S + 5.0) == [NOW_S + 1.0]


def test_window_store_counts_everything_when_a_delivery_exceeds_a_transaction(store: WindowStore) -> None:
    batches = [a_metrics_batch(batch_id=f"b-{i}", arrivals=arrivals(*[1] * (40 + 30 * i))) for i in range(4)]

    assert store.apply(batches, expires_at_s=EXPIRES_AT_S) == [True] * 4
    assert store.apply(batches, expires_at_s=EXPIRES_AT_S) == [False] * 4

    counted = store.arrivals("digits", since_s=0.0, until_s=NOW_S + 1e6)
    assert list(counted.values()) == [4] * 40 + [3] * 30 + [2] * 30 + [1] * 30
    assert [counts.ok for counts in store.outcomes("digits", since_s=NOW_S, until_s=NOW_S + 5.0)] == [40]


# --- how DynamoDB does it -------------------------------------------------------------------------------------------


def test_batches_that_come_together_write_the_item_of_their_window_once(aws: Callable[[str], Any]) -> None:
    client = aws("dynamodb")
    store = DynamoWindowStore(client, create_table(client, "windows"))
    written: list[list[str]] = []
    client.meta.events.register(
        "provide-client-params.dynamodb.TransactWriteItems",
        lambda params, **_: written.append([next(iter(operation)) for operation in params["TransactItems"]]),
    )

    store.apply([a_metrics_batch(batch_id=f"b-{i}") for i in range(10)], expires_at_s=EXPIRES_AT_S)

    assert written == [["Put"] * 10 + ["Update"] * 2]


def test_counters_of_many_deliveries_are_spread_over_all_shards_and_markers_over_none(aws: Callable[[str], Any]) -> None:
    client = aws("dynamodb")
    store = DynamoWindowStore(client, create_table(client, "windows"), shards=4)
    for i in range(60):
        store.apply([a_metrics_batch(batch_id=f"b-{i}", outcomes=())], expires_at_s=EXPIRES_AT_S)

    items = client.scan(TableName="windows")["Items"]
    by_key = {item["pk"]["S"]: int(item["arrivals"]["N"]) for item in items if "arrivals" in item}

    assert set(by_key) == {"digits#arrivals", "digits#arrivals#1", "digits#arrivals#2", "digits#arrivals#3"}
    assert sum(by_key.values()) == 600
    assert max(by_key.values()) < 300
    assert sum(item["pk"]["S"].startswith("batch#") for item in items) == 60


def test_a_failed_write_counts_nothing_and_is_told_of_each_batch_that_was_in_it(aws: Callable[[str], Any]) -> None:
    client = aws("dynamodb")
    store = DynamoWindowStore(client, create_table(client, "windows"))
    batches = [a_metrics_batch(batch_id=f"b-{i}", arrivals=arrivals(*[1] * 60), outcomes=()) for i in range(2)]
    batches += [a_metrics_batch(batch_id="long", arrivals=arrivals(*[1] * 60, first_at_s=NOW_S + 1e4), outcomes=())]
    delivered = 0

    def fail_the_second(**_: Any) -> Any:
        nonlocal delivered
        delivered += 1
        if delivered == 2:
            return AWSResponse("http://dynamodb", 500, {}, None), {"Error": {"Code": "InternalServerError", "Message": ""}}
        return None

    client.meta.events.register("before-call.dynamodb.TransactWriteItems", fail_the_second)
    first, second, third = store.apply(batches, expires_at_s=EXPIRES_AT_S)

    assert (first, second) == (True, True)
    assert isinstance(third, DependencyUnavailable)
    assert store.apply(batches, expires_at_s=EXPIRES_AT_S) == [False, False, True]
    assert set(store.arrivals("digits", since_s=0.0, until_s=NOW_S + 1e6).values()) == {1, 2}


Delivery = tuple[int, list[int]]
"""Shards of the writer, and the batches that it is given, some again."""


@settings(max_examples=25, deadline=None)
@given(deliveries=st.lists(st.tuples(st.sampled_from([1, 2, 3, 8]), st.lists(st.integers(0, 11), max_size=6)), max_size=8))
def test_counts_do_not_depend_on_shards_their_changes_or_how_often_a_batch_comes(deliveries: list[Delivery]) -> None:
    batches = [
        a_metrics_batch(
            batch_id=f"b-{i}",
            arrivals=arrivals(i + 1, 1),
            outcomes=(some_outcomes(ok=i, tier=[None, Tier.WORKER][i % 2], latency_histogram={str(i % 3): i + 1}),),
        )
        for i in range(12)
    ]
    memory = MemoryWindowStore()
    with mock_aws():
        client = session().client("dynamodb")
        create_table(client, "windows")
        reader = DynamoWindowStore(client, "windows")
        for shards, chosen in deliveries:
            writer = DynamoWindowStore(client, "windows", shards=shards)
            delivery = [batches[i] for i in chosen]

            assert writer.apply(delivery, expires_at_s=EXPIRES_AT_S) == memory.apply(delivery, expires_at_s=EXPIRES_AT_S)
            span = {"since_s": 0.0, "until_s": 2 * NOW_S}
            assert reader.arrivals("digits", **span) == memory.arrivals("digits", **span)
            assert reader.outcomes("digits", **span) == memory.outcomes("digits", **span)
