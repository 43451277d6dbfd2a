"""Forecasting: recorded windows become the forecast that the planner buys for; also trains the forecaster.

Invoked by the control cycle with its trigger, or by hand with `{"action": "train"}` (all models) or
`{"action": "train", "model": "digits"}`. Training is never automatic here: a control cycle must not wait for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from aws_lambda_powertools.metrics import MetricUnit
from aws_lambda_powertools.utilities.typing import LambdaContext

from markserve import wiring
from markserve.core.backtest import ForecastChoice, prefer_trained
from markserve.core.forecasting import forecast_simply
from markserve.core.types import Forecast
from markserve.errors import DependencyUnavailable, InferenceFailed, InvalidRequest, Transient
from markserve.history import HISTORY_STEPS, RecordedSteps, StepGrid, recorded_steps
from markserve.messages import ForecastRecord, MetricsBatch
from markserve.ports import BlobStore, ControlStore, LearnedForecaster, MetricsSink, WindowStore
from markserve.telemetry import FORECASTERS_TRAINED, FORECASTS_PRODUCED, logger, metrics, tracer
from markserve.training import promoted_forecaster, train_models


@dataclass(frozen=True, kw_only=True, slots=True)
class ForecastCommand:
    """What to do, for one model or for all."""

    action: Literal["forecast", "train"] = "forecast"
    model: str | None = None


def parse(event: Mapping[str, Any]) -> ForecastCommand:
    """Read the command; an event without an action, such as the control cycle's, asks for forecasts.

    Raises
    ------
    InvalidRequest
        Naming the action that is not known.
    """
    action, model = event.get("action", "forecast"), event.get("model")
    if action not in ("forecast", "train"):
        raise InvalidRequest(f"{action!r} is neither forecast nor train", field="action")
    if model is not None and not isinstance(model, str):
        raise InvalidRequest(f"{model!r} is not a model's name", field="model")
    return ForecastCommand(action=action, model=model)


def run(
    names: Sequence[str],
    *,
    windows: WindowStore,
    control: ControlStore,
    blobs: BlobStore,
    metrics_sink: MetricsSink,
    forecaster: Callable[[], LearnedForecaster],
    grid: StepGrid,
    now_s: float,
) -> list[ForecastRecord]:
    """Forecast each model's load and store it; one model's trouble does not keep the others from theirs.

    Parameters
    ----------
    forecaster
        Builds the trained forecaster; called only once some model has a promoted version, as loading it takes seconds.

    Raises
    ------
    DependencyUnavailable
        After all models were tried, naming those that have no new forecast.
    """
    try:
        metrics_sink.send(MetricsBatch(batch_id=f"tick-{now_s:.6f}", sent_at_s=now_s, tick_at_s=now_s))
    except Transient as error:
        # Without this tick quiet windows will count as missing, which is right: the pipeline is not alive.
        logger.warning("liveness tick not sent", extra={"reason": str(error)})
    records: list[ForecastRecord] = []
    failures: list[str] = []
    for name in names:
        try:
            recorded = recorded_steps(name, windows=windows, grid=grid, steps=HISTORY_STEPS, now_s=now_s)
            choice = _choose(name, recorded, blobs=blobs, forecaster=forecaster, grid=grid)
            forecast = Forecast(
                model=name,
                origin_at_s=recorded.until_s,
                step_s=grid.step_s,
                rates_rps=choice.rates_rps,
                forecaster=choice.forecaster,
                reason=choice.reason,
            )
            record = ForecastRecord.from_forecast(forecast, dict(choice.losses_rps))
            control.put_forecast(record)
        except Transient as error:
            failures.append(f"{name}: {error}")
        else:
            records.append(record)
            logger.info("forecast", extra=_summary(record))
    if failures:
        raise DependencyUnavailable(f"no new forecast of {'; '.join(failures)}")
    return records


def _choose(
    name: str, recorded: RecordedSteps, *, blobs: BlobStore, forecaster: Callable[[], LearnedForecaster], grid: StepGrid
) -> ForecastChoice:
    """Choose the trained forecaster while it is promoted and goes on winning, else the best simple one."""
    history = recorded.rates_rps
    simple = forecast_simply(history, horizon_steps=grid.horizon_steps, window_s=grid.window_s)
    if not simple.backtest:
        return simple
    try:
        promoted = promoted_forecaster(name, blobs=blobs, grid=grid)
        if promoted is None:
            return simple
        card, weights = promoted
        origins = sorted({len(history), *(origin for made in simple.backtest.values() for origin in made)})
        forecasts = forecaster().forecast(weights, history, origins=origins, horizon_steps=grid.horizon_steps)
    except (InvalidRequest, InferenceFailed, Transient) as error:
        logger.warning("trained forecaster passed over", extra={"model": name, "reason": str(error)})
        return replace(simple, reason=f"{simple.reason}; the trained forecaster was passed over: {error}")
    return prefer_trained(
        simple,
        history,
        name=card.forecaster,
        forecasts=forecasts,
        promotion=f"{card.reason} ({card.forecaster} {card.version})",
        unseen_from=len(history) - max(0, round((recorded.until_s - card.data_until_s) // grid.step_s)),
        horizon_steps=grid.horizon_steps,
    )


def _summary(record: ForecastRecord) -> dict[str, Any]:
    """Return what a log line, and the state machine's history, should say of a forecast."""
    return {
        "model": record.model,
        "forecaster": record.forecaster,
        "reason": record.reason,
        "next_step_rps": {quantile: round(rates[0], 3) for quantile, rates in record.rates_rps.items()},
        "highest_rps": {quantile: round(max(rates), 3) for quantile, rates in record.rates_rps.items()},
    }


@logger.inject_lambda_context
@tracer.capture_lambda_handler
@metrics.log_metrics
def handler(event: Mapping[str, Any], context: LambdaContext) -> dict[str, Any]:  # noqa: ARG001
    """Forecast or train, as the event says; return a summary for each model."""
    command = parse(event)
    names = [command.model] if command.model else [record.model for record in wiring.models().list()]
    grid = StepGrid.of(wiring.settings())
    if command.action == "train":
        reports = train_models(
            names,
            windows=wiring.windows(),
            blobs=wiring.blobs(),
            control=wiring.control(),
            forecaster=wiring.learned_forecaster(),
            grid=grid,
            now_s=time.time(),
        )
        metrics.add_metric(name=FORECASTERS_TRAINED, unit=MetricUnit.Count, value=sum(report.version is not None for report in reports))
        for report in reports:
            logger.info("training", extra=asdict(report))
        return {"trained": [asdict(report) for report in reports]}
    records = run(
        names,
        windows=wiring.windows(),
        control=wiring.control(),
        blobs=wiring.blobs(),
        metrics_sink=wiring.metrics_sink(),
        forecaster=wiring.learned_forecaster,
        grid=grid,
        now_s=time.time(),
    )
    metrics.add_metric(name=FORECASTS_PRODUCED, unit=MetricUnit.Count, value=len(records))
    return {"forecasts": [_summary(record) for record in records]}
