from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from markserve.core.backtest import QUANTILES, Rates
from markserve.errors import InferenceFailed
from markserve.forecasters.bank import COMBINATION, OWN, REFUGE, SAFE, BankForecast, Terms, new_state, step
from markserve.forecasters.calibration import coverage
from markserve.forecasters.series import Floats
from markserve.forecasters.state import BankState

DAY = 96
TERMS = Terms(day=DAY, window_s=5.0, step_s=60.0, horizon_steps=12)
RNG = np.random.default_rng(1)


def go_through(rates: Floats, *, state: BankState | None = None, start: int = 1, **more: object) -> tuple[BankState, list[BankForecast]]:
    state = state or new_state(TERMS, 60.0 * (start - 1))
    made = [
        step(state, rates[:origin], terms=TERMS, quantile=0.9, until_s=60.0 * origin, **more)  # type: ignore[arg-type]
        for origin in range(start, len(rates) + 1)
    ]
    return state, made


def noisy(level: float, steps: int, *, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).poisson(level * 5, steps) / 5


def test_nothing_is_expected_when_nothing_is_known() -> None:
    state = new_state(TERMS, 0.0)

    made = step(state, np.empty(0), terms=TERMS, quantile=0.9, until_s=0.0)

    assert (made.forecaster, made.reason) == ("none", "no arrivals are recorded yet, so none are expected")
    assert made.rates_rps == dict.fromkeys(QUANTILES, (0.0,) * 12)


@pytest.mark.parametrize("rates", [np.zeros(30), np.full(30, np.nan)], ids=["zeros", "unknown"])
def test_nothing_is_expected_when_nobody_ever_called(rates: Floats) -> None:
    _, made = go_through(rates)

    assert made[-1].rates_rps[0.99] == (0.0,) * 12


def test_one_step_spreads_by_the_prior_as_marks_factor_does() -> None:
    _, (made,) = go_through(np.array([100.0]))

    assert made.forecaster == SAFE
    assert made.rates_rps[0.5][0] == pytest.approx(100.0)
    # Poisson noise of 5 s windows on top of the 1.2 that the prior's drift is.
    assert 118.0 < made.rates_rps[0.98][0] < 128.0


def test_quantiles_close_in_when_load_is_constant() -> None:
    _, made = go_through(np.full(200, 7.0))

    assert made[-1].rates_rps[0.5] == pytest.approx((7.0,) * 12, rel=1e-3)
    assert made[-1].rates_rps[0.99][0] < made[0].rates_rps[0.99][0]
    assert made[-1].rates_rps[0.99][0] < 9.5


@pytest.mark.parametrize("factor", [4.0, 0.25])
def test_median_recovers_within_three_minutes_when_the_level_shifts(factor: float) -> None:
    before = noisy(100.0, 400)
    after = noisy(100.0 * factor, 6, seed=1)

    _, made = go_through(np.concatenate([before, after]))
    three_minutes_after = made[len(before) + 2]

    assert three_minutes_after.rates_rps[0.5] == pytest.approx((100.0 * factor,) * 12, rel=0.2)


def test_refuge_serves_and_says_why_until_the_champion_has_caught_up() -> None:
    usual = 50 + 40 * np.sin(2 * np.pi * np.arange(4 * DAY) / DAY)
    state, _ = go_through(usual)
    state.champion = "seasonal_day"
    state.losses[state.names.index("seasonal_day")] = 0.0
    rates = np.concatenate([usual, np.full(3, 300.0)])

    _, made = go_through(rates, state=state, start=len(usual) + 1)

    assert [one.forecaster for one in made] == ["seasonal_day", "seasonal_day", REFUGE]
    assert made[-1].reason.startswith("persistence serves until seasonal_day has caught up: the level has shifted")
    # Further ahead persistence, too, expects the rise that is usual at this time of day.
    assert made[-1].rates_rps[0.5][:3] == pytest.approx((300.0,) * 3, rel=0.15)


def test_quantiles_hold_as_often_as_they_say_when_the_noise_doubles() -> None:
    calm, wild = 100 + 3 * RNG.standard_normal(500), 100 + 12 * RNG.standard_normal(600)

    state, made = go_through(np.concatenate([calm, wild]))

    known = np.concatenate([calm, wild])
    for quantile, tolerance in ((0.5, 0.05), (0.8, 0.04), (0.9, 0.03), (0.98, 0.02)):
        covered = [known[500 + at] <= made[499 + at].rates_rps[quantile][0] for at in range(100, 600)]
        assert np.mean(covered) == pytest.approx(quantile, abs=tolerance)
    assert coverage(state)[0, QUANTILES.index(0.9)] == pytest.approx(0.9, abs=0.03)
    assert made[-1].calibration_error == pytest.approx(0.0, abs=0.01)


def test_miscalibration_is_told_when_what_was_served_does_not_hold() -> None:
    state, _ = go_through(noisy(50.0, 400))
    state.covered *= 0.5

    _, made = go_through(noisy(50.0, 401), state=state, start=401)

    assert made[-1].calibration_error is not None
    assert made[-1].calibration_error > 0.2


def test_season_is_found_when_a_day_repeats() -> None:
    shape = 50 + 40 * np.sin(2 * np.pi * np.arange(6 * DAY) / DAY) + 30 * (np.arange(6 * DAY) % DAY == 60)
    rates = shape + RNG.standard_normal(len(shape))

    state, made = go_through(rates)

    assert min(made[-1].costs[name] for name in ("seasonal_day", "seasonal_level", "linear", COMBINATION)) < 0.7
    assert made[-1].costs[made[-1].forecaster] < 0.7
    assert set(state.names) == set(OWN)


def test_repeated_cycle_changes_nothing_and_forecasts_the_same() -> None:
    rates = noisy(20.0, 120)
    state, made = go_through(rates)
    scored = state.scored.copy()

    again = step(state, rates, terms=TERMS, quantile=0.9, until_s=60.0 * len(rates) + 4.0)

    assert again.rates_rps[0.9] == pytest.approx(made[-1].rates_rps[0.9], rel=0.05)
    assert (state.scored == scored).all()


def test_pending_forecasts_are_void_when_the_clock_goes_back() -> None:
    rates = noisy(20.0, 120)
    state, _ = go_through(rates)

    made = step(state, rates[:60], terms=TERMS, quantile=0.9, until_s=60.0 * 60)

    assert state.until_step == 60
    assert (state.pending_at >= 0).sum() == 1
    assert made.rates_rps[0.5][0] == pytest.approx(20.0, rel=0.5)


def test_forecast_goes_on_from_the_last_known_level_after_a_hole_of_a_day() -> None:
    rates = np.concatenate([noisy(20.0, 200), np.full(DAY, np.nan)])

    _, made = go_through(rates)

    assert made[-1].rates_rps[0.5][0] == pytest.approx(20.0, rel=0.4)


def test_huge_counts_are_forecast_in_kind() -> None:
    _, made = go_through(1e9 * (1 + 0.01 * RNG.standard_normal(300)))

    assert made[-1].rates_rps[0.5][0] == pytest.approx(1e9, rel=0.05)
    assert made[-1].rates_rps[0.99][0] < 2e9


def test_costs_are_those_of_forecasts_that_were_made() -> None:
    rates = noisy(30.0, 200)
    state, made = go_through(rates)

    said = np.array([[one.rates_rps[q][4] for q in QUANTILES] for one in made])

    assert state.scored[0].max() < 200
    assert np.isfinite(said).all()
    assert made[-1].costs["persistence"] == pytest.approx(1.0)


def oracle(rates: Floats) -> object:
    def forecast(origins: Sequence[int]) -> Mapping[int, Rates]:
        return {
            o: {q: tuple(float(rate) for rate in np.resize(rates[o : o + 12], 12)) for q in QUANTILES}
            for o in origins
            if o + 12 <= len(rates)
        }

    return forecast


def silent(origins: Sequence[int]) -> Mapping[int, Rates]:
    return {}


def test_trained_forecaster_enters_with_its_back_test_and_serves_when_it_costs_least() -> None:
    rates = 50 + 40 * RNG.random(400)
    state, _ = go_through(rates[:300])

    _, made = go_through(rates[:301], state=state, start=301, learned={"oracle 1": oracle(rates)})

    assert made[-1].forecaster == "oracle 1"
    assert made[-1].reason.startswith("oracle 1 costs least")
    assert made[-1].switched_from is not None
    # Steps up to 10 ahead are forecast one by one, those beyond are interpolated.
    assert made[-1].rates_rps[0.5][:10] == pytest.approx(tuple(rates[301:311]), rel=1e-3)


def test_any_number_of_trained_forecasters_compete_and_leave_when_they_are_gone() -> None:
    rates = 50 + 40 * RNG.random(400)
    state, _ = go_through(rates[:300])
    go_through(rates[:301], state=state, start=301, learned={"good": oracle(rates), "flat": oracle(np.full(400, 1.0))})
    assert set(state.names) == {*OWN, "good", "flat"}

    _, made = go_through(rates[:302], state=state, start=302, learned={"flat": oracle(np.full(400, 1.0))})

    assert set(state.names) == {*OWN, "flat"}
    assert made[-1].forecaster not in {"good", "flat"}


def test_trained_forecaster_that_fails_now_does_not_serve() -> None:
    rates = 50 + 40 * RNG.random(400)
    state, _ = go_through(rates[:300])

    _, made = go_through(rates[:301], state=state, start=301, learned={"oracle 1": silent})

    assert made[-1].forecaster in OWN


def test_forecaster_of_choice_serves_whenever_it_can() -> None:
    _, made = go_through(noisy(20.0, 150), serve="seasonal_day")

    assert {one.forecaster for one in made} == {SAFE, "seasonal_day"}


def test_state_is_refused_when_it_is_none() -> None:
    with pytest.raises(InferenceFailed, match="cannot be read"):
        BankState.from_bytes(b"PK\x03\x04 torn")
