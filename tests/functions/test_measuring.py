"""Measuring a model on an instance type: each step of the state machine on ports in memory."""

import json
from typing import Any

import pytest

from functions.lifecycle.app import parse, run
from markserve.adapters.memory import (
    MemoryBlobStore,
    MemoryControlStore,
    MemoryEventPublisher,
    MemoryFleet,
    MemoryInstanceRegistry,
    MemoryModelStore,
    MemoryParameterSource,
    MemorySpilloverInvoker,
)
from markserve.core.lifecycle import EVIDENCE_CYCLES, MEASUREMENT_LIMIT_S, Step, reconcile
from markserve.core.tunables import Tunables
from markserve.errors import InvalidRequest, UnknownModel
from markserve.lifecycle_context import Outcome
from markserve.measuring import Bench, measurement_key
from markserve.messages import MeasuredLatencies, ProfilePointRecord, encode
from tests.builders import MODEL, NOW_S, a_model_record

RUN = "run-1"
TYPE = "c5.large"
NAME = f"{RUN}/{TYPE}"
POINTS = (ProfilePointRecord(batch_size=1, p50_s=0.01, p98_s=0.02, p99_s=0.03, samples=50),)
TUNABLES = Tunables(launches_enabled=True, max_instances=4, max_hourly_cost_usd=2.0)


class Laboratory:
    """The lifecycle function's ports in memory, with one registered model."""

    def __init__(self, *, tunables: Tunables = TUNABLES, **fleet: Any) -> None:
        self.now_s = NOW_S
        self.fleet = MemoryFleet(now=lambda: self.now_s, **fleet)
        self.instances = MemoryInstanceRegistry()
        self.models = MemoryModelStore(a_model_record())
        self.blobs = MemoryBlobStore()
        self.control = MemoryControlStore()
        self.parameters = MemoryParameterSource(tunables)

    def take(self, step: str, **fields: Any) -> Outcome:
        event = {"measurement": step, "run_id": RUN, "model": MODEL}
        event |= {"instance_types": [TYPE]} if step == "store" else {"instance_type": TYPE}
        return run(
            parse(json.loads(json.dumps(event | fields))),
            bench=lambda: Bench(models=self.models, blobs=self.blobs),
            instances=self.instances,
            control=self.control,
            fleet=self.fleet,
            spillover=MemorySpilloverInvoker(),
            events=MemoryEventPublisher(),
            parameters=self.parameters,
            now_s=self.now_s,
        )

    def leave_result(self, *, model_version: str = "1") -> None:
        """Do what the instance does."""
        result = MeasuredLatencies(model=MODEL, model_version=model_version, instance_type=TYPE, points=POINTS)
        self.blobs.put(measurement_key(MODEL, NAME), encode(result))

    @property
    def cloud_states(self) -> list[str]:
        return [seen.cloud_state for seen in self.fleet.describe()]


def test_a_measurement_launches_one_instance_waits_for_its_result_gives_it_back_and_stores() -> None:
    lab = Laboratory()

    assert lab.take("start").event == "measurement_started"
    assert lab.take("check").event == "measuring"
    lab.leave_result()
    assert lab.take("check").event == "measured"
    assert lab.take("end").count == 1
    assert lab.take("store").count == 1

    assert lab.cloud_states == ["terminated"]
    assert lab.models.get(MODEL).profiles[TYPE] == POINTS
    assert lab.instances.list() == []  # nothing may plan with it


def test_steps_taken_twice_launch_and_give_back_once() -> None:
    lab = Laboratory()

    outcomes = [lab.take(step).count for step in ("start", "start", "end", "end")]

    assert outcomes == [1, 0, 1, 0]
    assert lab.cloud_states == ["terminated"]


def test_nothing_is_launched_while_launches_are_off_or_a_ceiling_is_reached() -> None:
    off = Laboratory(tunables=Tunables(launches_enabled=False))
    full = Laboratory(tunables=Tunables(launches_enabled=True, max_hourly_cost_usd=0.01))

    assert [lab.take("start").event for lab in (off, full)] == ["measurement_refused"] * 2
    assert off.fleet.describe() == full.fleet.describe() == []
    assert "launches-enabled" in off.take("start").reason


def test_a_dry_zone_is_passed_over() -> None:
    lab = Laboratory(zones=("us-east-1a", "us-east-1b"), dry_pools={f"{TYPE}/on_demand/us-east-1a"})

    assert lab.take("start").event == "measurement_started"
    assert [seen.zone for seen in lab.fleet.describe()] == ["us-east-1b"]


def test_no_zone_with_capacity_is_said() -> None:
    outcome = Laboratory(dry_pools={f"{TYPE}/on_demand/us-east-1a"}).take("start")

    assert outcome.event == "measurement_refused"
    assert "no capacity" in outcome.reason


def test_an_instance_that_ends_without_a_result_has_failed() -> None:
    lab = Laboratory()
    lab.take("start")
    lab.fleet.set_state(lab.fleet.describe()[0].instance_id, "terminated")

    assert lab.take("check").event == "measurement_failed"


def test_an_instance_that_never_finishes_has_failed() -> None:
    lab = Laboratory()
    lab.take("start")
    lab.now_s += MEASUREMENT_LIMIT_S + 1

    assert lab.take("check").event == "measurement_failed"


def test_a_result_of_a_version_that_is_no_longer_live_is_not_stored() -> None:
    lab = Laboratory()
    before = lab.models.get(MODEL).profiles
    lab.leave_result(model_version="0")

    outcome = lab.take("store")

    assert outcome.count == 0
    assert "version 0" in outcome.reason
    assert lab.models.get(MODEL).profiles == before


def test_unknown_models_types_and_steps_are_refused() -> None:
    lab = Laboratory()

    with pytest.raises(UnknownModel):
        lab.take("start", model="nobody")
    with pytest.raises(InvalidRequest, match="not in the catalog"):
        lab.take("start", instance_type="z9.none")
    with pytest.raises(InvalidRequest):
        lab.take("dance")


def test_the_orphan_sweep_leaves_a_measurement_alone_until_its_limit() -> None:
    lab = Laboratory()
    lab.take("start")
    lab.fleet.set_state(lab.fleet.describe()[0].instance_id, "running")
    (seen,) = lab.fleet.describe()

    def sweep(after_s: float, suspected: tuple[str, ...] = ()) -> list[Step]:
        decisions = reconcile(
            instances=[],
            observed=[seen],
            now_s=NOW_S + after_s,
            heartbeat_timeout_s=15.0,
            drain_deadline_s=120.0,
            suspected_orphans=suspected,
        )
        return [decision.step for decision in decisions]

    assert EVIDENCE_CYCLES >= 2
    assert sweep(MEASUREMENT_LIMIT_S - 1) == []
    assert sweep(MEASUREMENT_LIMIT_S + 1) == [Step.SUSPECT_ORPHAN]
    assert sweep(MEASUREMENT_LIMIT_S + 61, (seen.instance_id,)) == [Step.TERMINATE]
