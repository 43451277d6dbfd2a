"""What reconciliation guarantees for any registry and any cloud."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from markserve.core.lifecycle import EVIDENCE_CYCLES, LEGAL_TRANSITIONS, Step, apply, reconcile
from markserve.core.types import CapacityType, Instance, InstanceState, ObservedInstance
from tests.builders import MODEL, NOW_S, an_offering

IDS = [f"i-{number}" for number in range(5)]
CLOUD_STATES = ["pending", "running", "shutting-down", "terminated", "stopping", "stopped"]
instants = st.floats(NOW_S - 1000.0, NOW_S)


@st.composite
def registries(draw: st.DrawFn) -> list[Instance]:
    return [
        Instance(
            instance_id=instance_id,
            model=MODEL,
            offering=an_offering(launch_overhead_s=draw(st.floats(0.0, 300.0))),
            state=draw(st.sampled_from(list(InstanceState))),
            requested_at_s=draw(instants),
            reason="drawn",
            serving_at_s=draw(st.none() | instants),
            drain_at_s=draw(st.none() | instants),
            heartbeat_at_s=draw(st.none() | instants),
            missed_cycles=draw(st.integers(0, 2)),
        )
        for instance_id in draw(st.lists(st.sampled_from(IDS), unique=True))
    ]


@st.composite
def clouds(draw: st.DrawFn) -> list[ObservedInstance]:
    return [
        ObservedInstance(
            instance_id=instance_id,
            instance_type="c5.large",
            capacity_type=CapacityType.SPOT,
            zone="us-east-1a",
            cloud_state=draw(st.sampled_from(CLOUD_STATES)),
            launched_at_s=draw(instants),
            model=draw(st.none() | st.just(MODEL)),
        )
        for instance_id in draw(st.lists(st.sampled_from(IDS), unique=True))
    ]


@given(registries(), clouds())
def test_every_recorded_move_is_legal_and_there_is_one_decision_per_instance(
    instances: list[Instance], cloud: list[ObservedInstance]
) -> None:
    decisions = reconcile(instances=instances, observed=cloud, now_s=NOW_S, heartbeat_timeout_s=15.0)
    states = {i.instance_id: i.state for i in instances}

    assert len({d.instance_id for d in decisions}) == len(decisions)
    for decision in decisions:
        if decision.step is Step.MOVE:
            assert decision.state in LEGAL_TRANSITIONS[states[decision.instance_id]]


@given(registries(), clouds())
def test_ended_instances_stay_ended(instances: list[Instance], cloud: list[ObservedInstance]) -> None:
    decisions = reconcile(instances=instances, observed=cloud, now_s=NOW_S, heartbeat_timeout_s=15.0)

    for before, after in zip(instances, apply(decisions, instances, now_s=NOW_S), strict=True):
        if not before.is_alive:
            assert after == before


@given(registries(), clouds())
def test_an_instance_that_was_heard_and_is_running_is_never_ended(instances: list[Instance], cloud: list[ObservedInstance]) -> None:
    healthy = [replace(i, state=InstanceState.SERVING, heartbeat_at_s=NOW_S - 1.0) for i in instances]
    running = [replace(o, cloud_state="running") for o in cloud]
    seen = {o.instance_id for o in running}
    decisions = reconcile(instances=healthy, observed=running, now_s=NOW_S, heartbeat_timeout_s=15.0)

    assert not [d for d in decisions if d.step is Step.TERMINATE and d.instance_id in seen & {i.instance_id for i in healthy}]


@given(registries())
def test_absence_alone_never_ends_an_instance_in_one_cycle(instances: list[Instance]) -> None:
    fresh = [replace(i, missed_cycles=0, state=InstanceState.SERVING) for i in instances]

    first = reconcile(instances=fresh, observed=[], now_s=NOW_S, heartbeat_timeout_s=15.0)

    assert not [d for d in first if d.step is Step.TERMINATE]
    assert all(0 <= d.missed_cycles < EVIDENCE_CYCLES for d in first)


@given(registries(), clouds())
def test_a_drain_is_not_cut_short_before_its_deadline_while_it_is_heard(instances: list[Instance], cloud: list[ObservedInstance]) -> None:
    draining = [replace(i, state=InstanceState.DRAINING, drain_at_s=NOW_S - 60.0, heartbeat_at_s=NOW_S) for i in instances]
    running = [replace(o, cloud_state="running") for o in cloud]
    listed = {o.instance_id for o in running}

    decisions = reconcile(instances=draining, observed=running, now_s=NOW_S, heartbeat_timeout_s=15.0, drain_deadline_s=120.0)

    assert not [d for d in decisions if d.step is Step.TERMINATE and d.instance_id in listed & {i.instance_id for i in draining}]


@given(registries(), clouds())
def test_applying_the_moves_twice_equals_once(instances: list[Instance], cloud: list[ObservedInstance]) -> None:
    decisions = [d for d in reconcile(instances=instances, observed=cloud, now_s=NOW_S, heartbeat_timeout_s=15.0) if d.step is Step.MOVE]
    once = apply(decisions, instances, now_s=NOW_S)

    again = [d for d in reconcile(instances=once, observed=cloud, now_s=NOW_S, heartbeat_timeout_s=15.0) if d.step is Step.MOVE]

    assert apply(again, once, now_s=NOW_S) == once
