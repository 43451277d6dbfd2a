from __future__ import annotations

import pytest

from markserve.adapters.dynamodb_clients import DynamoClientStore
from markserve.adapters.memory_clients import MemoryClientStore
from markserve.messages import ClientRecord
from markserve.ports import ClientStore
from tests.contract.conftest import BACKENDS, create_table

SHOP = ClientRecord(client="shop", key_sha256="ab" * 32, requests_per_minute=600, created_at_s=1.0)


@pytest.fixture(params=BACKENDS)
def store(request: pytest.FixtureRequest) -> ClientStore:
    if request.param == "memory":
        return MemoryClientStore()
    client = request.getfixturevalue("aws")("dynamodb")
    return DynamoClientStore(client, create_table(client, "clients"))


def test_client_is_found_by_the_digest_of_its_key_and_by_no_other(store: ClientStore) -> None:
    assert store.put(SHOP)

    assert store.find("ab" * 32) == SHOP
    assert store.find("cd" * 32) is None
    assert store.list() == [SHOP]


def test_client_name_is_given_once(store: ClientStore) -> None:
    store.put(SHOP)

    assert not store.put(ClientRecord(client="shop", key_sha256="cd" * 32, requests_per_minute=1))
    assert store.find("cd" * 32) is None


def test_removed_client_is_not_found_and_its_name_is_free(store: ClientStore) -> None:
    store.put(SHOP)

    assert store.remove("shop")
    assert not store.remove("shop")
    assert store.find("ab" * 32) is None
    assert store.list() == []
    assert store.put(SHOP)


def test_requests_are_counted_by_client_and_window(store: ClientStore) -> None:
    counts = [store.count("shop", window_at_s=60.0), store.count("shop", window_at_s=60.0), store.count("shop", window_at_s=120.0)]

    assert counts == [1, 2, 1]
    assert store.count("other", window_at_s=60.0) == 1
