"""Judge trained weights beside their rivals on the same held-out origins, and write down what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from hashlib import sha256

from markserve.core.backtest import History, Rates, Verdict, backtest_origins, pinball_by_step_rps, pinball_loss_rps
from markserve.core.forecasting import SIMPLE_FORECASTERS, rolling_forecasts
from markserve.errors import InferenceFailed, InvalidRequest
from markserve.history import RecordedSteps, StepGrid
from markserve.messages import ForecasterCard
from markserve.ports import LearnedForecaster, TrainedForecaster

JUDGED_ORIGINS_MAX = 200
PRETRAINED = "pretrained"


def shipped_name(forecaster: LearnedForecaster) -> str:
    """Name under which the shipped weights are judged."""
    return f"{forecaster.name} {PRETRAINED}"


def rival_forecasts(
    history: History,
    judged_from: int,
    contenders: Mapping[str, bytes],
    *,
    old: tuple[ForecasterCard, bytes] | None,
    forecaster: LearnedForecaster,
    grid: StepGrid,
    history_steps: int,
) -> dict[str, Mapping[int, Rates]]:
    """Forecasts of every rival at the same held-out origins: weights, the version promoted before, the simple forecasters.

    Parameters
    ----------
    history_steps
        How far back the simple ones see when they serve, and so here.
    """
    origins = backtest_origins(judged_from, len(history), JUDGED_ORIGINS_MAX)
    made: dict[str, Mapping[int, Rates]] = {
        name: forecaster.forecast(weights, history, origins=origins, horizon_steps=grid.horizon_steps)
        for name, weights in contenders.items()
    }
    start = max(0, judged_from - history_steps)
    for name, simple in SIMPLE_FORECASTERS.items():
        forecasts = rolling_forecasts(
            simple, history[start:], horizon_steps=grid.horizon_steps, window_s=grid.window_s, origins=[o - start for o in origins]
        )
        made[name] = {origin + start: rates for origin, rates in forecasts.items()}
    if old is not None:
        card, weights = old
        with suppress(InvalidRequest, InferenceFailed):  # weights of an earlier network: every forecast reports them as passed over
            made[f"{card.forecaster} {card.version}"] = forecaster.forecast(
                weights, history, origins=origins, horizon_steps=grid.horizon_steps
            )
    common = set.intersection(*(set(forecasts) for forecasts in made.values()))
    return {name: {origin: forecasts[origin] for origin in sorted(common)} for name, forecasts in made.items()}


def evaluation_card(
    model: str,
    recorded: RecordedSteps,
    judged_from: int,
    trained: TrainedForecaster,
    *,
    made: Mapping[str, Mapping[int, Rates]],
    verdict: Verdict,
    forecaster: LearnedForecaster,
    grid: StepGrid,
    seed: int,
    started_from: str,
    now_s: float,
) -> ForecasterCard:
    """Write the card of a version: data, losses by forecaster and step ahead, and the verdict."""
    digest = sha256(trained.weights).hexdigest()
    history = recorded.rates_rps
    return ForecasterCard(
        model=model,
        version=f"{now_s:.0f}-{digest[:8]}",
        forecaster=forecaster.name,
        trained_at_s=now_s,
        weights_sha256=digest,
        data_since_s=recorded.until_s - len(history) * grid.step_s,
        judged_since_s=recorded.until_s - (len(history) - judged_from) * grid.step_s,
        data_until_s=recorded.until_s,
        steps=len(history),
        known_steps=recorded.known,
        step_s=grid.step_s,
        window_s=grid.window_s,
        horizon_steps=grid.horizon_steps,
        seed=seed,
        epochs=trained.epochs,
        samples=trained.samples,
        parameters=trained.parameters,
        validation_loss=trained.validation_loss,
        losses_rps={name: loss for name, forecasts in made.items() if (loss := pinball_loss_rps(forecasts, history)) is not None},
        losses_by_step_rps={name: pinball_by_step_rps(forecasts, history) for name, forecasts in made.items()},
        promoted=verdict.wins,
        reason=f"{verdict.reason} over {len(made[forecaster.name])} held-out origins",
        started_from=started_from,
    )
