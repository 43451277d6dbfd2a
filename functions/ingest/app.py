"""Metric ingestion: what the fronts saw becomes windows, and a burning objective becomes an event.

Triggered by the metrics queue. A report that cannot be read is returned as failed, so that the queue sets it aside in
its dead-letter queue, where an operator sees it; the others are not held up.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from aws_lambda_powertools.metrics import MetricUnit, single_metric
from aws_lambda_powertools.utilities.typing import LambdaContext

from markserve import wiring
from markserve.core.slo import SloAssessment, SloWindow, assess
from markserve.errors import InvalidRequest, MarkserveError, Transient
from markserve.fleet_summary import summarise_fleets
from markserve.messages import DecisionRecord, MetricsBatch, OutcomeCounts, SloAtRisk, decode, from_plain
from markserve.ports import ControlStore, EventPublisher, ParameterSource, WindowStore
from markserve.refusals import log_refusal, refusing
from markserve.telemetry import (
    ARRIVALS,
    BATCHES_APPLIED,
    BATCHES_REPEATED,
    BURN_RATE,
    MESSAGES_UNREADABLE,
    NAMESPACE,
    SLO_ATTAINMENT,
    WORST_BURN_RATE,
    logger,
    metrics,
    tracer,
)
from markserve.triggers import Delivery, QueueMessage

RETENTION_S = 15 * 86400.0
"""Two weeks of history to train on, and a day in case a training is late."""
SLIDING_STEPS, SHORT_STEPS, LEAD_STEPS = 5.0, 0.5, 1.0
"""The objective is judged over 5 planning steps (5 minutes), its burn rate over half a step, and the projection looks as far
ahead as the next planned cycle: an event is worth raising only for what cannot wait for that."""
ALERT_INTERVAL_S = 30.0
"""Least time between two events of a model: a plan takes seconds to act on, and a launch minutes."""
JUDGE_EVERY_S_PER_SHARD = 0.1
"""Least time between two judgements of a model in one environment, for each shard that a judgement reads. Below the second that
deliveries are apart in a small stack; in a large one many environments judge the same model, each reading all of its shards."""

_judged_at_s: dict[str, float] = {}
"""When this environment judged a model last."""
_summary_tried_at_s: dict[str, float] = {}
"""When this environment last tried to be the one that summarises a model's fleet."""


@dataclass(kw_only=True, slots=True)
class Ingested:
    """What came of one delivery."""

    failed_ids: list[str] = field(default_factory=list)
    applied: int = 0
    repeated: int = 0
    unreadable: int = 0
    arrivals: Counter[str] = field(default_factory=Counter)
    assessments: dict[str, SloAssessment] = field(default_factory=dict)
    models: set[str] = field(default_factory=set)
    """Models that the reports are about."""


def run(
    reports: Sequence[QueueMessage],
    *,
    windows: WindowStore,
    control: ControlStore,
    events: EventPublisher,
    parameters: ParameterSource,
    judged_at_s: MutableMapping[str, float],
    judge_every_s: float,
    window_s: float,
    step_s: float,
    now_s: float,
) -> Ingested:
    """Add each report's counts to their windows once, then judge the objective of every model they touch and that is due."""
    result = Ingested()
    read: list[tuple[QueueMessage, MetricsBatch]] = []
    for report in reports:
        try:
            read.append((report, decode(report.body, MetricsBatch)))
        except InvalidRequest as error:
            log_refusal("metrics report", error, message_id=report.message_id)
            result.unreadable += 1
            result.failed_ids.append(report.message_id)
    outcomes = windows.apply([batch for _, batch in read], expires_at_s=now_s + RETENTION_S)
    for (report, batch), is_new in zip(read, outcomes, strict=True):
        if isinstance(is_new, Transient):
            logger.warning("metrics not applied, to be retried", extra={"message_id": report.message_id, "reason": str(is_new)})
            result.failed_ids.append(report.message_id)
            continue
        result.applied += is_new
        result.repeated += not is_new
        # Repeated ones too: the first delivery may have ended before its models were judged.
        result.models.update(counts.model for counts in batch.outcomes)
        for arrival in batch.arrivals if is_new else ():
            result.arrivals[arrival.model] += arrival.count
    for model in sorted(name for name in result.models if now_s - judged_at_s.get(name, -math.inf) >= judge_every_s):
        try:
            result.assessments[model] = _judge(
                model, windows=windows, control=control, events=events, parameters=parameters, window_s=window_s, step_s=step_s, now_s=now_s
            )
            judged_at_s[model] = now_s
        except Transient as error:
            # The counts are safe, and the next report judges again: failing the messages would only repeat them.
            logger.warning("objective not judged", extra={"model": model, "reason": str(error)})
    return result


def _judge(
    model: str,
    *,
    windows: WindowStore,
    control: ControlStore,
    events: EventPublisher,
    parameters: ParameterSource,
    window_s: float,
    step_s: float,
    now_s: float,
) -> SloAssessment:
    """Judge one model's objective; raise the alarm when it is at risk, at most once per interval."""
    slo = parameters.get(model).slo
    sliding_s = SLIDING_STEPS * step_s
    outcomes = windows.outcomes(model, since_s=now_s - sliding_s, until_s=now_s + window_s)
    assessment = assess(
        [_slo_window(counts) for counts in outcomes],
        slo=slo,
        now_s=now_s,
        sliding_s=sliding_s,
        # Less than two windows would judge by what happens to be reported first.
        short_s=max(SHORT_STEPS * step_s, 2 * window_s),
        lead_s=LEAD_STEPS * step_s,
    )
    if assessment.at_risk and control.claim(f"slo-at-risk#{model}", now_s=now_s, for_s=min(ALERT_INTERVAL_S, step_s)):
        events.publish(
            SloAtRisk(
                model=model,
                at_s=now_s,
                attainment=assessment.attainment,
                objective=slo.percentile,
                requests=assessment.requests,
                reason=assessment.reason,
            )
        )
        control.log(
            DecisionRecord(
                at_s=now_s,
                model=model,
                subject=model,
                event="slo_at_risk",
                reason=assessment.reason,
                detail={"attainment": assessment.attainment, "burn_rate": assessment.burn_rate, "requests": assessment.requests},
            )
        )
    return assessment


def _slo_window(counts: OutcomeCounts) -> SloWindow:
    requests = counts.ok + counts.errors
    return SloWindow(at_s=counts.window_at_s, requests=requests, within_slo=min(counts.within_slo, requests))


@logger.inject_lambda_context
@tracer.capture_lambda_handler
@metrics.log_metrics
def handler(event: Mapping[str, Any], context: LambdaContext) -> dict[str, Any]:  # noqa: ARG001
    """Ingest one delivery of the metrics queue; return the messages to be delivered again."""
    with refusing("ingest event"):
        delivery = from_plain(event, Delivery)
    result = run(
        delivery.messages,
        windows=wiring.windows(),
        control=wiring.control(),
        events=wiring.events(),
        parameters=wiring.parameters(),
        judged_at_s=_judged_at_s,
        judge_every_s=JUDGE_EVERY_S_PER_SHARD * wiring.settings().shards,
        window_s=wiring.settings().window_s,
        step_s=wiring.settings().step_s,
        now_s=time.time(),
    )
    if wiring.settings().shards > 1:
        _summarise(result.models)
    logger.info("ingested", extra={"applied": result.applied, "repeated": result.repeated, "failed": len(result.failed_ids)})
    metrics.add_metric(name=BATCHES_APPLIED, unit=MetricUnit.Count, value=result.applied)
    metrics.add_metric(name=BATCHES_REPEATED, unit=MetricUnit.Count, value=result.repeated)
    metrics.add_metric(name=MESSAGES_UNREADABLE, unit=MetricUnit.Count, value=result.unreadable)
    for model, arrivals in result.arrivals.items():
        _emit(model, ARRIVALS, MetricUnit.Count, arrivals)
    for model, assessment in result.assessments.items():
        _emit(model, SLO_ATTAINMENT, MetricUnit.NoUnit, assessment.attainment)
        _emit(model, BURN_RATE, MetricUnit.NoUnit, assessment.burn_rate)
    if result.assessments:
        worst = max(assessment.long_burn_rate for assessment in result.assessments.values())
        metrics.add_metric(name=WORST_BURN_RATE, unit=MetricUnit.NoUnit, value=worst)
    return {"batchItemFailures": [{"itemIdentifier": message_id} for message_id in result.failed_ids]}


def _summarise(models: set[str]) -> None:
    try:
        summarise_fleets(
            models,
            instances=wiring.instances(),
            control=wiring.control(),
            tried_at_s=_summary_tried_at_s,
            heartbeat_timeout_s=wiring.settings().heartbeat_timeout_s,
            now_s=time.time(),
        )
    except MarkserveError as error:
        # The counts are safe, and fronts go by the workers themselves when a summary is old.
        logger.error("fleet not summarised", extra={"models": sorted(models), "reason": str(error)})


def _emit(model: str, name: str, unit: MetricUnit, value: float) -> None:
    """Write one metric of one model; Powertools' `single_metric` keeps only the first it is given."""
    with single_metric(name=name, unit=unit, value=value, namespace=NAMESPACE) as metric:
        metric.add_dimension(name="model", value=model)
        metric.add_dimension(name="service", value=wiring.settings().stack_name)
