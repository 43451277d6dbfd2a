from __future__ import annotations

from itertools import pairwise

import pytest

from markserve.adapters.dynamodb_instances import DynamoInstanceRegistry
from markserve.adapters.memory import MemoryInstanceRegistry
from markserve.core.types import Instance, InstanceState, WorkerStats
from markserve.errors import StaleWrite
from markserve.ports import InstanceRegistry
from tests.builders import NOW_S, an_instance
from tests.contract.conftest import BACKENDS, create_table


@pytest.fixture(params=BACKENDS)
def registry(request: pytest.FixtureRequest) -> InstanceRegistry:
    if request.param == "memory":
        return MemoryInstanceRegistry()
    client = request.getfixturevalue("aws")("dynamodb")
    return DynamoInstanceRegistry(client, create_table(client, "instances"))


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
    assert registry.list("unknown") == []


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
