"""Forecasting: recorded windows become the forecast that the planner buys for; also trains the forecaster.

Invoked by the control cycle with its trigger, or by hand with `{"action": "train"}` (all models) or
`{"action": "train", "model": "digits"}`. Training is never automatic here: a control cycle must not wait for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal

from aws_lambda_powertools.metrics import MetricUnit
from aws_lambda_powertools.utilities.typing import LambdaContext

from markserve import wiring
from markserve.errors import DependencyUnavailable, Transient
from markserve.forecast_cycle import ForecastCycle, Forecasted
from markserve.history import StepGrid
from markserve.messages import ForecastRecord, Message, MetricsBatch, Name, from_plain
from markserve.ports import BlobStore, ControlStore, EventPublisher, LearnedForecaster, MetricsSink, WindowStore
from markserve.refusals import refusing
from markserve.telemetry import (
    FORECAST_CALIBRATION_ERROR,
    FORECAST_HISTORY_AGE,
    FORECASTERS_TRAINED,
    FORECASTS_PRODUCED,
    logger,
    metrics,
    tracer,
)
from markserve.training import train_models

DAYS: dict[str, bytes] = {}
"""Archived days that are over, kept by this environment: 6 kB per model and day."""


class ForecastCommand(Message, frozen=True, kw_only=True):
    """What to do, for one model or for all."""

    action: Literal["forecast", "train"] = "forecast"
    model: Name | None = None


def parse(event: object) -> ForecastCommand:
    """Read the command; an event without an action, such as the control cycle's, asks for forecasts.

    Raises
    ------
    InvalidRequest
        Naming what is wrong with the event.
    """
    return from_plain(event, ForecastCommand)


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
    events: EventPublisher | None = None,
) -> list[ForecastRecord]:
    """Forecast each model's load and store it; one model's trouble does not keep the others from theirs.

    Parameters
    ----------
    forecaster
        Builds the trained forecaster, which takes a second the first time.
    events
        Where to say that a forecaster has drifted.

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
    cycle = ForecastCycle(windows=windows, control=control, blobs=blobs, forecaster=forecaster, grid=grid, cache=DAYS, events=events)
    records: list[ForecastRecord] = []
    failures: list[str] = []
    for name in names:
        try:
            made = cycle.run(name, now_s)
        except Transient as error:
            failures.append(f"{name}: {error}")
        else:
            records.append(made.record)
            _measure(made)
            logger.info("forecast", extra=_summary(made.record))
    if failures:
        raise DependencyUnavailable(f"no new forecast of {'; '.join(failures)}")
    return records


def _measure(made: Forecasted) -> None:
    """Tell the alarms how old the newest known step is and how far the quantiles are off."""
    if made.history_age_s is not None:
        metrics.add_metric(name=FORECAST_HISTORY_AGE, unit=MetricUnit.Seconds, value=made.history_age_s)
    if made.record.calibration_error is not None:
        metrics.add_metric(name=FORECAST_CALIBRATION_ERROR, unit=MetricUnit.Percent, value=100 * made.record.calibration_error)


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
def handler(event: Mapping[str, Any], context: LambdaContext) -> dict[str, Any]:
    """Forecast or train, as the event says; return a summary for each model."""
    with refusing("forecast event"):
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
            time_left_s=lambda: context.get_remaining_time_in_millis() / 1000,
            events=wiring.events(),
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
        events=wiring.events(),
    )
    metrics.add_metric(name=FORECASTS_PRODUCED, unit=MetricUnit.Count, value=len(records))
    return {"forecasts": [_summary(record) for record in records]}
