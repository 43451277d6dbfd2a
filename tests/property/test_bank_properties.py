"""Whatever the history: forecasts are finite, ordered, not negative, and scale with the load."""

from __future__ import annotations

from itertools import pairwise
from math import isfinite

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from markserve.core.backtest import QUANTILES, Rates
from markserve.forecasters.bank import OWN, Terms, new_state, replay, step
from markserve.forecasters.series import as_rates
from markserve.forecasters.state import BankState

TERMS = Terms(day=12, window_s=5.0, step_s=60.0, horizon_steps=5)
rates = st.one_of(st.none(), st.just(0.0), st.floats(min_value=1e-3, max_value=1e9), st.floats(allow_nan=True, allow_infinity=True))
histories = st.lists(rates, max_size=60)


def assert_is_sane(forecast: Rates, horizon_steps: int) -> None:
    assert tuple(forecast) == QUANTILES
    for path in forecast.values():
        assert len(path) == horizon_steps
        assert all(isfinite(rate) and rate >= 0 for rate in path)
    for lower, upper in pairwise(QUANTILES):
        assert all(low <= high for low, high in zip(forecast[lower], forecast[upper], strict=True))


@settings(deadline=None, max_examples=40)
@given(histories, st.sampled_from([None, *OWN]))
def test_forecast_is_finite_ordered_and_not_negative_at_every_step_when_history_is_anything(
    history: list[float | None], serve: str | None
) -> None:
    known = as_rates(history)
    state = new_state(TERMS, 0.0)
    for origin in range(len(known) + 1):
        made = step(state, known[:origin], terms=TERMS, quantile=0.9, until_s=60.0 * origin, serve=serve)
        assert_is_sane(made.rates_rps, TERMS.horizon_steps)
        assert made.reason
    assert not np.isnan(state.losses).any()
    assert not np.isnan(state.offsets).any()


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.integers(-30, 120), st.integers(0, 40)), min_size=1, max_size=12), st.data())
def test_forecast_is_sane_when_the_clock_jumps_and_cycles_repeat(jumps: list[tuple[int, int]], data: st.DataObject) -> None:
    state = new_state(TERMS, 0.0)
    until_s = 0.0
    for minutes, length in jumps:
        until_s = max(0.0, until_s + 60.0 * minutes)
        known = as_rates(data.draw(st.lists(rates, min_size=length, max_size=length)))
        first = step(state, known, terms=TERMS, quantile=0.9, until_s=until_s)
        assert_is_sane(first.rates_rps, TERMS.horizon_steps)


@settings(deadline=None, max_examples=25)
@given(st.lists(st.one_of(st.none(), st.floats(0.5, 100.0)), min_size=5, max_size=50), st.sampled_from([0.25, 16.0, 4096.0]))
def test_points_scale_with_the_load(history: list[float | None], factor: float) -> None:
    from markserve.forecasters.points import POINT_FORECASTERS
    from markserve.forecasters.series import Series

    plain, scaled = Series.of(as_rates(history), 12), Series.of(as_rates(history) * factor, 12)
    origins, ahead = np.arange(1, len(history) + 1), np.array([1, 3, 5])
    for name, forecast in POINT_FORECASTERS.items():
        expected = forecast(plain, origins, ahead) * factor**0.5
        assert forecast(scaled, origins, ahead) == pytest.approx(expected, rel=1e-6, nan_ok=True), name
    assert scaled.standing(origins) == pytest.approx(plain.standing(origins), rel=1e-4, abs=1e-6)


@settings(deadline=None, max_examples=20)
@given(histories, histories)
def test_points_at_an_origin_are_unchanged_when_the_future_changes(history: list[float | None], future: list[float | None]) -> None:
    from markserve.forecasters.linear import features
    from markserve.forecasters.points import POINT_FORECASTERS
    from markserve.forecasters.series import Series

    origins, ahead = np.array([len(history)]), np.array([1, 2, 5])
    alone, longer = Series.of(as_rates(history), 12), Series.of(as_rates([*history, *future]), 12)
    for name, forecast in POINT_FORECASTERS.items():
        assert forecast(longer, origins, ahead) == pytest.approx(forecast(alone, origins, ahead), nan_ok=True), name
    assert features(longer, origins, ahead)[1] == pytest.approx(features(alone, origins, ahead)[1], nan_ok=True)


@settings(deadline=None, max_examples=20)
@given(st.lists(st.one_of(st.none(), st.floats(0.0, 1e6)), max_size=40))
def test_state_is_the_same_after_it_was_stored(history: list[float | None]) -> None:
    known = as_rates(history)
    state = replay(known, terms=TERMS, quantile=0.9, until_s=6e4)
    restored = BankState.from_bytes(state.to_bytes())

    ours = step(state, known, terms=TERMS, quantile=0.9, until_s=6e4)
    theirs = step(restored, known, terms=TERMS, quantile=0.9, until_s=6e4)

    assert ours == theirs
