"""Each port twice: in memory and on AWS as moto emulates it. A test that passes on both is the licence to trust the fake."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import boto3
import pytest
from moto import mock_aws

REGION = "us-east-1"

BACKENDS = ("memory", "moto")


@lru_cache(maxsize=1)
def session() -> boto3.Session:
    """One session for all tests: it reads each service's model from disk once, which takes most of a client's time."""
    return boto3.Session(region_name=REGION)


@pytest.fixture
def aws() -> Iterator[Callable[[str], Any]]:
    """Clients of an empty emulated account."""
    with mock_aws():
        yield lambda service: session().client(service)  # type: ignore[call-overload]


def create_table(client: Any, name: str, *, keys: tuple[str, ...] = ("pk", "sk")) -> str:
    client.create_table(
        TableName=name,
        KeySchema=[{"AttributeName": key, "KeyType": kind} for key, kind in zip(keys, ("HASH", "RANGE"), strict=False)],
        AttributeDefinitions=[{"AttributeName": key, "AttributeType": "S"} for key in keys],
        BillingMode="PAY_PER_REQUEST",
    )
    return name
