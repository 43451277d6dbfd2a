"""What planning guarantees for any demand, fleet and market."""

from collections import Counter
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from markserve.core.planning import CapacityPlan, ModelDemand, SpillTier, Trigger, plan_capacity
from markserve.core.prepare import expected_rate_rps, type_capacities
from markserve.core.scale_in import STARTED_OR_STARTING
from markserve.core.tunables import Tunables
from markserve.core.types import CapacityType, Forecast, Instance, InstanceState, Offering, WorkerStats
from tests.builders import NOW_S, a_profile

TYPES = {"small": 10.0, "medium": 21.0, "large": 45.0}
"""Requests/s by instance type."""
PROFILES = {name: a_profile({1: 1 / rate}, instance_type=name) for name, rate in TYPES.items()}
POOLS = [(name, capacity_type, zone) for name in TYPES for capacity_type in CapacityType for zone in "ab"]

tunables = st.builds(
    Tunables,
    launches_enabled=st.just(True),
    max_instances=st.integers(0, 12),
    max_hourly_cost_usd=st.floats(0.0, 5.0),
    demand_quantile=st.sampled_from([0.0, 0.5, 0.9]),
    headroom=st.floats(0.5, 2.0),
    spot_max_share=st.floats(0.0, 1.0),
    scale_in_cycles=st.integers(1, 6),
    min_instances=st.integers(0, 2),
)
spill_tiers = st.none() | st.builds(
    SpillTier, usd_per_request=st.floats(1e-7, 1e-3), latency_s=st.floats(0.01, 1.0), capacity_rps=st.floats(0.0, 500.0)
)


@st.composite
def markets(draw: st.DrawFn) -> list[Offering]:
    pools = draw(st.lists(st.sampled_from(POOLS), unique=True, max_size=6))
    return [
        Offering(
            instance_type=name,
            capacity_type=capacity_type,
            zone=zone,
            price_usd_per_hour=draw(st.floats(0.02, 0.5)),
            launch_overhead_s=draw(st.sampled_from([60.0, 180.0, 300.0])),
            interruption_rate_per_hour=0.05 if capacity_type is CapacityType.SPOT else 0.0,
        )
        for name, capacity_type, zone in pools
    ]


@st.composite
def fleets(draw: st.DrawFn, model: str) -> list[Instance]:
    states = [InstanceState.REQUESTED, InstanceState.WARMING, InstanceState.SERVING, InstanceState.DRAINING, InstanceState.TERMINATED]
    result = []
    for number in range(draw(st.integers(0, 5))):
        name, capacity_type, zone = draw(st.sampled_from(POOLS))
        result.append(
            Instance(
                instance_id=f"i-{model}-{number}",
                model=model,
                offering=Offering(
                    instance_type=name, capacity_type=capacity_type, zone=zone, price_usd_per_hour=draw(st.floats(0.02, 0.5))
                ),
                state=draw(st.sampled_from(states)),
                requested_at_s=NOW_S - draw(st.floats(0.0, 600.0)),
                reason="built for a test",
                unwanted_cycles=draw(st.integers(0, 7)),
                stats=WorkerStats(service_rate_rps=TYPES[name]),
            )
        )
    return result


@st.composite
def demands(draw: st.DrawFn, model: str, shared: Tunables) -> ModelDemand:
    length = draw(st.integers(1, 15))
    median = draw(st.lists(st.floats(0.0, 200.0), min_size=length, max_size=length))
    forecast = Forecast(
        model=model,
        origin_at_s=NOW_S - draw(st.floats(0.0, 59.0)),
        step_s=60.0,
        rates_rps={0.5: tuple(median), 0.99: tuple(rate * 1.5 for rate in median)},
        forecaster="drawn",
        reason="built for a test",
    )
    return ModelDemand(
        model=model,
        profiles=PROFILES,
        latency_budget_s=0.2,
        max_batch_size=1,
        tunables=shared,
        forecast=draw(st.none() | st.just(forecast)),
        measured_rate_rps=draw(st.none() | st.floats(0.0, 200.0)),
        spill=draw(spill_tiers),
        at_risk=draw(st.booleans()),
    )


@st.composite
def situations(draw: st.DrawFn) -> dict[str, object]:
    shared = draw(tunables)
    models = draw(st.sampled_from([["a"], ["a", "b"]]))
    offerings = draw(markets())
    return {
        "demands": [draw(demands(model, shared)) for model in models],
        "instances": [instance for model in models for instance in draw(fleets(model))],
        "offerings": offerings,
        "tunables": shared,
        "unavailable": set(draw(st.lists(st.sampled_from([o.key for o in offerings]), max_size=2))) if offerings else set(),
        "trigger": draw(st.sampled_from(list(Trigger))),
    }


def plan(situation: dict[str, object], **overrides: object) -> CapacityPlan:
    return plan_capacity(**{"now_s": NOW_S, "plan_id": "plan-1", **situation, **overrides})  # type: ignore[arg-type]


@given(situations())
@settings(max_examples=150, deadline=None)
def test_capacity_and_declared_spillover_cover_the_demand_at_every_step(situation: dict[str, object]) -> None:
    for model in plan(situation).models:
        for demand, capacity, spillover in zip(model.demand_rps, model.capacity_rps, model.spillover_rps, strict=True):
            assert capacity + spillover >= demand - 1e-6


@given(situations())
@settings(max_examples=150, deadline=None)
def test_ceilings_hold_for_everything_the_plan_launches(situation: dict[str, object]) -> None:
    result = plan(situation)
    alive = [i for i in situation["instances"] if i.is_alive]  # type: ignore[attr-defined]
    bound: Tunables = situation["tunables"]  # type: ignore[assignment]

    launched = sum(launch.count for launch in result.launches)
    if launched:
        assert len(alive) + launched <= bound.max_instances
        assert result.hourly_cost_usd <= bound.max_hourly_cost_usd + 1e-6


@given(situations())
@settings(max_examples=100, deadline=None)
def test_cost_is_the_sum_of_its_parts(situation: dict[str, object]) -> None:
    result = plan(situation)

    parts = [i.offering.price_usd_per_hour for i in situation["instances"] if i.is_alive]  # type: ignore[attr-defined]
    parts += [launch.count * launch.offering.price_usd_per_hour for launch in result.launches]
    assert abs(result.hourly_cost_usd - sum(parts)) < 1e-5


@given(situations())
@settings(max_examples=100, deadline=None)
def test_unavailable_offerings_are_never_chosen(situation: dict[str, object]) -> None:
    unavailable: set[str] = situation["unavailable"]  # type: ignore[assignment]

    assert not {launch.offering.key for launch in plan(situation).launches} & unavailable


@given(situations(), st.randoms(use_true_random=False))
@settings(max_examples=100, deadline=None)
def test_the_same_situation_gives_the_same_plan_in_any_order(situation: dict[str, object], random: object) -> None:
    shuffled = {
        **situation,
        **{name: random.sample(situation[name], len(situation[name])) for name in ("demands", "instances", "offerings")},  # type: ignore[attr-defined, arg-type]
    }

    assert plan(shuffled) == plan(situation)


@given(situations())
@settings(max_examples=300, deadline=None)
def test_planning_again_launches_nothing_when_the_plan_was_carried_out(situation: dict[str, object]) -> None:
    first = plan(situation)

    assert plan(carried_out(situation, first)).launches == ()


@given(situations())
@settings(max_examples=100, deadline=None)
def test_spot_stays_within_its_share_when_instances_are_bought(situation: dict[str, object]) -> None:
    only_new = {**situation, "instances": []}
    bound: Tunables = situation["tunables"]  # type: ignore[assignment]

    by_model: dict[str, Counter[CapacityType]] = {}
    capacities = {demand.model: staffed_rates_rps(demand, situation) for demand in situation["demands"]}  # type: ignore[attr-defined]
    for launch in plan(only_new).launches:
        lost = launch.offering.interruption_rate_per_hour * launch.offering.launch_overhead_s / 3600
        rate = capacities[launch.model][launch.offering.instance_type] * (1 - lost) * launch.count
        by_model.setdefault(launch.model, Counter())[launch.offering.capacity_type] += rate  # type: ignore[assignment]
    for rates in by_model.values():
        assert rates[CapacityType.SPOT] <= bound.spot_max_share * rates.total() + 1e-6


@given(situations())
@settings(max_examples=150, deadline=None)
def test_drains_keep_what_is_needed_now_and_wait_their_cycles(situation: dict[str, object]) -> None:
    result = plan(situation)
    instances: list[Instance] = situation["instances"]  # type: ignore[assignment]
    if any(drain.reason.startswith("over a ceiling") for drain in result.drains):
        return  # a ceiling is kept whatever is needed: the test below
    drained = {drain.instance_id for drain in result.drains}

    for demand in situation["demands"]:  # type: ignore[attr-defined]
        serving = [i for i in instances if i.model == demand.model and i.state is InstanceState.SERVING]
        if any(i.instance_id in drained for i in serving):
            kept_rps = sum(TYPES[i.offering.instance_type] for i in serving if i.instance_id not in drained)
            assert kept_rps >= (demand.measured_rate_rps or 0.0) * demand.tunables.headroom - 1e-6
    for instance in instances:
        if instance.instance_id in drained:
            assert result.unwanted_cycles[instance.instance_id] >= situation["tunables"].scale_in_cycles  # type: ignore[attr-defined]


@given(situations())
@settings(max_examples=150, deadline=None)
def test_what_stays_is_within_ceilings_however_they_were_lowered(situation: dict[str, object]) -> None:
    result = plan(situation)
    instances: list[Instance] = situation["instances"]  # type: ignore[assignment]
    tunables: Tunables = situation["tunables"]  # type: ignore[assignment]
    drained = {drain.instance_id for drain in result.drains}

    staying = [i for i in instances if i.state in STARTED_OR_STARTING and i.instance_id not in drained]

    assert len(drained) == len(result.drains)
    assert len(staying) <= tunables.max_instances
    assert sum(i.offering.price_usd_per_hour for i in staying) <= tunables.max_hourly_cost_usd + 1e-5


def staffed_rates_rps(demand: ModelDemand, situation: dict[str, object]) -> dict[str, float]:
    """What an instance of each type counts for in an empty fleet; less than its nominal rate."""
    offerings: list[Offering] = situation["offerings"]  # type: ignore[assignment]
    rate_rps = expected_rate_rps(demand, NOW_S, max((o.launch_overhead_s for o in offerings), default=0.0))
    return type_capacities(demand, {o.instance_type for o in offerings}, (), offerings, fleet_rate_rps=rate_rps)[0]


def carried_out(situation: dict[str, object], result: CapacityPlan) -> dict[str, object]:
    """The situation after the plan's launches and drains, at the same instant."""
    drained = {drain.instance_id for drain in result.drains}
    instances = [
        replace(
            i,
            state=InstanceState.DRAINING if i.instance_id in drained else i.state,
            unwanted_cycles=result.unwanted_cycles.get(i.instance_id, i.unwanted_cycles),
        )
        for i in situation["instances"]  # type: ignore[attr-defined]
    ]
    for launch in result.launches:
        instances += [
            Instance(
                instance_id=f"i-new-{launch.model}-{launch.offering.key}-{number}",
                model=launch.model,
                offering=launch.offering,
                state=InstanceState.REQUESTED,
                requested_at_s=NOW_S,
                reason=launch.reason,
            )
            for number in range(launch.count)
        ]
    return {**situation, "instances": instances}
