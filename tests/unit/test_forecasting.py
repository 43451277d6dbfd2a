from __future__ import annotations

import pytest

from markserve.core.backtest import BACKTEST_ORIGINS_MIN, QUANTILES
from markserve.core.forecasting import (
    SIMPLE_FORECASTERS,
    damped_trend,
    forecast_simply,
    persistence,
    recent_maximum,
    rolling_forecasts,
)


def test_persistence_repeats_the_last_known_step_when_the_newest_is_missing() -> None:
    assert persistence([4.0, None], 3)[-1] == (4.0, 4.0, 4.0)


def test_recent_maximum_forgets_a_peak_when_it_leaves_its_memory() -> None:
    assert [path and path[0] for path in recent_maximum([9.0, 1.0, 1.0, 1.0, 1.0, 2.0], 1)] == [9.0, 9.0, 9.0, 9.0, 9.0, 2.0]


def test_recent_maximum_keeps_the_last_peak_when_nothing_recent_is_known() -> None:
    assert recent_maximum([3.0, *[None] * 7], 1)[-1] == (3.0,)


def test_damped_trend_follows_its_formula_when_load_rises() -> None:
    first = 1.0
    level_2 = first + 0.8 * (2.0 - first)
    trend_2 = 0.1 * (level_2 - first)

    path = damped_trend([1.0, 2.0], 2)[-1]

    assert path == pytest.approx((level_2 + 0.8 * trend_2, level_2 + (0.8 + 0.64) * trend_2))


def test_damped_trend_stays_within_four_steps_of_trend_when_the_horizon_is_long() -> None:
    history = [float(step) for step in range(20)]

    path = damped_trend(history, 500)[-1]

    assert path is not None
    assert 19.0 < path[-1] < 19.0 + 4 * 1.0


def test_damped_trend_never_goes_below_zero_when_load_collapses() -> None:
    path = damped_trend([100.0, 50.0, 0.0, None, None, None], 60)[-1]

    assert path is not None
    assert min(path) == 0.0


@pytest.mark.parametrize("name", SIMPLE_FORECASTERS)
def test_forecaster_says_nothing_when_nothing_is_known(name: str) -> None:
    assert SIMPLE_FORECASTERS[name]([None, None], 3) == [None, None]


def test_forecast_expects_nothing_and_says_why_when_there_is_no_history() -> None:
    choice = forecast_simply([], horizon_steps=3, window_s=5.0)

    assert choice.rates_rps == dict.fromkeys(QUANTILES, (0.0, 0.0, 0.0))
    assert choice.forecaster == "none"
    assert choice.reason == "no arrivals are recorded yet, so none are expected"


def test_forecast_expects_nothing_when_every_step_is_missing() -> None:
    assert forecast_simply([None] * 30, horizon_steps=2, window_s=5.0).rates_rps[0.99] == (0.0, 0.0)


def test_forecast_is_exactly_zero_when_only_zeros_are_known() -> None:
    assert forecast_simply([0.0] * 30, horizon_steps=2, window_s=5.0).rates_rps == dict.fromkeys(QUANTILES, (0.0, 0.0))


def test_forecast_spreads_by_its_prior_when_one_step_is_known() -> None:
    choice = forecast_simply([10.0], horizon_steps=2, window_s=5.0)

    # (sqrt(10) + z * sqrt(0.25 / 5 + 0.047^2 * 10 * steps))^2
    assert choice.rates_rps[0.5] == pytest.approx((10.0, 10.0))
    assert choice.rates_rps[0.98] == pytest.approx((13.7916, 14.3834), abs=1e-4)
    assert choice.forecaster == "recent_maximum"
    assert choice.reason == f"recent_maximum serves: 1 known steps are too few for a back-test (0 of {BACKTEST_ORIGINS_MIN} origins)"


def test_forecast_converges_on_the_constant_when_load_is_constant() -> None:
    choice = forecast_simply([7.0] * 300, horizon_steps=2, window_s=5.0)

    assert choice.rates_rps[0.5] == pytest.approx((7.0, 7.0))
    # All 299 errors are zero, so the 0.99-quantile keeps 1 / (2.99 + 1) of its prior: 2.326 * sqrt(0.05 + 0.047^2 * 7) in roots.
    assert choice.rates_rps[0.99][0] == pytest.approx((7**0.5 + 2.3263 * 0.2559 / 3.99) ** 2, abs=1e-3)


def test_forecast_prefers_the_trend_when_a_ramp_follows_a_calm() -> None:
    choice = forecast_simply([10.0] * 20 + [10.0 + 3 * step for step in range(12)], horizon_steps=6, window_s=5.0)

    assert choice.forecaster == "damped_trend"
    assert choice.losses_rps["damped_trend"] < choice.losses_rps["persistence"]
    assert choice.reason.startswith("damped_trend has the least back-test loss of the simple ones")
    assert choice.rates_rps[0.99][5] > 50.0


def test_forecast_prefers_the_recent_maximum_when_bursts_come_and_go() -> None:
    history = [10.0, 1.0, 1.0, 1.0] * 20

    assert forecast_simply(history, horizon_steps=1, window_s=5.0).forecaster == "recent_maximum"


def test_forecast_recovers_within_a_step_when_the_level_shifts() -> None:
    quiet, busy = [10.0] * 100, [100.0]

    after = forecast_simply(quiet + busy, horizon_steps=3, window_s=5.0)

    assert after.rates_rps[0.9][0] >= 80.0


def test_rolling_forecast_uses_errors_of_the_past_only_when_made_at_an_early_origin() -> None:
    history = [5.0, 6.0, 4.0, 90.0, 1.0]

    early = rolling_forecasts(persistence, history, horizon_steps=2, window_s=5.0, origins=[3])
    alone = rolling_forecasts(persistence, history[:3], horizon_steps=2, window_s=5.0, origins=[3])

    assert early == alone


def test_rolling_forecast_weighs_errors_against_the_prior_when_few_are_known() -> None:
    # One error, sqrt(9) - sqrt(4) = 1, is known one step ahead; its weight at the median is 0.5 / 1.5.
    rates = rolling_forecasts(persistence, [4.0, 9.0], horizon_steps=1, window_s=5.0, origins=[2])[2]

    assert rates[0.5][0] == pytest.approx((3.0 + 1.0 / 3.0) ** 2)


def test_rolling_forecast_leaves_out_origins_when_nothing_was_known_yet() -> None:
    assert set(rolling_forecasts(persistence, [None, 2.0], horizon_steps=1, window_s=5.0, origins=[1, 2])) == {2}
