"""Planning: forecasts, fleet and prices become one plan for all models, and the actions that carry it out.

Invoked by the control cycle with `{"trigger": "schedule" | "manual" | "slo_at_risk" | "interruption"}`; returns the
actions for its Map state. Of two plans made at once the later is dropped. Nothing is lost with one of the clock: the other
is as fresh. The rest were asked for because something happened, which the other may not have seen: they fail with
`StaleWrite`, and the state machine plans again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from aws_lambda_powertools.metrics import MetricUnit, single_metric
from aws_lambda_powertools.utilities.typing import LambdaContext

from markserve import wiring
from markserve.canary_watch import roll_back_worse_canaries
from markserve.catalog import load_catalog
from markserve.core.catalog import offerings
from markserve.core.lifecycle import Decision, Step, apply, measured_launch_overhead_s, reconcile
from markserve.core.planning import CapacityPlan, ModelDemand, Trigger, plan_capacity
from markserve.core.quarantine import quarantine
from markserve.core.types import Forecast, Instance, InstanceState, Offering
from markserve.errors import MarkserveError, StaleWrite, Transient
from markserve.history import SHAPE_STEPS, StepGrid, recorded_steps
from markserve.messages import DecisionRecord, ForecastRecord, Message, Name, PlanRecord, from_plain, to_plain
from markserve.plan_inputs import model_demand
from markserve.plan_records import plan_actions, plan_record
from markserve.ports import ControlStore, Fleet, InstanceRegistry, ModelStore, ParameterSource, WindowStore, WorkQueue
from markserve.refusals import refusing
from markserve.settings import Settings
from markserve.telemetry import (
    CANARIES_ROLLED_BACK,
    CAPACITY,
    DEMAND,
    HOURLY_COST,
    HOURLY_COST_SHARE,
    INSTANCES_ORPHANED,
    INSTANCES_SERVING,
    INSTANCES_SHARE,
    INSTANCES_STUCK,
    MODELS_QUARANTINED,
    NAMESPACE,
    PLANS_STALE,
    PLANS_STORED,
    logger,
    metrics,
    tracer,
)

MEASURED_STEPS = 2
"""Steps whose highest rate counts as the measured rate: one quiet minute must not look like the end of the load."""
ORPHAN_MEMORY_S = 600.0
"""How long a suspected orphan is remembered: several cycles, so that a missed one does not start over."""
QUARANTINE_REMINDER_S = 300.0
"""How often the decision log repeats that a model is quarantined."""
AT_RISK_MEMORY_S = 60.0
"""Age up to which an alarm of the objective explains an urgent plan."""


class PlanCommand(Message, frozen=True, kw_only=True):
    """Why to plan; `model` names the one at risk, where the caller knows it."""

    trigger: Literal["schedule", "manual", "slo_at_risk", "interruption"] = "schedule"
    model: Name | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Planned:
    """What came of one cycle."""

    record: PlanRecord
    serving: int = 0
    stuck: int = 0
    orphans: int = 0
    quarantined: int = 0
    cost_share: float = 0.0
    """Of the ceiling on the price per hour; the ceiling counts as reached when it is 0."""
    instances_share: float = 0.0
    """Of the ceiling on instances, launches of this plan included."""


def parse(event: object) -> PlanCommand:
    """Read the command.

    Raises
    ------
    InvalidRequest
        Naming what is wrong with the event.
    """
    return from_plain(event, PlanCommand)


def run(
    command: PlanCommand,
    *,
    models: ModelStore,
    control: ControlStore,
    windows: WindowStore,
    instances: InstanceRegistry,
    fleet: Fleet,
    parameters: ParameterSource,
    work_queue: Callable[[str], WorkQueue],
    settings: Settings,
    now_s: float,
) -> Planned:
    """Reconcile the registry with the cloud, plan, and store the plan with the actions it asks for.

    Raises
    ------
    StaleWrite
        If another plan was stored first.
    """
    latest = control.latest_plan()
    version = latest.version + 1 if latest else 1
    # The instant keeps ids unique when a stack of the same name is made anew while instances of the old one linger.
    plan_id = f"plan-{version:06d}-{int(now_s):08x}"

    # First of all: what is wrong with a version does not wait for a plan to win its race.
    rolled_back = roll_back_worse_canaries(
        [record.model for record in models.list()],
        models=models,
        windows=windows,
        control=control,
        parameters=parameters,
        window_s=settings.window_s,
        now_s=now_s,
    )
    if rolled_back:
        # At once: if what follows fails, it is tried again, and then there is no canary left to tell of.
        with single_metric(name=CANARIES_ROLLED_BACK, unit=MetricUnit.Count, value=len(rolled_back), namespace=NAMESPACE) as metric:
            metric.add_dimension(name="service", value=settings.stack_name)
    registered = instances.list()
    decisions = reconcile(
        instances=registered,
        observed=fleet.describe(),
        now_s=now_s,
        heartbeat_timeout_s=settings.heartbeat_timeout_s,
        suspected_orphans={name.removeprefix("orphan/") for name in control.claims("orphan/", now_s=now_s)},
    )
    current = apply(_recorded(decisions, registered, instances, now_s), registered, now_s=now_s)
    tunables = parameters.get()
    plan = plan_capacity(
        demands=_demands(command, models, control, windows, parameters, work_queue, current, settings, now_s),
        instances=current,
        offerings=_offerings(fleet, settings, measured_launch_overhead_s(registered, default_s=settings.launch_overhead_s)),
        tunables=tunables,
        unavailable={name.removeprefix("unavailable/") for name in control.claims("unavailable/", now_s=now_s)},
        now_s=now_s,
        plan_id=plan_id,
        trigger=Trigger(command.trigger),
        default_step_s=settings.step_s,
        default_steps=settings.horizon_steps,
    )
    record = plan_record(plan, version, plan_actions(plan, decisions))
    control.put_plan(record)
    _store_evidence(plan, current, registered, instances)
    _log(plan, decisions, control, now_s)
    known = {i.instance_id for i in registered}
    paid_for = sum(i.is_alive for i in current) + sum(launch.count for launch in plan.launches)
    return Planned(
        record=record,
        serving=sum(i.state is InstanceState.SERVING for i in current),
        stuck=sum(d.step is Step.TERMINATE and d.instance_id in known for d in decisions),
        orphans=sum(d.instance_id not in known for d in decisions),
        quarantined=sum(model.quarantined is not None for model in plan.models),
        cost_share=_share(record.hourly_cost_usd, tunables.max_hourly_cost_usd),
        instances_share=_share(paid_for, tunables.max_instances),
    )


def _share(used: float, ceiling: float) -> float:
    return used / ceiling if ceiling > 0 else float(used > 0)


def _recorded(decisions: Sequence[Decision], registered: Sequence[Instance], instances: InstanceRegistry, now_s: float) -> list[Decision]:
    """Record the moves; leave out those that somebody else forestalled."""
    states = {i.instance_id: i.state for i in registered}
    done: list[Decision] = []
    for decision in decisions:
        if decision.step is Step.MOVE and decision.state is not None:
            try:
                instances.transition(
                    decision.instance_id,
                    expected=[states[decision.instance_id]],
                    state=decision.state,
                    at_s=now_s,
                    reason=decision.reason,
                )
            except StaleWrite as error:
                logger.info("instance moved on by itself", extra={"instance_id": decision.instance_id, "reason": str(error)})
                continue
        done.append(decision)
    return done


def _demands(
    command: PlanCommand,
    models: ModelStore,
    control: ControlStore,
    windows: WindowStore,
    parameters: ParameterSource,
    work_queue: Callable[[str], WorkQueue],
    current: Sequence[Instance],
    settings: Settings,
    now_s: float,
) -> list[ModelDemand]:
    records = models.list()
    at_risk = _models_at_risk(command, [record.model for record in records], control, now_s)
    demands: list[ModelDemand] = []
    for record in records:
        own = [i for i in current if i.model == record.model]
        stopped = quarantine(own, version_at_s=record.created_at_s, now_s=now_s)
        recorded = recorded_steps(record.model, windows=windows, grid=StepGrid.of(settings), steps=SHAPE_STEPS, now_s=now_s)
        demands.append(
            model_demand(
                record,
                tunables=parameters.get(record.model),
                forecast=_forecast(control.latest_forecast(record.model)),
                measured_rate_rps=max((rate for rate in recorded.rates_rps[-MEASURED_STEPS:] if rate is not None), default=None),
                instances=own,
                spillover_memory_mb=settings.spillover_memory_mb,
                at_risk=record.model in at_risk,
                shape=recorded.shape,
                quarantined=stopped.reason if stopped else None,
                stranded=0 if any(i.is_alive for i in own) else _waiting(work_queue(record.queue_url), record.model),
            )
        )
    return demands


def _waiting(queue: WorkQueue, model: str) -> int:
    """Count the requests that wait; none where that cannot be told: the next plan asks again."""
    try:
        return queue.depth()
    except MarkserveError as error:
        logger.warning("queue depth unknown", extra={"model": model, "reason": str(error)})
        return 0


def _forecast(record: ForecastRecord | None) -> Forecast | None:
    """Convert a stored forecast; None for one that makes no sense: planning then goes by the measured rate."""
    if record is None:
        return None
    try:
        return record.to_forecast()
    except ValueError as error:
        logger.error("forecast refused", extra={"model": record.model, "forecaster": record.forecaster, "reason": str(error)})
        return None


def _models_at_risk(command: PlanCommand, names: Sequence[str], control: ControlStore, now_s: float) -> set[str]:
    """Return whose objective is at risk: the named model, else those with a recent alarm, else all."""
    if command.trigger != "slo_at_risk":
        return set()
    if command.model is not None:
        return {command.model}
    recent = control.decisions(since_s=now_s - AT_RISK_MEMORY_S, until_s=now_s + 1)
    return {decision.model for decision in recent if decision.event == "slo_at_risk"} or set(names)


def _offerings(fleet: Fleet, settings: Settings, launch_overhead_s: float) -> tuple[Offering, ...]:
    names = [name.strip() for name in settings.instance_types.split(",") if name.strip()]
    try:
        spot_prices = fleet.prices_usd_per_hour(names)
    except Transient as error:
        logger.warning("no live spot prices, planning with typical ones", extra={"reason": str(error)})
        spot_prices = {}
    pools, refusals = offerings(
        load_catalog().entries,
        instance_types=names,
        zones=fleet.zones(),
        spot_prices=spot_prices,
        launch_overhead_s=launch_overhead_s,
    )
    for refusal in refusals:
        logger.error("instance type passed over", extra={"reason": refusal})
    return pools


def _store_evidence(plan: CapacityPlan, current: Sequence[Instance], registered: Sequence[Instance], instances: InstanceRegistry) -> None:
    """Store the counters that changed; only the plan that was stored counts."""
    before = {i.instance_id: i for i in registered}
    for instance in current:
        counted = replace(instance, unwanted_cycles=plan.unwanted_cycles.get(instance.instance_id, instance.unwanted_cycles))
        old = before[instance.instance_id]
        if (old.missed_cycles, old.unwanted_cycles) != (counted.missed_cycles, counted.unwanted_cycles):
            instances.count_evidence(instance.instance_id, missed_cycles=counted.missed_cycles, unwanted_cycles=counted.unwanted_cycles)


def _log(plan: CapacityPlan, decisions: Sequence[Decision], control: ControlStore, now_s: float) -> None:
    for decision in decisions:
        if decision.step is Step.SUSPECT_ORPHAN:
            control.claim(f"orphan/{decision.instance_id}", now_s=now_s, for_s=ORPHAN_MEMORY_S)
        event = f"instance_{decision.state}" if decision.step is Step.MOVE else f"reconcile_{decision.step}"
        control.log(DecisionRecord(at_s=now_s, model=decision.model, subject=decision.instance_id, event=event, reason=decision.reason))
    for model in plan.models:
        if model.quarantined is not None and control.claim(f"quarantined/{model.model}", now_s=now_s, for_s=QUARANTINE_REMINDER_S):
            logger.error("model quarantined", extra={"model": model.model, "reason": model.quarantined})
            control.log(
                DecisionRecord(at_s=now_s, model=model.model, subject=model.model, event="model_quarantined", reason=model.quarantined)
            )
        if model.infeasible is not None:
            logger.error("objective cannot be met by any instance type", extra={"model": model.model, "reason": model.infeasible})
            control.log(
                DecisionRecord(at_s=now_s, model=model.model, subject=plan.plan_id, event="slo_infeasible", reason=model.infeasible)
            )
    logger.info("planned", extra={"plan_id": plan.plan_id, "reason": plan.reason})


@logger.inject_lambda_context
@tracer.capture_lambda_handler
@metrics.log_metrics
def handler(event: Mapping[str, Any], context: LambdaContext) -> dict[str, Any]:  # noqa: ARG001
    """Plan once; return the plan's id and its actions."""
    with refusing("plan event"):
        command = parse(event)
    try:
        planned = run(
            command,
            models=wiring.models(),
            control=wiring.control(),
            windows=wiring.windows(),
            instances=wiring.instances(),
            fleet=wiring.fleet(),
            parameters=wiring.parameters(),
            work_queue=wiring.work_queue,
            settings=wiring.settings(),
            now_s=time.time(),
        )
    except StaleWrite as error:
        logger.warning("plan dropped: another one came first", extra={"trigger": command.trigger, "reason": str(error)})
        metrics.add_metric(name=PLANS_STALE, unit=MetricUnit.Count, value=1)
        if command.trigger == "schedule":
            return {"plan_id": None, "actions": []}
        raise
    record = planned.record
    metrics.add_metric(name=PLANS_STORED, unit=MetricUnit.Count, value=1)
    metrics.add_metric(name=HOURLY_COST, unit=MetricUnit.NoUnit, value=record.hourly_cost_usd)
    metrics.add_metric(name=INSTANCES_SERVING, unit=MetricUnit.Count, value=planned.serving)
    metrics.add_metric(name=INSTANCES_STUCK, unit=MetricUnit.Count, value=planned.stuck)
    metrics.add_metric(name=INSTANCES_ORPHANED, unit=MetricUnit.Count, value=planned.orphans)
    metrics.add_metric(name=MODELS_QUARANTINED, unit=MetricUnit.Count, value=planned.quarantined)
    metrics.add_metric(name=HOURLY_COST_SHARE, unit=MetricUnit.Percent, value=100 * planned.cost_share)
    metrics.add_metric(name=INSTANCES_SHARE, unit=MetricUnit.Percent, value=100 * planned.instances_share)
    for model, demand_rps in record.demand_rps.items():
        # One each: `single_metric` holds exactly one and drops a second without a word.
        for name, rate_rps in ((DEMAND, demand_rps), (CAPACITY, record.capacity_rps[model])):
            with single_metric(name=name, unit=MetricUnit.CountPerSecond, value=rate_rps, namespace=NAMESPACE) as metric:
                metric.add_dimension(name="model", value=model)
                metric.add_dimension(name="service", value=wiring.settings().stack_name)
    return {"plan_id": record.plan_id, "actions": [to_plain(action) for action in record.actions]}
