from __future__ import annotations

from itertools import pairwise
from math import pi, sin

import pytest
from safetensors.torch import load, save

from markserve.adapters.lstm import CONTEXT_STEPS, LstmForecaster
from markserve.core.backtest import QUANTILES, pinball_loss_rps
from markserve.core.forecasting import SIMPLE_FORECASTERS, rolling_forecasts
from markserve.errors import InferenceFailed, InvalidRequest

HORIZON = 6


def a_wave(steps: int, *, level: float = 20.0, period: int = 16) -> list[float | None]:
    return [level * (1 + 0.8 * sin(2 * pi * step / period)) for step in range(steps)]


def quick() -> LstmForecaster:
    return LstmForecaster(hidden_units=8, epochs_max=3)


def test_lstm_beats_every_simple_forecaster_when_load_follows_a_pattern() -> None:
    history = a_wave(400)
    origins = range(300, 400)
    forecaster = LstmForecaster()

    trained = forecaster.train(history[:300], horizon_steps=HORIZON, seed=0)

    loss = pinball_loss_rps(forecaster.forecast(trained.weights, history, origins=origins, horizon_steps=HORIZON), history)
    simple = [
        pinball_loss_rps(rolling_forecasts(made_by, history, horizon_steps=HORIZON, window_s=5.0, origins=origins), history)
        for made_by in SIMPLE_FORECASTERS.values()
    ]
    assert loss is not None
    assert loss < 0.5 * min(rival for rival in simple if rival is not None)


def test_lstm_gives_the_same_weights_when_trained_again_with_the_same_seed() -> None:
    first, again, other = (quick().train(a_wave(60), horizon_steps=HORIZON, seed=seed) for seed in (1, 1, 2))

    assert first == again
    assert first.weights != other.weights


def test_lstm_quantiles_are_ordered_and_not_negative_when_load_falls_to_nothing() -> None:
    history = [*a_wave(60), *[0.0] * 20]
    trained = quick().train(history, horizon_steps=HORIZON, seed=0)

    forecasts = quick().forecast(trained.weights, history, origins=range(1, 81), horizon_steps=HORIZON)

    for rates in forecasts.values():
        assert tuple(rates) == QUANTILES
        assert min(rates[0.5]) >= 0.0
        for lower, upper in pairwise(QUANTILES):
            assert all(low <= high for low, high in zip(rates[lower], rates[upper], strict=True))


def test_lstm_forecast_scales_when_the_history_does() -> None:
    history = a_wave(80)
    scaled = [None if rate is None else 1000 * rate for rate in history]
    trained = quick().train(history, horizon_steps=HORIZON, seed=0)

    small = quick().forecast(trained.weights, history, origins=[80], horizon_steps=HORIZON)[80]
    large = quick().forecast(trained.weights, scaled, origins=[80], horizon_steps=HORIZON)[80]

    for quantile in QUANTILES:
        assert large[quantile] == pytest.approx([1000 * rate for rate in small[quantile]], rel=1e-4)


def test_lstm_ignores_the_future_when_forecasting_at_an_earlier_origin() -> None:
    history = a_wave(80)
    trained = quick().train(history, horizon_steps=HORIZON, seed=0)

    within = quick().forecast(trained.weights, history, origins=[50], horizon_steps=HORIZON)
    alone = quick().forecast(trained.weights, history[:50], origins=[50], horizon_steps=HORIZON)

    assert within[50][0.9] == pytest.approx(alone[50][0.9], rel=1e-5)


def test_lstm_trains_and_forecasts_when_windows_are_missing() -> None:
    history = a_wave(90)
    history[20:35] = [None] * 15
    history[-3:] = [None] * 3
    trained = quick().train(history, horizon_steps=HORIZON, seed=0)

    rates = quick().forecast(trained.weights, history, origins=[90], horizon_steps=HORIZON)[90]

    assert 0 < rates[0.5][0] < 100


def test_lstm_has_no_forecast_when_nothing_in_its_context_is_known() -> None:
    history = [*a_wave(60), *[None] * CONTEXT_STEPS]
    trained = quick().train(a_wave(60), horizon_steps=HORIZON, seed=0)

    forecasts = quick().forecast(trained.weights, history, origins=[60, len(history)], horizon_steps=HORIZON)

    assert set(forecasts) == {60}


def test_lstm_expects_nothing_when_its_context_holds_only_zeros() -> None:
    trained = quick().train(a_wave(60), horizon_steps=HORIZON, seed=0)

    forecasts = quick().forecast(trained.weights, [0.0] * 30, origins=[30], horizon_steps=HORIZON)

    assert forecasts[30] == dict.fromkeys(QUANTILES, (0.0,) * HORIZON)


def test_lstm_returns_nothing_when_asked_for_no_origin() -> None:
    trained = quick().train(a_wave(60), horizon_steps=HORIZON, seed=0)

    assert quick().forecast(trained.weights, a_wave(60), origins=[], horizon_steps=HORIZON) == {}


@pytest.mark.parametrize("history", [[], [5.0], [0.0] * 40, [None] * 40])
def test_lstm_training_is_refused_when_there_is_nothing_to_learn_from(history: list[float | None]) -> None:
    with pytest.raises(InvalidRequest, match="nothing to learn from"):
        quick().train(history, horizon_steps=HORIZON, seed=0)


def test_lstm_forecast_fails_by_name_when_weights_are_of_another_horizon() -> None:
    trained = quick().train(a_wave(60), horizon_steps=HORIZON, seed=0)

    with pytest.raises(InferenceFailed, match="do not fit an LSTM of 7 steps"):
        quick().forecast(trained.weights, a_wave(60), origins=[60], horizon_steps=7)


@pytest.mark.parametrize("weights", [b"", b"not safetensors", save({})])
def test_lstm_forecast_fails_by_name_when_weights_are_damaged(weights: bytes) -> None:
    with pytest.raises(InferenceFailed, match="do not fit"):
        quick().forecast(weights, a_wave(60), origins=[60], horizon_steps=HORIZON)


def test_lstm_forecast_fails_by_name_when_a_weight_is_not_a_number() -> None:
    trained = quick().train(a_wave(60), horizon_steps=HORIZON, seed=0)
    tensors = load(trained.weights)
    tensors["head.bias"][0] = float("nan")

    with pytest.raises(InferenceFailed, match="not finite"):
        quick().forecast(save(tensors), a_wave(60), origins=[60], horizon_steps=HORIZON)
