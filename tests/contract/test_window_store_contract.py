from __future__ import annotations

import pytest

from markserve.adapters.dynamodb_windows import DynamoWindowStore
from markserve.adapters.memory import MemoryWindowStore
from markserve.core.types import Tier
from markserve.messages import ArrivalCounts
from markserve.ports import WindowStore
from tests.builders import NOW_S, a_metrics_batch, some_outcomes
from tests.contract.conftest import BACKENDS, create_table

EXPIRES_AT_S = NOW_S + 86_400.0


@pytest.fixture(params=BACKENDS)
def store(request: pytest.FixtureRequest) -> WindowStore:
    if request.param == "memory":
        return MemoryWindowStore()
    client = request.getfixturevalue("aws")("dynamodb")
    return DynamoWindowStore(client, create_table(client, "windows"))


def arrivals(*counts: int, model: str = "digits", first_at_s: float = NOW_S) -> tuple[ArrivalCounts, ...]:
    return tuple(ArrivalCounts(model=model, window_at_s=first_at_s + 5.0 * i, count=count) for i, count in enumerate(counts))


def test_window_store_sums_batches_of_the_same_window(store: WindowStore) -> None:
    assert store.apply(a_metrics_batch(batch_id="a"), expires_at_s=EXPIRES_AT_S)
    assert store.apply(a_metrics_batch(batch_id="b", arrivals=arrivals(7, 3)), expires_at_s=EXPIRES_AT_S)

    assert store.arrivals("digits", since_s=NOW_S, until_s=NOW_S + 60.0) == {NOW_S: 17, NOW_S + 5.0: 3}
    assert store.outcomes("digits", since_s=NOW_S, until_s=NOW_S + 60.0) == [
        some_outcomes(ok=20, within_slo=20, latency_histogram={"130": 20})
    ]


def test_window_store_counts_a_batch_once_when_it_is_delivered_twice(store: WindowStore) -> None:
    batch = a_metrics_batch(tick_at_s=NOW_S + 1.0)

    assert store.apply(batch, expires_at_s=EXPIRES_AT_S)
    assert not store.apply(batch, expires_at_s=EXPIRES_AT_S)

    assert store.arrivals("digits", since_s=NOW_S, until_s=NOW_S + 5.0) == {NOW_S: 10}
    assert store.ticks(since_s=NOW_S, until_s=NOW_S + 5.0) == [NOW_S + 1.0]


def test_window_store_counts_everything_once_when_a_batch_exceeds_a_transaction(store: WindowStore) -> None:
    batch = a_metrics_batch(arrivals=arrivals(*range(1, 121)), outcomes=())

    assert store.apply(batch, expires_at_s=EXPIRES_AT_S)
    assert not store.apply(batch, expires_at_s=EXPIRES_AT_S)

    counted = store.arrivals("digits", since_s=0.0, until_s=NOW_S + 1e6)
    assert list(counted.values()) == list(range(1, 121))


def test_window_store_merges_entries_of_one_window_within_a_batch(store: WindowStore) -> None:
    batch = a_metrics_batch(
        arrivals=(*arrivals(2), *arrivals(3)),
        outcomes=(some_outcomes(ok=1, latency_histogram={"1": 1}), some_outcomes(ok=2, errors=1, latency_histogram={"1": 1, "-2": 1})),
    )

    store.apply(batch, expires_at_s=EXPIRES_AT_S)

    assert store.arrivals("digits", since_s=NOW_S, until_s=NOW_S + 5.0) == {NOW_S: 5}
    assert store.outcomes("digits", since_s=NOW_S, until_s=NOW_S + 5.0) == [
        some_outcomes(ok=3, errors=1, within_slo=20, latency_histogram={"1": 2, "-2": 1})
    ]


def test_window_store_keeps_tiers_and_models_apart(store: WindowStore) -> None:
    outcomes = (some_outcomes(tier=Tier.WORKER), some_outcomes(tier=Tier.LAMBDA), some_outcomes(tier=None), some_outcomes(model="other"))

    store.apply(a_metrics_batch(outcomes=outcomes, arrivals=(*arrivals(1), *arrivals(2, model="other"))), expires_at_s=EXPIRES_AT_S)

    assert [counts.tier for counts in store.outcomes("digits", since_s=NOW_S, until_s=NOW_S + 5.0)] == [None, Tier.LAMBDA, Tier.WORKER]
    assert store.arrivals("other", since_s=NOW_S, until_s=NOW_S + 5.0) == {NOW_S: 2}


def test_window_store_includes_the_start_and_excludes_the_end_of_an_interval(store: WindowStore) -> None:
    store.apply(a_metrics_batch(arrivals=arrivals(1, 2, 3), tick_at_s=NOW_S + 10.0), expires_at_s=EXPIRES_AT_S)

    assert store.arrivals("digits", since_s=NOW_S + 5.0, until_s=NOW_S + 10.0) == {NOW_S + 5.0: 2}
    assert store.ticks(since_s=NOW_S, until_s=NOW_S + 10.0) == []
    assert store.ticks(since_s=NOW_S + 10.0, until_s=NOW_S + 11.0) == [NOW_S + 10.0]


def test_window_store_returns_window_starts_exactly_when_they_are_not_whole(store: WindowStore) -> None:
    at_s = 3 * 0.1  # 0.30000000000000004

    store.apply(
        a_metrics_batch(arrivals=(ArrivalCounts(model="digits", window_at_s=at_s, count=1),), outcomes=()), expires_at_s=EXPIRES_AT_S
    )

    assert store.arrivals("digits", since_s=at_s, until_s=1.0) == {at_s: 1}


def test_window_store_remembers_a_batch_when_it_is_empty(store: WindowStore) -> None:
    empty = a_metrics_batch(arrivals=(), outcomes=())

    assert store.apply(empty, expires_at_s=EXPIRES_AT_S)
    assert not store.apply(empty, expires_at_s=EXPIRES_AT_S)


def test_window_store_knows_a_window_when_its_counts_are_zero(store: WindowStore) -> None:
    store.apply(
        a_metrics_batch(arrivals=arrivals(0), outcomes=(some_outcomes(ok=0, within_slo=0, latency_histogram={}),)), expires_at_s=1.0
    )

    assert store.outcomes("digits", since_s=NOW_S, until_s=NOW_S + 5.0) == [some_outcomes(ok=0, within_slo=0, latency_histogram={})]
