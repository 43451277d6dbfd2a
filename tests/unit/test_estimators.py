import math

import pytest

from markserve.core.estimators import DecayingQuantile, RateEstimate


def test_quantile_is_the_prior_when_nothing_was_observed() -> None:
    assert DecayingQuantile(quantile=0.98, value=0.25).value == 0.25


def test_quantile_ignores_strays_when_they_are_rarer_than_it_looks() -> None:
    tracked = DecayingQuantile(quantile=0.98, value=1.0, window=128)

    for x in (50.0, 50.0):
        tracked = tracked.observe(x)

    assert tracked.value == 1.0
    assert tracked.observe(50.0).value == 50.0


def test_quantile_forgets_a_bad_time_when_a_window_has_passed() -> None:
    tracked = DecayingQuantile(quantile=0.9, value=1.0, window=10)

    for _ in range(10):
        tracked = tracked.observe(5.0)
    for _ in range(8):
        tracked = tracked.observe(2.0)
    assert tracked.value == 5.0

    assert tracked.observe(2.0).value == 2.0


def test_quantile_keeps_its_entries_sorted_when_observations_come_in_any_order() -> None:
    tracked = DecayingQuantile(quantile=0.5, value=0.0, window=5)

    for x in (3.0, 1.0, 2.0, 5.0, 4.0, 6.0):
        tracked = tracked.observe(x)

    assert tracked.recent == (1.0, 2.0, 5.0, 4.0, 6.0)
    assert tracked.ordered == (1.0, 2.0, 4.0, 5.0, 6.0)
    assert tracked.value == 4.0


@pytest.mark.parametrize("x", [math.nan, math.inf])
def test_quantile_refuses_an_observation_when_it_is_not_finite(x: float) -> None:
    with pytest.raises(ValueError, match="must be finite"):
        DecayingQuantile(quantile=0.5, value=1.0).observe(x)


@pytest.mark.parametrize("overrides", [{"quantile": 0.0}, {"quantile": 1.0}, {"value": math.nan}, {"window": 0}])
def test_quantile_cannot_be_built_when_a_parameter_makes_no_sense(overrides: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must"):
        DecayingQuantile(**{"quantile": 0.5, "value": 1.0, **overrides})  # type: ignore[arg-type]


def test_rate_is_zero_when_nothing_was_observed() -> None:
    assert RateEstimate().rate_rps(now_s=100.0) == 0.0


def test_rate_is_right_from_the_start_when_arrivals_are_steady() -> None:
    rate = RateEstimate(time_constant_s=10.0).observe(1, now_s=0.0)

    for tick in range(1, 101):
        rate = rate.observe(1, now_s=tick / 100)

    assert rate.rate_rps(now_s=1.0) == pytest.approx(100.0, rel=0.01)


def test_rate_decays_by_the_time_constant_when_arrivals_stop() -> None:
    rate = RateEstimate(time_constant_s=2.0).observe(0, now_s=0.0)
    for tick in range(1, 1001):
        rate = rate.observe(1, now_s=tick / 20)

    assert rate.rate_rps(now_s=52.0) == pytest.approx(rate.rate_rps(now_s=50.0) * math.exp(-1), rel=1e-6)


def test_rate_stays_moderate_when_two_arrivals_come_together() -> None:
    rate = RateEstimate(time_constant_s=2.0).observe(1, now_s=5.0).observe(1, now_s=5.001)

    assert rate.rate_rps(now_s=5.001) < 6.0


def test_rate_takes_the_latest_instant_when_observations_come_out_of_order() -> None:
    rate = RateEstimate().observe(1, now_s=10.0).observe(1, now_s=12.0)

    assert rate.observe(1, now_s=11.0).at_s == 12.0
    assert rate.rate_rps(now_s=11.0) == rate.rate_rps(now_s=12.0)


def test_rate_refuses_when_a_count_is_negative_or_time_constant_zero() -> None:
    with pytest.raises(ValueError, match="count"):
        RateEstimate().observe(-1, now_s=0.0)
    with pytest.raises(ValueError, match="time_constant_s"):
        RateEstimate(time_constant_s=0.0)
