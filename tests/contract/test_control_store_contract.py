from __future__ import annotations

import pytest

from markserve.adapters.dynamodb_control import DynamoControlStore
from markserve.adapters.memory import MemoryControlStore
from markserve.errors import StaleWrite
from markserve.ports import ControlStore
from tests.builders import NOW_S, a_decision, a_drain, a_forecast_record, a_launch, a_plan_record, a_terminate, a_warm_up
from tests.contract.conftest import BACKENDS, create_table


@pytest.fixture(params=BACKENDS)
def store(request: pytest.FixtureRequest) -> ControlStore:
    if request.param == "memory":
        return MemoryControlStore()
    client = request.getfixturevalue("aws")("dynamodb")
    return DynamoControlStore(client, create_table(client, "control"))


def test_control_store_returns_the_forecast_of_the_latest_origin(store: ControlStore) -> None:
    later, earlier = a_forecast_record(origin_at_s=NOW_S + 60.0), a_forecast_record(origin_at_s=NOW_S)
    store.put_forecast(later)
    store.put_forecast(earlier)
    store.put_forecast(a_forecast_record(model="other", origin_at_s=NOW_S + 600.0))

    assert store.latest_forecast("digits") == later
    assert store.latest_forecast("unknown") is None
    assert store.forecasts("digits", since_s=NOW_S, until_s=NOW_S + 60.0) == [earlier]
    assert store.forecasts("digits", since_s=NOW_S, until_s=NOW_S + 61.0) == [earlier, later]


def test_control_store_returns_plans_by_creation(store: ControlStore) -> None:
    actions = (a_launch(), a_drain(), a_terminate(), a_warm_up())
    plans = [a_plan_record(plan_id=f"p{v}", version=v, created_at_s=NOW_S + 60.0 * v, actions=actions) for v in (1, 2, 3)]
    for plan in plans:
        store.put_plan(plan)

    assert store.latest_plan() == plans[2]
    assert store.plans(since_s=NOW_S + 60.0, until_s=NOW_S + 180.0) == plans[:2]
    assert store.plans(since_s=NOW_S + 120.0, until_s=NOW_S + 1000.0) == plans[1:]


def test_control_store_has_no_plan_when_none_was_put(store: ControlStore) -> None:
    assert store.latest_plan() is None
    assert store.plans(since_s=0.0, until_s=NOW_S) == []


def test_control_store_raises_stale_write_when_another_plan_came_first(store: ControlStore) -> None:
    store.put_plan(a_plan_record(plan_id="first", version=1))

    with pytest.raises(StaleWrite, match="plan version 1"):
        store.put_plan(a_plan_record(plan_id="second", version=1))

    latest = store.latest_plan()
    assert latest is not None
    assert latest.plan_id == "first"


def test_control_store_raises_stale_write_when_a_plan_skips_a_version(store: ControlStore) -> None:
    store.put_plan(a_plan_record(version=1))

    with pytest.raises(StaleWrite, match="plan version 3"):
        store.put_plan(a_plan_record(version=3))


def test_control_store_returns_decisions_of_an_interval_in_order(store: ControlStore) -> None:
    records = [a_decision(at_s=NOW_S + i, subject=f"i-{i}", detail={"attempt": i, "zone": None}) for i in range(3)]
    for record in reversed(records):
        store.log(record)

    assert store.decisions(since_s=NOW_S, until_s=NOW_S + 2.0) == records[:2]
    assert store.decisions(since_s=0.0, until_s=NOW_S + 3.0) == records


def test_control_store_keeps_both_decisions_of_one_instant(store: ControlStore) -> None:
    store.log(a_decision(subject="i-1"))
    store.log(a_decision(subject="i-2"))

    assert {record.subject for record in store.decisions(since_s=NOW_S, until_s=NOW_S + 1.0)} == {"i-1", "i-2"}


def test_control_store_grants_a_claim_once_until_it_ends(store: ControlStore) -> None:
    assert store.claim("action-1", now_s=NOW_S, for_s=60.0)
    assert not store.claim("action-1", now_s=NOW_S + 59.0, for_s=60.0)
    assert store.claim("action-1", now_s=NOW_S + 60.0, for_s=60.0)
    assert not store.claim("action-1", now_s=NOW_S + 61.0, for_s=60.0)


def test_control_store_lists_claims_held_under_a_prefix(store: ControlStore) -> None:
    store.claim("dry#c5.large/spot/us-east-1b", now_s=NOW_S, for_s=180.0)
    store.claim("dry#c5.large/spot/us-east-1a", now_s=NOW_S, for_s=180.0)
    store.claim("dry#m5.large/spot/us-east-1a", now_s=NOW_S, for_s=10.0)
    store.claim("action-1", now_s=NOW_S, for_s=180.0)

    assert store.claims("dry#", now_s=NOW_S + 10.0) == ["dry#c5.large/spot/us-east-1a", "dry#c5.large/spot/us-east-1b"]
    assert store.claims("", now_s=NOW_S + 179.0) == ["action-1", "dry#c5.large/spot/us-east-1a", "dry#c5.large/spot/us-east-1b"]
    assert store.claims("dry#", now_s=NOW_S + 180.0) == []
