"""Follows what happens to instances: EC2's events about them, and those that our workers send."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from markserve.core.lifecycle import observe_cloud_state
from markserve.core.types import CapacityType, Instance, InstanceState
from markserve.lifecycle_context import ALREADY_STARTED, DRY_POOL_S, LifecycleContext, Outcome
from markserve.messages import Id, InstanceDrained, InstanceInterrupted, InstanceReady, Name, from_plain
from markserve.telemetry import logger

INTERRUPTION_MEMORY_S = 600.0
"""A notice is acted on once; two minutes later the instance is gone."""
READY_MEMORY_S = 86_400.0
"""An instance comes to serve once; EventBridge gives up on an event after a day."""


class Notification(msgspec.Struct, frozen=True, kw_only=True):
    """An EventBridge event, as far as it is read here."""

    source: Name
    detail_type: Name = msgspec.field(name="detail-type")
    detail: dict[str, Any]


class Ec2Detail(msgspec.Struct, frozen=True, kw_only=True):
    """Detail of EC2's events.

    https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html and
    .../monitoring-instance-state-changes.html
    """

    instance_id: Id = msgspec.field(name="instance-id")
    state: Name = ""


def _of_ours(detail: Mapping[str, Any], ctx: LifecycleContext) -> tuple[Ec2Detail, Instance | None]:
    parsed = from_plain(detail, Ec2Detail)
    return parsed, ctx.find(parsed.instance_id)


def _not_ours(instance_id: str) -> Outcome:
    logger.info("event of an unknown instance ignored", extra={"instance_id": instance_id})
    return Outcome(event="event_ignored", reason=f"{instance_id} is not registered here", count=0)


def _follow_state(detail: Mapping[str, Any], ctx: LifecycleContext) -> Outcome:
    changed, instance = _of_ours(detail, ctx)
    if instance is None:
        return _not_ours(changed.instance_id)
    ignored = Outcome(event="event_ignored", reason=f"{instance.instance_id} is {instance.state}: {changed.state} changes nothing", count=0)
    decision = observe_cloud_state(instance, changed.state)
    if decision is None or decision.state is None:
        return ignored
    if decision.state is InstanceState.FAILED:
        # Capacity is gone without a drain: a spot interruption whose notice was lost, or somebody's hand. Said before it is recorded:
        # a retry of this event would find nothing left to do.
        if instance.offering.capacity_type is CapacityType.SPOT:
            ctx.mark_dry(instance.offering)
        _ask_for_replacement(instance, f"state_{changed.state}", ctx)
    if not ctx.transition(instance.instance_id, decision.state, decision.reason):
        return ignored
    outcome = Outcome(event=f"instance_{decision.state}", reason=decision.reason)
    return ctx.log(outcome, model=instance.model, subject=instance.instance_id)


def _follow_interruption(detail: Mapping[str, Any], ctx: LifecycleContext) -> Outcome:
    """Count on it no longer, avoid the pool, and ask for a replacement; the worker serves on for as long as the notice allows."""
    warned, instance = _of_ours(detail, ctx)
    if instance is None:
        return _not_ours(warned.instance_id)
    if _ended_long_ago(instance, ctx):
        return Outcome(event="event_ignored", reason=f"{instance.instance_id} is {instance.state} already; this notice is old", count=0)
    reason = "spot interruption warning: the cloud takes it back within two minutes"
    ctx.transition(instance.instance_id, InstanceState.DRAINING, reason)
    ctx.mark_dry(instance.offering)
    if not _ask_for_replacement(instance, "spot_interruption_warning", ctx):
        return Outcome(event="event_ignored", reason="this notice was acted on before", count=0)
    outcome = Outcome(event="instance_interrupted", reason=reason)
    return ctx.log(outcome, model=instance.model, subject=instance.instance_id, offering=instance.offering.key)


def _follow_rebalance(detail: Mapping[str, Any], ctx: LifecycleContext) -> Outcome:
    """Stop buying from the pool: it is at risk, while the instance itself may go on for hours."""
    advised, instance = _of_ours(detail, ctx)
    if instance is None:
        return _not_ours(advised.instance_id)
    if _ended_long_ago(instance, ctx):
        return Outcome(event="event_ignored", reason=f"{instance.instance_id} is {instance.state} already; this notice is old", count=0)
    ctx.mark_dry(instance.offering)
    outcome = Outcome(event="rebalance_recommended", reason=f"{instance.offering.key} is at risk; not bought from for {DRY_POOL_S:.0f} s")
    return ctx.log(outcome, model=instance.model, subject=instance.instance_id)


def _ended_long_ago(instance: Instance, ctx: LifecycleContext) -> bool:
    """Whether a notice about it is old news: events come hours late at times, and say nothing of its pool by then.

    One that ended a moment ago may have been overtaken by its state change: its pool is at risk.
    """
    return not instance.is_alive and ctx.now_s - (instance.terminated_at_s or 0.0) > DRY_POOL_S


def _ask_for_replacement(instance: Instance, notice: str, ctx: LifecycleContext) -> bool:
    name = f"interrupted/{instance.instance_id}"
    if ctx.is_done(name):
        return False
    ctx.events.publish(InstanceInterrupted(model=instance.model, instance_id=instance.instance_id, at_s=ctx.now_s, notice=notice))
    ctx.mark_done(name, for_s=INTERRUPTION_MEMORY_S)
    return True


def _follow_ready(detail: Mapping[str, Any], ctx: LifecycleContext) -> Outcome:
    ready = from_plain(detail, InstanceReady)
    instance = ctx.find(ready.instance_id)
    if instance is None:
        return _not_ours(ready.instance_id)
    # The worker has recorded this itself, unless that write was lost.
    if not ctx.transition(ready.instance_id, InstanceState.SERVING, "the worker reports that it serves"):
        instance = ctx.find(ready.instance_id) or instance
    name = f"serving/{ready.instance_id}"
    if instance.state not in ALREADY_STARTED or ctx.is_done(name):
        return Outcome(event="event_ignored", reason=f"{ready.instance_id} is {instance.state} already", count=0)
    took_s = ready.at_s - instance.requested_at_s
    outcome = Outcome(event="instance_serving", reason=f"serves {took_s:.1f} s after its request")
    ctx.log(outcome, model=ready.model, subject=ready.instance_id, launch_s=round(took_s, 3), offering=instance.offering.key)
    ctx.mark_done(name, for_s=READY_MEMORY_S)
    return outcome


def _follow_drained(detail: Mapping[str, Any], ctx: LifecycleContext) -> Outcome:
    drained = from_plain(detail, InstanceDrained)
    instance = ctx.find(drained.instance_id)
    if instance is None:
        return _not_ours(drained.instance_id)
    if not instance.is_alive:
        return Outcome(event="event_ignored", reason=f"{drained.instance_id} is {instance.state} already", count=0)
    if instance.state in ALREADY_STARTED:
        ctx.transition(drained.instance_id, InstanceState.DRAINING, drained.reason)
    ctx.fleet.terminate([drained.instance_id])
    ctx.transition(drained.instance_id, InstanceState.TERMINATED, drained.reason)
    outcome = Outcome(event="instance_terminated", reason=f"drained: {drained.reason}")
    return ctx.log(outcome, model=drained.model, subject=drained.instance_id, offering=instance.offering.key)


FOLLOWERS: Mapping[tuple[str, str], Callable[[Mapping[str, Any], LifecycleContext], Outcome]] = {
    ("aws.ec2", "EC2 Instance State-change Notification"): _follow_state,
    ("aws.ec2", "EC2 Spot Instance Interruption Warning"): _follow_interruption,
    ("aws.ec2", "EC2 Instance Rebalance Recommendation"): _follow_rebalance,
    ("markserve", "InstanceReady"): _follow_ready,
    ("markserve", "InstanceDrained"): _follow_drained,
}
"""Who follows what, by (source, detail-type)."""


def follow(notification: Notification, ctx: LifecycleContext) -> Outcome:
    """Follow one event; an unknown one is a logged no-op."""
    follower = FOLLOWERS.get((notification.source, notification.detail_type))
    if follower is None:
        logger.warning("unknown event ignored", extra={"source": notification.source, "detail_type": notification.detail_type})
        return Outcome(event="event_ignored", reason=f"nobody here follows {notification.source} {notification.detail_type}", count=0)
    return follower(notification.detail, ctx)
