from __future__ import annotations

import pytest

from markserve.adapters.dynamodb_models import DynamoModelStore
from markserve.adapters.memory import MemoryModelStore
from markserve.errors import StaleWrite, UnknownModel
from markserve.messages import Traffic
from markserve.ports import ModelStore
from tests.builders import a_model_record
from tests.contract.conftest import BACKENDS, create_table


@pytest.fixture(params=BACKENDS)
def store(request: pytest.FixtureRequest) -> ModelStore:
    if request.param == "memory":
        return MemoryModelStore()
    client = request.getfixturevalue("aws")("dynamodb")
    return DynamoModelStore(client, create_table(client, "models"))


def test_model_store_returns_the_last_version_put_when_no_version_is_named(store: ModelStore) -> None:
    first, second = a_model_record(version="1", created_at_s=10.0), a_model_record(version="2", created_at_s=20.0)

    store.put(first)
    store.put(second)

    assert store.get("digits") == second
    assert store.get("digits", "1") == first
    assert store.versions("digits") == ["1", "2"]


def test_model_store_orders_versions_by_age_and_not_by_name(store: ModelStore) -> None:
    for version, created_at_s in (("10", 10.0), ("9", 9.0), ("b", 11.0)):
        store.put(a_model_record(version=version, created_at_s=created_at_s))

    assert store.versions("digits") == ["9", "10", "b"]


def test_model_store_replaces_a_version_when_it_is_put_again(store: ModelStore) -> None:
    store.put(a_model_record(max_batch_size=8))
    store.put(a_model_record(max_batch_size=16))

    assert store.versions("digits") == ["1"]
    assert store.get("digits").max_batch_size == 16
    assert store.get("digits", "1").max_batch_size == 16


def test_model_store_lists_live_versions_by_name(store: ModelStore) -> None:
    store.put(a_model_record(model="zebra"))
    store.put(a_model_record(model="apple", version="1"))
    store.put(a_model_record(model="apple", version="2"))

    assert [(record.model, record.version) for record in store.list()] == [("apple", "2"), ("zebra", "1")]


def test_model_store_raises_unknown_model_when_model_or_version_is_missing(store: ModelStore) -> None:
    store.put(a_model_record())

    with pytest.raises(UnknownModel, match="no model 'other'"):
        store.get("other")
    with pytest.raises(UnknownModel, match="no version '7' of model 'digits'"):
        store.get("digits", "7")
    assert store.versions("other") == []


def test_model_store_forgets_every_version_when_a_model_is_deleted(store: ModelStore) -> None:
    store.put(a_model_record(version="1"))
    store.put(a_model_record(version="2"))
    store.put(a_model_record(model="other"))

    store.delete("digits")
    store.delete("never-there")

    assert store.versions("digits") == []
    assert store.removed("digits") == ["1", "2"]
    assert [record.model for record in store.list()] == ["other"]
    with pytest.raises(UnknownModel):
        store.get("digits", "1")


def test_version_that_is_stored_gets_no_traffic(store: ModelStore) -> None:
    store.put(a_model_record(version="1"))
    store.store(a_model_record(version="2", created_at_s=20.0))

    assert store.traffic("digits") == Traffic(model="digits", live="1")
    assert store.get("digits").version == "1"
    assert store.get("digits", "2").version == "2"


def test_storing_the_live_version_again_changes_its_copies_and_no_traffic(store: ModelStore) -> None:
    store.put(a_model_record(version="1"))
    store.store(a_model_record(version="2", created_at_s=20.0))
    traffic = Traffic(model="digits", live="1", canary="2", canary_weight=0.1, number=1)
    store.route(traffic)

    store.store(a_model_record(version="1", max_batch_size=7))

    assert store.get("digits").max_batch_size == 7
    assert [record.max_batch_size for record in store.list()] == [7]
    assert store.traffic("digits") == traffic


def test_routing_makes_another_version_live_everywhere_at_once(store: ModelStore) -> None:
    store.put(a_model_record(version="1"))
    store.store(a_model_record(version="2", created_at_s=20.0))

    store.route(Traffic(model="digits", live="2", previous="1", number=1))

    assert store.get("digits").version == "2"
    assert [record.version for record in store.list()] == ["2"]
    assert store.traffic("digits").versions == ("2", "1")


def test_routing_is_refused_when_another_change_came_first(store: ModelStore) -> None:
    store.put(a_model_record(version="1"))
    store.store(a_model_record(version="2", created_at_s=20.0))
    store.route(Traffic(model="digits", live="1", canary="2", canary_weight=0.1, number=1))

    with pytest.raises(StaleWrite, match="traffic of model 'digits' was changed by somebody else"):
        store.route(Traffic(model="digits", live="2", number=1))
    assert store.traffic("digits").live == "1"


def test_routing_is_refused_when_a_version_is_not_stored(store: ModelStore) -> None:
    with pytest.raises(UnknownModel, match="no model 'digits'"):
        store.route(Traffic(model="digits", live="1", number=1))
    store.put(a_model_record(version="1"))

    with pytest.raises(UnknownModel, match="no version '9'"):
        store.route(Traffic(model="digits", live="1", canary="9", number=1))
    with pytest.raises(UnknownModel, match="no model 'other'"):
        store.traffic("other")


def test_version_is_removed_unless_it_gets_traffic(store: ModelStore) -> None:
    store.put(a_model_record(version="1"))
    for version in ("2", "3"):
        store.store(a_model_record(version=version, created_at_s=20.0))
    store.route(Traffic(model="digits", live="2", canary="3", canary_weight=0.5, previous="1", number=1))

    for version in ("2", "3"):
        with pytest.raises(StaleWrite, match="gets traffic"):
            store.delete_version("digits", version)
    store.delete_version("digits", "1")
    store.delete_version("digits", "never-there")

    assert sorted(store.versions("digits")) == ["2", "3"]
    assert store.removed("digits") == ["1"]
    assert store.removed("other") == []
    assert store.traffic("digits") == Traffic(model="digits", live="2", canary="3", canary_weight=0.5, number=1)


def test_withdrawn_model_is_unknown_while_its_versions_stay_for_what_is_under_way(store: ModelStore) -> None:
    store.put(a_model_record(version="1"))

    store.withdraw("digits")
    store.withdraw("never-there")

    with pytest.raises(UnknownModel):
        store.get("digits")
    with pytest.raises(UnknownModel):
        store.traffic("digits")
    assert store.list() == []
    assert store.get("digits", "1").version == "1"
