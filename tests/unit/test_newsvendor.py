import pytest
from hypothesis import given
from hypothesis import strategies as st

from markserve.core.newsvendor import equally_likely_rps, launch_share, lumpy_demand_rps, sustained_rps

RATES = st.lists(st.floats(0.0, 1000.0), min_size=1, max_size=30)


def lumps_bought(demand_rps: float, *, lump_rps: float, cost_ratio: float) -> int:
    """As Algorithm 1 buys against certain demand: one more while it would be used to more than the cost ratio."""
    lumps = 0
    while demand_rps - lumps * lump_rps > cost_ratio * lump_rps + 1e-6:
        lumps += 1
    return lumps


def expected_cost(rates: list[float], lumps: int, *, lump_rps: float, cost_ratio: float) -> float:
    """Lumps cost `cost_ratio` per unit of capacity, what exceeds them costs 1."""
    return lumps * lump_rps * cost_ratio + sum(max(0.0, rate - lumps * lump_rps) for rate in rates) / len(rates)


@given(rates=RATES, lump_rps=st.floats(5.0, 400.0), cost_ratio=st.floats(0.02, 0.9))
def test_a_planner_of_certain_demand_buys_what_costs_least_in_expectation(rates: list[float], lump_rps: float, cost_ratio: float) -> None:
    demand_rps = lumpy_demand_rps(rates, lump_rps=lump_rps, cost_ratio=cost_ratio)

    bought = lumps_bought(demand_rps, lump_rps=lump_rps, cost_ratio=cost_ratio)

    least = min(expected_cost(rates, lumps, lump_rps=lump_rps, cost_ratio=cost_ratio) for lumps in range(bought + 5))
    assert expected_cost(rates, bought, lump_rps=lump_rps, cost_ratio=cost_ratio) == pytest.approx(least, rel=1e-3, abs=1e-2)


def test_nothing_is_bought_when_spilling_is_cheaper_than_any_worker() -> None:
    assert lumpy_demand_rps([50.0, 60.0], lump_rps=10.0, cost_ratio=1.0) == 0.0


@given(highest_rps=st.floats(0.0, 1e6), windows=st.integers(1, 12))
def test_sustained_rate_never_exceeds_the_highest_window(highest_rps: float, windows: int) -> None:
    assert 0 <= sustained_rps(highest_rps, windows=windows, window_s=5.0) <= highest_rps * (1 + 1e-9)


def test_sustained_rate_is_that_of_poisson_arrivals_when_the_highest_of_their_windows_is_given() -> None:
    import random

    rng = random.Random(1)  # not for secrets
    mean_rps, window_s = 200.0, 5.0
    counts = [[rng.gauss(mean_rps * window_s, (mean_rps * window_s) ** 0.5) for _ in range(12)] for _ in range(2000)]
    highest = sum(max(step) / window_s for step in counts) / len(counts)

    assert sustained_rps(highest, windows=12, window_s=window_s) == pytest.approx(mean_rps, rel=0.005)


@given(levels=st.lists(st.floats(0.0, 1e5), min_size=6, max_size=6))
def test_likely_rates_rise_and_stay_within_twice_the_spread(levels: list[float]) -> None:
    quantiles = dict(zip((0.5, 0.8, 0.9, 0.95, 0.98, 0.99), sorted(levels), strict=True))

    likely = equally_likely_rps(quantiles)

    assert list(likely) == sorted(likely)
    assert likely[0] >= 0
    assert likely[-1] <= quantiles[0.99] + 1e-6


@given(ratio=st.floats(0.001, 0.999), launch_s=st.floats(0.0, 600.0), longer_s=st.floats(0.0, 600.0))
def test_share_that_pays_a_launch_rises_with_it_and_stays_between_the_rent_and_all_of_the_lump(
    ratio: float, launch_s: float, longer_s: float
) -> None:
    share = launch_share(ratio, launch_s=launch_s, review_s=120.0)

    assert ratio * (1 - 1e-12) <= share <= min(1.0, ratio * (1 + launch_s / 120.0)) + 1e-12
    assert launch_share(ratio, launch_s=launch_s + longer_s, review_s=120.0) >= share - 1e-12


@pytest.mark.parametrize("use", [0.1, 0.3, 0.6, 0.9])
def test_launch_breaks_even_at_its_share_when_each_review_finds_it_needed_with_that_chance(use: float) -> None:
    import random

    rng = random.Random(1)  # not for secrets
    launch_s, review_s = 180.0, 120.0
    held_s = []
    for _ in range(40_000):
        reviews = 1
        while rng.random() < use:
            reviews += 1
        held_s.append(reviews * review_s)
    mean_s = sum(held_s) / len(held_s)
    # Rent over launch and holding, per second and capacity, against what spilling the used share would have cost.
    ratio = use * mean_s / (launch_s + mean_s)

    assert launch_share(ratio, launch_s=launch_s, review_s=review_s) == pytest.approx(use, rel=0.02)
