from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from markserve.adapters.dynamodb_instances import SHARDS_KNOWN_S, DynamoInstanceRegistry
from markserve.adapters.memory import MemoryInstanceRegistry
from markserve.core.cost import DYNAMODB_WRITE_BYTES
from markserve.core.spillover import FleetView, PublishedView, fleet_view
from markserve.core.types import Instance, InstanceState, WorkerStats
from markserve.errors import StaleWrite
from markserve.messages import encode
from markserve.ports import InstanceRegistry
from tests.builders import NOW_S, an_instance
from tests.contract.conftest import BACKENDS, create_table


@pytest.fixture(params=[*BACKENDS, "moto, sharded"])
def registry(request: pytest.FixtureRequest) -> InstanceRegistry:
    if request.param == "memory":
        return MemoryInstanceRegistry()
    client = request.getfixturevalue("aws")("dynamodb")
    return DynamoInstanceRegistry(client, create_table(client, "instances"), shards=1 if request.param == "moto" else 5)


def requested(instance_id: str = "i-1", **overrides: object) -> Instance:
    return an_instance(
        **{
            "instance_id": instance_id,
            "state": InstanceState.REQUESTED,
            "running_at_s": None,
            "serving_at_s": None,
            "heartbeat_at_s": None,
            "stats": WorkerStats(),
            "reason": "demand of 40 rps",
            **overrides,
        }
    )


def test_registry_returns_what_was_put(registry: InstanceRegistry) -> None:
    instance = an_instance(missed_cycles=2, unwanted_cycles=3)

    registry.put(instance)

    assert registry.list() == [instance]


def test_registry_changes_nothing_when_an_id_is_put_again(registry: InstanceRegistry) -> None:
    registry.put(requested(reason="first"))
    registry.put(requested(reason="second"))

    assert [instance.reason for instance in registry.list()] == ["first"]


def test_registry_lists_by_model_and_by_age(registry: InstanceRegistry) -> None:
    registry.put(requested("i-2", requested_at_s=20.0))
    registry.put(requested("i-1", requested_at_s=30.0))
    registry.put(requested("i-3", requested_at_s=10.0, model="other"))

    assert [instance.instance_id for instance in registry.list()] == ["i-3", "i-2", "i-1"]
    assert [instance.instance_id for instance in registry.list("digits")] == ["i-2", "i-1"]
    assert [instance.instance_id for instance in registry.list("digits", up_to_date=False)] == ["i-2", "i-1"]
    assert registry.list("unknown") == registry.list("unknown", up_to_date=False) == []


def test_registry_stamps_each_state_and_keeps_why_it_was_bought(registry: InstanceRegistry) -> None:
    registry.put(requested())
    states = (InstanceState.REQUESTED, InstanceState.WARMING, InstanceState.SERVING, InstanceState.DRAINING, InstanceState.TERMINATED)
    for i, (before, after) in enumerate(pairwise(states)):
        moved = registry.transition("i-1", expected=[before], state=after, at_s=NOW_S + i, reason=f"became {after}")

    assert registry.list() == [moved]
    assert moved.state is InstanceState.TERMINATED
    assert (moved.running_at_s, moved.serving_at_s, moved.drain_at_s, moved.terminated_at_s) == (NOW_S, NOW_S + 1, NOW_S + 2, NOW_S + 3)
    assert (moved.reason, moved.end_reason) == ("demand of 40 rps", "became draining")


def test_registry_tells_why_an_instance_failed(registry: InstanceRegistry) -> None:
    registry.put(requested())

    failed = registry.transition("i-1", expected=[InstanceState.REQUESTED], state=InstanceState.FAILED, at_s=NOW_S, reason="no heartbeat")

    assert (failed.state, failed.terminated_at_s, failed.end_reason, failed.is_alive) == (
        InstanceState.FAILED,
        NOW_S,
        "no heartbeat",
        False,
    )


def test_registry_raises_stale_write_when_the_state_is_not_expected(registry: InstanceRegistry) -> None:
    registry.put(requested())
    expected = [InstanceState.WARMING, InstanceState.SERVING]

    with pytest.raises(StaleWrite, match=r"i-1 is .*not warming or serving: cannot become draining"):
        registry.transition("i-1", expected=expected, state=InstanceState.DRAINING, at_s=NOW_S, reason="")
    with pytest.raises(StaleWrite, match="i-unknown"):
        registry.transition("i-unknown", expected=expected, state=InstanceState.DRAINING, at_s=NOW_S, reason="")

    assert [instance.state for instance in registry.list()] == [InstanceState.REQUESTED]


def test_registry_tells_a_worker_to_drain_when_it_sends_a_heartbeat(registry: InstanceRegistry) -> None:
    stats = WorkerStats(service_rate_rps=40.0, batch_latency_s=0.1, max_batch_size=8, queue_depth=3, in_flight=5, completed=17)
    registry.put(requested(state=InstanceState.SERVING))
    registry.transition("i-1", expected=[InstanceState.SERVING], state=InstanceState.DRAINING, at_s=NOW_S, reason="not wanted")

    instance = registry.heartbeat("i-1", at_s=NOW_S + 1.0, stats=stats)

    assert (instance.state, instance.heartbeat_at_s, instance.stats) == (InstanceState.DRAINING, NOW_S + 1.0, stats)
    assert registry.list() == [instance]


def test_registry_raises_stale_write_when_an_unknown_instance_sends_a_heartbeat(registry: InstanceRegistry) -> None:
    with pytest.raises(StaleWrite, match="i-unknown"):
        registry.heartbeat("i-unknown", at_s=NOW_S, stats=WorkerStats())

    assert registry.list() == []


def test_registry_stores_the_evidence_counters(registry: InstanceRegistry) -> None:
    registry.put(requested())

    registry.count_evidence("i-1", missed_cycles=2, unwanted_cycles=5)
    registry.count_evidence("i-unknown", missed_cycles=1, unwanted_cycles=1)

    assert [(i.instance_id, i.missed_cycles, i.unwanted_cycles) for i in registry.list()] == [("i-1", 2, 5)]


# --- how DynamoDB does it -------------------------------------------------------------------------------------------


def test_registry_keeps_knowing_its_instances_when_the_number_of_shards_changes(aws: Callable[[str], Any]) -> None:
    client = aws("dynamodb")
    create_table(client, "instances")
    worker, reader = DynamoInstanceRegistry(client, "instances"), DynamoInstanceRegistry(client, "instances")
    put = 0
    for shards in (1, 8, 2, 1):
        launcher = DynamoInstanceRegistry(client, "instances", shards=shards)
        for _ in range(8):
            launcher.put(requested(f"i-{put}", requested_at_s=float(put)))
            put += 1
    everyone = [f"i-{i}" for i in range(put)]

    assert [i.instance_id for i in reader.list("digits")] == [i.instance_id for i in reader.list()] == everyone
    for instance_id in everyone:
        worker.heartbeat(instance_id, at_s=NOW_S, stats=WorkerStats(completed=1))
    assert {i.stats.completed for i in reader.list("digits", up_to_date=False)} == {1}
    partitions = {item["pk"]["S"] for item in client.scan(TableName="instances")["Items"] if item["pk"]["S"].startswith("model#")}
    assert len(partitions) > 4


def test_registry_knows_instances_that_were_there_before_there_were_shards(aws: Callable[[str], Any]) -> None:
    client = aws("dynamodb")
    registry = DynamoInstanceRegistry(client, create_table(client, "instances"), shards=64)
    old = requested("i-old")
    for item in (
        {"pk": {"S": "model#digits"}, "sk": {"S": "i-old"}, "state": {"S": "requested"}, "instance": {"B": encode(old)}},
        {"pk": {"S": "instance#i-old"}, "sk": {"S": "model"}, "model": {"S": "digits"}},
        {"pk": {"S": "models"}, "sk": {"S": "digits"}},
    ):
        client.put_item(TableName="instances", Item=item)
    registry.put(requested("i-new"))

    assert [i.instance_id for i in registry.list("digits")] == ["i-new", "i-old"]
    assert registry.heartbeat("i-old", at_s=NOW_S, stats=WorkerStats()).heartbeat_at_s == NOW_S


def test_a_reader_that_asks_often_looks_for_new_shards_only_now_and_then(aws: Callable[[str], Any]) -> None:
    client = aws("dynamodb")
    clock_s = 0.0
    registry = DynamoInstanceRegistry(client, create_table(client, "instances"), monotonic_s=lambda: clock_s)
    registry.put(requested())
    consistent: list[bool] = []
    client.meta.events.register("provide-client-params.dynamodb.Query", lambda params, **_: consistent.append(params["ConsistentRead"]))

    for at_s in (1.0, 2.0, 3.0, SHARDS_KNOWN_S + 1.0, SHARDS_KNOWN_S + 2.0):
        clock_s = at_s
        assert len(registry.list("digits", up_to_date=False)) == 1

    # Each time the instances; twice the shards, the first time among them.
    assert consistent == [True, False, False, False, True, False, False]


def attributes(item: dict[str, dict[str, Any]]) -> list[tuple[str, Any]]:
    return [(name, value) for name, typed in item.items() for value in typed.values()]


def test_heartbeat_is_one_write_unit(aws: Callable[[str], Any]) -> None:
    """DynamoDB meters an update by the whole item, which is what this sizes as DynamoDB's documentation says."""
    client = aws("dynamodb")
    registry = DynamoInstanceRegistry(client, create_table(client, "instances"))
    instance_id = "i-0123456789abcdef0"
    reason = (
        "up to 633.8 rps unmet in steps 3-14; $0.247 per million requests it would serve; $0.0349/h for 48.9 rps each, serving in 180 s"
    )
    registry.put(requested(instance_id, model="recommender-ranking-v2", reason=reason, plan_id="plan-1700000000-0123456789"))
    registry.transition(instance_id, expected=[InstanceState.REQUESTED], state=InstanceState.WARMING, at_s=NOW_S + 0.123456, reason="")
    registry.transition(instance_id, expected=[InstanceState.WARMING], state=InstanceState.SERVING, at_s=NOW_S + 0.123456, reason="")
    stats = WorkerStats(
        service_rate_rps=1234.123456789012,
        batch_latency_s=0.123456789012345,
        max_batch_size=64,
        queue_depth=100_000,
        transport_s=0.123456789012345,
        in_flight=64,
        completed=1_000_000_000,
        dropped=1_000_000,
        failed=1_000_000,
        batches=100_000_000,
        sqs_calls=100_000_000,
        versions=("2026-01-01", "2026-01-02"),
    )
    registry.heartbeat(instance_id, at_s=NOW_S + 0.123456, stats=stats)

    [item] = [i for i in client.scan(TableName="instances")["Items"] if i["sk"]["S"] == instance_id]
    size = sum(len(name) + len(value if isinstance(value, bytes) else value.encode()) for name, value in attributes(item))
    assert size <= DYNAMODB_WRITE_BYTES


def a_view(**overrides: Any) -> FleetView:
    fleet = [an_instance(instance_id=f"i-{n}") for n in range(3)]
    return replace(fleet_view(fleet, NOW_S, 15.0), **overrides)


def test_registry_returns_the_latest_view_that_was_published(registry: InstanceRegistry) -> None:
    registry.publish_view("digits", a_view(versions=frozenset({"1", "2"}), ready_at_s=NOW_S + 9), at_s=NOW_S)
    registry.publish_view("digits", a_view(queue_depth=8), at_s=NOW_S + 1)
    registry.publish_view("other", a_view(versions=frozenset({"1", "2"}), ready_at_s=NOW_S + 9), at_s=NOW_S)

    assert registry.published_view("digits") == PublishedView(at_s=NOW_S + 1, view=a_view(queue_depth=8))
    assert registry.published_view("other") == PublishedView(at_s=NOW_S, view=a_view(versions=frozenset({"1", "2"}), ready_at_s=NOW_S + 9))
    assert registry.published_view("unknown") is None
    assert registry.list() == []


def test_every_reader_finds_the_view_whichever_copy_it_keeps_to(aws: Callable[[str], Any]) -> None:
    client = aws("dynamodb")
    table = create_table(client, "instances")
    DynamoInstanceRegistry(client, table, shards=8).publish_view("digits", a_view(), at_s=NOW_S)
    copies = client.scan(TableName=table)["Items"]

    for _ in range(40):
        assert DynamoInstanceRegistry(client, table, shards=8).published_view("digits") == PublishedView(at_s=NOW_S, view=a_view())
    assert len({item["pk"]["S"] for item in copies}) == len(copies) == 8


def test_a_view_of_thousands_of_workers_is_one_small_read(aws: Callable[[str], Any]) -> None:
    client = aws("dynamodb")
    table = create_table(client, "instances")
    fleet = [an_instance(instance_id=f"i-{n:017x}") for n in range(3000)]
    DynamoInstanceRegistry(client, table).publish_view("digits", fleet_view(fleet, NOW_S, 15.0), at_s=NOW_S)

    [item] = client.scan(TableName=table)["Items"]
    assert len(item["view"]["B"]) < DYNAMODB_WRITE_BYTES - 200
