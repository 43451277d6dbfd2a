import math

from hypothesis import given
from hypothesis import strategies as st

from markserve.core.spillover import Admission, AdmissionAction, FleetView, admit, poll_delays_s, warm_environments
from markserve.core.types import Slo

seconds = st.floats(min_value=0.0, max_value=5.0)


@st.composite
def fleets(draw: st.DrawFn) -> FleetView:
    serving = draw(st.integers(0, 5))
    return FleetView(
        serving_instances=serving,
        service_rate_rps=serving * draw(st.floats(min_value=0.1, max_value=500.0)),
        batch_latency_s=draw(seconds),
        queue_depth=draw(st.integers(0, 5000)),
        transport_s=draw(seconds),
        in_flight=draw(st.integers(0, 100)),
        ready_at_s=draw(st.none() | st.floats(min_value=100.0, max_value=400.0)),
    )


@st.composite
def situations(draw: st.DrawFn) -> dict[str, object]:
    return {
        "fleet": draw(fleets()),
        "slo": Slo(latency_s=draw(st.floats(min_value=0.01, max_value=10.0))),
        "arrival_at_s": 100.0,
        "now_s": 100.0 + draw(st.floats(min_value=0.0, max_value=1.0)),
        "spill_latency_s": draw(seconds),
        "reply_overhead_s": draw(st.floats(min_value=0.0, max_value=0.5)),
        "margin_s": draw(st.floats(min_value=0.0, max_value=0.1)),
        "spill_available": draw(st.booleans()),
    }


def decide(situation: dict[str, object]) -> Admission:
    return admit(**situation)  # type: ignore[arg-type]


@given(situations())
def test_every_decision_is_complete_and_explained(situation: dict[str, object]) -> None:
    decision = decide(situation)

    assert decision.reason
    if decision.action is AdmissionAction.REJECT:
        assert decision.retry_after_s is not None
        assert 1 <= decision.retry_after_s <= 60
        assert decision.status in (429, 503)
    else:
        assert decision.retry_after_s is None
        assert decision.deadline_at_s == 100.0 + situation["slo"].latency_s  # type: ignore[attr-defined]


@given(situations())
def test_nothing_is_rejected_when_spill_over_is_available_and_nothing_spilled_when_not(situation: dict[str, object]) -> None:
    assert decide({**situation, "spill_available": True}).action is not AdmissionAction.REJECT
    assert decide({**situation, "spill_available": False}).action is not AdmissionAction.SPILL


@given(situations())
def test_nothing_is_spilled_while_workers_are_predicted_to_be_in_time(situation: dict[str, object]) -> None:
    fleet = situation["fleet"]
    assert isinstance(fleet, FleetView)
    decision = decide({**situation, "spill_available": True})

    if fleet.serving_instances and decision.action is AdmissionAction.SPILL:
        wait_s = max(fleet.transport_s, fleet.backlog_s) + fleet.batch_latency_s + situation["reply_overhead_s"]  # type: ignore[operator]
        latest_s = decision.deadline_at_s
        reserve_s = situation["spill_latency_s"] + situation["margin_s"]  # type: ignore[operator]
        assert latest_s is not None
        assert situation["now_s"] + wait_s > latest_s - reserve_s - 1e-9  # type: ignore[operator]


@given(situations(), st.integers(1, 2000))
def test_a_longer_backlog_never_turns_a_spill_into_an_enqueue(situation: dict[str, object], more: int) -> None:
    fleet = situation["fleet"]
    assert isinstance(fleet, FleetView)
    longer = FleetView(
        serving_instances=fleet.serving_instances,
        service_rate_rps=fleet.service_rate_rps,
        batch_latency_s=fleet.batch_latency_s,
        queue_depth=fleet.queue_depth + more,
        transport_s=fleet.transport_s,
        in_flight=fleet.in_flight,
        ready_at_s=fleet.ready_at_s,
    )

    if decide(situation).action is not AdmissionAction.ENQUEUE:
        assert decide({**situation, "fleet": longer}).action is not AdmissionAction.ENQUEUE


@given(situations())
def test_way_out_is_never_after_the_deadline(situation: dict[str, object]) -> None:
    decision = decide(situation)

    if decision.action is AdmissionAction.ENQUEUE and decision.spill_at_s is not None:
        assert decision.deadline_at_s is not None
        assert decision.spill_at_s <= decision.deadline_at_s


@given(st.floats(min_value=0.0, max_value=10.0), st.floats(min_value=-1.0, max_value=10.0))
def test_polls_end_exactly_when_waiting_does(first_s: float, total_s: float) -> None:
    delays = list(poll_delays_s(first_s=first_s, total_s=total_s))

    assert all(delay > 0 for delay in delays)
    assert math.isclose(sum(delays), max(0.0, total_s), abs_tol=1e-9)


@given(st.floats(min_value=0.0, max_value=1e4), st.floats(min_value=0.0, max_value=10.0), st.integers(0, 1000))
def test_warm_environments_stay_within_the_limit(rate: float, latency_s: float, limit: int) -> None:
    environments = warm_environments(spill_rate_rps=rate, spill_latency_s=latency_s, limit=limit)

    assert 0 <= environments <= limit
    assert environments == limit or environments >= rate * latency_s - 1e-6
