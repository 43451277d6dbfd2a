from __future__ import annotations

import pytest

from markserve.core.forecasting import (
    SIMPLE_FORECASTERS,
    damped_trend,
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
