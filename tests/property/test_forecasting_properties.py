from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from markserve.core.backtest import backtest_origins, pinball_loss_rps
from markserve.core.forecasting import SIMPLE_FORECASTERS, rolling_forecasts

rates = st.one_of(st.none(), st.just(0.0), st.floats(min_value=1e-3, max_value=1e7))
histories = st.lists(rates, max_size=40)
names = st.sampled_from(sorted(SIMPLE_FORECASTERS))


@given(names, histories, histories)
def test_forecast_at_an_origin_is_unchanged_when_the_future_changes(
    name: str, history: list[float | None], future: list[float | None]
) -> None:
    origin = len(history)
    arguments = {"horizon_steps": 3, "window_s": 5.0, "origins": [origin]}

    before = rolling_forecasts(SIMPLE_FORECASTERS[name], history, **arguments)
    after = rolling_forecasts(SIMPLE_FORECASTERS[name], history + future, **arguments)

    assert before == after


@given(
    names, st.lists(st.one_of(st.none(), st.integers(0, 1000).map(float)), min_size=1, max_size=30), st.sampled_from([0.25, 4.0, 1024.0])
)
def test_point_forecast_scales_when_the_history_does(name: str, history: list[float | None], factor: float) -> None:
    scaled = [None if rate is None else rate * factor for rate in history]

    path, scaled_path = SIMPLE_FORECASTERS[name](history, 4)[-1], SIMPLE_FORECASTERS[name](scaled, 4)[-1]

    assert (path is None) == (scaled_path is None)
    assert scaled_path is None or path is None or scaled_path == pytest.approx([rate * factor for rate in path])


@given(histories, st.integers(1, 5))
def test_pinball_is_not_negative_when_forecasts_are_anything(history: list[float | None], horizon_steps: int) -> None:
    made = rolling_forecasts(
        SIMPLE_FORECASTERS["persistence"], history, horizon_steps=horizon_steps, window_s=5.0, origins=range(len(history))
    )

    loss = pinball_loss_rps(made, history)

    assert loss is None or loss >= 0


@given(st.integers(0, 500), st.integers(0, 500), st.integers(1, 100))
def test_origins_are_distinct_ascending_and_limited_when_the_range_is_anything(first: int, length: int, limit: int) -> None:
    origins = backtest_origins(first, first + length, limit)

    assert len(origins) <= limit
    assert list(origins) == sorted(set(origins))
    assert all(first <= origin < first + length for origin in origins)
    assert bool(origins) == bool(length)
