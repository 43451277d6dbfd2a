import pytest

from markserve.core.profiles import LatencyEstimate, batch_latency_s
from tests.builders import a_profile


@pytest.mark.parametrize(("batch_size", "latency_s"), [(1, 0.020), (4, 0.032), (3, 0.028), (6, 0.046), (8, 0.060)])
def test_latency_is_interpolated_when_the_size_lies_between_measured_ones(batch_size: int, latency_s: float) -> None:
    profile = a_profile({1: 0.020, 4: 0.032, 8: 0.060})

    assert batch_latency_s(profile, batch_size) == pytest.approx(latency_s)


def test_latency_is_the_first_points_when_the_size_is_below_it() -> None:
    assert batch_latency_s(a_profile({4: 0.03, 8: 0.05}), 1) == 0.03


def test_latency_never_falls_when_a_larger_batch_measured_faster() -> None:
    profile = a_profile({1: 0.02, 2: 0.05, 4: 0.04, 8: 0.08})

    assert [batch_latency_s(profile, b) for b in (2, 3, 4)] == [0.05, 0.05, 0.05]


def test_latency_grows_by_the_last_slope_when_the_size_is_beyond_the_profile() -> None:
    profile = a_profile({1: 0.01, 4: 0.02, 8: 0.06})

    assert batch_latency_s(profile, 10) == pytest.approx(0.08)


def test_latency_keeps_growing_when_the_profile_ends_flat() -> None:
    profile = a_profile({1: 0.01, 4: 0.04, 7: 0.04})

    assert batch_latency_s(profile, 13) == pytest.approx(0.04 + 6 * 0.005)


def test_latency_is_proportional_when_the_profile_has_one_point() -> None:
    assert batch_latency_s(a_profile({4: 0.04}), 8) == pytest.approx(0.08)


def test_latency_refuses_when_the_batch_is_empty() -> None:
    with pytest.raises(ValueError, match="batch_size"):
        batch_latency_s(a_profile(), 0)


def test_estimate_follows_the_profile_when_nothing_was_observed() -> None:
    estimate = LatencyEstimate(a_profile({1: 0.02}))

    assert estimate.batch_latency_s(1) == 0.02


def test_estimate_rises_for_every_size_when_batches_run_slower() -> None:
    estimate = LatencyEstimate(a_profile({1: 0.02, 8: 0.06}))

    for _ in range(3):
        estimate = estimate.observe(batch_size=8, observed_s=0.12)

    assert estimate.scale == pytest.approx(2.0)
    assert estimate.batch_latency_s(1) == pytest.approx(0.04)


def test_estimate_stays_when_a_single_batch_was_slow() -> None:
    estimate = LatencyEstimate(a_profile({1: 0.02})).observe(batch_size=1, observed_s=0.5)

    assert estimate.scale == 1.0


def test_estimate_falls_when_a_whole_window_ran_faster() -> None:
    estimate = LatencyEstimate(a_profile({1: 0.02}), scale=2.0)

    for _ in range(128):
        estimate = estimate.observe(batch_size=1, observed_s=0.03)

    assert estimate.scale == pytest.approx(1.5)


def test_estimate_refuses_when_values_are_not_positive() -> None:
    with pytest.raises(ValueError, match="scale"):
        LatencyEstimate(a_profile(), scale=0.0)
    with pytest.raises(ValueError, match="observed_s"):
        LatencyEstimate(a_profile()).observe(batch_size=1, observed_s=0.0)
