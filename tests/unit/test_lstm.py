from __future__ import annotations

import random
from hashlib import sha256
from importlib.resources import files
from itertools import pairwise
from math import inf, isfinite, nan, pi, sin
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save

from markserve import pretrained
from markserve.adapters.lstm import LstmForecaster
from markserve.adapters.lstm_features import CONTEXT_STEPS, HORIZON_MAX, Lookback, Season
from markserve.core.backtest import QUANTILES, History, Rates, pinball_loss_rps
from markserve.core.forecasting import SIMPLE_FORECASTERS, rolling_forecasts
from markserve.errors import InferenceFailed, InvalidRequest
from markserve.ports import TrainedForecaster, TrainingRun
from markserve.pretrained import load_pretrained

HORIZON = 60
DAY = 1440
SHIPPED = load_pretrained()[1]


def a_load(steps: int, *, level_rps: float = 20.0, period: int = DAY, noise: float = 0.05, seed: int = 0) -> list[float | None]:
    rng = random.Random(seed)
    return [level_rps * (1 + 0.6 * sin(2 * pi * step / period)) * (1 + noise * rng.uniform(-1, 1)) for step in range(steps)]


def forecast_at(history: History, origin: int | None = None, *, weights: bytes = SHIPPED, horizon_steps: int = HORIZON) -> Rates:
    at = len(history) if origin is None else origin
    return LstmForecaster().forecast(weights, history, origins=[at], horizon_steps=horizon_steps)[at]


def trained(history: History, training: TrainingRun | None = None, *, seed: int = 0, epochs: int = 2) -> TrainedForecaster:
    made = LstmForecaster(epochs_max=epochs).train(history, horizon_steps=HORIZON, seed=seed, training=training)
    assert made is not None
    return made


# --- the weights that ship ------------------------------------------------------------------------------------------


def test_shipped_weights_are_those_of_their_card_and_small() -> None:
    card, weights = load_pretrained()

    assert sha256(weights).hexdigest() == card.weights_sha256
    assert card.version == f"pretrained-{card.weights_sha256[:8]}"
    assert len(weights) < 200_000
    assert set(card.losses) == {"lstm", "persistence", "seasonal-naive"}


def test_shipped_weights_were_better_than_the_baselines_on_workloads_they_had_not_seen() -> None:
    losses = load_pretrained()[0].losses

    for step, loss in losses["lstm"].items():
        assert loss < min(losses["persistence"][step], losses["seasonal-naive"][step])


def test_shipped_weights_are_refused_when_they_are_not_those_of_the_card(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    data = files("markserve.data")
    (tmp_path / "lstm.card.json").write_bytes(data.joinpath("lstm.card.json").read_bytes())
    (tmp_path / "lstm.safetensors").write_bytes(data.joinpath("lstm.safetensors").read_bytes() + b" ")
    monkeypatch.setattr(pretrained, "files", {"markserve.data": tmp_path}.__getitem__)

    with pytest.raises(InferenceFailed, match="not those the card"):
        load_pretrained.__wrapped__()


def test_card_says_that_no_recorded_trace_was_trained_on() -> None:
    raw = msgspec.json.decode(files("markserve.data").joinpath("lstm.card.json").read_bytes())

    assert "no recorded trace" in raw["data"]


# --- what a forecast is ---------------------------------------------------------------------------------------------


def test_lstm_beats_every_simple_forecaster_untrained_when_load_follows_the_day() -> None:
    history = a_load(4 * DAY)
    origins = range(3 * DAY, 4 * DAY, 37)

    loss = pinball_loss_rps(LstmForecaster().forecast(SHIPPED, history, origins=origins, horizon_steps=HORIZON), history)

    start = 3 * DAY - 360
    rivals = [
        pinball_loss_rps(
            rolling_forecasts(made_by, history[start:], horizon_steps=HORIZON, window_s=5.0, origins=[o - start for o in origins]),
            history[start:],
        )
        for made_by in SIMPLE_FORECASTERS.values()
    ]
    assert loss is not None
    assert loss < 0.8 * min(rival for rival in rivals if rival is not None)


rates_rps = st.one_of(st.none(), st.floats(0, 1e9), st.sampled_from([0.0, 1e-9, 1.0, 1e300]))


@settings(max_examples=40, deadline=None)
@given(history=st.lists(rates_rps, min_size=1, max_size=200), horizon_steps=st.integers(1, HORIZON_MAX))
def test_lstm_quantiles_are_finite_ordered_and_not_negative_whatever_the_history(history: list[float | None], horizon_steps: int) -> None:
    forecasts = LstmForecaster().forecast(SHIPPED, history, origins=range(1, len(history) + 1), horizon_steps=horizon_steps)

    first = next((step for step, rate in enumerate(history) if rate is not None), len(history))
    assert set(forecasts) == set(range(first + 1, len(history) + 1))
    for rates in forecasts.values():
        assert tuple(rates) == QUANTILES
        assert all(len(path) == horizon_steps for path in rates.values())
        assert min(rates[0.5]) >= 0.0
        for lower, upper in pairwise(QUANTILES):
            assert all(low <= high and isfinite(high) for low, high in zip(rates[lower], rates[upper], strict=True))


@pytest.mark.parametrize("factor", [1e-3, 1000.0, 1e6])
def test_lstm_forecast_scales_when_the_history_does(factor: float) -> None:
    history = a_load(3 * DAY)
    history[700:720] = [None] * 20

    small, large = forecast_at(history), forecast_at([None if rate is None else factor * rate for rate in history])

    for quantile in QUANTILES:
        assert large[quantile] == pytest.approx([factor * rate for rate in small[quantile]], rel=1e-4)


@pytest.mark.parametrize("origin", [1, 59, 61, 700, 2 * DAY])
def test_lstm_ignores_the_future_when_forecasting_at_an_earlier_origin(origin: int) -> None:
    history = a_load(2 * DAY + 90)
    changed = [*history[:origin], *(100.0 * (rate or 0.0) for rate in history[origin:])]

    within, otherwise, alone = forecast_at(history, origin), forecast_at(changed, origin), forecast_at(history[:origin])

    for quantile in QUANTILES:
        assert within[quantile] == pytest.approx(alone[quantile], rel=1e-4)
        assert otherwise[quantile] == pytest.approx(alone[quantile], rel=1e-4)


def test_lstm_forecasts_a_step_alike_whatever_the_horizon() -> None:
    history = a_load(2 * DAY)

    assert forecast_at(history, horizon_steps=5)[0.9] == pytest.approx(forecast_at(history)[0.9][:5], rel=1e-5)


def test_lstm_forecasts_many_origins_as_it_does_each() -> None:
    history = a_load(2 * DAY)
    origins = list(range(1000, 2000))

    together = LstmForecaster().forecast(SHIPPED, history, origins=origins, horizon_steps=3)

    assert list(together) == origins
    for origin in (1000, 1600, 1999):
        assert together[origin][0.98] == pytest.approx(forecast_at(history, origin, horizon_steps=3)[0.98], rel=1e-4)


def test_lstm_expects_tomorrow_what_happened_at_this_time_on_the_days_before() -> None:
    history: list[float | None] = [10.0 + 0.1 * (step % 7) for step in range(4 * DAY)]
    for day in range(3):
        history[day * DAY + 800 : day * DAY + 830] = [40.0] * 30

    rates = forecast_at(history[: 3 * DAY + 780])

    before, during = rates[0.5][5:15], rates[0.5][25:45]
    assert max(before) < 1.2 * 10.6
    assert sum(during) / len(during) > 1.8 * max(before)
    assert min(rates[0.9][25:45]) > 35.0


def test_lstm_follows_a_shift_of_level_within_three_minutes() -> None:
    history = [*a_load(2 * DAY, level_rps=20.0, noise=0.1), *(60.0 + (step % 3) for step in range(3))]

    assert forecast_at(history)[0.95][0] > 60.0
    assert forecast_at(history)[0.5][0] > 50.0


def test_lstm_spreads_its_quantiles_when_the_load_is_noisy() -> None:
    calm, noisy = forecast_at(a_load(2 * DAY, noise=0.02)), forecast_at(a_load(2 * DAY, noise=0.5))

    assert noisy[0.99][0] - noisy[0.5][0] > 3 * (calm[0.99][0] - calm[0.5][0])


@pytest.mark.parametrize("steps", [1, 30, 3 * DAY])
def test_lstm_expects_nothing_when_there_were_only_zeros(steps: int) -> None:
    assert forecast_at([0.0] * steps) == dict.fromkeys(QUANTILES, (0.0,) * HORIZON)


def test_lstm_forgets_an_impossible_count_of_the_day_before_yesterday() -> None:
    history = a_load(3 * DAY)
    history[100] = 1e300

    rates = forecast_at(history)

    assert 5.0 < min(rates[0.5]) <= max(rates[0.5]) < 100.0
    assert all(isfinite(rate) for rate in rates[0.99])


@pytest.mark.parametrize("steps", [1, 30, 3 * DAY])
def test_lstm_stays_near_a_constant_load(steps: int) -> None:
    rates = forecast_at([50.0] * steps)

    assert 45.0 < min(rates[0.5]) <= max(rates[0.5]) < 60.0
    if steps > 1:
        assert max(rates[0.99][:10]) < 100.0


def test_lstm_has_a_sane_forecast_after_a_hole_of_most_of_a_day_and_none_after_a_whole_day() -> None:
    history = [*a_load(2 * DAY), *[None] * (CONTEXT_STEPS - 60)]

    assert 5.0 < forecast_at(history)[0.5][0] < 40.0
    assert LstmForecaster().forecast(SHIPPED, [*history, *[None] * 60], origins=[len(history) + 60], horizon_steps=HORIZON) == {}


def test_lstm_treats_what_is_missing_as_unknown_and_not_as_zero() -> None:
    history = a_load(2 * DAY, noise=0.01)
    quiet: list[float | None] = [*history[:-10], *[0.0] * 10]
    unknown: list[float | None] = [*history[:-10], *[None] * 10]

    assert forecast_at(unknown)[0.5][0] == pytest.approx(forecast_at(history)[0.5][0], rel=0.15)
    assert forecast_at(quiet)[0.5][0] < 0.5 * forecast_at(history)[0.5][0]


def test_lstm_forecasts_other_steps_when_it_is_told_their_length() -> None:
    rates = LstmForecaster(step_s=5.0).forecast(SHIPPED, [8.0, 9.0, 10.0] * 40, origins=[120], horizon_steps=24)[120]

    assert 7.0 < rates[0.5][0] < 12.0


@pytest.mark.parametrize("step_s", [0.0, 1201.0])
def test_lstm_refuses_steps_too_long_for_its_seasons(step_s: float) -> None:
    with pytest.raises(InvalidRequest, match="step_s"):
        LstmForecaster(step_s=step_s)


@pytest.mark.parametrize("step_s", [5.0, 60.0, 300.0, 1200.0])
def test_lags_lie_before_the_origin_whatever_the_step(step_s: float) -> None:
    season = Season.of(step_s)

    assert season.hour >= HORIZON_MAX
    assert season.day >= HORIZON_MAX + 7


@pytest.mark.parametrize("rate", [-1.0, nan, inf])
def test_lstm_refuses_a_history_with_a_rate_that_is_none(rate: float) -> None:
    with pytest.raises(InvalidRequest, match="step 1 of the history"):
        Lookback([1.0, rate], Season.of(60.0))


@pytest.mark.parametrize("horizon_steps", [0, 61])
def test_lstm_refuses_a_horizon_that_its_lags_do_not_cover(horizon_steps: int) -> None:
    with pytest.raises(InvalidRequest, match="horizon_steps"):
        forecast_at(a_load(60), horizon_steps=horizon_steps)


def test_lstm_returns_nothing_when_asked_for_no_origin() -> None:
    assert LstmForecaster().forecast(SHIPPED, a_load(60), origins=[], horizon_steps=HORIZON) == {}


# --- weights that do not fit ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", [b"", b"not safetensors", save({})])
def test_lstm_forecast_fails_by_name_when_weights_are_damaged(weights: bytes) -> None:
    with pytest.raises(InferenceFailed, match="do not fit"):
        forecast_at(a_load(60), weights=weights)


def test_lstm_forecast_fails_by_name_when_a_weight_is_not_a_number() -> None:
    tensors = load(SHIPPED)
    tensors["head.bias"][0] = nan

    with pytest.raises(InferenceFailed, match="not finite"):
        forecast_at(a_load(60), weights=save(tensors))


# --- training -------------------------------------------------------------------------------------------------------


def test_training_refines_the_shipped_weights_when_the_load_has_its_own_pattern() -> None:
    rng = random.Random(1)
    history: list[float | None] = [
        (30.0 if step % 97 < 20 else 10.0) * rng.uniform(0.95, 1.05) for step in range(4 * DAY)
    ]  # a season that no lag knows
    split = 3 * DAY
    origins = range(split, 4 * DAY - HORIZON, 11)

    refined = trained(history[:split], TrainingRun(start=SHIPPED), epochs=10)

    before, after = (
        pinball_loss_rps(LstmForecaster().forecast(weights, history, origins=origins, horizon_steps=HORIZON), history)
        for weights in (SHIPPED, refined.weights)
    )
    assert before is not None
    assert after is not None
    assert after < 0.95 * before
    assert refined.epochs > 0


def test_training_gives_the_same_weights_again_with_the_same_seed() -> None:
    first, again, other = (trained(a_load(400), seed=seed) for seed in (1, 1, 2))

    assert first == again
    assert first.weights != other.weights


class Invocations:
    """A run that is stopped after every epoch, each invocation going on from what the last one saved."""

    def __init__(self) -> None:
        self.saved: list[bytes] = []

    def run(self, history: History, *, epochs: int) -> tuple[TrainedForecaster, int]:
        for invocation in range(1, epochs + 2):
            begun_with = len(self.saved)
            made = LstmForecaster(epochs_max=epochs).train(
                history,
                horizon_steps=HORIZON,
                seed=3,
                training=TrainingRun(
                    start=SHIPPED,
                    checkpoint=self.saved[-1] if self.saved else None,
                    save=self.saved.append,
                    keep_going=lambda begun_with=begun_with: len(self.saved) == begun_with,  # type: ignore[misc]
                ),
            )
            if made is not None:
                return made, invocation
        raise AssertionError("the run does not end")


def test_training_that_is_stopped_after_each_epoch_ends_with_the_weights_of_one_that_is_not() -> None:
    history = a_load(600, period=90)
    at_once = trained(history, TrainingRun(start=SHIPPED), seed=3, epochs=3)

    in_pieces, invocations = Invocations().run(history, epochs=3)

    assert invocations > 2
    assert in_pieces == at_once


def test_training_is_not_begun_when_there_is_no_time() -> None:
    assert LstmForecaster().train(a_load(200), horizon_steps=HORIZON, seed=0, training=TrainingRun(keep_going=lambda: False)) is None


@pytest.mark.parametrize("checkpoint", [b"junk", save({}), SHIPPED])
def test_training_fails_by_name_when_its_checkpoint_is_damaged(checkpoint: bytes) -> None:
    with pytest.raises(InferenceFailed, match="checkpoint does not fit"):
        trained(a_load(200), TrainingRun(start=SHIPPED, checkpoint=checkpoint))


def test_training_works_when_windows_are_missing() -> None:
    history = a_load(300)
    history[20:95] = [None] * 75
    history[-3:] = [None] * 3

    rates = forecast_at(history, weights=trained(history).weights)

    assert 0 < rates[0.5][0] < 100


@pytest.mark.parametrize("history", [[], [5.0], [0.0] * 40, [None] * 40])
def test_training_is_refused_when_there_is_nothing_to_learn_from(history: list[float | None]) -> None:
    with pytest.raises(InvalidRequest, match="nothing to learn from"):
        trained(history)
