"""Planning on ports in memory: what is read, stored and handed to the control cycle."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from functions.plan.app import PlanCommand, Planned, parse, run
from markserve.adapters.memory import (
    MemoryControlStore,
    MemoryFleet,
    MemoryInstanceRegistry,
    MemoryModelStore,
    MemoryParameterSource,
    MemoryWindowStore,
    MemoryWorkQueue,
)
from markserve.core.tunables import Tunables
from markserve.core.types import CapacityType, InstanceState
from markserve.errors import DependencyUnavailable, InvalidRequest, StaleWrite
from markserve.messages import (
    Action,
    ArrivalCounts,
    DrainInstance,
    LaunchInstances,
    MetricsBatch,
    PlanRecord,
    TerminateInstance,
    Traffic,
    WarmSpillover,
)
from markserve.plan_inputs import model_demand
from markserve.settings import Settings
from markserve.telemetry import CANARIES_ROLLED_BACK
from tests.builders import (
    MODEL,
    NOW_S,
    a_decision,
    a_forecast_record,
    a_metrics_batch,
    a_model_record,
    a_plan_record,
    a_profile,
    a_request,
    an_instance,
    an_observed_instance,
    profile_records,
    some_outcomes,
    worker_stats,
)

EVENTS = Path(__file__).parents[2] / "events"
SETTINGS = Settings(stack_name="markserve", instance_types="c5.large")
TUNABLES = Tunables(launches_enabled=True, rt_max_s=0.5, max_instances=10, demand_quantile=0.9, spot_enabled=False)
# 20 rps per c5.large within 0.5 s; half a second on Lambda would cost ten times as much per request.
RECORD = a_model_record(
    max_batch_size=1,
    profiles={
        "c5.large": profile_records(a_profile({1: 0.05})),
        "lambda": profile_records(a_profile({1: 0.3}, instance_type="lambda")),
    },
)


class World:
    """Every port that planning uses, in memory."""

    def __init__(self, *instances: Any, tunables: Tunables = TUNABLES, **fleet: Any) -> None:
        self.models = MemoryModelStore(RECORD)
        self.control = MemoryControlStore()
        self.windows = MemoryWindowStore()
        self.instances = MemoryInstanceRegistry(*instances)
        self.fleet = MemoryFleet(now=lambda: NOW_S, **fleet)
        self.parameters = MemoryParameterSource(tunables)
        self.faults: dict[str, Exception] = {}
        self.work_queue = MemoryWorkQueue(now=lambda: NOW_S, faults=self.faults)
        for instance in instances:
            self.observe(instance_id=instance.instance_id)

    def observe(self, **overrides: Any) -> None:
        self.fleet.add(an_observed_instance(**overrides))

    def forecast(self, rate_rps: float) -> None:
        self.control.put_forecast(a_forecast_record(rates_rps={"0.5": (rate_rps,) * 60, "0.99": (rate_rps,) * 60}))

    def plan(self, command: PlanCommand | None = None, *, now_s: float = NOW_S, settings: Settings = SETTINGS) -> Planned:
        return run(
            command or PlanCommand(),
            models=self.models,
            control=self.control,
            windows=self.windows,
            instances=self.instances,
            fleet=self.fleet,
            parameters=self.parameters,
            work_queue=lambda _: self.work_queue,
            settings=settings,
            now_s=now_s,
        )


def of_kind(planned: Planned, kind: type[Any]) -> list[Any]:
    return [action for action in planned.record.actions if isinstance(action, kind)]


def a_worker(number: int, **overrides: Any) -> Any:
    return an_instance(**{"instance_id": f"i-{number}", "stats": worker_stats(service_rate_rps=20.0, transport_s=0.01), **overrides})


def test_plan_launches_for_the_forecast_and_stores_what_it_decided() -> None:
    world = World()
    world.forecast(50.0)

    record = world.plan().record

    launches = [action for action in record.actions if isinstance(action, LaunchInstances)]
    assert [(x.offering.key, x.count, x.model) for x in launches] == [("c5.large/on_demand/us-east-1a", 3, MODEL)]
    assert launches[0].action_id == f"{record.plan_id}/launch/0"
    assert record.plan_id == "plan-000001-6553f100"
    assert record.demand_rps == {MODEL: 50.0}
    assert 50.0 < record.capacity_rps[MODEL] < 60.0  # three of 20 rps, less the room that random arrivals need
    assert record.hourly_cost_usd == pytest.approx(0.255)
    assert world.control.latest_plan() == record


def test_plan_actions_survive_the_state_machine_as_plain_json() -> None:
    world = World(a_worker(1, state=InstanceState.DRAINING, drain_at_s=NOW_S - 500.0), a_worker(2, unwanted_cycles=9), a_worker(3))
    world.control.put_forecast(a_forecast_record(rates_rps={"0.5": (5.0,) * 60, "0.99": (90.0,) * 60}))
    world.parameters.tunables = replace(TUNABLES, demand_quantile=0.5)
    actions = world.plan().record.actions

    through_json = json.loads(json.dumps([msgspec.to_builtins(action) for action in actions]))

    assert tuple(msgspec.convert(action, Action) for action in through_json) == actions
    assert {type(action) for action in actions} == {TerminateInstance, DrainInstance, WarmSpillover}


def test_plan_fails_when_another_plan_was_stored_first() -> None:
    world = World()
    world.forecast(50.0)

    class OvertakenStore(MemoryControlStore):
        def latest_plan(self) -> PlanRecord | None:
            seen = super().latest_plan()
            self.put_plan(a_plan_record(version=seen.version + 1 if seen else 1))
            return seen

    world.control = OvertakenStore()

    with pytest.raises(StaleWrite, match="re-plan"):
        world.plan()

    assert world.instances.list() == []


def test_plan_versions_follow_each_other() -> None:
    world = World()

    assert [world.plan(now_s=NOW_S + 60 * n).record.version for n in range(3)] == [1, 2, 3]


def test_plan_uses_the_measured_rate_when_there_is_no_forecast() -> None:
    world = World()
    arrivals = tuple(ArrivalCounts(model=MODEL, window_at_s=NOW_S - 10.0 - 5 * n, count=150) for n in range(24))
    world.windows.apply([MetricsBatch(batch_id="b-1", sent_at_s=NOW_S, arrivals=arrivals)], expires_at_s=NOW_S + 3600)

    planned = world.plan()

    assert "no forecast yet: the measured 30.0 rps held flat" in planned.record.reason
    assert [x.count for x in of_kind(planned, LaunchInstances)] == [2]


def test_plan_avoids_a_pool_when_it_was_dry_within_three_minutes() -> None:
    world = World(zones=("us-east-1a", "us-east-1b"))
    world.forecast(10.0)
    world.control.claim("unavailable/c5.large/on_demand/us-east-1a", now_s=NOW_S - 60.0, for_s=180.0)

    planned = world.plan()

    assert [x.offering.zone for x in of_kind(planned, LaunchInstances)] == ["us-east-1b"]


def test_plan_buys_spot_at_the_live_price_when_it_is_enabled() -> None:
    world = World(
        tunables=replace(TUNABLES, spot_enabled=True, spot_max_share=1.0), prices={("c5.large", CapacityType.SPOT, "us-east-1a"): 0.031}
    )
    world.forecast(10.0)

    assert [x.offering.price_usd_per_hour for x in of_kind(world.plan(), LaunchInstances)] == [0.031]


def test_plan_passes_over_a_type_when_the_catalog_does_not_know_it() -> None:
    world = World()
    world.forecast(10.0)

    planned = world.plan(settings=replace(SETTINGS, instance_types="c9.huge, c5.large"))

    assert [x.offering.instance_type for x in of_kind(planned, LaunchInstances)] == ["c5.large"]


def test_plan_learns_the_launch_overhead_from_past_launches() -> None:
    past = [
        a_worker(n, state=InstanceState.TERMINATED, requested_at_s=NOW_S - 900.0, serving_at_s=NOW_S - 870.0, terminated_at_s=NOW_S)
        for n in range(4)
    ]
    world = World(*past)
    for n in range(4):
        world.fleet.set_state(f"i-{n}", "terminated")
    world.forecast(10.0)

    assert [x.offering.launch_overhead_s for x in of_kind(world.plan(), LaunchInstances)] == [30.0]


# --- reconciliation ---------------------------------------------------------------------------------------


def test_plan_records_that_an_instance_warms_up_when_the_cloud_runs_it() -> None:
    world = World(a_worker(1, state=InstanceState.REQUESTED, requested_at_s=NOW_S - 30.0, serving_at_s=None, running_at_s=None))

    world.plan()

    assert [(i.state, i.running_at_s) for i in world.instances.list()] == [(InstanceState.WARMING, NOW_S)]
    assert [d.event for d in world.control.decisions(since_s=NOW_S, until_s=NOW_S + 1)] == ["instance_warming"]


def test_plan_replaces_a_silent_worker_after_two_cycles() -> None:
    world = World(a_worker(1, heartbeat_at_s=NOW_S - 60.0))
    world.forecast(15.0)

    first = world.plan()
    second = world.plan(now_s=NOW_S + 60.0)

    assert first.record.actions == ()
    assert [(x.instance_id, x.failed) for x in of_kind(second, TerminateInstance)] == [("i-1", True)]
    assert [x.count for x in of_kind(second, LaunchInstances)] == [1]
    assert second.stuck == 1


def test_plan_sweeps_an_orphan_after_two_cycles() -> None:
    world = World()
    world.observe(instance_id="i-9")

    first = world.plan()
    second = world.plan(now_s=NOW_S + 60.0)

    assert of_kind(first, TerminateInstance) == []
    assert [(x.instance_id, x.failed) for x in of_kind(second, TerminateInstance)] == [("i-9", False)]


def test_plan_counts_an_unwanted_instance_and_drains_it_after_its_cycles() -> None:
    world = World(a_worker(1), a_worker(2), tunables=replace(TUNABLES, scale_in_cycles=2))
    world.forecast(5.0)

    first = world.plan()
    unwanted = {i.instance_id: i.unwanted_cycles for i in world.instances.list()}
    second = world.plan()

    assert (of_kind(first, DrainInstance), unwanted) == ([], {"i-1": 0, "i-2": 1})
    assert [x.instance_id for x in of_kind(second, DrainInstance)] == ["i-2"]


# --- requests without a deadline --------------------------------------------------------------------------


def test_instance_is_launched_for_requests_that_wait_where_the_model_has_none() -> None:
    world = World()
    world.work_queue.send(a_request())
    world.work_queue.send(a_request(request_id="another"))

    planned = world.plan()

    assert sum(launch.count for launch in of_kind(planned, LaunchInstances)) == 1
    assert "2 requests wait in its queue and nothing serves: at least one instance" in planned.record.reason


@pytest.mark.parametrize("state", [InstanceState.REQUESTED, InstanceState.SERVING])
def test_nothing_is_launched_for_waiting_requests_where_an_instance_serves_or_starts(state: InstanceState) -> None:
    world = World(a_worker(1, state=state))
    world.work_queue.send(a_request())

    assert of_kind(world.plan(), LaunchInstances) == []


def test_plan_is_made_when_the_queue_does_not_say_how_much_waits() -> None:
    world = World()
    world.faults["depth"] = DependencyUnavailable("queue away")
    world.forecast(50.0)

    assert [launch.count for launch in of_kind(world.plan(), LaunchInstances)] == [3]


def test_last_worker_stays_while_requests_wait_in_its_queue() -> None:
    busy = worker_stats(service_rate_rps=20.0, transport_s=0.01, queue_depth=3)
    world = World(a_worker(1, stats=busy), tunables=replace(TUNABLES, scale_in_cycles=1))
    world.forecast(0.0)

    while_they_wait = of_kind(world.plan(), DrainInstance)
    world.instances.heartbeat("i-1", at_s=NOW_S, stats=replace(busy, queue_depth=0))
    afterwards = of_kind(world.plan(), DrainInstance)

    assert while_they_wait == []
    assert [drain.instance_id for drain in afterwards] == ["i-1"]


# --- triggers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("logged", [True, False])
def test_plan_adds_an_instance_when_the_objective_is_at_risk(logged: bool) -> None:
    world = World(a_worker(1))
    world.forecast(18.0)
    if logged:
        world.control.log(a_decision(event="slo_at_risk", at_s=NOW_S - 1.0))

    planned = world.plan(PlanCommand(trigger="slo_at_risk"))

    assert [x.count for x in of_kind(planned, LaunchInstances)] == [1]


def test_plan_leaves_other_models_alone_when_one_is_at_risk() -> None:
    world = World(a_worker(1))
    world.forecast(18.0)

    planned = world.plan(PlanCommand(trigger="slo_at_risk", model="another"))

    assert of_kind(planned, LaunchInstances) == []


def test_plan_replaces_at_once_when_an_instance_is_interrupted() -> None:
    world = World(a_worker(1, state=InstanceState.DRAINING, drain_at_s=NOW_S))
    world.forecast(15.0)

    planned = world.plan(PlanCommand(trigger="interruption"))

    assert [x.count for x in of_kind(planned, LaunchInstances)] == [1]
    assert planned.record.trigger == "interruption"


def test_plan_logs_an_error_when_no_type_meets_the_objective() -> None:
    world = World(tunables=replace(TUNABLES, rt_max_s=0.06))

    world.plan()

    assert [(d.event, d.model) for d in world.control.decisions(since_s=NOW_S, until_s=NOW_S + 1)] == [("slo_infeasible", MODEL)]


@pytest.mark.parametrize("name", ["plan_request", "control_cycle_input"])
def test_parse_reads_the_recorded_events(name: str) -> None:
    assert parse(json.loads((EVENTS / f"{name}.json").read_text())) == PlanCommand(trigger="schedule")


def test_parse_refuses_an_unknown_trigger() -> None:
    with pytest.raises(InvalidRequest, match="trigger"):
        parse({"trigger": "boredom"})


# --- inputs -----------------------------------------------------------------------------------------------


def demand_of(record: Any = RECORD, *, tunables: Tunables = TUNABLES, instances: Any = ()) -> Any:
    return model_demand(
        record,
        tunables=tunables,
        forecast=None,
        measured_rate_rps=None,
        instances=instances,
        spillover_memory_mb=1769,
        at_risk=False,
    )


def test_budget_is_what_transport_reply_margin_and_the_spill_reserve_leave() -> None:
    demand = demand_of(tunables=replace(TUNABLES, rt_max_s=1.0), instances=[a_worker(1)])

    assert demand.latency_budget_s == pytest.approx(0.98 - 0.01 - 0.02 - (0.38 + 0.05))


def test_budget_keeps_no_spill_reserve_when_no_type_could_work_within_the_rest() -> None:
    demand = demand_of(tunables=replace(TUNABLES, rt_max_s=0.45), instances=[a_worker(1)])

    assert demand.latency_budget_s == pytest.approx(0.441 - 0.01 - 0.02)


def test_transport_is_bounded_when_it_contains_queueing() -> None:
    queued = a_worker(1, stats=worker_stats(transport_s=0.4))

    assert demand_of(instances=[queued], tunables=replace(TUNABLES, spillover_max_concurrency=0)).latency_budget_s == pytest.approx(0.345)


def test_spill_tier_is_priced_by_its_profile_and_limited_by_its_concurrency() -> None:
    spill = demand_of().spill

    assert spill.latency_s == pytest.approx(0.38)
    assert spill.capacity_rps == pytest.approx(100 / 0.38)
    invoked_usd = 0.27 * 1769 / 1024 * 1.66667e-5 + 0.2e-6
    queued_usd = 1.2 * 0.4e-6 + 2 * 0.125e-6  # a send, a tenth of a receive and of a delete, two reads
    assert spill.usd_per_request == pytest.approx(invoked_usd - queued_usd)


@pytest.mark.parametrize(("on_lambda_s", "launched"), [(0.005, 0), (0.05, 1)])
def test_a_model_that_costs_less_spilled_than_queued_has_no_instance(on_lambda_s: float, launched: int) -> None:
    """The queue's calls cost $0.73 a million; a millisecond of Lambda $0.03, and an invocation $0.20."""
    light = a_model_record(
        max_batch_size=1,
        profiles={
            "c5.large": profile_records(a_profile({1: 0.002})),
            "lambda": profile_records(a_profile({1: on_lambda_s}, instance_type="lambda")),
        },
    )
    world = World()
    world.models = MemoryModelStore(light)
    world.forecast(300.0)

    planned = world.plan()

    assert sum(x.count for x in of_kind(planned, LaunchInstances)) == launched


def test_spill_tier_is_none_when_it_is_off_or_misses_the_objective() -> None:
    assert demand_of(tunables=replace(TUNABLES, spillover_max_concurrency=0)).spill is None
    assert demand_of(tunables=replace(TUNABLES, rt_max_s=0.3)).spill is None
    # 0.38 s on Lambda would fit, but not with the way to it and back.
    assert demand_of(tunables=replace(TUNABLES, rt_max_s=0.39)).spill is None


@pytest.mark.parametrize("rates", [{"0.5": (-5.0,) * 60}, {"0.5": (1.0,), "0.9": (1.0, 2.0)}, {"0.5": ()}])
def test_forecast_that_makes_no_sense_is_refused_and_the_measured_rate_planned_for(rates: dict[str, tuple[float, ...]]) -> None:
    world = World()
    world.control.put_forecast(a_forecast_record(rates_rps=rates))

    planned = world.plan()

    assert f"{MODEL}: demand 0.0 rps now" in planned.record.reason


def test_model_whose_launches_never_serve_is_quarantined_once_in_the_log_and_launched_for_no_more() -> None:
    crashed = [
        a_worker(n, state=InstanceState.FAILED, requested_at_s=NOW_S - 40 + n, serving_at_s=None, terminated_at_s=NOW_S - 5)
        for n in range(3)
    ]
    world = World(*crashed)
    for instance in crashed:
        world.fleet.terminate([instance.instance_id])
    world.forecast(50.0)

    first, second = world.plan(), world.plan(now_s=NOW_S + 5)

    assert of_kind(first, LaunchInstances) == of_kind(second, LaunchInstances) == []
    assert (first.quarantined, second.quarantined) == (1, 1)
    log = [d for d in world.control.decisions(since_s=0, until_s=NOW_S + 60) if d.event == "model_quarantined"]
    assert [d.subject for d in log] == [MODEL]


@pytest.fixture
def canary_that_fails() -> World:
    """Version 2 gets a tenth of the requests, and has failed all of them."""
    world = World(a_worker(1))
    world.models.store(a_model_record(version="2"))
    world.models.route(Traffic(model=MODEL, live="1", canary="2", canary_weight=0.1, number=1, changed_at_s=NOW_S - 300))
    counted = tuple(
        some_outcomes(window_at_s=NOW_S - 300 + 5 * n, ok=ok, errors=errors, within_slo=ok, model_version=version, latency_histogram={})
        for n in range(20)
        for version, ok, errors in (("1", 18, 0), ("2", 0, 2))
    )
    world.windows.apply([a_metrics_batch(outcomes=counted)], expires_at_s=NOW_S + 1e6)
    return world


def rolled_back(printed: str) -> list[float]:
    """What was published for the alarm on canaries."""
    lines = [json.loads(line) for line in printed.splitlines() if '"_aws"' in line]
    return [value for line in lines for value in line.get(CANARIES_ROLLED_BACK, ())]


def test_worse_canary_is_rolled_back_in_the_cycle_that_finds_it_also_when_the_plan_loses_its_race(
    canary_that_fails: World, capsys: pytest.CaptureFixture[str]
) -> None:
    world = canary_that_fails
    world.control.put_plan(a_plan_record(version=1))
    world.control.latest_plan = lambda: None  # type: ignore[method-assign]  # read before the other plan was stored

    with pytest.raises(StaleWrite):
        world.plan()

    assert rolled_back(capsys.readouterr().out) == [1.0]
    assert world.models.traffic(MODEL).canary is None
    assert [d.event for d in world.control.decisions(since_s=0, until_s=NOW_S + 1)] == ["canary_rolled_back"]


def test_alarm_hears_of_a_canary_once_though_the_planning_after_it_fails_and_is_tried_again(
    canary_that_fails: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise DependencyUnavailable("EC2 does not answer")

    with monkeypatch.context() as patch:
        patch.setattr(canary_that_fails.fleet, "describe", refuse)
        with pytest.raises(DependencyUnavailable):
            canary_that_fails.plan()
    canary_that_fails.plan(now_s=NOW_S + 5)

    assert rolled_back(capsys.readouterr().out) == [1.0]
