from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from math import inf, pi, sin
from pathlib import Path
from types import SimpleNamespace

import boto3
import pytest
from moto import mock_aws
from safetensors.torch import load, save

from functions.forecast.app import ForecastCommand, handler, parse, run
from functions.forecast.train import train
from markserve import wiring
from markserve.adapters.lstm import LstmForecaster
from markserve.adapters.memory import MemoryBlobStore, MemoryControlStore, MemoryEventPublisher, MemoryMetricsSink, MemoryWindowStore
from markserve.core.backtest import QUANTILES, History, Rates
from markserve.core.champion import SWITCH_MARGIN
from markserve.errors import DependencyUnavailable, InferenceFailed, InvalidRequest, Throttled
from markserve.forecasters import calibration
from markserve.forecasters.state import BankState
from markserve.history import REPORT_DELAY_S, StepGrid, recorded_steps
from markserve.messages import (
    ArrivalCounts,
    ForecastDrifted,
    ForecasterCard,
    ForecasterPointer,
    ForecastRecord,
    MetricsBatch,
    TrainingPaused,
    decode,
)
from markserve.ports import LearnedForecaster, TrainedForecaster, TrainingRun
from markserve.pretrained import load_pretrained
from markserve.training import TrainingReport, serving_weights, train_models
from tests.builders import MODEL, NOW_S, a_model_record, a_plan_record

GRID = StepGrid(window_s=1.0, step_s=5.0, horizon_steps=4)
POINTER = f"forecasters/{MODEL}/latest.json"

STATE = f"forecasters/{MODEL}/bank.npz"

EVENTS = Path(__file__).resolve().parents[2] / "events"


class Oracle:
    """A forecaster that expects every step to be at `rate_rps`, whatever it is trained on."""

    name = "oracle"

    def __init__(self, rate_rps: float = 10.0, *, fault: Exception | None = None) -> None:
        self.rate_rps = rate_rps
        self.fault = fault

    def train(self, history: History, *, horizon_steps: int, seed: int, training: TrainingRun | None = None) -> TrainedForecaster | None:
        if self.fault is not None:
            raise self.fault
        if training is not None and not training.keep_going():
            return None
        weights = f"{horizon_steps} steps, seed {seed}, at {self.rate_rps}".encode()
        return TrainedForecaster(weights=weights, epochs=1, samples=len(history), parameters=1, validation_loss=0.0)

    def forecast(self, weights: bytes, history: History, *, origins: Sequence[int], horizon_steps: int) -> dict[int, Rates]:
        if self.fault is not None:
            raise self.fault
        rate_rps = float(weights.rsplit(b" ", 1)[1])
        return {origin: dict.fromkeys(QUANTILES, (rate_rps,) * horizon_steps) for origin in origins if origin <= len(history)}


class Stack:
    """Memory ports, a clock, and a load to record."""

    def __init__(self, windows: MemoryWindowStore | None = None, sink: MemoryMetricsSink | None = None) -> None:
        self.windows = windows or MemoryWindowStore()
        self.control = MemoryControlStore()
        self.blobs = MemoryBlobStore()
        self.sink = sink or MemoryMetricsSink()
        self.events = MemoryEventPublisher()
        self.now_s = NOW_S + REPORT_DELAY_S

    def record(self, steps: Sequence[int], *, model: str = MODEL) -> None:
        """Let time pass with these counts in each window of the coming steps."""
        arrivals = [
            ArrivalCounts(model=model, window_at_s=self.now_s - REPORT_DELAY_S + 5.0 * index + window, count=count)
            for index, count in enumerate(steps)
            for window in range(5)
        ]
        self.now_s += 5.0 * len(steps)
        batch = MetricsBatch(batch_id=f"{model}-{self.now_s}", sent_at_s=self.now_s, arrivals=tuple(arrivals))
        self.windows.apply([batch], expires_at_s=self.now_s + 3600.0)

    def forecast(self, *names: str, forecaster: LearnedForecaster | None = None) -> list[ForecastRecord]:
        return run(
            names or (MODEL,),
            windows=self.windows,
            control=self.control,
            blobs=self.blobs,
            metrics_sink=self.sink,
            forecaster=no_forecaster if forecaster is None else lambda: forecaster,
            grid=GRID,
            now_s=self.now_s,
            events=self.events,
        )

    def train(
        self,
        forecaster: LearnedForecaster,
        *names: str,
        time_left_s: Callable[[], float] = lambda: inf,
        events: MemoryEventPublisher | None = None,
    ) -> list[TrainingReport]:
        return train_models(
            names or (MODEL,),
            windows=self.windows,
            blobs=self.blobs,
            control=self.control,
            forecaster=forecaster,
            grid=GRID,
            now_s=self.now_s,
            time_left_s=time_left_s,
            events=events,
        )

    def decisions(self) -> list[str]:
        return [decision.event for decision in self.control.decisions(since_s=0.0, until_s=2 * NOW_S)]


class UnreadableWindows(MemoryWindowStore):
    """Windows that cannot be read for one model."""

    def arrivals(self, model: str, *, since_s: float, until_s: float) -> dict[float, int]:
        if model == "unreadable":
            raise DependencyUnavailable("windows: no answer")
        return super().arrivals(model, since_s=since_s, until_s=until_s)


def no_forecaster() -> LearnedForecaster:
    raise InferenceFailed("torch is not there")


ALTERNATING = [10, 10, 10, 2] * 10
IRREGULAR = [10, 2, 2, 10, 10, 2, 10, 10, 10, 2] * 4
"""Where it stands says less of what comes next."""
"""Noise that no simple forecaster foresees, with a median of 10."""


@pytest.mark.parametrize(
    ("event", "command"),
    [
        ({"trigger": "schedule"}, ForecastCommand(action="forecast", model=None)),
        ({}, ForecastCommand(action="forecast", model=None)),
        ({"action": "forecast", "model": "digits"}, ForecastCommand(action="forecast", model="digits")),
        ({"action": "train", "model": "digits"}, ForecastCommand(action="train", model="digits")),
        ({"action": "train"}, ForecastCommand(action="train", model=None)),
    ],
)
def test_event_becomes_a_command_when_it_is_known(event: dict[str, str], command: ForecastCommand) -> None:
    assert parse(event) == command


@pytest.mark.parametrize(("event", "field"), [({"action": "destroy"}, "action"), ({"action": "train", "model": 5}, "model")])
def test_event_is_refused_by_field_when_it_is_not_known(event: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidRequest, match=rf"not a valid ForecastCommand: .*`\$\.{field}`"):
        parse(event)


def test_forecast_is_zero_and_stored_when_a_model_has_no_history() -> None:
    stack = Stack()

    (record,) = stack.forecast()

    assert record.rates_rps["0.99"] == (0.0,) * GRID.horizon_steps
    assert (record.forecaster, record.scores) == ("none", {})
    assert stack.control.latest_forecast(MODEL) == record


def test_forecast_starts_where_the_reported_windows_end() -> None:
    stack = Stack()
    stack.record([4])

    (record,) = stack.forecast()

    assert record.origin_at_s == NOW_S + 5.0
    assert record.step_s == 5.0
    assert record.rates_rps["0.5"] == pytest.approx((4.0,) * 4)
    assert "too little is known for a back-test" in record.reason


def test_forecast_names_its_back_test_when_history_allows_one() -> None:
    stack = Stack()
    stack.record([5] * 10 + list(range(5, 25)))

    (record,) = stack.forecast()

    assert set(record.scores) == {"persistence", "recent_maximum", "damped_trend", "exponential_smoothing", "combination"}
    assert record.scores[record.forecaster] <= min(record.scores.values()) / (1 - SWITCH_MARGIN)
    assert record.to_forecast().rates_rps[0.98][0] > 24.0


def test_forecast_sends_a_tick_each_time_it_runs() -> None:
    stack = Stack()

    stack.forecast()
    stack.record([1])
    stack.forecast()

    assert [batch.tick_at_s for batch in stack.sink.batches] == [NOW_S + 2.0, NOW_S + 7.0]
    assert len({batch.batch_id for batch in stack.sink.batches}) == 2


def test_forecast_is_made_when_the_tick_cannot_be_sent() -> None:
    stack = Stack(sink=MemoryMetricsSink(faults={"send": Throttled("queue: throttled")}))

    assert len(stack.forecast()) == 1


def test_quiet_steps_are_zero_when_ticks_follow_them_and_missing_when_none_do() -> None:
    stack = Stack()
    stack.record([6])
    stack.now_s += 20.0  # two quiet steps, then two of which nothing is known
    stack.windows.apply([MetricsBatch(batch_id="tick", sent_at_s=NOW_S + 15.0, tick_at_s=NOW_S + 15.0)], expires_at_s=2 * NOW_S)

    recorded = recorded_steps(MODEL, windows=stack.windows, grid=GRID, steps=8, now_s=stack.now_s)

    assert recorded.rates_rps == [6.0, 0.0, 0.0, None, None]
    assert (recorded.known, recorded.until_s) == (3, NOW_S + 25.0)


def test_forecasts_of_others_are_made_when_one_model_cannot_be_read() -> None:
    stack = Stack(UnreadableWindows())
    stack.record([4])

    with pytest.raises(DependencyUnavailable, match="no new forecast of unreadable: windows: no answer"):
        stack.forecast("unreadable", MODEL)

    assert stack.control.latest_forecast(MODEL) is not None


def test_training_is_refused_when_too_few_steps_are_known() -> None:
    stack = Stack()
    stack.record([5] * 7)

    (report,) = stack.train(Oracle())

    assert report == TrainingReport(model=MODEL, promoted=False, version=None, reason=f"{MODEL}: 7 known steps of 5 s; training needs 8")
    assert stack.blobs.blobs == {}
    assert stack.decisions() == ["forecaster_training_failed"]


def test_training_promotes_and_serves_when_it_beats_the_simple_forecasters() -> None:
    stack = Stack()
    stack.record(IRREGULAR)

    (report,) = stack.train(Oracle(10.0))
    (record,) = stack.forecast(forecaster=Oracle())

    assert report.promoted
    assert decode(stack.blobs.get(POINTER), ForecasterPointer).version == report.version
    card = decode(stack.blobs.get(f"forecasters/{MODEL}/{report.version}/card.json"), ForecasterCard)
    assert (card.steps, card.known_steps, card.data_since_s, card.data_until_s) == (40, 40, NOW_S, NOW_S + 200.0)
    assert (card.judged_since_s, card.samples) == (NOW_S + 150.0, 30)
    assert card.losses_rps["oracle"] < min(loss for name, loss in card.losses_rps.items() if name != "oracle")
    assert len(card.losses_by_step_rps["oracle"]) == GRID.horizon_steps
    assert stack.decisions() == ["forecaster_promoted", "forecaster_switched"]
    assert (record.forecaster, record.rates_rps["0.9"]) == ("oracle", pytest.approx((10.0,) * 4))
    assert record.reason.startswith(f"oracle {card.version} costs least")


def test_training_keeps_the_champion_when_the_new_version_does_worse() -> None:
    stack = Stack()
    stack.record(ALTERNATING)
    (good,) = stack.train(Oracle(10.0))
    stack.now_s += 1.0

    (bad,) = stack.train(Oracle(11.0))

    assert (good.promoted, bad.promoted) == (True, False)
    assert decode(stack.blobs.get(POINTER), ForecasterPointer).version == good.version
    assert f"does not beat oracle {good.version}" in bad.reason
    assert f"forecasters/{MODEL}/{bad.version}/card.json" in stack.blobs.blobs
    assert stack.decisions() == ["forecaster_promoted", "forecaster_not_promoted"]


def test_training_replaces_a_champion_when_it_can_no_longer_be_loaded() -> None:
    stack = Stack()
    stack.record(ALTERNATING)
    stack.blobs.put(POINTER, b"{}")

    (report,) = stack.train(Oracle(10.0))

    assert report.promoted


def test_training_of_others_goes_on_when_one_diverges() -> None:
    class Diverging(Oracle):
        def train(
            self, history: History, *, horizon_steps: int, seed: int, training: TrainingRun | None = None
        ) -> TrainedForecaster | None:
            if max(rate or 0.0 for rate in history) > 50.0:
                raise InferenceFailed("diverged")
            return super().train(history, horizon_steps=horizon_steps, seed=seed, training=training)

    stack = Stack()
    stack.record([60] * 40, model="huge")
    stack.now_s -= 200.0
    stack.record(ALTERNATING)

    huge, ours = stack.train(Diverging(10.0), "huge", MODEL)

    assert (huge.version, huge.reason, ours.promoted) == (None, "diverged", True)


def test_training_goes_on_with_the_next_invocation_when_time_is_up() -> None:
    stack = Stack()
    stack.record([round(20 * (1 + 0.8 * sin(2 * pi * step / 16))) for step in range(160)])
    at_once = Stack(stack.windows)
    at_once.now_s = stack.now_s
    (uninterrupted,) = at_once.train(LstmForecaster(step_s=GRID.step_s, epochs_max=4))
    events = MemoryEventPublisher()
    reports = []

    for _ in range(2):
        clock = iter([900.0, 900.0, 900.0, 61.0, 0.0, 0.0])
        reports += stack.train(LstmForecaster(step_s=GRID.step_s, epochs_max=4), time_left_s=lambda clock=clock: next(clock), events=events)
        stack.now_s += 60.0

    assert [report.paused for report in reports] == [True, False]
    assert [(type(event), event.model) for event in events.events] == [(TrainingPaused, MODEL)]
    assert reports[0].reason.startswith("time is up: the run begun at")
    card = decode(stack.blobs.get(f"forecasters/{MODEL}/{reports[1].version}/card.json"), ForecasterCard)
    same = decode(at_once.blobs.get(f"forecasters/{MODEL}/{uninterrupted.version}/card.json"), ForecasterCard)
    assert (card.weights_sha256, card.data_until_s, card.losses_rps) == (same.weights_sha256, same.data_until_s, same.losses_rps)
    assert card.started_from == "pretrained"


def test_training_does_not_ask_for_another_invocation_when_this_one_got_nowhere() -> None:
    stack = Stack()
    stack.record(ALTERNATING)
    events = MemoryEventPublisher()

    too_late, not_even_begun = (stack.train(Oracle(), time_left_s=iter([first, 0.0]).__next__, events=events)[0] for first in (61.0, 60.0))

    assert (too_late.paused, not_even_begun.paused) == (True, True)
    assert events.events == []


def test_training_begins_anew_when_its_checkpoint_is_damaged() -> None:
    stack = Stack()
    stack.record([round(20 * (1 + 0.8 * sin(2 * pi * step / 16))) for step in range(160)])
    forecaster = LstmForecaster(step_s=GRID.step_s, epochs_max=2)
    stack.train(forecaster, time_left_s=iter([900.0, 900.0, 0.0]).__next__)
    (checkpoint,) = (key for key in stack.blobs.blobs if key.endswith("checkpoint.safetensors"))
    stack.blobs.put(checkpoint, b"torn")

    (failed,) = stack.train(forecaster)
    stack.now_s += 1.0
    (anew,) = stack.train(forecaster)

    assert "the checkpoint does not fit" in failed.reason
    assert anew.version is not None


def test_training_begins_with_the_unfinished_then_with_the_one_trained_longest_ago_when_time_is_short() -> None:
    stack = Stack()
    for name in ("b", "a"):
        stack.record(ALTERNATING, model=name)
        stack.now_s -= 200.0
    stack.now_s += 200.0
    stack.train(Oracle(), "b")

    clock = iter([900.0, 900.0, 0.0])
    first, second = stack.train(Oracle(), "b", "a", time_left_s=lambda: next(clock))

    assert (first.model, first.paused) == ("a", False)
    assert (second.model, second.paused, second.reason) == ("b", True, "no time left; the next invocation trains it")


def test_weights_to_serve_are_the_shipped_until_some_are_promoted() -> None:
    stack = Stack()
    stack.record(ALTERNATING)
    card, shipped = load_pretrained()

    before = serving_weights(MODEL, blobs=stack.blobs, grid=GRID)
    (report,) = stack.train(Oracle(10.0))
    after = serving_weights(MODEL, blobs=stack.blobs, grid=GRID)

    assert before == (f"lstm {card.version}", shipped)
    assert after == (f"oracle {report.version}", stack.blobs.get(f"forecasters/{MODEL}/{report.version}/weights.safetensors"))


def test_training_serves_the_shipped_weights_when_refining_them_does_not_help() -> None:
    class Worsening(LstmForecaster):
        """Refines into what forecasts zero."""

        def train(
            self, history: History, *, horizon_steps: int, seed: int, training: TrainingRun | None = None
        ) -> TrainedForecaster | None:
            made = super().train(history, horizon_steps=horizon_steps, seed=seed, training=training)
            assert made is not None
            tensors = load(made.weights)
            tensors["head.bias"] -= 50.0
            return replace(made, weights=save(tensors))

    stack = Stack()
    stack.record(ALTERNATING * 2)

    (report,) = stack.train(Worsening(step_s=GRID.step_s, epochs_max=1))

    assert report.version is not None
    assert stack.blobs.get(f"forecasters/{MODEL}/{report.version}/weights.safetensors") == load_pretrained()[1]
    card = decode(stack.blobs.get(f"forecasters/{MODEL}/{report.version}/card.json"), ForecasterCard)
    assert (card.epochs, card.losses_rps["lstm"]) == (0, card.losses_rps["lstm pretrained"])


def test_trained_forecaster_hands_over_when_it_does_worse_than_a_simple_one_since() -> None:
    stack = Stack()
    stack.record(ALTERNATING)
    stack.train(Oracle(10.0))

    stack.record([40] * 12)
    (record,) = stack.forecast(forecaster=Oracle())

    assert record.forecaster != "oracle"
    assert record.scores[record.forecaster] < record.scores[f"oracle {decode(stack.blobs.get(POINTER), ForecasterPointer).version}"]
    assert record.rates_rps["0.5"][0] == pytest.approx(40.0, rel=0.1)


def test_scores_and_calibration_go_on_from_cycle_to_cycle() -> None:
    stack = Stack()
    stack.record(ALTERNATING)
    stack.forecast()
    before = BankState.from_bytes(stack.blobs.get(STATE))

    stack.record([10])
    stack.forecast()
    after = BankState.from_bytes(stack.blobs.get(STATE))

    assert after.until_step == before.until_step + 1
    assert after.scored[0, 0] > before.scored[0, 0]


def test_repeated_cycle_scores_nothing_twice_and_archives_nothing_twice() -> None:
    stack = Stack()
    stack.record(ALTERNATING)
    stack.forecast()
    before = dict(stack.blobs.blobs)

    stack.forecast()

    assert (BankState.from_bytes(before[STATE]).scored == BankState.from_bytes(stack.blobs.get(STATE)).scored).all()
    assert {key: data for key, data in before.items() if key != STATE} == {
        key: data for key, data in stack.blobs.blobs.items() if key != STATE
    }


def test_forecast_knows_what_was_archived_when_the_windows_are_gone() -> None:
    stack = Stack()
    stack.record(ALTERNATING)
    stack.forecast()
    del stack.blobs.blobs[STATE]
    emptied = Stack()
    emptied.blobs, emptied.now_s = stack.blobs, stack.now_s

    (record,) = emptied.forecast()

    assert record.forecaster != "none"
    assert record.rates_rps["0.99"][0] > 5.0


def test_cycle_says_that_its_history_is_old_once_an_hour() -> None:
    stack = Stack()
    stack.record(ALTERNATING)
    stack.forecast()

    for _ in range(3):
        stack.now_s += 60.0
        stack.forecast()

    assert stack.decisions().count("forecast_stale") == 1


def test_shipped_lstm_competes_from_the_first_hour() -> None:
    stack = Stack()
    for steps in ([10, 12, 9, 11] * 30, *([[10]] * 20)):
        stack.record(steps)
        (record,) = stack.forecast(forecaster=LstmForecaster())

    assert any(name.startswith("lstm") for name in record.scores)


def test_drifted_forecasts_ask_for_training_once_an_hour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "TRIED_MIN", 10.0)  # hundreds of cycles would say the same
    monkeypatch.setattr(calibration, "CHANCE", 0.0)
    stack = Stack()

    def asked_after(cycles: int) -> int:
        for step in range(cycles):
            stack.record([10 + 400 * (step % 7 == 0)])  # more often than any quantile that was learned says
            stack.forecast()
        asked = [event for event in stack.events.events if isinstance(event, ForecastDrifted)]
        assert len(asked) == stack.decisions().count("forecast_miscalibrated")
        return len(asked)

    assert asked_after(5) == 0
    assert asked_after(30) == 1
    assert asked_after(10) == 1
    stack.now_s += 3600.0
    assert asked_after(10) == 2


def test_cycle_judges_by_the_quantile_that_the_last_plan_bought_for() -> None:
    stack = Stack()
    stack.record(ALTERNATING)
    stack.control.put_plan(a_plan_record(version=1, demand_quantiles={MODEL: 0.65}))

    (record,) = stack.forecast()

    assert "at quantile 0.65" in record.reason


def test_cycle_begins_anew_when_the_stored_state_is_damaged() -> None:
    stack = Stack()
    stack.record(ALTERNATING)
    stack.blobs.put(STATE, b"torn")

    (record,) = stack.forecast()

    assert record.forecaster != "none"
    assert BankState.from_bytes(stack.blobs.get(STATE)).until_step > 0


def test_state_is_not_overwritten_when_it_could_not_be_read() -> None:
    class Slow(MemoryBlobStore):
        def get(self, key: str) -> bytes:
            if key == STATE:
                raise DependencyUnavailable("S3: no answer")
            return super().get(key)

    stack = Stack()
    stack.record(ALTERNATING)
    stack.forecast()
    kept = stack.blobs.get(STATE)
    stack.blobs = Slow(stack.blobs.blobs)
    stack.record([10])

    (record,) = stack.forecast()

    assert record.forecaster != "none"
    assert stack.blobs.blobs[STATE] == kept


def spoil_weights(stack: Stack, version: str) -> None:
    stack.blobs.put(f"forecasters/{MODEL}/{version}/weights.safetensors", b"others at 10.0")


def lose_weights(stack: Stack, version: str) -> None:
    del stack.blobs.blobs[f"forecasters/{MODEL}/{version}/weights.safetensors"]


def spoil_card(stack: Stack, version: str) -> None:
    stack.blobs.put(f"forecasters/{MODEL}/{version}/card.json", b"{}")


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (spoil_weights, "are not those its card describes"),
        (lose_weights, "no object"),
        (spoil_card, "not a valid ForecasterCard"),
    ],
)
def test_simple_forecaster_serves_and_says_why_when_the_trained_one_is_damaged(spoil: Callable[[Stack, str], None], reason: str) -> None:
    stack = Stack()
    stack.record(ALTERNATING)
    (report,) = stack.train(Oracle(10.0))
    spoil(stack, report.version or "")

    (record,) = stack.forecast(forecaster=Oracle())

    assert record.forecaster != "oracle"
    assert "the trained forecaster was passed over: " in record.reason
    assert reason in record.reason


def test_simple_forecaster_serves_and_says_why_when_the_trained_one_fails() -> None:
    stack = Stack()
    stack.record(ALTERNATING)
    stack.train(Oracle(10.0))

    (record,) = stack.forecast(forecaster=Oracle(fault=InferenceFailed("out of memory")))

    assert record.reason.endswith("the trained forecaster was passed over: out of memory")


def test_simple_forecaster_serves_when_the_trained_one_was_made_for_other_steps() -> None:
    stack = Stack()
    stack.record(ALTERNATING)
    stack.train(Oracle(10.0))

    (record,) = run(
        [MODEL],
        windows=stack.windows,
        control=stack.control,
        blobs=stack.blobs,
        metrics_sink=stack.sink,
        forecaster=lambda: Oracle(),
        grid=StepGrid(window_s=1.0, step_s=10.0, horizon_steps=4),
        now_s=stack.now_s,
    )

    assert record.forecaster != "oracle"
    assert "was trained for StepGrid(window_s=1.0, step_s=5.0, horizon_steps=4)" in record.reason


def test_lstm_is_trained_promoted_and_serves_when_load_follows_a_pattern() -> None:
    stack = Stack()
    stack.record([round(20 * (1 + 0.8 * sin(2 * pi * step / 16))) for step in range(160)])
    forecaster = LstmForecaster(step_s=GRID.step_s)

    (report,) = stack.train(forecaster)
    (record,) = stack.forecast(forecaster=forecaster)

    assert report.promoted, report.reason
    assert record.forecaster in {"lstm", "combination"}  # which holds it
    rising = [record.rates_rps["0.5"][step] for step in range(4)]
    assert rising == pytest.approx([20 * (1 + 0.8 * sin(2 * pi * step / 16)) for step in range(160, 164)], rel=0.2)


@pytest.fixture
def stack_in_aws(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Serve what the handler needs from an emulated account."""
    with mock_aws():
        settings = {
            "STACK_NAME": "markserve",
            "MODELS_TABLE": "models",
            "WINDOWS_TABLE": "windows",
            "CONTROL_TABLE": "control",
            "ARTEFACTS_BUCKET": "artefacts",
            "EVENT_BUS_NAME": "default",
            "METRICS_QUEUE_URL": boto3.client("sqs").create_queue(QueueName="metrics")["QueueUrl"],
            "HORIZON_STEPS": "4",
        }
        for name, value in settings.items():
            monkeypatch.setenv(f"MARKSERVE_{name}", value)
        boto3.client("s3").create_bucket(Bucket="artefacts")
        for table in ("models", "windows", "control"):
            boto3.client("dynamodb").create_table(
                TableName=table,
                KeySchema=[{"AttributeName": "pk", "KeyType": "HASH"}, {"AttributeName": "sk", "KeyType": "RANGE"}],
                AttributeDefinitions=[{"AttributeName": key, "AttributeType": "S"} for key in ("pk", "sk")],
                BillingMode="PAY_PER_REQUEST",
            )
        _forget_ports()
        wiring.models().put(a_model_record())
        yield
        _forget_ports()


def _forget_ports() -> None:
    for builder in vars(wiring).values():
        if hasattr(builder, "cache_clear"):
            builder.cache_clear()


@pytest.mark.usefixtures("stack_in_aws")
@pytest.mark.parametrize(
    ("event", "answer", "event_logged"),
    [
        (json.loads((EVENTS / "forecast_request.json").read_text()), "forecasts", []),
        (json.loads((EVENTS / "forecast_train.json").read_text()), "trained", ["forecaster_training_failed"]),
    ],
)
def test_forecast_handler_answers_by_model_when_it_is_invoked(event: dict[str, str], answer: str, event_logged: list[str]) -> None:
    context = SimpleNamespace(
        function_name="markserve-forecast",
        memory_limit_in_mb=1024,
        invoked_function_arn="arn:aws:lambda:::function",
        aws_request_id="r-1",
        get_remaining_time_in_millis=lambda: 900_000,
    )

    result = handler(event, context)  # type: ignore[arg-type]

    assert [entry["model"] for entry in json.loads(json.dumps(result))[answer]] == [MODEL]
    assert [decision.event for decision in wiring.control().decisions(since_s=0.0, until_s=1e11)] == event_logged
    assert (wiring.control().latest_forecast(MODEL) is not None) == (answer == "forecasts")


@pytest.mark.usefixtures("stack_in_aws")
def test_train_reports_each_model_and_fails_when_one_cannot_be_trained(capsys: pytest.CaptureFixture[str]) -> None:
    status = train()

    report = json.loads(capsys.readouterr().out)
    assert (status, report["model"], report["promoted"]) == (1, MODEL, False)
    assert report["reason"] == f"{MODEL}: 0 known steps of 60 s; training needs 8"
