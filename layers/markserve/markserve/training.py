"""Train forecasters on recorded windows, keep them with their evaluation cards, and find the promoted one.

Objects of a model `m`: `forecasters/m/<version>/weights.safetensors` and `card.json`, never overwritten, and
`forecasters/m/latest.json`, which names the promoted version and is written last: a training that fails at any point
leaves the old champion.

A run survives its process: `forecasters/m/run.json` says when it began, and its checkpoint holds the state after each
epoch. The next invocation reads the windows as of that instant and goes on. Two at once do the same work twice and agree.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256

from markserve.archive import StepArchive, recorded_history
from markserve.core.backtest import BACKTEST_ORIGINS_MIN, judge_challenger, pinball_loss_rps
from markserve.errors import InferenceFailed, InvalidRequest
from markserve.history import HISTORY_STEPS, StepGrid
from markserve.messages import DecisionRecord, ForecasterCard, ForecasterPointer, ForecasterRun, TrainingPaused, decode, encode
from markserve.ports import BlobStore, ControlStore, EventPublisher, LearnedForecaster, TrainingRun, WindowStore
from markserve.pretrained import load_pretrained
from markserve.training_judging import PRETRAINED, evaluation_card, rival_forecasts, shipped_name

TRAINING_STEPS_MAX = 14 * 1440
"""Two weeks of minutes: two of each weekday. Older windows have expired."""
TRAINING_HORIZONS_MIN = 2
"""History needed to train, in horizons: one to learn from and one to be judged on."""
JUDGED_SHARE = 0.25
JUDGED_STEPS_MAX = 1440
"""A day of minutes judges every hour once; holding out more would only age the training data."""
SEED = 0
RUN_AGE_MAX_S = 86_400.0
"""An unfinished run older than this is begun anew: what it would learn is no longer the load."""
RESERVED_S = 60.0
"""Kept for judging and storing what was trained: on two weeks of minutes both take seconds, from a cold start more."""


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


def serving_weights(model: str, *, blobs: BlobStore, grid: StepGrid) -> tuple[str, bytes]:
    """Return name and weights of the trained forecaster to run beside the simple ones: the promoted, else the shipped.

    The shipped weights need no history to have been trained on, so a trained forecaster can compete from the first hour.

    Raises
    ------
    InvalidRequest, InferenceFailed
        As `promoted_forecaster`, or if the shipped weights are not those of their card.
    """
    promoted = promoted_forecaster(model, blobs=blobs, grid=grid)
    if promoted is not None:
        card, weights = promoted
        return f"{card.forecaster} {card.version}", weights
    shipped, weights = load_pretrained()
    return f"{shipped.forecaster} {shipped.version}", weights


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingReport:
    """What came of one model's training."""

    model: str
    promoted: bool
    version: str | None
    """None when no weights were made."""
    reason: str
    paused: bool = False
    """Whether the run goes on with the next invocation."""


@dataclass(kw_only=True, slots=True)
class Trainer:
    """What trainings need, and how much time they have."""

    windows: WindowStore
    blobs: BlobStore
    control: ControlStore
    forecaster: LearnedForecaster
    grid: StepGrid
    time_left_s: Callable[[], float]
    events: EventPublisher | None
    worked: bool = False
    """Whether anything was stored. An invocation that gets nowhere must not ask for the next one."""

    def train_models(self, names: Sequence[str], now_s: float) -> list[TrainingReport]:
        """Train each model: first the unfinished, then whose last training is longest ago, so that none starves."""
        runs = {name: self._run(name) for name in names}
        due = sorted(names, key=lambda name: -1.0 if (run := runs[name]) and not run.finished else run.begun_at_s if run else 0.0)
        reports = [self._report(name, runs[name], now_s) for name in due]
        if self.events is not None and self.worked:
            for report in reports:
                if report.paused:
                    self.events.publish(TrainingPaused(model=report.model, at_s=now_s, reason=report.reason))
        return reports

    def _report(self, model: str, run: ForecasterRun | None, now_s: float) -> TrainingReport:
        if self.time_left_s() <= RESERVED_S:
            return TrainingReport(
                model=model, promoted=False, version=None, reason="no time left; the next invocation trains it", paused=True
            )
        resumed = run is not None and not run.finished and now_s - run.begun_at_s <= RUN_AGE_MAX_S
        run = run if run is not None and resumed else ForecasterRun(begun_at_s=now_s, seed=SEED)
        try:
            card = self.train(model, run, now_s)
        except (InvalidRequest, InferenceFailed) as error:
            if resumed:  # what stopped it once would stop it again
                self._finish(model, run)
            failed = DecisionRecord(
                at_s=now_s, model=model, subject=self.forecaster.name, event="forecaster_training_failed", reason=str(error)
            )
            self.control.log(failed)
            return TrainingReport(model=model, promoted=False, version=None, reason=str(error))
        if card is None:
            reason = f"time is up: the run begun at {run.begun_at_s:.0f} goes on with the next invocation"
            return TrainingReport(model=model, promoted=False, version=None, reason=reason, paused=True)
        self._finish(model, run)
        return TrainingReport(model=model, promoted=card.promoted, version=card.version, reason=card.reason)

    def train(self, model: str, run: ForecasterRun, now_s: float) -> ForecasterCard | None:
        """Train on the model's recorded windows; promote only what beats every rival on steps kept from training.

        Every run refines the shipped weights, never the promoted ones: those have seen the steps that decide when to stop.
        The rivals are the simple forecasters and the version promoted before. Where refining did not help, the shipped
        weights themselves stand for promotion. The weights that are judged are those that serve: refitting on the held-out
        steps would make a forecaster that nobody has judged.

        Returns
        -------
        The card; None when time was up first.

        Raises
        ------
        InvalidRequest
            If too few steps are known, or they hold nothing to learn from.
        InferenceFailed
            If the training diverges.
        """
        grid, forecaster = self.grid, self.forecaster
        archive = StepArchive(blobs=self.blobs, model=model, step_s=grid.step_s)
        recorded = recorded_history(archive, windows=self.windows, grid=grid, steps=TRAINING_STEPS_MAX, now_s=run.begun_at_s, append=False)
        needed = TRAINING_HORIZONS_MIN * grid.horizon_steps
        if recorded.known < needed:
            raise InvalidRequest(f"{model}: {recorded.known} known steps of {grid.step_s:g} s; training needs {needed}")
        history = recorded.rates_rps
        judged = min(max(BACKTEST_ORIGINS_MIN, round(JUDGED_SHARE * len(history))), JUDGED_STEPS_MAX)
        judged_from = len(history) - judged
        shipped = self._shipped()
        trained = forecaster.train(
            history[:judged_from],
            horizon_steps=grid.horizon_steps,
            seed=run.seed,
            training=TrainingRun(
                start=shipped,
                checkpoint=self._checkpoint(model, run),
                save=lambda state: self._save(model, run, state),
                keep_going=lambda: self.time_left_s() > RESERVED_S,
            ),
        )
        if trained is None:
            return None
        contenders = {forecaster.name: trained.weights} | ({} if shipped is None else {shipped_name(forecaster): shipped})
        made = rival_forecasts(
            history, judged_from, contenders, old=self._promoted(model), forecaster=forecaster, grid=grid, history_steps=HISTORY_STEPS
        )
        losses = {name: loss for name, forecasts in made.items() if (loss := pinball_loss_rps(forecasts, history)) is not None}
        as_shipped = losses.pop(shipped_name(forecaster), math.inf)
        if shipped is not None and as_shipped < losses.get(forecaster.name, math.inf):
            trained = replace(trained, weights=shipped, epochs=0)
            made[forecaster.name], losses[forecaster.name] = made[shipped_name(forecaster)], as_shipped
        card = evaluation_card(
            model,
            recorded,
            judged_from,
            trained,
            made=made,
            verdict=judge_challenger(forecaster.name, losses),
            forecaster=forecaster,
            grid=grid,
            seed=run.seed,
            started_from="random" if shipped is None else PRETRAINED,
            now_s=now_s,
        )
        self._store(model, card, trained.weights)
        return card

    def _store(self, model: str, card: ForecasterCard, weights: bytes) -> None:
        self.worked = True
        self.blobs.put(_key(model, card.version, "weights.safetensors"), weights)
        self.blobs.put(_key(model, card.version, "card.json"), encode(card))
        if card.promoted:
            self.blobs.put(_key(model, "latest.json"), encode(ForecasterPointer(version=card.version)))
        self.control.log(
            DecisionRecord(
                at_s=card.trained_at_s,
                model=model,
                subject=f"{card.forecaster}/{card.version}",
                event="forecaster_promoted" if card.promoted else "forecaster_not_promoted",
                reason=card.reason,
                detail={"steps": card.steps, "known_steps": card.known_steps, "epochs": card.epochs, **card.losses_rps},
            )
        )

    def _shipped(self) -> bytes | None:
        """Return the shipped weights, if they are this forecaster's."""
        card, weights = load_pretrained()
        return weights if card.forecaster == self.forecaster.name else None

    def _promoted(self, model: str) -> tuple[ForecasterCard, bytes] | None:
        """Return the version promoted before; one that cannot serve is no rival: every forecast already reports it as passed over."""
        try:
            return promoted_forecaster(model, blobs=self.blobs, grid=self.grid)
        except (InvalidRequest, InferenceFailed):
            return None

    def _run(self, model: str) -> ForecasterRun | None:
        try:
            return decode(self.blobs.get(_key(model, "run.json")), ForecasterRun)
        except InvalidRequest:
            return None

    def _checkpoint(self, model: str, run: ForecasterRun) -> bytes | None:
        try:
            return self.blobs.get(_checkpoint_key(model, run))
        except InvalidRequest:
            return None

    def _save(self, model: str, run: ForecasterRun, state: bytes) -> None:
        self.worked = True
        self.blobs.put(_checkpoint_key(model, run), state)
        self.blobs.put(_key(model, "run.json"), encode(run))  # after what it promises

    def _finish(self, model: str, run: ForecasterRun) -> None:
        self.blobs.put(_key(model, "run.json"), encode(ForecasterRun(begun_at_s=run.begun_at_s, seed=run.seed, finished=True)))


def train_models(
    names: Sequence[str],
    *,
    windows: WindowStore,
    blobs: BlobStore,
    control: ControlStore,
    forecaster: LearnedForecaster,
    grid: StepGrid,
    now_s: float,
    time_left_s: Callable[[], float] = lambda: math.inf,
    events: EventPublisher | None = None,
) -> list[TrainingReport]:
    """Train each model in turn; one that cannot be trained keeps its champion and does not stop the others.

    Parameters
    ----------
    time_left_s
        Seconds until this process is ended. What is not finished by then goes on with the next invocation.
    events
        Where to ask for that invocation.
    """
    trainer = Trainer(
        windows=windows, blobs=blobs, control=control, forecaster=forecaster, grid=grid, time_left_s=time_left_s, events=events
    )
    return trainer.train_models(names, now_s)


def _key(model: str, *parts: str) -> str:
    return "/".join(("forecasters", model, *parts))


def _checkpoint_key(model: str, run: ForecasterRun) -> str:
    return _key(model, "runs", f"{run.begun_at_s:.0f}", "checkpoint.safetensors")
