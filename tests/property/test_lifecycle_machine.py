"""Instances under actions and events that come late, twice, out of order or after a crash.

The planner and the lifecycle are those that ship, on ports in memory.

The cloud here tells the truth and tells it at any time: each action and event that ever was may be delivered, again and again.
"""

from __future__ import annotations

import json
from contextlib import suppress
from itertools import pairwise
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

import functions.lifecycle.app as lifecycle
import functions.plan.app as plan
from markserve.adapters.memory import (
    MemoryControlStore,
    MemoryEventPublisher,
    MemoryFleet,
    MemoryInstanceRegistry,
    MemoryModelStore,
    MemoryParameterSource,
    MemorySpilloverInvoker,
    MemoryWindowStore,
    MemoryWorkQueue,
)
from markserve.catalog import load_catalog
from markserve.core.lifecycle import LEGAL_TRANSITIONS, states_before
from markserve.core.tunables import Tunables
from markserve.core.types import Instance, InstanceState
from markserve.errors import DependencyUnavailable, StaleWrite
from markserve.lifecycle_events import INTERRUPTION_MEMORY_S, Notification
from markserve.messages import InstanceDrained, InstanceInterrupted, InstanceReady, encode
from tests.builders import MODEL, NOW_S, a_drain, a_launch, a_spot_offering, a_terminate, an_observed_instance, an_offering, worker_stats
from tests.functions.test_plan import RECORD, SETTINGS

CEILINGS = Tunables(launches_enabled=True, rt_max_s=0.5, max_instances=3, max_hourly_cost_usd=0.22, min_instances=2)
"""Three instances, or two and a spot one: either ceiling may be the one that is reached first."""
ENDED = (InstanceState.TERMINATED, InstanceState.FAILED)
PAID_FOR = ("pending", "running")
CYCLES_TO_END_ALL = 40
"""Of 30 s: more than a launch may take until it is given up, and a drain after that."""
POSITIONS = st.integers(0, 10_000)


def reachable(state: InstanceState) -> set[InstanceState]:
    """States that legal transitions lead to, itself included."""
    found, waiting = {state}, [state]
    while waiting:
        fresh = LEGAL_TRANSITIONS[waiting.pop()] - found
        found |= fresh
        waiting += fresh
    return found


class CrashingRegistry(MemoryInstanceRegistry):
    """A registry that can fail a write, as when a function ends between buying an instance and recording it."""

    is_down = False

    def put(self, instance: Instance) -> None:
        if self.is_down:
            raise DependencyUnavailable("the instances table does not answer")
        super().put(instance)


class LifecycleMachine(RuleBasedStateMachine):
    """Any order of cycles, deliveries, faults of the cloud and of workers."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = NOW_S
        self.instances = CrashingRegistry()
        self.control = MemoryControlStore()
        self.fleet = MemoryFleet(now=lambda: self.now_s, zones=("us-east-1a", "us-east-1b"))
        self.bus_faults: dict[str, Exception] = {}
        self.publisher = MemoryEventPublisher(faults=self.bus_faults)
        self.parameters = MemoryParameterSource(CEILINGS)
        self.models, self.windows, self.spillover = MemoryModelStore(RECORD), MemoryWindowStore(), MemorySpilloverInvoker()
        self.actions: list[Any] = []
        self.events: list[dict[str, Any]] = []
        self.seen: dict[str, InstanceState] = {}
        self.strangers: set[str] = set()
        self.published_at_s: dict[str, list[float]] = {}

    # --- the system ------------------------------------------------------------------------------------------

    def plan(self) -> list[Any]:
        try:
            planned = plan.run(
                plan.PlanCommand(),
                models=self.models,
                control=self.control,
                windows=self.windows,
                instances=self.instances,
                fleet=self.fleet,
                parameters=self.parameters,
                work_queue=lambda _: MemoryWorkQueue(),
                settings=SETTINGS,
                now_s=self.now_s,
            )
        except DependencyUnavailable:
            return []
        return list(planned.record.actions)

    def deliver(self, command: Any) -> None:
        before, alive = len(self.publisher.events), {i.instance_id for i in self.instances.list() if i.is_alive}
        # What fails the state machine or EventBridge delivers again: another rule's turn.
        with suppress(DependencyUnavailable):
            lifecycle.run(
                command,
                instances=self.instances,
                control=self.control,
                fleet=self.fleet,
                spillover=self.spillover,
                events=self.publisher,
                parameters=self.parameters,
                now_s=self.now_s,
            )
        for event in self.publisher.events[before:]:
            assert isinstance(event, InstanceInterrupted)
            self.published_at_s.setdefault(event.instance_id, []).append(self.now_s)
        if isinstance(command, Notification):
            lost = {i.instance_id for i in self.instances.list() if i.state is InstanceState.FAILED} & alive
            assert lost <= set(self.published_at_s), "written off, and nobody was asked for another: a retry finds nothing to do"

    @rule()
    def control_cycle_plans(self) -> None:
        self.actions += self.plan()

    @rule()
    def control_cycle_plans_and_acts(self) -> None:
        planned = self.plan()
        self.actions += planned
        for action in planned:
            self.deliver(action)

    @precondition(lambda self: self.actions)
    @rule(position=POSITIONS)
    def some_action_is_delivered(self, position: int) -> None:
        self.deliver(self.actions[position % len(self.actions)])

    @precondition(lambda self: self.events)
    @rule(position=POSITIONS)
    def some_event_is_delivered(self, position: int) -> None:
        self.deliver(lifecycle.parse(self.events[position % len(self.events)]))

    @rule(count=st.integers(1, 5), spot=st.booleans())
    def launch_of_an_old_plan_is_delivered(self, count: int, spot: bool) -> None:
        offering = a_spot_offering() if spot else an_offering()
        self.actions.append(a_launch(action_id=f"old-{len(self.actions)}", count=count, offering=offering))
        self.deliver(self.actions[-1])

    @precondition(lambda self: self.instances.list())
    @rule(position=POSITIONS, kind=st.sampled_from([a_drain, a_terminate]), failed=st.booleans())
    def end_of_an_old_plan_is_delivered(self, position: int, kind: Any, failed: bool) -> None:
        known = self.instances.list()
        chosen = known[position % len(known)].instance_id
        flags = {"failed": failed} if kind is a_terminate else {}
        self.actions.append(kind(action_id=f"old-{len(self.actions)}", instance_id=chosen, **flags))
        self.deliver(self.actions[-1])

    # --- what it runs on -------------------------------------------------------------------------------------

    @rule(elapsed_s=st.sampled_from([0.5, 5.0, 20.0, 70.0, 200.0]))
    def time_passes(self, elapsed_s: float) -> None:
        self.now_s += elapsed_s

    @rule(is_down=st.booleans())
    def cloud_api_answers_or_not(self, is_down: bool) -> None:
        self.fleet.unavailable = is_down

    @rule(is_down=st.booleans())
    def bus_takes_events_or_not(self, is_down: bool) -> None:
        self.bus_faults.clear()
        if is_down:
            self.bus_faults["publish"] = DependencyUnavailable("the bus does not answer")

    @rule(is_down=st.booleans())
    def registry_takes_new_instances_or_not(self, is_down: bool) -> None:
        self.instances.is_down = is_down

    def describe(self) -> list[Any]:
        was, self.fleet.unavailable = self.fleet.unavailable, False
        seen = self.fleet.describe()
        self.fleet.unavailable = was
        return seen

    def tell(self, source: str, detail_type: str, detail: dict[str, Any]) -> None:
        self.events.append({"source": source, "detail-type": detail_type, "detail": detail})

    def tell_of_worker(self, event: Any) -> None:
        self.tell("markserve", type(event).__name__, json.loads(encode(event)))

    @precondition(lambda self: self.describe())
    @rule(position=POSITIONS, state=st.sampled_from(["running", "running", "running", "terminated"]))
    def cloud_moves_an_instance(self, position: int, state: str) -> None:
        seen = self.describe()
        chosen = seen[position % len(seen)]
        if chosen.cloud_state not in PAID_FOR or chosen.cloud_state == state:
            return
        self.fleet.set_state(chosen.instance_id, state)
        self.tell("aws.ec2", "EC2 Instance State-change Notification", {"instance-id": chosen.instance_id, "state": state})

    @precondition(lambda self: any(seen.cloud_state in PAID_FOR for seen in self.describe()))
    @rule(position=POSITIONS, bus_is_down=st.booleans(), is_retried=st.booleans())
    def cloud_takes_one_back_and_says_so_at_once(self, position: int, bus_is_down: bool, is_retried: bool) -> None:
        running = [seen for seen in self.describe() if seen.cloud_state in PAID_FOR]
        chosen = running[position % len(running)].instance_id
        self.fleet.set_state(chosen, "terminated")
        self.tell("aws.ec2", "EC2 Instance State-change Notification", {"instance-id": chosen, "state": "terminated"})
        self.bus_takes_events_or_not(bus_is_down)
        self.deliver(lifecycle.parse(self.events[-1]))
        if is_retried:
            self.bus_takes_events_or_not(False)
            self.deliver(lifecycle.parse(self.events[-1]))

    @precondition(lambda self: self.describe())
    @rule(
        position=POSITIONS,
        kind=st.sampled_from(["EC2 Spot Instance Interruption Warning", "EC2 Instance Rebalance Recommendation"]),
        deliveries=st.integers(0, 2),
    )
    def cloud_warns(self, position: int, kind: str, deliveries: int) -> None:
        seen = self.describe()
        self.tell("aws.ec2", kind, {"instance-id": seen[position % len(seen)].instance_id})
        for _ in range(deliveries):
            self.deliver(lifecycle.parse(self.events[-1]))

    @rule()
    def stranger_with_our_tag_appears(self) -> None:
        name = f"i-stranger-{len(self.strangers)}"
        self.strangers.add(name)
        self.fleet.add(an_observed_instance(instance_id=name, launched_at_s=self.now_s))

    @precondition(lambda self: self.instances.list())
    @rule(position=POSITIONS, says=st.sampled_from(["ready", "beats", "drained"]))
    def worker_speaks(self, position: int, says: str) -> None:
        running = {seen.instance_id for seen in self.describe() if seen.cloud_state == "running"}
        known = [i for i in self.instances.list() if i.instance_id in running]
        if not known:
            return
        chosen = known[position % len(known)]
        name = chosen.instance_id
        if says == "ready":
            try:
                serving = InstanceState.SERVING
                self.instances.transition(name, expected=states_before(serving), state=serving, at_s=self.now_s, reason="it serves")
            except StaleWrite:
                return
            self.tell_of_worker(InstanceReady(model=MODEL, instance_id=name, at_s=self.now_s))
        elif says == "beats":
            self.instances.heartbeat(name, at_s=self.now_s, stats=worker_stats())
        elif chosen.state is InstanceState.DRAINING:
            self.tell_of_worker(InstanceDrained(model=MODEL, instance_id=name, at_s=self.now_s, reason="asked to"))

    # --- what holds ------------------------------------------------------------------------------------------

    @invariant()
    def states_only_go_where_they_may(self) -> None:
        now = {i.instance_id: i.state for i in self.instances.list()}
        assert set(self.seen) <= set(now), "an instance has left the registry"
        for name, before in self.seen.items():
            assert now[name] in reachable(before)
        self.seen = now

    @invariant()
    def what_is_recorded_as_ended_does_not_run(self) -> None:
        cloud = {seen.instance_id: seen.cloud_state for seen in self.describe()}
        assert not [i for i in self.instances.list() if i.state in ENDED and cloud[i.instance_id] in PAID_FOR]

    @invariant()
    def ceilings_hold_for_what_was_bought(self) -> None:
        catalog = {entry.instance_type: entry.price_usd_per_hour for entry in load_catalog().entries}
        registered = {i.instance_id: i.offering.price_usd_per_hour for i in self.instances.list()}
        bought = [seen for seen in self.describe() if seen.cloud_state in PAID_FOR and seen.instance_id not in self.strangers]
        prices = [
            registered.get(seen.instance_id, catalog[seen.instance_type] if seen.capacity_type == "on_demand" else 0.0) for seen in bought
        ]
        assert len(bought) <= CEILINGS.max_instances
        assert sum(prices) <= CEILINGS.max_hourly_cost_usd + 1e-9

    @invariant()
    def replacement_is_asked_for_once_for_each_loss(self) -> None:
        for instants in self.published_at_s.values():
            assert all(later - earlier >= INTERRUPTION_MEMORY_S for earlier, later in pairwise(instants))

    def teardown(self) -> None:
        """Workers fall silent, nothing more is bought: whatever costs money ends, be it known or not."""
        self.fleet.unavailable = self.instances.is_down = False
        self.parameters.tunables = Tunables(launches_enabled=False, rt_max_s=0.5)
        for _ in range(CYCLES_TO_END_ALL):
            self.now_s += 30.0
            for action in self.plan():
                self.deliver(action)
            self.states_only_go_where_they_may()
        assert {seen.cloud_state for seen in self.describe()} <= {"terminated"}
        assert not [i for i in self.instances.list() if i.is_alive]


TestLifecycleMachine = LifecycleMachine.TestCase
TestLifecycleMachine.settings = settings(
    deadline=None, max_examples=40, stateful_step_count=40, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much]
)
