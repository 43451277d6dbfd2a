"""How far greedy plus local search is from the exact optimum, and that the shortcuts taken for speed change nothing."""

import statistics

import pytest

from benchmarks.planner import a_case, compare
from markserve.core.greedy import BIDS_SHOWN, Choice


@pytest.mark.parametrize(("spot_rules", "larger"), [(False, False), (True, False), (False, True)])
def test_plans_are_within_one_percent_of_the_optimum_on_average_and_five_at_worst(spot_rules: bool, larger: bool) -> None:
    results = [compare(seed, spot_rules=spot_rules, larger=larger) for seed in range(60)]

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
