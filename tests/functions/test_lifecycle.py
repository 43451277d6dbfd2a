"""Instance lifecycle on ports in memory: each action and each recorded event, once and twice."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from functions.lifecycle.app import parse, run
from markserve.adapters.memory import (
    MemoryControlStore,
    MemoryEventPublisher,
    MemoryFleet,
    MemoryInstanceRegistry,
    MemoryParameterSource,
    MemorySpilloverInvoker,
)
from markserve.core.tunables import Tunables
from markserve.core.types import Instance, InstanceState
from markserve.errors import DependencyUnavailable, InvalidRequest
from markserve.lifecycle_context import Outcome
from markserve.messages import InstanceInterrupted
from tests.builders import (
    MODEL,
    NOW_S,
    a_drain,
    a_launch,
    a_spot_offering,
    a_terminate,
    a_warm_up,
    an_instance,
    an_observed_instance,
    an_offering,
)

EVENTS = Path(__file__).parents[2] / "events"
RECORDED_ID = "i-0a1b2c3d4e5f60718"
"""The instance that the recorded events are about."""
TUNABLES = Tunables(launches_enabled=True, max_instances=4, max_hourly_cost_usd=2.0)


class World:
    """Every port that the lifecycle uses, in memory."""

    def __init__(self, *instances: Instance, tunables: Tunables = TUNABLES, **fleet: Any) -> None:
        self.instances = MemoryInstanceRegistry(*instances)
        self.control = MemoryControlStore()
        self.fleet = MemoryFleet(now=lambda: NOW_S, **fleet)
        self.spillover = MemorySpilloverInvoker()
        self.events = MemoryEventPublisher()
        self.parameters = MemoryParameterSource(tunables)
        for instance in instances:
            self.fleet.add(an_observed_instance(instance_id=instance.instance_id))

    def do(self, command: Any) -> Outcome:
        return run(
            command,
            instances=self.instances,
            control=self.control,
            fleet=self.fleet,
            spillover=self.spillover,
            events=self.events,
            parameters=self.parameters,
            now_s=NOW_S,
        )

    def follow(self, name: str, **detail: Any) -> Outcome:
        """Follow a recorded event, with parts of its detail changed."""
        event = json.loads((EVENTS / f"{name}.json").read_text())
        event["detail"] |= detail
        return self.do(parse(event))

    @property
    def states(self) -> dict[str, str]:
        return {i.instance_id: i.state.value for i in self.instances.list()}

    @property
    def logged(self) -> list[str]:
        return [d.event for d in self.control.decisions(since_s=NOW_S, until_s=NOW_S + 1)]

    def cloud_state(self, instance_id: str) -> str:
        return next(seen.cloud_state for seen in self.fleet.describe() if seen.instance_id == instance_id)


def recorded(**overrides: Any) -> Instance:
    return an_instance(**{"instance_id": RECORDED_ID, **overrides})


# --- launch -----------------------------------------------------------------------------------------------


def test_launch_registers_and_logs_every_instance() -> None:
    world = World()

    outcome = world.do(a_launch(count=2))

    registered = world.instances.list()
    assert (outcome.event, outcome.count) == ("instances_launched", 2)
    assert [(i.state, i.model, i.offering, i.plan_id) for i in registered] == [
        (InstanceState.REQUESTED, MODEL, an_offering(), "plan-1")
    ] * 2
    assert world.logged == ["instance_launched", "instance_launched"]


def test_launch_happens_once_when_the_action_comes_twice() -> None:
    world = World()

    world.do(a_launch())
    again = world.do(a_launch())

    assert again.event == "action_repeated"
    assert (len(world.fleet.launches), len(world.instances.list())) == (1, 1)


def test_launch_is_retried_when_the_first_attempt_failed() -> None:
    world = World(unavailable=True)
    with pytest.raises(DependencyUnavailable):
        world.do(a_launch())

    world.fleet.unavailable = False
    outcome = world.do(a_launch())

    assert outcome.event == "instances_launched"


def test_launch_is_refused_when_launches_are_disabled() -> None:
    world = World(tunables=replace(TUNABLES, launches_enabled=False))

    outcome = world.do(a_launch())

    assert (outcome.event, outcome.reason) == ("launch_refused", "launches-enabled is false")
    assert world.fleet.launches == []


def test_launch_is_cut_to_the_ceiling_when_other_instances_came_first() -> None:
    world = World(an_instance(), tunables=replace(TUNABLES, max_instances=2))

    outcome = world.do(a_launch(count=3))

    assert (outcome.count, outcome.reason) == (1, "1 of 3: the ceiling max-instances is reached")
    assert [launch.count for launch in world.fleet.launches] == [1]


def test_launch_is_refused_when_it_exceeds_the_hourly_cost() -> None:
    world = World(an_instance(), tunables=replace(TUNABLES, max_hourly_cost_usd=0.1))

    outcome = world.do(a_launch())

    assert outcome.event == "launch_refused"
    assert outcome.reason == "its $0.0850/h exceed the $0.0150/h left under max-hourly-cost-usd"


def test_launch_counts_what_the_cloud_runs_when_the_registry_does_not_know_it() -> None:
    world = World(tunables=replace(TUNABLES, max_instances=1))
    world.fleet.add(an_observed_instance(instance_id="i-orphan"))
    world.fleet.add(an_observed_instance(instance_id="i-gone", cloud_state="terminated"))

    assert world.do(a_launch()).event == "launch_refused"


def test_launch_goes_to_another_zone_then_on_demand_when_spot_pools_run_dry() -> None:
    spot = a_spot_offering()
    other = replace(spot, zone="us-east-1b")
    world = World(dry_pools={spot.key}, pool_capacity={other.key: 1}, zones=("us-east-1a", "us-east-1b"))

    outcome = world.do(a_launch(count=2, offering=spot))

    bought = {i.offering.key: i.offering.price_usd_per_hour for i in world.instances.list()}
    assert (outcome.event, outcome.count) == ("instances_launched", 2)
    assert list(bought) == ["c5.large/spot/us-east-1b", "c5.large/on_demand/us-east-1a"]
    assert bought["c5.large/on_demand/us-east-1a"] > bought["c5.large/spot/us-east-1b"]
    assert world.control.claims("unavailable/", now_s=NOW_S) == [f"unavailable/{spot.key}", f"unavailable/{other.key}"]


def test_launch_in_substitute_pools_happens_once_when_the_action_comes_twice() -> None:
    spot = a_spot_offering()
    world = World(dry_pools={spot.key}, zones=("us-east-1a",))

    world.do(a_launch(count=2, offering=spot))
    world.do(a_launch(count=2, offering=spot))

    assert len(world.instances.list()) == 2


def test_launch_on_demand_in_place_of_spot_respects_the_ceiling_on_cost() -> None:
    spot = a_spot_offering()
    world = World(dry_pools={spot.key}, tunables=replace(TUNABLES, max_hourly_cost_usd=spot.price_usd_per_hour * 1.5))

    outcome = world.do(a_launch(offering=spot))

    assert outcome.event == "launch_refused"
    assert world.instances.list() == []


def test_launch_marks_the_pool_when_it_is_dry() -> None:
    world = World(dry_pools={"c5.large/on_demand/us-east-1a"})

    outcome = world.do(a_launch())

    assert outcome.event == "capacity_unavailable"
    assert world.control.claims("unavailable/", now_s=NOW_S + 179.0) == ["unavailable/c5.large/on_demand/us-east-1a"]
    assert world.control.claims("unavailable/", now_s=NOW_S + 181.0) == []
    assert world.logged == ["capacity_unavailable"]


def test_launch_registers_what_it_got_and_marks_the_pool_when_it_grants_fewer() -> None:
    world = World(pool_capacity={"c5.large/on_demand/us-east-1a": 1})

    outcome = world.do(a_launch(count=3))

    assert (outcome.count, len(world.instances.list())) == (1, 1)
    assert world.control.claims("unavailable/", now_s=NOW_S) == ["unavailable/c5.large/on_demand/us-east-1a"]


# --- drain, terminate, warm -------------------------------------------------------------------------------


def test_drain_moves_a_serving_instance() -> None:
    world = World(an_instance())

    outcome = world.do(a_drain(reason="not wanted by the last 6 plans"))

    assert (outcome.event, world.states) == ("instance_draining", {"i-0001": "draining"})
    assert world.instances.list()[0].end_reason == "not wanted by the last 6 plans"


def test_drain_changes_nothing_when_the_instance_has_ended() -> None:
    world = World(an_instance(state=InstanceState.TERMINATED))

    assert (world.do(a_drain()).event, world.states) == ("drain_superseded", {"i-0001": "terminated"})


@pytest.mark.parametrize(
    ("state", "failed", "ends_as"),
    [(InstanceState.DRAINING, False, "terminated"), (InstanceState.SERVING, True, "failed"), (InstanceState.WARMING, True, "failed")],
)
def test_terminate_gives_back_what_drained_or_failed(state: InstanceState, failed: bool, ends_as: str) -> None:
    world = World(an_instance(state=state))

    world.do(a_terminate(failed=failed))

    assert (world.states, world.cloud_state("i-0001")) == ({"i-0001": ends_as}, "terminated")


def test_terminate_is_refused_when_the_instance_has_not_drained() -> None:
    world = World(an_instance())

    outcome = world.do(a_terminate())

    assert (outcome.event, outcome.reason) == ("terminate_refused", "it is serving and has not drained")
    assert (world.states, world.cloud_state("i-0001")) == ({"i-0001": "serving"}, "running")


def test_terminate_gives_back_an_orphan() -> None:
    world = World()
    world.fleet.add(an_observed_instance(instance_id="i-orphan"))

    world.do(a_terminate(instance_id="i-orphan"))

    assert world.cloud_state("i-orphan") == "terminated"


def test_terminate_ends_an_instance_again_when_the_cloud_still_runs_it() -> None:
    world = World(an_instance(state=InstanceState.TERMINATED))

    world.do(a_terminate())

    assert (world.states, world.cloud_state("i-0001")) == ({"i-0001": "terminated"}, "terminated")


def test_warm_up_reaches_the_spillover_function_once() -> None:
    world = World()

    world.do(a_warm_up(environments=3))
    world.do(a_warm_up(environments=3))

    assert world.spillover.warmed == [(MODEL, 3)]


# --- events -----------------------------------------------------------------------------------------------


def test_state_change_ends_a_draining_instance() -> None:
    world = World(recorded(state=InstanceState.DRAINING))

    outcome = world.follow("lifecycle_state_change")

    assert (outcome.event, world.states, world.events.events) == ("instance_terminated", {RECORDED_ID: "terminated"}, [])


def test_state_change_asks_for_a_replacement_when_a_serving_instance_is_gone() -> None:
    world = World(recorded())

    world.follow("lifecycle_state_change")

    assert world.states == {RECORDED_ID: "failed"}
    assert world.events.events == [InstanceInterrupted(model=MODEL, instance_id=RECORDED_ID, at_s=NOW_S, notice="state_terminated")]
    assert world.control.claims("unavailable/", now_s=NOW_S) == []


def test_state_change_avoids_the_pool_when_a_spot_instance_is_gone_without_notice() -> None:
    spot = a_spot_offering()
    world = World(recorded(offering=spot))

    world.follow("lifecycle_state_change")

    assert world.control.claims("unavailable/", now_s=NOW_S + 179.0) == [f"unavailable/{spot.key}"]


def test_state_change_starts_the_warm_up_when_the_cloud_runs_the_instance() -> None:
    world = World(recorded(state=InstanceState.REQUESTED))

    assert world.follow("lifecycle_state_change", state="running").event == "instance_warming"


def test_spot_warning_drains_marks_the_pool_and_asks_for_a_replacement() -> None:
    spot = a_spot_offering()
    world = World(recorded(offering=spot))

    outcome = world.follow("lifecycle_spot_interruption")

    assert (outcome.event, world.states) == ("instance_interrupted", {RECORDED_ID: "draining"})
    assert world.control.claims("unavailable/", now_s=NOW_S) == [f"unavailable/{spot.key}"]
    assert world.events.events == [
        InstanceInterrupted(model=MODEL, instance_id=RECORDED_ID, at_s=NOW_S, notice="spot_interruption_warning")
    ]


def test_spot_warning_asks_once_when_it_comes_twice_or_the_worker_drained_first() -> None:
    world = World(recorded(state=InstanceState.DRAINING, offering=a_spot_offering()))

    world.follow("lifecycle_spot_interruption")
    again = world.follow("lifecycle_spot_interruption")

    assert (again.event, len(world.events.events), world.states) == ("event_ignored", 1, {RECORDED_ID: "draining"})


def test_rebalance_recommendation_avoids_the_pool_and_leaves_the_instance() -> None:
    world = World(recorded(offering=a_spot_offering()))

    outcome = world.follow("lifecycle_rebalance")

    assert (outcome.event, world.states) == ("rebalance_recommended", {RECORDED_ID: "serving"})
    assert world.control.claims("unavailable/", now_s=NOW_S) == ["unavailable/c5.large/spot/us-east-1a"]


@pytest.mark.parametrize("event", ["lifecycle_spot_interruption", "lifecycle_rebalance"])
@pytest.mark.parametrize(("ended_s_ago", "is_heeded"), [(30.0, True), (4 * 3600.0, False)])
def test_notice_of_an_instance_that_ended_counts_for_its_pool_only_while_it_is_fresh(
    event: str, ended_s_ago: float, is_heeded: bool
) -> None:
    world = World(recorded(state=InstanceState.FAILED, offering=a_spot_offering(), terminated_at_s=NOW_S - ended_s_ago))

    outcome = world.follow(event)

    assert (outcome.event != "event_ignored") is is_heeded
    assert bool(world.control.claims("unavailable/", now_s=NOW_S)) is is_heeded
    assert world.states == {RECORDED_ID: "failed"}


def test_ready_is_logged_with_the_launch_time() -> None:
    world = World(recorded(state=InstanceState.WARMING, requested_at_s=1767225719.75 - 95.5))

    outcome = world.follow("lifecycle_instance_ready")

    assert (outcome.reason, world.states) == ("serves 95.5 s after its request", {RECORDED_ID: "serving"})


@pytest.mark.parametrize("state", [InstanceState.REQUESTED, InstanceState.WARMING, InstanceState.SERVING])
def test_ready_is_logged_once_however_often_it_comes(state: InstanceState) -> None:
    """The worker may have recorded it itself: that the transition is refused then says nothing against it."""
    world = World(recorded(state=state))

    outcomes = [world.follow("lifecycle_instance_ready").event for _ in range(3)]

    assert (outcomes, world.logged, world.states) == (
        ["instance_serving", "event_ignored", "event_ignored"],
        ["instance_serving"],
        {RECORDED_ID: "serving"},
    )


@pytest.mark.parametrize("state", [InstanceState.DRAINING, InstanceState.TERMINATED, InstanceState.FAILED])
def test_ready_of_an_instance_past_it_is_ignored(state: InstanceState) -> None:
    world = World(recorded(state=state))

    outcome = world.follow("lifecycle_instance_ready")

    assert (outcome.event, outcome.reason) == ("event_ignored", f"{RECORDED_ID} is {state} already")
    assert (world.logged, world.states) == ([], {RECORDED_ID: state.value})


@pytest.mark.parametrize("event", ["lifecycle_state_change", "lifecycle_spot_interruption"])
def test_replacement_is_asked_for_by_a_retry_when_the_first_attempt_could_not_say_so(event: str) -> None:
    world = World(recorded(offering=a_spot_offering()))
    world.events = MemoryEventPublisher(faults={"publish": DependencyUnavailable("the bus does not answer")})
    with pytest.raises(DependencyUnavailable):
        world.follow(event)

    world.events = MemoryEventPublisher()
    again = [world.follow(event).event for _ in range(3)]

    assert [type(published) for published in world.events.events] == [InstanceInterrupted]
    assert again[1:] == ["event_ignored", "event_ignored"]
    assert again[0] != "event_ignored"


@pytest.mark.parametrize("state", [InstanceState.SERVING, InstanceState.DRAINING])
def test_drained_gives_the_instance_back(state: InstanceState) -> None:
    world = World(recorded(state=state))

    outcome = world.follow("lifecycle_instance_drained")

    assert (outcome.event, world.states, world.cloud_state(RECORDED_ID)) == (
        "instance_terminated",
        {RECORDED_ID: "terminated"},
        "terminated",
    )


def test_drained_changes_nothing_when_it_comes_twice() -> None:
    world = World(recorded(state=InstanceState.DRAINING))

    world.follow("lifecycle_instance_drained")
    again = world.follow("lifecycle_instance_drained")

    assert (again.event, world.logged) == ("event_ignored", ["instance_terminated"])


@pytest.mark.parametrize(
    "name",
    [
        "lifecycle_state_change",
        "lifecycle_spot_interruption",
        "lifecycle_rebalance",
        "lifecycle_instance_ready",
        "lifecycle_instance_drained",
    ],
)
def test_events_of_unknown_instances_are_ignored(name: str) -> None:
    world = World()

    assert (world.follow(name).event, world.events.events, world.logged) == ("event_ignored", [], [])


def test_unknown_events_are_a_logged_no_op() -> None:
    world = World()

    outcome = world.do(
        parse({"source": "aws.ec2", "detail-type": "EC2 Fleet Error", "detail": {"sub-type": "spotFleetRequestConfigurationInvalid"}})
    )

    assert (outcome.event, outcome.reason) == ("event_ignored", "nobody here follows aws.ec2 EC2 Fleet Error")


@pytest.mark.parametrize("name", ["lifecycle_launch", "lifecycle_drain", "lifecycle_warm"])
def test_recorded_actions_are_carried_out(name: str) -> None:
    world = World(recorded())

    outcome = world.do(parse(json.loads((EVENTS / f"{name}.json").read_text())))

    assert outcome.event in ("instances_launched", "instance_draining", "spillover_warmed")


@pytest.mark.parametrize("event", [{}, {"action": "explode"}, {"action": "drain_instance"}, {"source": "x", "detail": {}}])
def test_parse_refuses_what_is_neither_action_nor_event(event: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match="not a valid"):
        parse(event)


def test_an_ec2_event_without_its_instance_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="not a valid Ec2Detail: Object missing required field `instance-id`"):
        World().do(parse({"source": "aws.ec2", "detail-type": "EC2 Instance Rebalance Recommendation", "detail": {}}))
