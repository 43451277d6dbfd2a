from __future__ import annotations

import numpy as np
import pytest

from markserve.core.backtest import QUANTILES
from markserve.forecasters.linear import fit, predict
from markserve.forecasters.points import persistence, seasonal_day, seasonal_level, seasonal_week
from markserve.forecasters.residuals import STANDINGS, error_table, origins_to_learn_from
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
    of_persistence = np.abs(outcome - future.last(origins)[:, None]).mean()

    assert ours < 0.8 * of_persistence


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


def test_error_quantiles_depend_on_where_the_load_stood_when_they_do_and_are_shrunk_when_few() -> None:
    day = 96
    jumps = RNG.random(7 * day) < 0.1
    series = Series.of(np.where(jumps, 400.0, 100.0) + RNG.standard_normal(7 * day), day)
    origins = origins_to_learn_from(series)

    table = error_table(series, origins, persistence(series, origins, np.array([1])), np.array([1]))

    assert table.quantiles.shape == (len(STANDINGS) + 1, 1, len(QUANTILES))
    after_calm, after_jump = table.quantiles[1, 0], table.quantiles[-1, 0]
    tail = QUANTILES.index(0.95)
    assert abs(after_calm[0]) < 0.5
    assert after_jump[0] < -5  # 10 if it were not shrunk to those of all
    assert after_calm[tail] == pytest.approx(10, abs=0.5)  # it may jump
    assert 0 < after_jump[tail] < 9  # it does not jump again; few have shown it
    assert table.trust[0, 0] > table.trust[0, -1] > 0.8


def test_load_stands_high_when_it_has_jumped_and_nowhere_when_it_never_varied() -> None:
    calm = Series.of(np.full(50, 9.0), 24)
    jumped = Series.of(np.array([9.0] * 23 + [36.0]), 24)

    assert calm.standing(np.array([0, 1, 50])).tolist() == [0.0, 0.0, 0.0]
    assert jumped.standing(np.array([24]))[0] == pytest.approx(23**0.5)  # of 24 numbers, the one that differs


def test_what_is_no_rate_counts_as_unknown() -> None:
    assert np.isnan(as_rates([-1.0, float("inf"), float("nan"), None, 1e13])).all()
