"""Instance lifecycle: carries out one action of a plan, follows one event about an instance, or takes a measurement's step.

Actions come from the control cycle's Map state, events from EventBridge: EC2's own and those of our workers. Both may
come twice and in any order, so every write is conditional or idempotent by `action_id`. Measurements come from the state machine
`characterize`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from aws_lambda_powertools.metrics import MetricUnit
from aws_lambda_powertools.utilities.typing import LambdaContext

from markserve import wiring
from markserve.lifecycle_actions import carry_out
from markserve.lifecycle_context import LifecycleContext, Outcome
from markserve.lifecycle_events import Notification, follow
from markserve.measuring import Bench, take_step
from markserve.messages import Action, MeasurementStep, from_plain
from markserve.ports import ControlStore, EventPublisher, Fleet, InstanceRegistry, ParameterSource, SpilloverInvoker
from markserve.refusals import refusing
from markserve.telemetry import (
    CAPACITY_UNAVAILABLE,
    INSTANCES_FAILED,
    INSTANCES_INTERRUPTED,
    INSTANCES_LAUNCHED,
    INSTANCES_TERMINATED,
    logger,
    metrics,
    tracer,
)

METRICS: Mapping[str, Sequence[str]] = {
    INSTANCES_LAUNCHED: ("instances_launched", "measurement_started"),
    INSTANCES_TERMINATED: ("instance_terminated", "instance_failed", "measurement_ended"),
    INSTANCES_FAILED: ("instance_failed",),
    INSTANCES_INTERRUPTED: ("instance_interrupted",),
    CAPACITY_UNAVAILABLE: ("capacity_unavailable",),
}
"""Which outcomes each metric counts."""


def parse(event: object) -> Action | MeasurementStep | Notification:
    """Read what is asked.

    Raises
    ------
    InvalidRequest
        If the event is neither an action, nor a measurement's step, nor an EventBridge event.
    """
    if isinstance(event, Mapping) and "measurement" in event:
        step: MeasurementStep = from_plain(event, MeasurementStep)  # type: ignore[arg-type]  # as below
        return step
    if isinstance(event, Mapping) and "action" in event:
        action: Action = from_plain(event, Action)  # type: ignore[arg-type]  # a union is no type, though it converts
        return action
    return from_plain(event, Notification)


def run(
    command: Action | MeasurementStep | Notification,
    *,
    bench: Callable[[], Bench] = lambda: Bench(models=wiring.models(), blobs=wiring.blobs()),
    instances: InstanceRegistry,
    control: ControlStore,
    fleet: Fleet,
    spillover: SpilloverInvoker,
    events: EventPublisher,
    parameters: ParameterSource,
    now_s: float,
) -> Outcome:
    """Carry out an action or a step once, or follow an event; an unknown event is a logged no-op."""
    context = LifecycleContext(
        instances=instances, control=control, fleet=fleet, spillover=spillover, events=events, parameters=parameters, now_s=now_s
    )
    if isinstance(command, Notification):
        return follow(command, context)
    return take_step(command, context, bench()) if isinstance(command, MeasurementStep) else carry_out(command, context)


@logger.inject_lambda_context
@tracer.capture_lambda_handler
@metrics.log_metrics
def handler(event: Mapping[str, Any], context: LambdaContext) -> dict[str, Any]:  # noqa: ARG001
    """Carry out one action, step or event; return what was done."""
    with refusing("lifecycle event"):
        outcome = run(
            parse(event),
            instances=wiring.instances(),
            control=wiring.control(),
            fleet=wiring.fleet(),
            spillover=wiring.spillover(),
            events=wiring.events(),
            parameters=wiring.parameters(),
            now_s=time.time(),
        )
    logger.info("done", extra={"outcome": outcome.event, "reason": outcome.reason})
    for name, counted in METRICS.items():
        # Zeros too: a metric without data points looks like a function that does not run.
        metrics.add_metric(name=name, unit=MetricUnit.Count, value=outcome.count if outcome.event in counted else 0)
    return {"outcome": outcome.event, "reason": outcome.reason, "count": outcome.count}
