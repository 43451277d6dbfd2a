from dataclasses import replace
from typing import Any

import pytest

from markserve.core.capacity import Candidate, Holding, Room, SpotRules
from markserve.core.greedy import Choice
from markserve.core.notes import bounded
from markserve.core.planning import CapacityPlan, ModelDemand, Rejected, SpillTier, Trigger, plan_capacity
from markserve.core.pruning import undominated
from markserve.core.search import improve
from markserve.core.spillover import AdmissionAction, admit, fleet_view
from markserve.core.task import Task
from markserve.core.tunables import Tunables
from markserve.core.types import BatchProfile, CapacityType, Forecast, Instance, InstanceState, Offering, Slo
from tests.builders import MODEL, NOW_S, a_forecast, a_profile, a_spot_offering, an_instance, an_offering, worker_stats

LARGE = an_offering()
XLARGE = an_offering(instance_type="c5.xlarge", price_usd_per_hour=0.17)
SPOT = a_spot_offering(interruption_rate_per_hour=0.0)
TUNABLES = Tunables(launches_enabled=True, max_instances=20, max_hourly_cost_usd=10.0, demand_quantile=0.5, spot_max_share=0.5)
DEAR_SPILL = SpillTier(usd_per_request=1e-3, latency_s=0.3, capacity_rps=1000.0)


def serving(rate_rps: float, instance_type: str = "c5.large") -> BatchProfile:
    """A profile that sustains `rate_rps` one request at a time; `a_demand` leaves so much time to wait that all of it is usable."""
    return a_profile({1: 1 / rate_rps}, instance_type=instance_type)


def flat(rate_rps: float, steps: int = 60) -> Forecast:
    return a_forecast({0.5: (rate_rps,) * steps, 0.99: (rate_rps,) * steps})


def a_demand(**overrides: Any) -> ModelDemand:
    values: dict[str, Any] = {
        "model": MODEL,
        "profiles": {"c5.large": serving(10.0), "c5.xlarge": serving(20.0, "c5.xlarge")},
        "latency_budget_s": 1e5,
        "max_batch_size": 1,
        "tunables": TUNABLES,
        "forecast": flat(25.0),
        "measured_rate_rps": 5.0,
        "spill": DEAR_SPILL,
    }
    return ModelDemand(**{**values, **overrides})


def plan(*demands: ModelDemand, **overrides: Any) -> CapacityPlan:
    values: dict[str, Any] = {
        "demands": demands or (a_demand(),),
        "instances": (),
        "offerings": (LARGE,),
        "tunables": demands[0].tunables if demands else TUNABLES,
        "unavailable": (),
        "now_s": NOW_S,
        "plan_id": "plan-1",
        "trigger": Trigger.SCHEDULE,
    }
    return plan_capacity(**{**values, **overrides})


def bought(result: CapacityPlan) -> dict[str, int]:
    return {launch.offering.key: launch.count for launch in result.launches}


def a_worker(number: int, **overrides: Any) -> Instance:
    values = {"instance_id": f"i-{number}", "stats": worker_stats(service_rate_rps=10.0), **overrides}
    return an_instance(**values)


def reasons(result: CapacityPlan) -> str:
    return "\n".join(f"{r.offering}: {r.reason}" for r in result.alternatives)


# --- Algorithm 1 ------------------------------------------------------------------------------------------


def test_plan_buys_what_the_forecast_needs_when_nothing_runs() -> None:
    result = plan()

    assert bought(result) == {LARGE.key: 3}
    assert result.hourly_cost_usd == pytest.approx(0.255)
    assert result.models[0].lead_step == 3
    assert result.models[0].capacity_rps[:4] == (0.0, 0.0, 0.0, 30.0)
    assert result.models[0].spillover_rps[:4] == (25.0, 25.0, 25.0, 0.0)


def test_plan_does_nothing_when_demand_at_the_first_useful_step_is_met() -> None:
    surge = a_forecast({0.5: (5.0,) * 10 + (25.0,) * 50})

    result = plan(a_demand(forecast=surge), instances=[a_worker(1)])

    assert bought(result) == {}
    assert result.unwanted_cycles == {"i-1": 0}


def test_plan_launches_when_a_surge_begins_exactly_one_launch_overhead_ahead() -> None:
    surge = a_forecast({0.5: (5.0,) * 3 + (25.0,) * 57})

    result = plan(a_demand(forecast=surge), instances=[a_worker(1)])

    assert bought(result) == {LARGE.key: 2}


def test_plan_ignores_a_peak_that_ends_before_a_launch_could_help() -> None:
    peak = a_forecast({0.5: (25.0,) * 3 + (5.0,) * 57})

    result = plan(a_demand(forecast=peak), instances=[a_worker(1)])

    assert bought(result) == {}


def test_plan_takes_the_cheaper_cost_per_unmet_request_when_types_differ() -> None:
    cheap_xlarge = replace(XLARGE, price_usd_per_hour=0.12)

    result = plan(a_demand(forecast=flat(40.0)), offerings=[LARGE, cheap_xlarge])

    assert bought(result) == {cheap_xlarge.key: 2}
    assert f"{LARGE.key}: {MODEL}: $2.361 per million requests, {cheap_xlarge.key} $1.667" not in reasons(result)  # launch cost counts
    assert f"{LARGE.key}: {MODEL}: $2.485 per million requests, {cheap_xlarge.key} $1.754" in reasons(result)


def test_plan_counts_pending_instances_when_they_will_be_ready() -> None:
    pending = [a_worker(n, state=InstanceState.REQUESTED, requested_at_s=NOW_S, serving_at_s=None) for n in (1, 2, 3)]

    result = plan(instances=pending)

    assert bought(result) == {}
    assert set(result.unwanted_cycles.values()) == {0}


def test_plan_ignores_draining_instances_as_capacity_but_counts_their_price() -> None:
    draining = a_worker(1, state=InstanceState.DRAINING, drain_at_s=NOW_S)

    result = plan(a_demand(forecast=flat(5.0)), instances=[draining])

    assert bought(result) == {LARGE.key: 1}
    assert result.hourly_cost_usd == pytest.approx(0.17)


def test_plan_prefers_the_instance_that_runs_when_costs_tie() -> None:
    result = plan(a_demand(forecast=flat(10.0)), instances=[a_worker(1)])

    assert (bought(result), result.unwanted_cycles) == ({}, {"i-1": 0})


def test_plan_is_the_same_when_inputs_are_shuffled() -> None:
    offerings = [LARGE, XLARGE, SPOT, an_offering(zone="us-east-1b")]

    assert plan(offerings=offerings) == plan(offerings=offerings[::-1])


def test_plan_uses_the_measured_rate_of_workers_when_they_refitted_their_profile() -> None:
    slower = a_worker(1, stats=worker_stats(service_rate_rps=5.0))

    result = plan(a_demand(forecast=flat(20.0)), instances=[slower])

    assert bought(result) == {LARGE.key: 3}


# --- demand -----------------------------------------------------------------------------------------------


def test_plan_buys_for_less_than_the_highest_window_when_spilling_the_rest_is_cheap() -> None:
    forecast = a_forecast({0.5: (100.0,) * 60, 0.9: (200.0,) * 60, 0.99: (400.0,) * 60})
    worker_usd = 0.085 / 3600 / 10.0
    newsvendor = replace(TUNABLES, demand_quantile=0.0)
    by_ratio = {
        ratio: plan(a_demand(forecast=forecast, tunables=newsvendor, spill=replace(DEAR_SPILL, usd_per_request=worker_usd * ratio)))
        for ratio in (2, 10, 100)
    }

    demands = [result.models[0].demand_rps[0] for result in by_ratio.values()]
    assert demands == sorted(demands)
    assert demands[0] < 100 < demands[2] < 400
    assert "newsvendor: a million requests cost $23.611 spilled net of queue calls, $2.361 on a worker of 10.0 rps" in by_ratio[10].reason


def test_plan_buys_less_when_the_load_comes_in_bursts_of_seconds() -> None:
    newsvendor = replace(TUNABLES, demand_quantile=0.0)
    steady, bursty = (
        plan(a_demand(forecast=flat(100.0), tunables=newsvendor, shape=shape, spill=replace(DEAR_SPILL, usd_per_request=1e-5)))
        for shape in ((0.95,) * 10, (0.3,) * 9 + (1.0,))
    )

    assert bursty.models[0].demand_rps[0] < steady.models[0].demand_rps[0]


def test_plan_buys_the_upper_tail_when_nothing_can_spill() -> None:
    forecast = a_forecast({0.5: (10.0,) * 60, 0.99: (30.0,) * 60})

    result = plan(a_demand(forecast=forecast, tunables=replace(TUNABLES, demand_quantile=0.0), spill=None))

    assert bought(result) == {LARGE.key: 3}


def test_plan_multiplies_demand_when_headroom_is_set() -> None:
    result = plan(a_demand(tunables=replace(TUNABLES, headroom=2.0)))

    assert bought(result) == {LARGE.key: 5}


def test_plan_holds_the_measured_rate_flat_when_there_is_no_forecast() -> None:
    result = plan(a_demand(forecast=None, measured_rate_rps=15.0))

    assert bought(result) == {LARGE.key: 2}
    assert "no forecast yet: the measured 15.0 rps held flat" in result.reason


def test_plan_keeps_the_minimum_when_nothing_is_known() -> None:
    result = plan(a_demand(forecast=None, measured_rate_rps=None, tunables=replace(TUNABLES, min_instances=2)))

    assert bought(result) == {LARGE.key: 2}
    assert "no forecast yet and no rate measured: min-instances only" in result.reason


def test_plan_treats_a_forecast_of_the_past_as_none_when_it_has_run_out() -> None:
    old = a_forecast({0.5: (100.0,) * 5}, origin_at_s=NOW_S - 3600.0)

    result = plan(a_demand(forecast=old, measured_rate_rps=5.0))

    assert bought(result) == {LARGE.key: 1}
    assert "has run out" in result.reason


def test_plan_starts_at_the_present_step_when_the_forecast_is_some_steps_old() -> None:
    aged = a_forecast({0.5: (1.0, 2.0, 3.0, 4.0, 5.0, 6.0)}, origin_at_s=NOW_S - 125.0)

    result = plan(a_demand(forecast=aged))

    assert result.models[0].demand_rps[0] == 3.0
    assert result.models[0].start_at_s == NOW_S - 5.0


def test_plan_raises_demand_to_the_measured_rate_when_the_plan_is_urgent() -> None:
    result = plan(a_demand(forecast=flat(5.0), measured_rate_rps=28.0), trigger=Trigger.INTERRUPTION)

    assert bought(result) == {LARGE.key: 3}


# --- spill-over as a tier ---------------------------------------------------------------------------------


def test_plan_buys_nothing_and_says_what_it_would_cost_when_spilling_is_cheaper() -> None:
    cheap = SpillTier(usd_per_request=1e-6, latency_s=0.1, capacity_rps=1000.0)

    result = plan(a_demand(forecast=flat(1.0), spill=cheap))

    assert bought(result) == {}
    assert "left to spill-over: its 3420 requests cost $0.0034 there net of queue calls and $0.0850 on it" in reasons(result)
    assert "up to 1.0 rps spill" in result.reason
    assert result.models[0].spillover_rps[0] == 1.0


def test_plan_leaves_only_the_residual_to_spill_over_when_a_full_instance_pays() -> None:
    # 10 rps fill an instance; the other 0.5 rps would cost $0.0850 on a second one and $0.0086 on Lambda.
    tier = SpillTier(usd_per_request=5e-6, latency_s=0.1, capacity_rps=1000.0)

    result = plan(a_demand(forecast=flat(10.5), spill=tier))

    assert bought(result) == {LARGE.key: 1}
    assert result.models[0].spillover_rps[10] == pytest.approx(0.5)


def test_plan_buys_although_spilling_is_cheaper_when_its_concurrency_does_not_suffice() -> None:
    small = SpillTier(usd_per_request=1e-9, latency_s=0.1, capacity_rps=4.0)

    result = plan(a_demand(forecast=flat(12.0), spill=small))

    assert bought(result) == {LARGE.key: 1}


@pytest.mark.parametrize(
    ("usd_per_request", "rate_rps", "launched"), [(1e-9, 3.0, 0), (1e-9, 12.0, 1), (1e-9, 23.0, 2), (3e-6, 3.0, 0), (3e-6, 6.0, 1)]
)
def test_plan_by_live_prices_buys_what_the_function_cannot_take(usd_per_request: float, rate_rps: float, launched: int) -> None:
    """The newsvendor alone would spill it, since a nearly idle instance costs more than Lambda, and it would fail."""
    small = SpillTier(usd_per_request=usd_per_request, latency_s=0.1, capacity_rps=4.0)

    result = plan(a_demand(forecast=flat(rate_rps), tunables=replace(TUNABLES, demand_quantile=0.0), spill=small))

    assert sum(bought(result).values()) == launched


def test_plan_by_live_prices_buys_for_a_small_tail_that_a_function_cannot_take() -> None:
    """One in ten times two or three rps are too many for the function; an instance for them alone costs more than spilling would."""
    tail = a_forecast(rates_rps={0.5: (1.0,) * 60, 0.8: (1.0,) * 60, 0.9: (12.0,) * 60, 0.99: (12.0,) * 60})
    newsvendor = replace(TUNABLES, demand_quantile=0.0)
    launched = {
        capacity_rps: sum(
            bought(
                plan(
                    a_demand(forecast=tail, tunables=newsvendor, spill=replace(DEAR_SPILL, usd_per_request=3e-6, capacity_rps=capacity_rps))
                )
            ).values()
        )
        for capacity_rps in (100.0, 4.0)
    }

    assert (launched[100.0], launched[4.0]) == (0, 1)


def test_plan_by_live_prices_buys_for_a_tail_that_a_function_cannot_take() -> None:
    tail = a_forecast(rates_rps={0.5: (10.0,) * 60, 0.9: (60.0,) * 60, 0.99: (100.0,) * 60})
    newsvendor = replace(TUNABLES, demand_quantile=0.0)
    launched = {
        capacity_rps: sum(
            bought(
                plan(
                    a_demand(forecast=tail, tunables=newsvendor, spill=replace(DEAR_SPILL, usd_per_request=5e-6, capacity_rps=capacity_rps))
                )
            ).values()
        )
        for capacity_rps in (1000.0, 20.0)
    }

    assert (launched[1000.0], launched[20.0]) == (0, 6)  # 77 rps are not to be missed, and 20 of them can be spilled


# --- ceilings, spot, availability -------------------------------------------------------------------------


def test_plan_keeps_what_replaces_spot_that_is_not_allowed_any_more() -> None:
    pending = a_worker(2, state=InstanceState.REQUESTED, requested_at_s=NOW_S - 20.0, serving_at_s=None, unwanted_cycles=9)
    none_on_spot = replace(TUNABLES, spot_max_share=0.0, scale_in_cycles=1)

    result = plan(a_demand(forecast=flat(8.0), tunables=none_on_spot), instances=[a_worker(1, offering=SPOT), pending])

    assert bought(result) == {}
    assert (result.unwanted_cycles["i-1"], result.unwanted_cycles["i-2"]) == (1, 0)


def test_plan_stops_at_max_instances_and_declares_the_rest_when_the_ceiling_binds() -> None:
    result = plan(a_demand(tunables=replace(TUNABLES, max_instances=2)))

    assert bought(result) == {LARGE.key: 2}
    assert result.models[0].spillover_rps[5] == 5.0
    assert "up to 25.0 rps spill: the ceiling max-instances is reached" in result.reason


def test_plan_stops_at_the_hourly_cost_when_that_ceiling_binds() -> None:
    result = plan(a_demand(tunables=replace(TUNABLES, max_hourly_cost_usd=0.2)))

    assert bought(result) == {LARGE.key: 2}
    assert "its $0.0850/h exceed the $0.0300/h left under max-hourly-cost-usd" in reasons(result)


def test_plan_counts_other_models_instances_when_ceilings_are_shared() -> None:
    stranger = a_worker(9, model="other")

    result = plan(a_demand(tunables=replace(TUNABLES, max_instances=2)), a_demand(model="other", forecast=flat(9.0)), instances=[stranger])

    assert bought(result) == {LARGE.key: 1}


def test_plan_shares_a_binding_ceiling_when_two_models_compete() -> None:
    tunables = replace(TUNABLES, max_instances=4)

    result = plan(a_demand(model="a", tunables=tunables), a_demand(model="b", tunables=tunables))

    assert [(launch.model, launch.count) for launch in result.launches] == [("a", 2), ("b", 2)]


def test_plan_buys_nothing_and_says_what_it_would_when_launches_are_disabled() -> None:
    result = plan(a_demand(tunables=replace(TUNABLES, launches_enabled=False)))

    assert bought(result) == {}
    assert f"{LARGE.key}: {MODEL}: would launch 3, but launches-enabled is false" in reasons(result)
    assert result.models[0].spillover_rps[5] == 25.0


def test_plan_never_chooses_an_unavailable_offering_when_it_is_the_cheapest() -> None:
    result = plan(
        a_demand(forecast=flat(10.0), tunables=replace(TUNABLES, spot_max_share=1.0)), offerings=[LARGE, SPOT], unavailable={SPOT.key}
    )

    assert bought(result) == {LARGE.key: 1}
    assert f"{SPOT.key}: it was dry or interrupted within the last minutes" in reasons(result)


def test_plan_caps_the_share_of_spot_when_spot_is_cheaper() -> None:
    result = plan(a_demand(forecast=flat(40.0)), offerings=[LARGE, SPOT])

    assert bought(result) == {LARGE.key: 2, SPOT.key: 2}


def test_plan_spreads_spot_over_pools_when_one_is_the_cheapest() -> None:
    other_zone = replace(SPOT, zone="us-east-1b", price_usd_per_hour=0.036)
    all_spot = replace(TUNABLES, spot_max_share=1.0)

    result = plan(a_demand(forecast=flat(40.0), tunables=all_spot), offerings=[SPOT, other_zone])

    assert bought(result) == {SPOT.key: 2, other_zone.key: 2}


def test_plan_uses_one_spot_pool_when_there_is_no_other() -> None:
    result = plan(a_demand(forecast=flat(40.0), tunables=replace(TUNABLES, spot_max_share=1.0)), offerings=[SPOT])

    assert bought(result) == {SPOT.key: 4}


def test_plan_buys_no_spot_when_it_is_disabled() -> None:
    result = plan(a_demand(tunables=replace(TUNABLES, spot_enabled=False)), offerings=[LARGE, SPOT])

    assert bought(result) == {LARGE.key: 3}
    assert f"{SPOT.key}: {MODEL}: spot-enabled is false" in reasons(result)


def test_plan_over_provisions_spot_by_its_expected_interruptions() -> None:
    risky = replace(SPOT, interruption_rate_per_hour=2.0)  # 10 % of the time in replacement, at 180 s each

    result = plan(a_demand(forecast=flat(10.0), tunables=replace(TUNABLES, spot_max_share=1.0)), offerings=[risky])

    assert bought(result) == {risky.key: 2}


# --- types that cannot ------------------------------------------------------------------------------------


def test_plan_reports_an_error_and_spills_when_no_type_meets_the_objective() -> None:
    result = plan(a_demand(latency_budget_s=0.04))

    assert bought(result) == {}
    assert result.models[0].infeasible is not None
    assert "c5.large: T(1) = 0.100 s" in result.models[0].infeasible
    assert result.models[0].spillover_rps[0] == 25.0


def test_plan_drops_only_the_types_that_are_too_slow() -> None:
    result = plan(a_demand(latency_budget_s=0.1), offerings=[LARGE, XLARGE])

    assert set(bought(result)) == {XLARGE.key}
    assert "c5.large: digits: c5.large: T(1) = 0.100 s" in reasons(result)


def test_plan_rejects_a_type_when_it_was_not_profiled() -> None:
    result = plan(offerings=[LARGE, an_offering(instance_type="m7i.large")])

    assert f"m7i.large: {MODEL}: no measured profile on m7i.large" in reasons(result)


def test_plan_plans_the_others_when_one_model_is_infeasible() -> None:
    result = plan(a_demand(model="a", latency_budget_s=0.01), a_demand(model="b"))

    assert [launch.model for launch in result.launches] == ["b"]


# --- local search and replacement -------------------------------------------------------------------------


def test_local_search_swaps_sizes_when_greedy_stacked_small_ones() -> None:
    # Greedy fills 15 rps with the smallest cost per request first: 10 + 5 on two large, where one xlarge is cheaper.
    xlarge = replace(XLARGE, price_usd_per_hour=0.168)
    small = an_offering(price_usd_per_hour=0.0837)

    result = plan(a_demand(forecast=flat(20.0)), offerings=[replace(xlarge, price_usd_per_hour=0.15), small])

    assert bought(result) == {xlarge.key: 1}


def test_local_search_upsizes_when_the_ceiling_on_instances_binds() -> None:
    one = replace(TUNABLES, max_instances=1)

    result = plan(a_demand(forecast=flat(20.0), tunables=one), offerings=[LARGE, replace(XLARGE, price_usd_per_hour=0.19)])

    assert bought(result) == {XLARGE.key: 1}
    assert f"{LARGE.key} for {XLARGE.key} saves $" in result.reason


def test_local_search_drops_an_instance_when_the_others_cover_it() -> None:
    task = Task(
        model=MODEL, demand_rps=(18.0,) * 10, step_s=60.0, lead_step=3, spill=None, spot=SpotRules(max_share=1.0, pools=1), min_instances=1
    )
    here = Candidate(offering=LARGE, capacity_rps=10.0, ready_step=0, instance_id="i-1")
    planned = Candidate(offering=XLARGE, capacity_rps=20.0, ready_step=0)
    choice = Choice(task, existing=[here], offers=[planned])
    choice.set_chosen([here, planned])

    room, moves = improve(choice, Room(instances=0, usd_per_hour=0.0))

    assert choice.chosen == [planned]
    assert moves == ["drop i-1 saves $0.0142 over the horizon"]
    assert room == Room(instances=0, usd_per_hour=0.0)


def test_plan_replaces_a_dear_instance_when_a_cheap_one_saves_enough() -> None:
    gpu = a_worker(1, offering=an_offering(instance_type="g4dn.xlarge", price_usd_per_hour=0.526))
    profiles = {"c5.large": serving(10.0), "g4dn.xlarge": serving(200.0, "g4dn.xlarge")}

    result = plan(a_demand(profiles=profiles, forecast=flat(8.0)), instances=[gpu])

    assert bought(result) == {LARGE.key: 1}
    assert result.unwanted_cycles == {"i-1": 0}  # it bridges the launch
    assert "replacing instances costs" in result.reason


def test_plan_keeps_a_running_instance_when_a_replacement_saves_little() -> None:
    slightly_cheaper = an_offering(instance_type="c6a.large", price_usd_per_hour=0.083)
    profiles = {"c5.large": serving(10.0), "c6a.large": serving(10.0, "c6a.large")}

    result = plan(a_demand(profiles=profiles, forecast=flat(8.0)), instances=[a_worker(1)], offerings=[slightly_cheaper])

    assert bought(result) == {}


def test_plan_does_not_replace_when_launches_are_pending() -> None:
    gpu = a_worker(1, offering=an_offering(instance_type="g4dn.xlarge", price_usd_per_hour=0.526))
    pending = a_worker(2, state=InstanceState.WARMING, requested_at_s=NOW_S - 60.0, serving_at_s=None)
    profiles = {"c5.large": serving(10.0), "g4dn.xlarge": serving(200.0, "g4dn.xlarge")}

    result = plan(a_demand(profiles=profiles, forecast=flat(8.0)), instances=[gpu, pending])

    assert bought(result) == {}


# --- scale to zero ----------------------------------------------------------------------------------------

LAMBDA_ALONE = SpillTier(usd_per_request=1e-6, latency_s=0.1, capacity_rps=1000.0)


def test_plan_says_that_it_scaled_to_zero_and_what_lambda_alone_costs() -> None:
    result = plan(a_demand(forecast=flat(1.0), spill=LAMBDA_ALONE))

    assert bought(result) == {}
    assert f"scaled to zero: Lambda alone costs $0.0036/h net of queue calls, the cheapest instance {LARGE.key} $0.0850/h" in result.reason
    assert [warm.model for warm in result.warm_ups] == [MODEL]


def test_plan_drains_the_last_instance_of_a_model_that_is_asked_for_when_lambda_alone_is_cheaper() -> None:
    asked = a_demand(forecast=flat(1.0), measured_rate_rps=1.5, spill=LAMBDA_ALONE)

    first = plan(asked, instances=[a_worker(1)])
    then = plan(asked, instances=[a_worker(1, unwanted_cycles=1)])

    assert (first.drains, first.unwanted_cycles) == ((), {"i-1": 1})
    (drain,) = then.drains
    why = "Lambda alone is cheaper: its 1.5 rps cost $0.0054/h there net of queue calls and $0.0850/h on it"
    assert drain.reason == f"not wanted by the last 2 plans; {why}"


@pytest.mark.parametrize(
    "overrides",
    [
        {"measured_rate_rps": 30.0, "spill": replace(LAMBDA_ALONE, usd_per_request=3e-6)},  # $0.1080/h for what it serves
        {"spill": replace(LAMBDA_ALONE, capacity_rps=1.2)},  # more than Lambda's limit lets through
        {"spill": None},
        {"tunables": replace(TUNABLES, min_instances=1)},
    ],
)
def test_plan_keeps_the_last_instance_when_lambda_alone_is_dearer_or_cannot_take_it(overrides: dict[str, Any]) -> None:
    asked = a_demand(**{"forecast": flat(1.0), "measured_rate_rps": 1.5, "spill": LAMBDA_ALONE, **overrides})

    assert plan(asked, instances=[a_worker(1, unwanted_cycles=9)]).drains == ()


def test_plan_wakes_a_model_up_when_load_pays_for_an_instance_and_lambda_serves_until_it_is_there() -> None:
    rising = a_demand(forecast=flat(25.0), measured_rate_rps=25.0, spill=replace(LAMBDA_ALONE, usd_per_request=1e-5))

    result = plan(rising)

    (launch,) = result.launches
    lead = result.models[0].lead_step
    assert result.models[0].spillover_rps[:lead] == (25.0,) * lead
    (warm,) = result.warm_ups
    assert warm.environments == 3  # 25 rps of 0.1 s each, until the instances serve
    booting = [
        a_worker(n, state=InstanceState.WARMING, serving_at_s=None, requested_at_s=NOW_S - 60.0, heartbeat_at_s=None)
        for n in range(launch.count)
    ]
    decision = admit(
        fleet=fleet_view(booting, NOW_S, 15.0),
        slo=Slo(latency_s=0.5),
        arrival_at_s=NOW_S,
        now_s=NOW_S,
        spill_latency_s=0.1,
        reply_overhead_s=0.02,
        margin_s=0.01,
        spill_available=True,
    )
    assert (decision.action, decision.reason) == (AdmissionAction.SPILL, "spilled: no worker serves")
    assert plan(rising, instances=booting).launches == ()


# --- scale-in ---------------------------------------------------------------------------------------------


def test_plan_counts_but_does_not_drain_when_an_instance_is_unwanted_for_the_first_time() -> None:
    result = plan(a_demand(forecast=flat(5.0)), instances=[a_worker(1), a_worker(2)])

    assert result.drains == ()
    assert result.unwanted_cycles == {"i-1": 0, "i-2": 1}


def test_plan_drains_when_an_instance_was_unwanted_for_scale_in_cycles() -> None:
    result = plan(a_demand(forecast=flat(5.0)), instances=[a_worker(1), a_worker(2, unwanted_cycles=5)])

    assert [(drain.instance_id, drain.reason) for drain in result.drains] == [
        ("i-2", "not wanted by the last 6 plans; 10.0 rps serving without it meet the 5.0 rps needed now")
    ]


def test_plan_resets_the_count_when_an_instance_is_wanted_again() -> None:
    result = plan(a_demand(forecast=flat(18.0)), instances=[a_worker(1), a_worker(2, unwanted_cycles=5)])

    assert result.unwanted_cycles == {"i-1": 0, "i-2": 0}


def test_plan_does_not_drain_below_the_measured_rate_when_the_forecast_is_low() -> None:
    result = plan(a_demand(forecast=flat(5.0), measured_rate_rps=12.0), instances=[a_worker(1), a_worker(2, unwanted_cycles=9)])

    assert result.drains == ()


def test_plan_does_not_drain_a_replaced_instance_when_its_replacement_does_not_serve_yet() -> None:
    old = a_worker(1, unwanted_cycles=9)
    pending = a_worker(2, state=InstanceState.WARMING, requested_at_s=NOW_S - 180.0, serving_at_s=None)

    result = plan(a_demand(forecast=flat(5.0)), instances=[old, pending])

    assert result.drains == ()


def test_plan_keeps_the_minimum_when_nothing_is_wanted() -> None:
    instances = [a_worker(n, unwanted_cycles=9) for n in (1, 2)]

    result = plan(a_demand(forecast=flat(0.0), measured_rate_rps=0.0, tunables=replace(TUNABLES, min_instances=1)), instances=instances)

    assert [drain.instance_id for drain in result.drains] == ["i-2"]


def test_plan_neither_drains_nor_counts_when_it_is_urgent() -> None:
    result = plan(a_demand(forecast=flat(5.0)), instances=[a_worker(1), a_worker(2, unwanted_cycles=5)], trigger=Trigger.SLO_AT_RISK)

    assert (result.drains, result.unwanted_cycles) == ((), {"i-1": 0, "i-2": 5})


def test_plan_drains_the_instances_of_a_model_when_it_is_not_registered_any_more() -> None:
    result = plan(a_demand(), instances=[a_worker(1, model="gone", unwanted_cycles=5)])

    assert [(drain.instance_id, drain.reason) for drain in result.drains] == [("i-1", "model gone is not registered any more")]


# --- objective at risk ------------------------------------------------------------------------------------


def at_risk(**overrides: Any) -> ModelDemand:
    return a_demand(**{"at_risk": True, "forecast": flat(9.0), "measured_rate_rps": 9.0, **overrides})


def test_plan_adds_one_instance_when_the_objective_is_at_risk() -> None:
    result = plan(at_risk(), instances=[a_worker(1)], trigger=Trigger.SLO_AT_RISK)

    assert bought(result) == {LARGE.key: 1}
    assert result.launches[0].reason.startswith("the objective is at risk: one more instance")


def test_plan_adds_one_instance_when_hardly_anything_arrives() -> None:
    result = plan(at_risk(forecast=flat(0.0), measured_rate_rps=5e-324), trigger=Trigger.SLO_AT_RISK)

    assert sum(bought(result).values()) == 1


def test_plan_adds_none_when_one_is_already_on_its_way() -> None:
    pending = a_worker(2, state=InstanceState.REQUESTED, requested_at_s=NOW_S - 20.0, serving_at_s=None)

    result = plan(at_risk(), instances=[a_worker(1), pending], trigger=Trigger.SLO_AT_RISK)

    assert bought(result) == {}
    assert "an instance is already on its way" in result.reason


def test_plan_adds_none_when_capacity_is_ample_or_nothing_arrives() -> None:
    idle = at_risk(forecast=flat(0.0), measured_rate_rps=0.0)
    ample = at_risk(forecast=flat(4.0), measured_rate_rps=4.0)

    assert bought(plan(idle, instances=[a_worker(1)], trigger=Trigger.SLO_AT_RISK)) == {}
    assert (
        "10.0 rps serve 4.0 rps: one more instance would not help"
        in plan(ample, instances=[a_worker(1)], trigger=Trigger.SLO_AT_RISK).reason
    )


def test_plan_says_so_when_a_ceiling_forbids_to_help() -> None:
    result = plan(at_risk(tunables=replace(TUNABLES, max_instances=1)), instances=[a_worker(1)], trigger=Trigger.SLO_AT_RISK)

    assert bought(result) == {}
    assert "no offering may be bought" in result.reason


# --- warm environments ------------------------------------------------------------------------------------


def test_plan_warms_what_the_upper_tail_would_spill() -> None:
    forecast = a_forecast({0.5: (9.0,) * 60, 0.99: (20.0,) * 60})

    result = plan(a_demand(forecast=forecast), instances=[a_worker(1)])

    assert [(warm.environments, warm.reason) for warm in result.warm_ups] == [
        (3, "up to 10.0 rps of the upper tail exceed capacity, 0.300 s each")
    ]


def test_plan_warms_one_environment_when_nothing_serves() -> None:
    result = plan(a_demand(forecast=None, measured_rate_rps=None))

    assert [(warm.environments, warm.reason) for warm in result.warm_ups] == [(1, "nothing serves: the first request will spill")]


def test_plan_warms_none_when_capacity_covers_the_tail_or_spilling_is_off() -> None:
    assert plan(a_demand(forecast=flat(9.0)), instances=[a_worker(1)]).warm_ups == ()
    assert plan(a_demand(spill=None)).warm_ups == ()
    assert plan(a_demand(tunables=replace(TUNABLES, warm_environments_max=0))).warm_ups == ()


# --- size -------------------------------------------------------------------------------------------------


def test_pruning_keeps_two_spot_pools_when_many_are_alike() -> None:
    zones = [a_spot_offering(zone=f"us-east-1{z}", price_usd_per_hour=0.04 + n / 1000) for n, z in enumerate("abcdef")]

    assert undominated([(zone, 10.0, 3) for zone in zones]) == [0, 1]


def test_pruning_keeps_on_demand_when_spot_is_cheaper_and_drops_spot_when_it_is_dearer() -> None:
    dear = a_spot_offering(instance_type="dear", price_usd_per_hour=LARGE.price_usd_per_hour + 0.01)

    assert undominated([(SPOT, 10.0, 3), (LARGE, 10.0, 3), (dear, 10.0, 3)]) == [0, 1]


def test_alternatives_are_bounded_when_there_are_thousands_of_offerings() -> None:
    offerings = [
        Offering(
            instance_type=f"t{size}.n{n}",
            capacity_type=capacity_type,
            zone=f"us-east-1{zone}",
            price_usd_per_hour=0.02 * size * (1 + n / 100) * (0.4 if capacity_type is CapacityType.SPOT else 1),
        )
        for size in range(1, 9)
        for n in range(20)
        for capacity_type in CapacityType
        for zone in "abcdef"
    ]
    profiles = {o.instance_type: serving(4.0 * int(o.instance_type[1]) + 8, o.instance_type) for o in offerings}

    roomy = replace(TUNABLES, max_instances=40)

    result = plan(a_demand(profiles=profiles, forecast=flat(300.0), tunables=roomy), offerings=offerings)

    assert len(offerings) == 1920
    assert len(result.alternatives) <= 40
    assert sum(bought(result).values()) > 0
    assert min(result.models[0].capacity_rps[3:]) >= 300.0


def test_alternatives_end_with_a_count_when_there_are_too_many() -> None:
    many = [Rejected(offering=f"t{n}", cost_usd=None, reason="too dear") for n in range(50)]

    recorded = bounded([*many, many[0]])

    assert (len(recorded), recorded[-1].reason) == (40, "11 more alternatives not recorded")
    assert bounded([many[0], many[0]]) == (many[0],)


def test_spot_share_leaves_out_what_stands_idle_unless_all_spot_is_there_already() -> None:
    rules = SpotRules(max_share=0.5, pools=1)
    firm = (Candidate(offering=LARGE, capacity_rps=10.0, ready_step=0), 4)
    spot = Candidate(offering=SPOT, capacity_rps=10.0, ready_step=0)
    there = (Candidate(offering=SPOT, capacity_rps=10.0, ready_step=0, instance_id="i-1"), 4)

    assert rules.refusal(Holding().plus([firm, (spot, 4)])) is None
    assert "of the capacity that serves" in (rules.refusal(Holding().plus([firm, (spot, 4)]), peak_rps=40.0) or "")
    assert rules.refusal(Holding().plus([firm, (spot, 2)]), peak_rps=40.0) is None
    assert rules.refusal(Holding().plus([firm, there]), peak_rps=40.0) is None


# --- Ceilings that were lowered, models that cannot start -----------------------------------------------------------


def test_lowered_instance_ceiling_drains_at_once_whatever_the_demand() -> None:
    fleet = [a_worker(1), a_worker(2, state=InstanceState.WARMING, serving_at_s=None), a_worker(3, offering=XLARGE)]
    low = replace(TUNABLES, max_instances=1, min_instances=3, scale_in_cycles=60)

    result = plan(a_demand(tunables=low), instances=fleet)

    # What does not serve yet first; then, of two that cost the same per request, by age and name.
    assert result.drains[0].instance_id == "i-2"
    assert len(result.drains) == 2
    assert all("max-instances 1" in drain.reason for drain in result.drains)
    assert result.launches == ()


def test_lowered_spend_ceiling_drains_the_dearest_per_request_and_no_more_than_needed() -> None:
    fleet = [a_worker(1, offering=SPOT), a_worker(2), a_worker(3)]
    low = replace(TUNABLES, max_hourly_cost_usd=0.13)

    result = plan(a_demand(tunables=low), instances=fleet)

    assert len(result.drains) == 1
    assert result.drains[0].instance_id in {"i-2", "i-3"}
    assert "max-hourly-cost-usd" in result.drains[0].reason


def test_what_drains_already_counts_as_gone_under_a_lowered_ceiling() -> None:
    fleet = [a_worker(1), a_worker(2, state=InstanceState.DRAINING, drain_at_s=NOW_S)]

    assert plan(a_demand(tunables=replace(TUNABLES, max_instances=1)), instances=fleet).drains == ()


def test_urgent_plan_keeps_to_a_lowered_ceiling_as_well() -> None:
    low = replace(TUNABLES, max_instances=1)

    result = plan(a_demand(tunables=low), instances=[a_worker(1), a_worker(2)], trigger=Trigger.INTERRUPTION)

    assert len(result.drains) == 1


def test_quarantined_model_buys_nothing_keeps_what_serves_and_says_so() -> None:
    result = plan(a_demand(quarantined="quarantined: its workers crash"), instances=[a_worker(1)])

    assert result.launches == ()
    assert result.drains == ()
    assert result.models[0].quarantined == "quarantined: its workers crash"
    assert "its workers crash" in result.reason
    assert "its workers crash" in reasons(result)
