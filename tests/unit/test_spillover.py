from typing import Any

import pytest

from markserve.adapters.memory import MemoryInstanceRegistry, MemoryModelStore
from markserve.core.admitted_share import AdmittedShare
from markserve.core.spillover import (
    QUEUE_LIMIT,
    Admission,
    AdmissionAction,
    FleetView,
    admit,
    fleet_view,
    poll_delays_s,
    spill_reserve,
    warm_environments,
)
from markserve.core.tunables import Tunables
from markserve.core.types import InstanceState
from markserve.front_view import FrontView
from tests.builders import NOW_S, a_model_record, a_profile, an_instance, an_offering, an_slo, profile_records, worker_stats


def a_fleet(**overrides: Any) -> FleetView:
    values: dict[str, Any] = {
        "serving_instances": 1,
        "service_rate_rps": 100.0,
        "batch_latency_s": 0.04,
        "queue_depth": 0,
        "transport_s": 0.01,
    }
    return FleetView(**{**values, **overrides})


NO_FLEET = a_fleet(serving_instances=0, service_rate_rps=0.0, batch_latency_s=0.0, transport_s=0.0)


def admission(**overrides: Any) -> Admission:
    values: dict[str, Any] = {
        "fleet": a_fleet(),
        "slo": an_slo(latency_s=0.2),
        "arrival_at_s": 100.0,
        "now_s": 100.0,
        "spill_latency_s": 0.06,
        "reply_overhead_s": 0.01,
        "margin_s": 0.01,
        "spill_available": True,
    }
    return admit(**{**values, **overrides})


def test_request_is_enqueued_with_a_way_out_when_workers_will_answer_in_time() -> None:
    decision = admission(fleet=a_fleet(queue_depth=4, in_flight=2))

    assert decision.action is AdmissionAction.ENQUEUE
    assert decision.deadline_at_s == pytest.approx(100.2)
    assert decision.spill_at_s == pytest.approx(100.13)
    assert decision.predicted_wait_s == pytest.approx(0.06 + 0.04 + 0.01)
    assert decision.reason == "enqueued: answer expected in 0.110 s, 0.020 s before it must be there"


def test_request_has_no_way_out_when_spill_over_is_off() -> None:
    decision = admission(spill_available=False)

    assert (decision.action, decision.spill_at_s) == (AdmissionAction.ENQUEUE, None)


def test_request_is_spilled_at_once_when_the_backlog_makes_it_late() -> None:
    decision = admission(fleet=a_fleet(queue_depth=20))

    assert decision.action is AdmissionAction.SPILL
    assert decision.spill_at_s == 100.0
    assert decision.reason == "spilled: workers would answer 0.120 s too late behind a backlog of 20 at 100.0 rps"


def test_request_is_rejected_with_a_time_to_retry_when_it_would_be_late_and_spill_over_is_off() -> None:
    decision = admission(fleet=a_fleet(queue_depth=300), spill_available=False)

    assert (decision.action, decision.status, decision.retry_after_s) == (AdmissionAction.REJECT, 429, 3.0)
    assert decision.reason == "rejected: workers would answer 2.850 s too late behind a backlog of 300 at 100.0 rps, and spill-over is off"


def test_request_probes_the_workers_when_only_past_transport_says_it_is_late() -> None:
    decision = admission(fleet=a_fleet(transport_s=5.0))

    assert decision.action is AdmissionAction.ENQUEUE
    assert decision.reason == "enqueued: backlog of 0 is below one batch, though recent requests predict 4.920 s too late"


def test_request_is_spilled_when_it_reached_the_front_too_late_for_the_workers() -> None:
    decision = admission(now_s=100.1)

    assert decision.action is AdmissionAction.SPILL


def test_way_out_moves_to_the_deadline_when_a_reserve_would_leave_workers_no_time() -> None:
    decision = admission(fleet=a_fleet(batch_latency_s=0.15))

    assert decision.action is AdmissionAction.ENQUEUE
    assert decision.spill_at_s == decision.deadline_at_s


def test_request_beyond_the_admitted_share_is_spilled_at_once_where_nothing_is_set_aside_for_spilling() -> None:
    share = AdmittedShare(share=0.62, offered_rps=80.6, usable_rps=50.0)

    turned_away = admission(keeps_reserve=False, admitted=share, lot=0.7)

    assert (turned_away.action, turned_away.spill_at_s) == (AdmissionAction.SPILL, 100.0)
    assert turned_away.reason == "spilled at arrival: 62% are admitted, as workers can use 50.0 of 80.6 rps"
    assert admission(keeps_reserve=False, admitted=share, lot=0.6).action is AdmissionAction.ENQUEUE


@pytest.mark.parametrize("overrides", [{"keeps_reserve": True}, {"keeps_reserve": False, "spill_available": False}])
def test_share_does_not_matter_where_a_reserve_is_kept_or_nothing_can_spill(overrides: dict[str, Any]) -> None:
    assert admission(admitted=AdmittedShare(share=0.01), lot=0.9, **overrides).action is AdmissionAction.ENQUEUE


def test_request_does_not_probe_where_the_queue_makes_it_late_and_spilling_would_be_late_too() -> None:
    slow = a_fleet(batch_latency_s=0.15, service_rate_rps=1 / 0.15, queue_depth=1)

    assert admission(fleet=slow, keeps_reserve=False).action is AdmissionAction.SPILL
    assert admission(fleet=slow, spill_available=False).action is AdmissionAction.ENQUEUE


def test_queue_of_a_second_ago_is_discounted_where_nothing_is_set_aside_for_spilling() -> None:
    fleet = a_fleet(queue_depth=20, viewed_at_s=99.0)

    assert admission(fleet=fleet, keeps_reserve=False).action is AdmissionAction.ENQUEUE
    assert admission(fleet=a_fleet(queue_depth=200, viewed_at_s=99.0), keeps_reserve=False).action is AdmissionAction.SPILL
    assert admission(fleet=fleet).action is AdmissionAction.SPILL


def test_request_is_spilled_when_no_worker_serves() -> None:
    decision = admission(fleet=NO_FLEET)

    assert (decision.action, decision.reason) == (AdmissionAction.SPILL, "spilled: no worker serves")


def test_request_is_enqueued_when_a_starting_worker_will_be_in_time_and_spill_over_is_off() -> None:
    fleet = a_fleet(serving_instances=0, service_rate_rps=0.0, batch_latency_s=0.04, ready_at_s=100.1)

    decision = admission(fleet=fleet, spill_available=False)

    assert decision.action is AdmissionAction.ENQUEUE
    assert decision.predicted_wait_s == pytest.approx(0.15)
    assert decision.reason == "enqueued: a worker should serve in 0.100 s"


@pytest.mark.parametrize(("ready_at_s", "retry_after_s"), [(112.5, 13.0), (400.0, 60.0), (None, 30.0)])
def test_request_is_rejected_when_nothing_serves_and_spill_over_is_off(ready_at_s: float | None, retry_after_s: float) -> None:
    fleet = a_fleet(serving_instances=0, service_rate_rps=0.0, batch_latency_s=0.0, ready_at_s=ready_at_s)

    decision = admission(fleet=fleet, spill_available=False)

    assert (decision.action, decision.status, decision.retry_after_s) == (AdmissionAction.REJECT, 503, retry_after_s)


def test_async_request_is_enqueued_without_deadline_when_nothing_serves() -> None:
    decision = admission(fleet=NO_FLEET, asynchronous=True)

    assert (decision.action, decision.deadline_at_s, decision.spill_at_s) == (AdmissionAction.ENQUEUE, None, None)


def test_async_request_is_rejected_when_the_queue_is_at_its_limit() -> None:
    decision = admission(fleet=a_fleet(queue_depth=QUEUE_LIMIT), asynchronous=True)

    assert (decision.action, decision.status, decision.retry_after_s) == (AdmissionAction.REJECT, 429, 60.0)


def test_rejection_states_a_finite_time_when_the_backlog_never_ends() -> None:
    stuck = a_fleet(serving_instances=0, service_rate_rps=0.0, queue_depth=QUEUE_LIMIT)

    assert admission(fleet=stuck).retry_after_s == 60.0


def test_view_counts_a_worker_that_serves_on_after_its_spot_notice() -> None:
    leaving = an_instance(instance_id="i-1", state=InstanceState.DRAINING, stats=worker_stats(service_rate_rps=50.0))

    assert fleet_view([leaving], NOW_S, 15.0).service_rate_rps == 50.0


def test_view_counts_workers_when_they_were_heard_of_lately() -> None:
    heard = an_instance(instance_id="i-1", stats=worker_stats(service_rate_rps=50.0, batch_latency_s=0.05, queue_depth=3, in_flight=2))
    later = an_instance(
        instance_id="i-2",
        heartbeat_at_s=NOW_S + 1,
        stats=worker_stats(service_rate_rps=80.0, batch_latency_s=0.03, queue_depth=7, transport_s=0.2),
    )
    silent = an_instance(instance_id="i-3", heartbeat_at_s=NOW_S - 20)
    drained = an_instance(instance_id="i-4", state=InstanceState.DRAINING, stats=worker_stats(service_rate_rps=0.0))

    view = fleet_view([heard, later, silent, drained], NOW_S + 2, 15.0)

    assert view == FleetView(
        serving_instances=2,
        service_rate_rps=130.0,
        batch_latency_s=0.05,
        queue_depth=7,
        transport_s=0.2,
        in_flight=2,
        ready_at_s=None,
        entered=9,
        members=view.members,
        viewed_at_s=NOW_S + 1,
    )
    assert view.backlog == 9
    assert view.backlog_s == pytest.approx(9 / 130)


def test_view_expects_the_next_worker_when_one_is_starting_and_not_overdue() -> None:
    def starting(name: str, state: InstanceState, ago_s: float) -> Any:
        return an_instance(
            instance_id=name, state=state, requested_at_s=NOW_S - ago_s, heartbeat_at_s=None, offering=an_offering(launch_overhead_s=100.0)
        )

    instances = [
        starting("i-1", InstanceState.REQUESTED, 10.0),
        starting("i-2", InstanceState.WARMING, 60.0),
        starting("i-3", InstanceState.WARMING, 101.0),
        starting("i-4", InstanceState.TERMINATED, 90.0),
    ]

    view = fleet_view(instances, NOW_S, 15.0)

    assert (view.serving_instances, view.ready_at_s, view.backlog_s) == (0, NOW_S + 40.0, 0.0)


def test_polls_start_at_the_predicted_answer_and_end_when_waiting_does() -> None:
    delays = list(poll_delays_s(first_s=0.1, total_s=1.0, shortest_s=0.02, growth=2.0, longest_s=0.2))

    assert delays == pytest.approx([0.1, 0.02, 0.04, 0.08, 0.16, 0.2, 0.2, 0.2])
    assert sum(delays) == pytest.approx(1.0)


def test_poll_is_the_only_one_when_the_answer_is_predicted_after_waiting_ends() -> None:
    assert list(poll_delays_s(first_s=5.0, total_s=0.3)) == [0.3]


def test_rest_is_joined_to_a_poll_when_it_is_too_short_for_its_own() -> None:
    assert list(poll_delays_s(first_s=0.1, total_s=0.105, shortest_s=0.01)) == [0.105]


def test_there_is_no_poll_when_no_time_is_left() -> None:
    assert list(poll_delays_s(first_s=0.1, total_s=0.0)) == []
    assert list(poll_delays_s(first_s=0.1, total_s=-1.0)) == []


def test_polls_refuse_when_intervals_could_vanish() -> None:
    with pytest.raises(ValueError, match="shortest_s"):
        next(poll_delays_s(first_s=0.1, total_s=1.0, shortest_s=0.0))


@pytest.mark.parametrize(
    ("rate", "latency_s", "limit", "environments"),
    [(10.0, 0.2, 10, 2), (10.1, 0.2, 10, 3), (1000.0, 1.0, 7, 7), (0.0, 1.0, 7, 0), (5.0, 1.0, 0, 0)],
)
def test_environments_are_kept_warm_as_littles_law_needs(rate: float, latency_s: float, limit: int, environments: int) -> None:
    assert warm_environments(spill_rate_rps=rate, spill_latency_s=latency_s, limit=limit) == environments


def test_warm_up_refuses_when_the_rate_is_negative() -> None:
    with pytest.raises(ValueError, match="spill_rate_rps"):
        warm_environments(spill_rate_rps=-1.0, spill_latency_s=0.1, limit=1)


# --- the reserve --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("cost_max", "kept_s"), [(0.4, 0.12), (0.2, 0.0)])
def test_reserve_is_kept_where_it_costs_no_more_than_is_allowed(cost_max: float, kept_s: float) -> None:
    profile = a_profile({1: 0.02, 4: 0.025, 16: 0.045, 32: 0.07})

    reserve = spill_reserve([profile], budget_s=0.2, reserve_s=0.12, max_batch_size=32, cost_max=cost_max)

    assert reserve.reserve_s == kept_s
    assert "% of the rate on a typical type" in reserve.reason


def test_front_decides_anew_when_the_operator_changes_what_a_reserve_may_cost() -> None:
    record = a_model_record(max_batch_size=32, profiles={"c5.large": profile_records(a_profile({1: 0.02, 4: 0.025, 16: 0.045, 32: 0.07}))})
    models, instances = MemoryModelStore(record), MemoryInstanceRegistry()
    view = FrontView(models=models, instances=instances, heartbeat_timeout_s=15.0, reads_summaries=False, now_s=lambda: NOW_S)

    kept = [view.keeps_reserve(record, Tunables(rt_max_s=0.25, spill_reserve_cost_max=share)) for share in (1.0, 0.0, 1.0)]

    assert kept == [True, False, True]
