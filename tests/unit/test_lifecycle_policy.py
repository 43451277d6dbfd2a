from typing import Any

import pytest

from markserve.core.lifecycle import (
    LEGAL_TRANSITIONS,
    Decision,
    Step,
    apply,
    measured_launch_overhead_s,
    move,
    observe_cloud_state,
    reconcile,
    states_before,
)
from markserve.core.types import Instance, InstanceState, ObservedInstance
from markserve.errors import InvariantViolated
from tests.builders import MODEL, NOW_S, an_instance, an_observed_instance, an_offering


def decide(instances: list[Instance], observed: list[ObservedInstance], **overrides: Any) -> list[Decision]:
    values: dict[str, Any] = {"now_s": NOW_S, "heartbeat_timeout_s": 15.0, "drain_deadline_s": 120.0, **overrides}
    return reconcile(instances=instances, observed=observed, **values)


def a_pending(**overrides: Any) -> Instance:
    values = {
        "state": InstanceState.REQUESTED,
        "requested_at_s": NOW_S - 30.0,
        "running_at_s": None,
        "serving_at_s": None,
        "heartbeat_at_s": None,
    }
    return an_instance(**{**values, **overrides})


# --- states -----------------------------------------------------------------------------------------------


def test_ended_states_are_absorbing() -> None:
    assert LEGAL_TRANSITIONS[InstanceState.TERMINATED] == LEGAL_TRANSITIONS[InstanceState.FAILED] == frozenset()


def test_every_state_that_costs_money_can_fail() -> None:
    assert set(states_before(InstanceState.FAILED)) == {
        InstanceState.REQUESTED,
        InstanceState.WARMING,
        InstanceState.SERVING,
        InstanceState.DRAINING,
    }


def test_move_stamps_the_instant_when_the_transition_is_legal() -> None:
    draining = move(an_instance(), InstanceState.DRAINING, at_s=NOW_S, reason="not wanted")
    ended = move(draining, InstanceState.TERMINATED, at_s=NOW_S + 5, reason="drained")

    assert (draining.state, draining.drain_at_s, draining.end_reason) == (InstanceState.DRAINING, NOW_S, "not wanted")
    assert (ended.terminated_at_s, ended.end_reason) == (NOW_S + 5, "drained")
    assert move(a_pending(), InstanceState.WARMING, at_s=NOW_S, reason="").running_at_s == NOW_S
    assert move(a_pending(), InstanceState.SERVING, at_s=NOW_S, reason="").serving_at_s == NOW_S


def test_move_is_refused_when_the_transition_is_illegal() -> None:
    with pytest.raises(InvariantViolated, match="i-0001: draining cannot become serving, only failed, terminated"):
        move(an_instance(state=InstanceState.DRAINING), InstanceState.SERVING, at_s=NOW_S, reason="")
    with pytest.raises(InvariantViolated, match="terminated cannot become draining, only nothing"):
        move(an_instance(state=InstanceState.TERMINATED), InstanceState.DRAINING, at_s=NOW_S, reason="")


# --- what the cloud says ----------------------------------------------------------------------------------


def test_requested_becomes_warming_when_the_cloud_says_running() -> None:
    decision = observe_cloud_state(a_pending(), "running")

    assert decision is not None
    assert (decision.step, decision.state) == (Step.MOVE, InstanceState.WARMING)


@pytest.mark.parametrize("cloud_state", ["shutting-down", "terminated", "stopping", "stopped"])
def test_serving_becomes_failed_when_the_cloud_ended_it(cloud_state: str) -> None:
    decision = observe_cloud_state(an_instance(), cloud_state)

    assert decision is not None
    assert (decision.state, decision.reason) == (InstanceState.FAILED, f"the cloud reports it {cloud_state}, which nobody here asked for")


def test_draining_becomes_terminated_when_the_cloud_ended_it() -> None:
    decision = observe_cloud_state(an_instance(state=InstanceState.DRAINING), "terminated")

    assert decision is not None
    assert decision.state is InstanceState.TERMINATED


@pytest.mark.parametrize(
    ("state", "cloud_state"),
    [
        (InstanceState.REQUESTED, "pending"),
        (InstanceState.SERVING, "running"),
        (InstanceState.TERMINATED, "terminated"),
        (InstanceState.FAILED, "shutting-down"),
        (InstanceState.SERVING, "a state of next year"),
    ],
)
def test_nothing_changes_when_the_cloud_says_what_is_known(state: InstanceState, cloud_state: str) -> None:
    assert observe_cloud_state(an_instance(state=state), cloud_state) is None


# --- evidence ---------------------------------------------------------------------------------------------


def test_nothing_is_decided_when_all_is_well() -> None:
    assert decide([an_instance()], [an_observed_instance()]) == []


def test_a_silent_worker_is_suspected_first_and_terminated_in_the_second_cycle() -> None:
    silent = {"heartbeat_at_s": NOW_S - 20.0}

    first = decide([an_instance(**silent)], [an_observed_instance()])
    second = decide([an_instance(**silent, missed_cycles=1)], [an_observed_instance()])

    assert [(d.step, d.missed_cycles, d.reason) for d in first] == [(Step.SUSPECT, 1, "silent for 20 s; the limit is 15 s (cycle 1 of 2)")]
    assert [(d.step, d.failed, d.reason) for d in second] == [(Step.TERMINATE, True, "silent for 20 s; the limit is 15 s, in 2 cycles")]


def test_suspicion_is_cleared_when_the_worker_is_heard_again() -> None:
    decisions = decide([an_instance(missed_cycles=1)], [an_observed_instance()])

    assert [(d.step, d.missed_cycles) for d in decisions] == [(Step.SUSPECT, 0)]


def test_a_worker_that_began_to_serve_just_now_is_not_silent() -> None:
    fresh = an_instance(heartbeat_at_s=None, serving_at_s=NOW_S - 3.0)

    assert decide([fresh], [an_observed_instance()]) == []


def test_an_instance_the_cloud_does_not_list_needs_two_cycles_of_evidence() -> None:
    first = decide([an_instance()], [])
    second = decide([an_instance(missed_cycles=1)], [])

    assert [(d.step, d.missed_cycles) for d in first] == [(Step.SUSPECT, 1)]
    assert [(d.step, d.failed) for d in second] == [(Step.TERMINATE, True)]


def test_a_launch_of_just_now_is_not_missed_when_the_cloud_does_not_list_it_yet() -> None:
    assert decide([a_pending(requested_at_s=NOW_S - 5.0)], []) == []


# --- deadlines --------------------------------------------------------------------------------------------


def test_a_drain_ends_by_force_when_it_outlasts_its_deadline() -> None:
    draining = an_instance(state=InstanceState.DRAINING, drain_at_s=NOW_S - 121.0)

    assert [(d.step, d.failed, d.reason) for d in decide([draining], [an_observed_instance()])] == [
        (Step.TERMINATE, False, "drain took more than 120 s")
    ]


def test_a_drain_goes_on_when_its_deadline_is_ahead() -> None:
    assert decide([an_instance(state=InstanceState.DRAINING, drain_at_s=NOW_S - 119.0)], [an_observed_instance()]) == []


def test_a_launch_fails_when_it_takes_three_times_its_overhead() -> None:
    offering = an_offering(launch_overhead_s=100.0)
    warming = {"state": InstanceState.WARMING, "offering": offering}

    late = decide([a_pending(**warming, requested_at_s=NOW_S - 301.0)], [an_observed_instance()])
    early = decide([a_pending(**warming, requested_at_s=NOW_S - 299.0)], [an_observed_instance()])

    assert [(d.step, d.failed, d.reason) for d in late] == [
        (Step.TERMINATE, True, "does not serve 301 s after its request; the limit is 300 s")
    ]
    assert early == []


def test_a_launch_gets_a_minute_when_its_overhead_is_seconds() -> None:
    quick = an_offering(launch_overhead_s=5.0)

    assert decide([a_pending(offering=quick, requested_at_s=NOW_S - 55.0, state=InstanceState.WARMING)], [an_observed_instance()]) == []


def test_an_ended_instance_is_terminated_again_when_the_cloud_still_runs_it() -> None:
    decisions = decide([an_instance(state=InstanceState.TERMINATED)], [an_observed_instance()])

    assert [(d.step, d.failed, d.reason) for d in decisions] == [
        (Step.TERMINATE, False, "recorded as terminated but the cloud reports it running")
    ]


def test_an_ended_instance_is_left_alone_when_the_cloud_ended_it_too() -> None:
    ended = an_instance(state=InstanceState.FAILED)

    assert decide([ended], [an_observed_instance(cloud_state="terminated")]) == decide([ended], []) == []


# --- orphans ----------------------------------------------------------------------------------------------


def test_an_orphan_is_suspected_first_and_terminated_when_it_is_found_again() -> None:
    orphan = an_observed_instance(instance_id="i-9")

    first = decide([], [orphan])
    second = decide([], [orphan], suspected_orphans={"i-9"})

    assert [(d.step, d.instance_id) for d in first] == [(Step.SUSPECT_ORPHAN, "i-9")]
    assert [(d.step, d.model, d.failed) for d in second] == [(Step.TERMINATE, MODEL, False)]


def test_an_unknown_instance_is_no_orphan_when_it_is_young_or_gone() -> None:
    young = an_observed_instance(instance_id="i-8", launched_at_s=NOW_S - 5.0)
    gone = an_observed_instance(instance_id="i-9", cloud_state="terminated", model=None)

    assert decide([], [young, gone], suspected_orphans={"i-8", "i-9"}) == []


# --- the view for planning --------------------------------------------------------------------------------


def test_apply_shows_planning_what_the_decisions_will_lead_to() -> None:
    instances = [
        a_pending(instance_id="i-1"),
        an_instance(instance_id="i-2", missed_cycles=1),
        an_instance(instance_id="i-3", heartbeat_at_s=NOW_S - 60.0, missed_cycles=1),
        an_instance(instance_id="i-4"),
        an_instance(instance_id="i-5", state=InstanceState.TERMINATED),
    ]
    observed = [an_observed_instance(instance_id=i.instance_id) for i in instances]

    seen = apply(decide(instances, observed), instances, now_s=NOW_S)

    assert [(i.instance_id, i.state.value, i.missed_cycles) for i in seen] == [
        ("i-1", "warming", 0),
        ("i-2", "serving", 0),
        ("i-3", "draining", 1),  # still paid for, serves nothing
        ("i-4", "serving", 0),
        ("i-5", "terminated", 0),
    ]


def test_launch_overhead_is_the_upper_quartile_when_enough_launches_were_seen() -> None:
    took_s = (100.0, 120.0, 140.0, 160.0, 400.0)
    launched = [an_instance(requested_at_s=NOW_S, serving_at_s=NOW_S + took) for took in took_s]

    assert measured_launch_overhead_s(launched, default_s=180.0) == 160.0
    assert measured_launch_overhead_s(launched[:2], default_s=180.0) == 180.0
