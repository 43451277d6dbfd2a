"""Measures a model on instance types it does not serve from: launch one of each, let it measure, give it back.

The state machine `characterize` calls these steps in turn. Such an instance is not registered, so nothing plans with it; the
ceilings count it like any other, and the orphan sweep ends it when the run that launched it died.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import assert_never

from markserve.catalog import load_catalog
from markserve.core.lifecycle import MEASUREMENT_LIMIT_S
from markserve.core.types import CapacityType, ObservedInstance, Offering
from markserve.errors import CapacityUnavailable, InvalidRequest
from markserve.lifecycle_actions import within_ceilings
from markserve.lifecycle_context import LifecycleContext, Outcome
from markserve.messages import (
    CheckMeasurement,
    EndMeasurement,
    LaunchInstances,
    MeasuredLatencies,
    MeasurementStep,
    StartMeasurement,
    StoreMeasurements,
    decode,
)
from markserve.ports import BlobStore, ModelStore
from markserve.profiling import store_profile


@dataclass(frozen=True, kw_only=True, slots=True)
class Bench:
    """The ports that measuring needs beside those of the lifecycle."""

    models: ModelStore
    blobs: BlobStore


def measurement_key(model: str, name: str) -> str:
    """Name the object in which an instance leaves its result."""
    return f"profiles/{model}/{name}.json"


def take_step(step: MeasurementStep, ctx: LifecycleContext, bench: Bench) -> Outcome:
    """Take one step of a measurement; each may be repeated.

    Raises
    ------
    InvalidRequest
        If the model or the instance type is unknown.
    """
    match step:
        case StartMeasurement():
            return _start(step, ctx, bench)
        case CheckMeasurement():
            return _check(step, ctx, bench)
        case EndMeasurement():
            return _end(step, ctx)
        case StoreMeasurements():
            return _store(step, ctx, bench)
        case _:
            assert_never(step)


def _start(step: StartMeasurement, ctx: LifecycleContext, bench: Bench) -> Outcome:
    bench.models.get(step.model)
    price = next((e.price_usd_per_hour for e in load_catalog().entries if e.instance_type == step.instance_type), None)
    if price is None:
        raise InvalidRequest(f"{step.instance_type!r} is not in the catalog; see markserve catalog show", field="instance_type")
    if running := _of(step.name, ctx):
        return Outcome(event="measurement_started", reason=f"{running[0].instance_id} was launched before", count=0)
    refusal = "no zone to launch in"
    for zone in ctx.fleet.zones():
        # On demand: an interrupted measurement is worth nothing, and a few minutes cost cents.
        offering = Offering(
            instance_type=step.instance_type,
            capacity_type=CapacityType.ON_DEMAND,
            zone=zone,
            price_usd_per_hour=price,
            launch_overhead_s=0.0,
        )
        launch = LaunchInstances(
            action_id=f"measure/{step.name}/{zone}",
            model=step.model,
            offering=offering,
            count=1,
            plan_id=step.run_id,
            reason=f"measure {step.model} on {step.instance_type}",
            purpose=step.name,
        )
        allowed, refusal = within_ceilings(launch, ctx)
        if not allowed:
            break
        try:
            (launched,) = ctx.fleet.launch(launch)
        except CapacityUnavailable as error:
            refusal = str(error)
            continue
        outcome = Outcome(event="measurement_started", reason=launch.reason)
        return ctx.log(outcome, model=step.model, subject=launched.instance_id, offering=offering.key, usd_per_hour=price)
    return ctx.log(Outcome(event="measurement_refused", reason=refusal, count=0), model=step.model, subject=step.name)


def _check(step: CheckMeasurement, ctx: LifecycleContext, bench: Bench) -> Outcome:
    result = _result(step.model, step.name, bench)
    if result is not None:
        return Outcome(event="measured", reason=f"{len(result.points)} batch sizes on {step.instance_type}")
    alive = _of(step.name, ctx)
    if not alive:
        return Outcome(event="measurement_failed", reason="the instance ended without a result; its log says why", count=0)
    age_s = ctx.now_s - alive[0].launched_at_s
    if age_s > MEASUREMENT_LIMIT_S:
        return Outcome(event="measurement_failed", reason=f"no result after {age_s:.0f} s", count=0)
    return Outcome(event="measuring", reason=f"{alive[0].instance_id} is {alive[0].cloud_state} for {age_s:.0f} s", count=0)


def _end(step: EndMeasurement, ctx: LifecycleContext) -> Outcome:
    alive = [seen.instance_id for seen in _of(step.name, ctx)]
    if not alive:
        return Outcome(event="measurement_ended", reason="nothing runs", count=0)
    ctx.fleet.terminate(alive)
    outcome = Outcome(event="measurement_ended", reason=f"terminated {', '.join(alive)}", count=len(alive))
    return ctx.log(outcome, model=step.model, subject=step.name)


def _store(step: StoreMeasurements, ctx: LifecycleContext, bench: Bench) -> Outcome:
    """Store one after the other: the profiles are one document, and two writers at once would lose one's."""
    live = bench.models.get(step.model).version
    stored, skipped = [], []
    for instance_type in step.instance_types:
        result = _result(step.model, f"{step.run_id}/{instance_type}", bench)
        if result is None or result.model_version != live:
            skipped.append(
                f"{instance_type}: {'no result' if result is None else f'measured version {result.model_version}, live is {live}'}"
            )
            continue
        store_profile(bench.models, model=step.model, instance_type=instance_type, points=result.points)
        stored.append(instance_type)
    reason = f"profiles of {', '.join(stored) or 'no type'} stored" + (f"; {'; '.join(skipped)}" if skipped else "")
    return ctx.log(Outcome(event="profiles_stored", reason=reason, count=len(stored)), model=step.model, subject=step.run_id)


def _of(name: str, ctx: LifecycleContext) -> list[ObservedInstance]:
    return [seen for seen in ctx.fleet.describe() if seen.purpose == name and seen.cloud_state in ("pending", "running")]


def _result(model: str, name: str, bench: Bench) -> MeasuredLatencies | None:
    try:
        return decode(bench.blobs.get(measurement_key(model, name)), MeasuredLatencies)
    except InvalidRequest:
        return None
