"""How far greedy plus local search is from the exact optimum, and that the shortcuts taken for speed change nothing."""

import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.planner import a_case, compare
from markserve.core.capacity import DOMINATORS_KEPT, Candidate, prune
from markserve.core.greedy import BIDS_SHOWN, Choice
from markserve.core.types import CapacityType, Offering


def test_plans_are_within_one_percent_of_the_optimum_on_average_and_five_at_worst() -> None:
    results = [compare(seed, spot_rules=False) for seed in range(60)]

    assert max(r.unserved_more for r in results) < 1e-3
    assert min(r.gap for r in results) > -1e-6  # the optimum is one
    assert statistics.mean(r.gap for r in results) < 0.01
    assert max(r.gap for r in results) < 0.05


@pytest.mark.parametrize("spot_rules", [False, True])
def test_asking_fewer_candidates_finds_the_same_best_bids(spot_rules: bool) -> None:
    for seed in range(200):
        case = a_case(seed, spot_rules=spot_rules)
        choice, room = Choice(case.task, existing=(), offers=case.offers), case.room
        while bids := choice.best_bids(room, number=BIDS_SHOWN):
            every = sorted((bid for bid, refusal in choice.bids_and_refusals(room) if refusal is None), key=lambda b: b.order)
            assert bids[:BIDS_SHOWN] == every[:BIDS_SHOWN]
            choice.add(bids[0].candidate)
            room = room.with_bought(bids[0].candidate.offering, 1)


offerings = st.builds(
    Offering,
    instance_type=st.sampled_from([f"t{n}" for n in range(30)]),
    capacity_type=st.sampled_from(CapacityType),
    zone=st.sampled_from("abc"),
    price_usd_per_hour=st.sampled_from([0.1, 0.2, 0.3, 0.4]),
    launch_overhead_s=st.sampled_from([60.0, 120.0, 180.0]),
)


@given(st.lists(st.tuples(offerings, st.sampled_from([5.0, 10.0, 20.0])), max_size=40, unique_by=lambda pair: pair[0].key))
@settings(max_examples=200, deadline=None)
def test_pruning_drops_exactly_what_enough_kept_offerings_beat(drawn: list[tuple[Offering, float]]) -> None:
    candidates = [Candidate(offering=o, capacity_rps=rate, ready_step=int(o.launch_overhead_s // 60)) for o, rate in drawn]

    kept, dropped = prune(candidates)

    assert len(kept) + dropped == len(candidates)
    for candidate in candidates:
        beaten_by = sum(beats(k, candidate) for k in kept if k is not candidate)
        assert candidate in kept or beaten_by >= DOMINATORS_KEPT


def beats(one: Candidate, other: Candidate) -> bool:
    return (
        one.offering.price_usd_per_hour <= other.offering.price_usd_per_hour
        and one.capacity_rps >= other.capacity_rps
        and one.offering.launch_overhead_s <= other.offering.launch_overhead_s
        and (other.is_spot or not one.is_spot)
    )
