"""What the LSTM is pre-trained on and compared with: no baseline may see the future, no workload may be impossible."""

from __future__ import annotations

import gzip
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from benchmarks import mark_recipe
from benchmarks.generated_workloads import DAY, LEVELS_RPS, draw_workload, holes, window_maxima
from benchmarks.lstm import minute_maxima
from benchmarks.lstm_baselines import HORIZON, coverage, filled, forecast_naively, mean_pinball
from benchmarks.pretrain_lstm import draw_pool, fit
from markserve.core.backtest import QUANTILES, History, pinball_by_step_rps


def a_series(minutes: int = 3 * DAY, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.poisson(50 + 20 * np.sin(2 * np.pi * np.arange(minutes) / DAY)).astype(float)


def history_of(rates: np.ndarray) -> History:
    return [None if rate != rate else float(rate) for rate in rates]


@pytest.mark.parametrize("seed", range(12))
def test_generated_workload_is_finite_not_negative_and_repeats_by_seed(seed: int) -> None:
    first, again = (draw_workload(np.random.default_rng(seed), 2 * DAY) for _ in range(2))

    known = first.maxima_rps[~np.isnan(first.maxima_rps)]
    assert len(first.maxima_rps) == 2 * DAY
    assert np.isfinite(known).all()
    assert (known >= 0).all()
    np.testing.assert_array_equal(first.maxima_rps, again.maxima_rps)


def test_generated_levels_reach_from_the_smallest_services_to_the_largest() -> None:
    rng = np.random.default_rng(0)
    levels = [np.median(draw_workload(rng, DAY).expected_rps) for _ in range(80)]

    assert min(levels) < 10 * LEVELS_RPS[0]
    assert max(levels) > LEVELS_RPS[1] / 10


def test_recorded_maximum_of_a_steady_load_is_that_of_twelve_poisson_windows() -> None:
    rng = np.random.default_rng(3)
    counts = rng.poisson(10.0 * 5.0, (20_000, 12)).max(axis=1) / 5.0

    drawn = np.concatenate([window_maxima(np.random.default_rng(seed), np.full(2000, 10.0)) for seed in range(10)])

    assert counts.mean() == pytest.approx(12.3, abs=0.1)
    assert drawn.mean() >= counts.mean() - 0.1  # over-dispersed ones reach higher


def test_some_generated_records_have_holes() -> None:
    shares = [holes(np.random.default_rng(seed), DAY).mean() for seed in range(40)]

    assert 0 < sum(share > 0 for share in shares) < 40


def test_pretraining_repeats_by_seed_and_lowers_the_loss() -> None:
    pool, held_out = draw_pool(8, 0), draw_pool(3, 1)

    none, first, again = (fit(pool, held_out, epochs=epochs, seed=0).to_bytes() for epochs in (0, 1, 1))

    assert first == again != none


@pytest.mark.parametrize("kind", ["persistence", "seasonal-naive"])
def test_naive_forecast_does_not_see_the_future(kind: str) -> None:
    rates = a_series()
    origins = np.arange(2 * DAY, 2 * DAY + 50, 7)
    changed = rates.copy()
    changed[origins[-1] :] *= 10

    np.testing.assert_allclose(forecast_naively(rates, origins, kind), forecast_naively(changed, origins, kind))  # type: ignore[arg-type]


def test_naive_quantiles_cover_what_they_say_when_the_load_is_stationary() -> None:
    rates = np.random.default_rng(1).poisson(100.0, 4 * DAY).astype(float)
    origins = np.arange(3 * DAY, 4 * DAY - HORIZON, 5)

    covered = coverage(rates, origins, forecast_naively(rates, origins, "persistence"), slice(0, 10))

    assert covered == pytest.approx(np.array(QUANTILES), abs=0.03)


def test_pinball_agrees_with_that_of_the_product() -> None:
    rates = a_series()
    rates[2 * DAY + 30 : 2 * DAY + 40] = np.nan
    origins = np.arange(2 * DAY, 2 * DAY + 100, 9)
    made = forecast_naively(rates, origins, "persistence")
    as_rates = {int(o): {q: tuple(path) for q, path in zip(QUANTILES, rows.T, strict=True)} for o, rows in zip(origins, made, strict=True)}

    assert mean_pinball(rates, origins, made) == pytest.approx(pinball_by_step_rps(as_rates, history_of(rates)))


def test_missing_rates_are_filled_by_the_last_known() -> None:
    assert filled(np.array([np.nan, 1.0, np.nan, 3.0])).tolist()[1:] == [1.0, 1.0, 3.0]


def test_mark_recipe_forecasts_from_the_past_alone_times_its_factor() -> None:
    history = history_of(a_series(800))
    recipe = mark_recipe.MarkRecipe.train(history[:600])
    changed = [*history[:700], *(9.0 for _ in range(100))]

    made = recipe.forecast(history, [1, 2, 700], 60)

    assert set(made) == {2, 700}
    assert made[700] == pytest.approx(recipe.forecast(changed, [700], 60)[700])
    assert len(set(made[700][49:])) == 1  # beyond its 50 steps it stays
    last = history[699]
    assert last is not None
    assert 0.5 * last < made[700][0] / mark_recipe.OVER_PROVISIONING < 2 * last


def test_mark_recipe_trains_on_what_is_known_at_the_first_origin() -> None:
    history = history_of(a_series(700))

    made = mark_recipe.forecast(history, [600, 650], 10)

    assert made == mark_recipe.MarkRecipe.train(history[:600]).forecast(history, [600, 650], 10)


def test_trace_of_seconds_becomes_minutes_and_its_hole_stays_a_hole(tmp_path: Path) -> None:
    rows = [(t, 3 if t % 60 else 60) for t in range(600) if not 120 <= t < 165]
    with gzip.open(tmp_path / "t.csv.gz", "wt") as file:
        file.write("t_s,count\n" + "".join(f"{t},{count}\n" for t, count in rows))

    minutes = minute_maxima(tmp_path / "t.csv.gz")

    assert minutes[0] == pytest.approx((60 + 4 * 3) / 5)
    assert np.isnan(minutes[2])
    assert len(minutes) == 10
    assert all(a == b for a, b in pairwise(minutes[3:]))
