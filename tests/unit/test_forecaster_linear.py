from __future__ import annotations

import numpy as np
import pytest

from markserve.forecasters.linear import fit, predict
from markserve.forecasters.points import seasonal_day, seasonal_level, seasonal_week
from markserve.forecasters.residuals import PARTS_OF_DAY, error_table, origins_to_learn_from
from markserve.forecasters.series import Series, as_rates

AHEAD = np.array([1, 3, 10])
RNG = np.random.default_rng(3)


def test_regression_needs_some_hours_of_history() -> None:
    assert fit(Series.of(np.full(200, 5.0), 96), AHEAD) is None


def test_regression_beats_persistence_when_noise_surrounds_a_level() -> None:
    rates = 100 + 20 * RNG.standard_normal(1500)
    learnt, future = Series.of(rates[:1000], 96), Series.of(rates, 96)
    weights = fit(learnt, AHEAD)
    assert weights is not None
    origins = np.arange(1000, 1480)

    outcome = future.at(origins[:, None] + AHEAD - 1)
    ours = np.abs(outcome - predict(future, origins, AHEAD, weights)).mean()
    persistence = np.abs(outcome - future.last(origins)[:, None]).mean()

    assert ours < 0.8 * persistence


def test_regression_scales_with_the_load() -> None:
    rates = 100 + 20 * RNG.standard_normal(800)
    origins = np.array([800])
    plain, large = Series.of(rates, 96), Series.of(rates * 1000, 96)
    weights, same = fit(plain, AHEAD), fit(large, AHEAD)
    assert weights is not None
    assert same is not None

    assert predict(large, origins, AHEAD, same) ** 2 == pytest.approx(1000 * predict(plain, origins, AHEAD, weights) ** 2, rel=1e-6)


def test_regression_is_finite_when_half_of_the_history_is_missing() -> None:
    rates = np.where(RNG.random(900) < 0.5, np.nan, 50 + RNG.standard_normal(900))
    series = Series.of(rates, 96)
    weights = fit(series, AHEAD)
    assert weights is not None

    assert np.isfinite(predict(series, np.array([900]), AHEAD, weights)).all()


def test_seasonal_forecasters_read_the_same_time_of_earlier_days() -> None:
    day = 10
    rates = np.array([float(step % (7 * day)) for step in range(8 * day)])
    series = Series.of(rates**2, day)
    origins = np.array([75])

    assert seasonal_day(series, origins, np.array([1]))[0, 0] == pytest.approx(np.mean([63, 64, 65, 66, 67]))
    assert seasonal_week(series, origins, np.array([1]))[0, 0] == pytest.approx(np.mean([3, 4, 5, 6, 7]))


def test_yesterdays_shape_is_taken_at_todays_level() -> None:
    day = 96
    shape = 4 + np.sin(2 * np.pi * np.arange(2 * day) / day)
    roots = np.concatenate([shape[:day], 1.5 * shape[day:]])
    series = Series(roots, day)

    path = seasonal_level(series, np.array([day + 50]), np.array([12]))[0, 0]

    assert path == pytest.approx(1.5 * shape[day + 61], rel=0.1)


def test_no_season_is_known_before_it_has_passed() -> None:
    assert np.isnan(seasonal_day(Series.of(np.ones(50), 96), np.array([50]), AHEAD)).all()


def test_error_quantiles_depend_on_the_time_of_day_when_they_do_and_are_shrunk_when_few() -> None:
    day = 96
    wild = (np.arange(7 * day) % day) >= day // 2
    rates = 100 + np.where(wild, 30, 1) * RNG.standard_normal(7 * day)
    series = Series.of(rates, day)
    origins = origins_to_learn_from(series)
    paths = np.full((len(origins), 1), 10.0)

    table = error_table(series, origins, paths, np.array([1]), 0)

    # In units of volatility, which tells most of the difference by itself.
    spread = table.quantiles[:, 0, 4] - table.quantiles[:, 0, 0]
    assert spread.shape == (PARTS_OF_DAY,)
    assert spread[PARTS_OF_DAY // 2 + 1 :].mean() > 1.1 * spread[: PARTS_OF_DAY // 2 - 1].mean()
    assert table.trust[0, 0] > table.trust[0, -1] > 0.8


def test_what_is_no_rate_counts_as_unknown() -> None:
    assert np.isnan(as_rates([-1.0, float("inf"), float("nan"), None, 1e13])).all()
