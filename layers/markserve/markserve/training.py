"""Train forecasters on recorded windows, keep them with their evaluation cards, and find the promoted one.

Objects of a model `m`: `forecasters/m/<version>/weights.safetensors` and `card.json`, never overwritten, and
`forecasters/m/latest.json`, which names the promoted version and is written last: a training that fails at any point
leaves the old champion.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256

from markserve.core.backtest import (
    BACKTEST_ORIGINS_MIN,
    History,
    Rates,
    Verdict,
    backtest_origins,
    judge_challenger,
    pinball_by_step_rps,
    pinball_loss_rps,
)
from markserve.core.forecasting import SIMPLE_FORECASTERS, rolling_forecasts
from markserve.errors import InferenceFailed, InvalidRequest
from markserve.history import HISTORY_STEPS, RecordedSteps, StepGrid, recorded_steps
from markserve.messages import DecisionRecord, ForecasterCard, ForecasterPointer, decode, encode
from markserve.ports import BlobStore, ControlStore, LearnedForecaster, TrainedForecaster, WindowStore

TRAINING_STEPS_MAX = 14 * 1440
"""Two weeks of minutes: two of each weekday. Older windows have expired."""
TRAINING_HORIZONS_MIN = 2
"""History needed to train, in horizons: one to learn from and one to be judged on."""
JUDGED_SHARE = 0.25
JUDGED_STEPS_MAX = 1440
"""A day of minutes judges every hour once; holding out more would only age the training data."""
JUDGED_ORIGINS_MAX = 200
SEED = 0


def promoted_forecaster(model: str, *, blobs: BlobStore, grid: StepGrid) -> tuple[ForecasterCard, bytes] | None:
    """Return the promoted version's card and weights; None when none was promoted yet.

    Raises
    ------
    InvalidRequest
        If the pointer or the card does not decode, or what they name is missing.
    InferenceFailed
        If the weights are not those the card describes, or time was cut differently then.
    """
    try:
        pointer = blobs.get(_key(model, "latest.json"))
    except InvalidRequest:
        return None
    version = decode(pointer, ForecasterPointer).version
    card = decode(blobs.get(_key(model, version, "card.json")), ForecasterCard)
    weights = blobs.get(_key(model, version, "weights.safetensors"))
    if sha256(weights).hexdigest() != card.weights_sha256:
        raise InferenceFailed(f"weights of {card.forecaster} {version} are not those its card describes")
    trained_for = StepGrid(window_s=card.window_s, step_s=card.step_s, horizon_steps=card.horizon_steps)
    if trained_for != grid:
        raise InferenceFailed(f"{card.forecaster} {version} was trained for {trained_for}, not {grid}")
    return card, weights


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingReport:
    """What came of one model's training."""

    model: str
    promoted: bool
    version: str | None
    """None when no weights were made."""
    reason: str


def train_models(
    names: Sequence[str],
    *,
    windows: WindowStore,
    blobs: BlobStore,
    control: ControlStore,
    forecaster: LearnedForecaster,
    grid: StepGrid,
    now_s: float,
) -> list[TrainingReport]:
    """Train each model in turn; one that cannot be trained keeps its champion and does not stop the others."""
    reports: list[TrainingReport] = []
    for name in names:
        try:
            card = train_forecaster(name, windows=windows, blobs=blobs, control=control, forecaster=forecaster, grid=grid, now_s=now_s)
        except (InvalidRequest, InferenceFailed) as error:
            reports.append(TrainingReport(model=name, promoted=False, version=None, reason=str(error)))
            control.log(
                DecisionRecord(at_s=now_s, model=name, subject=forecaster.name, event="forecaster_training_failed", reason=str(error))
            )
        else:
            reports.append(TrainingReport(model=name, promoted=card.promoted, version=card.version, reason=card.reason))
    return reports


def train_forecaster(
    model: str,
    *,
    windows: WindowStore,
    blobs: BlobStore,
    control: ControlStore,
    forecaster: LearnedForecaster,
    grid: StepGrid,
    now_s: float,
) -> ForecasterCard:
    """Train on the model's recorded windows; promote only what beats every rival on steps kept from training.

    The rivals are the simple forecasters and the version promoted before. The weights that are judged are those that
    serve: refitting on the held-out steps would make a forecaster that nobody has judged.

    Raises
    ------
    InvalidRequest
        If too few steps are known, or they hold nothing to learn from.
    InferenceFailed
        If the training diverges.
    """
    recorded = recorded_steps(model, windows=windows, grid=grid, steps=TRAINING_STEPS_MAX, now_s=now_s)
    needed = TRAINING_HORIZONS_MIN * grid.horizon_steps
    if recorded.known < needed:
        raise InvalidRequest(f"{model}: {recorded.known} known steps of {grid.step_s:g} s; training needs {needed}")
    history = recorded.rates_rps
    judged = min(max(BACKTEST_ORIGINS_MIN, round(JUDGED_SHARE * len(history))), JUDGED_STEPS_MAX)
    judged_from = len(history) - judged
    trained = forecaster.train(history[:judged_from], horizon_steps=grid.horizon_steps, seed=SEED)

    made = _backtest(model, history, judged_from, trained.weights, blobs=blobs, forecaster=forecaster, grid=grid)
    losses = {name: loss for name, forecasts in made.items() if (loss := pinball_loss_rps(forecasts, history)) is not None}
    verdict = judge_challenger(forecaster.name, losses)
    card = _card(
        model, recorded, judged_from, trained, made=made, losses=losses, verdict=verdict, forecaster=forecaster, grid=grid, now_s=now_s
    )
    blobs.put(_key(model, card.version, "weights.safetensors"), trained.weights)
    blobs.put(_key(model, card.version, "card.json"), encode(card))
    if card.promoted:
        blobs.put(_key(model, "latest.json"), encode(ForecasterPointer(version=card.version)))
    control.log(
        DecisionRecord(
            at_s=now_s,
            model=model,
            subject=f"{card.forecaster}/{card.version}",
            event="forecaster_promoted" if card.promoted else "forecaster_not_promoted",
            reason=card.reason,
            detail={"steps": card.steps, "known_steps": card.known_steps, "epochs": card.epochs, **card.losses_rps},
        )
    )
    return card


def _backtest(
    model: str, history: History, judged_from: int, weights: bytes, *, blobs: BlobStore, forecaster: LearnedForecaster, grid: StepGrid
) -> dict[str, Mapping[int, Rates]]:
    """Forecasts of every rival at the same held-out origins."""
    origins = backtest_origins(judged_from, len(history), JUDGED_ORIGINS_MAX)
    made: dict[str, Mapping[int, Rates]] = {
        forecaster.name: forecaster.forecast(weights, history, origins=origins, horizon_steps=grid.horizon_steps)
    }
    # The simple ones see as far back as they do when they serve.
    start = max(0, judged_from - HISTORY_STEPS)
    for name, simple in SIMPLE_FORECASTERS.items():
        forecasts = rolling_forecasts(
            simple, history[start:], horizon_steps=grid.horizon_steps, window_s=grid.window_s, origins=[o - start for o in origins]
        )
        made[name] = {origin + start: rates for origin, rates in forecasts.items()}
    try:
        if (promoted := promoted_forecaster(model, blobs=blobs, grid=grid)) is not None:
            card, old_weights = promoted
            made[f"{card.forecaster} {card.version}"] = forecaster.forecast(
                old_weights, history, origins=origins, horizon_steps=grid.horizon_steps
            )
    except (InvalidRequest, InferenceFailed):
        pass  # An old version that cannot serve is no rival: every forecast already reports it as passed over.
    common = set.intersection(*(set(forecasts) for forecasts in made.values()))
    return {name: {origin: forecasts[origin] for origin in sorted(common)} for name, forecasts in made.items()}


def _card(
    model: str,
    recorded: RecordedSteps,
    judged_from: int,
    trained: TrainedForecaster,
    *,
    made: Mapping[str, Mapping[int, Rates]],
    losses: dict[str, float],
    verdict: Verdict,
    forecaster: LearnedForecaster,
    grid: StepGrid,
    now_s: float,
) -> ForecasterCard:
    digest = sha256(trained.weights).hexdigest()
    steps = len(recorded.rates_rps)
    return ForecasterCard(
        model=model,
        version=f"{now_s:.0f}-{digest[:8]}",
        forecaster=forecaster.name,
        trained_at_s=now_s,
        weights_sha256=digest,
        data_since_s=recorded.until_s - steps * grid.step_s,
        judged_since_s=recorded.until_s - (steps - judged_from) * grid.step_s,
        data_until_s=recorded.until_s,
        steps=steps,
        known_steps=recorded.known,
        step_s=grid.step_s,
        window_s=grid.window_s,
        horizon_steps=grid.horizon_steps,
        seed=SEED,
        epochs=trained.epochs,
        samples=trained.samples,
        parameters=trained.parameters,
        validation_loss=trained.validation_loss,
        losses_rps=losses,
        losses_by_step_rps={name: pinball_by_step_rps(forecasts, recorded.rates_rps) for name, forecasts in made.items()},
        promoted=verdict.wins,
        reason=f"{verdict.reason} over {len(made[forecaster.name])} held-out origins",
    )


def _key(model: str, *parts: str) -> str:
    return "/".join(("forecasters", model, *parts))
