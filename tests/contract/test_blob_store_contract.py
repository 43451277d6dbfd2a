from __future__ import annotations

import pytest

from markserve.adapters.memory import MemoryBlobStore
from markserve.adapters.s3 import S3BlobStore
from markserve.errors import InvalidRequest
from markserve.ports import BlobStore
from tests.contract.conftest import BACKENDS


@pytest.fixture(params=BACKENDS)
def store(request: pytest.FixtureRequest) -> BlobStore:
    if request.param == "memory":
        return MemoryBlobStore()
    client = request.getfixturevalue("aws")("s3")
    client.create_bucket(Bucket="artefacts")
    return S3BlobStore(client, "artefacts")


def test_blob_store_returns_the_last_bytes_put(store: BlobStore) -> None:
    store.put("models/digits/1", b"old")
    store.put("models/digits/1", b"\x00\xff")

    assert store.get("models/digits/1") == b"\x00\xff"


def test_blob_store_raises_invalid_request_when_there_is_no_object(store: BlobStore) -> None:
    with pytest.raises(InvalidRequest, match="no object 'missing'"):
        store.get("missing")
