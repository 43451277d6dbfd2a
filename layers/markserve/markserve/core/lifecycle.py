"""What the state of each instance should be, from what is planned, requested and observed.

Three views disagree all the time: the plan wants, the registry has asked for and heard of, the cloud reports.
Positive evidence (the cloud says terminated) is acted on at once. Absence (no heartbeat, not listed) counts only
when it repeats, because one missed look is more often the looker's fault.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from markserve.core.types import Instance, InstanceState, ObservedInstance
from markserve.errors import InvariantViolated

EVIDENCE_CYCLES = 2
"""Consecutive control cycles with evidence against an instance before it is given up (SkyServe and Dask do the same)."""
LAUNCH_TIMEOUT_FACTOR = 3.0
"""An instance that has not served after this many launch overheads will not: its boot or its model load hangs."""
LEAST_LAUNCH_TIMEOUT_S = 60.0
MEASUREMENT_LIMIT_S = 2700.0
"""Longest life of an instance that measures: a launch, and some thousand batches of a slow model."""
NOTICE_RESERVE_S = 25.0
"""What a worker leaves of an interruption notice to end in order: the longest poll of its queue (SQS allows 20 s), its answers, and
the seconds by which clocks and looks at the notice may be late."""

LEGAL_TRANSITIONS: Mapping[InstanceState, frozenset[InstanceState]] = {
    InstanceState.REQUESTED: frozenset({InstanceState.WARMING, InstanceState.SERVING, InstanceState.DRAINING, InstanceState.FAILED}),
    InstanceState.WARMING: frozenset({InstanceState.SERVING, InstanceState.DRAINING, InstanceState.FAILED}),
    InstanceState.SERVING: frozenset({InstanceState.DRAINING, InstanceState.FAILED}),
    InstanceState.DRAINING: frozenset({InstanceState.TERMINATED, InstanceState.FAILED}),
    InstanceState.TERMINATED: frozenset(),
    InstanceState.FAILED: frozenset(),
}
"""An ended instance never comes back: a new one has a new id."""


def states_before(state: InstanceState) -> tuple[InstanceState, ...]:
    """States from which `state` may be entered; what a conditional write expects.

    >>> [s.value for s in states_before(InstanceState.DRAINING)]
    ['requested', 'warming', 'serving']
    """
    return tuple(s for s in InstanceState if state in LEGAL_TRANSITIONS[s])


def move(instance: Instance, state: InstanceState, *, at_s: float, reason: str) -> Instance:
    """Return the instance in its next state, stamped.

    Raises
    ------
    InvariantViolated
        If the transition is not legal.
    """
    if state not in LEGAL_TRANSITIONS[instance.state]:
        allowed = ", ".join(sorted(LEGAL_TRANSITIONS[instance.state])) or "nothing"
        raise InvariantViolated(f"{instance.instance_id}: {instance.state} cannot become {state}, only {allowed}")
    match state:
        case InstanceState.WARMING:
            return replace(instance, state=state, running_at_s=at_s)
        case InstanceState.SERVING:
            return replace(instance, state=state, serving_at_s=at_s)
        case InstanceState.DRAINING:
            return replace(instance, state=state, drain_at_s=at_s, end_reason=reason)
        case _:
            return replace(instance, state=state, terminated_at_s=at_s, end_reason=reason)


def serves_until_s(ends_at_s: float, *, batch_latency_s: float) -> float:
    """Instant until which a worker takes requests that is told of its end at `ends_at_s`.

    A launch takes longer than the two minutes of a spot notice, so until then every request it serves is one that
    would be spilled. What is taken last has to be computed, one batch behind another.

    >>> serves_until_s(120.0, batch_latency_s=0.5)
    94.0
    """
    return ends_at_s - NOTICE_RESERVE_S - 2 * batch_latency_s


class Step(StrEnum):
    """What reconciliation asks for."""

    MOVE = "move"
    """The registry lags: record the state."""
    SUSPECT = "suspect"
    """Record how often evidence was seen."""
    TERMINATE = "terminate"
    """Give the instance back."""
    SUSPECT_ORPHAN = "suspect_orphan"
    """Remember an instance that the registry does not know."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """One correction, and why."""

    step: Step
    instance_id: str
    model: str
    reason: str
    state: InstanceState | None = None
    """State to record (MOVE)."""
    missed_cycles: int = 0
    """Count to record (SUSPECT)."""
    failed: bool = False
    """Whether the instance ends as FAILED (TERMINATE)."""


def observe_cloud_state(instance: Instance, cloud_state: str) -> Decision | None:
    """Decide what the cloud's word on one instance changes; None when nothing.

    The same rule serves the control cycle and the state-change events between two cycles.
    """
    match cloud_state:
        case "running" if instance.state is InstanceState.REQUESTED:
            return _move(instance, InstanceState.WARMING, "the cloud reports it running")
        case "shutting-down" | "terminated" | "stopping" | "stopped":
            if not instance.is_alive:
                return None
            if instance.state is InstanceState.DRAINING:
                return _move(instance, InstanceState.TERMINATED, f"the cloud reports it {cloud_state} after its drain")
            return _move(instance, InstanceState.FAILED, f"the cloud reports it {cloud_state}, which nobody here asked for")
        case _:
            return None


def reconcile(
    *,
    instances: Sequence[Instance],
    observed: Sequence[ObservedInstance],
    now_s: float,
    heartbeat_timeout_s: float,
    drain_deadline_s: float = 120.0,
    suspected_orphans: Collection[str] = (),
) -> list[Decision]:
    """Compare the registry with the cloud and decide the corrections.

    REQUESTED becomes WARMING when the cloud says running. Missing from the cloud or silent counts as evidence;
    `EVIDENCE_CYCLES` cycles of it end the instance. A launch that takes `LAUNCH_TIMEOUT_FACTOR` times its overhead
    has failed. A drain that outlasts `drain_deadline_s` ends by force. What is recorded as ended but still runs is
    terminated again. An instance of ours that the registry does not know is suspected first and terminated when a
    later cycle still finds it.

    Parameters
    ----------
    observed
        Every instance tagged as this stack's.
    drain_deadline_s
        Longest drain: a spot notice gives two minutes, and no request lives longer than 30 s.
    suspected_orphans
        Ids of an earlier cycle's SUSPECT_ORPHAN decisions.

    Returns
    -------
    list of Decision
        At most one per instance, in order of id.

    References
    ----------
    Dask's AdaptiveCore keeps plan, requested and observed apart in the same way.
    """
    by_id = {o.instance_id: o for o in observed}
    known = {i.instance_id for i in instances}
    decisions = [
        _reconcile_known(
            i, by_id.get(i.instance_id), now_s=now_s, heartbeat_timeout_s=heartbeat_timeout_s, drain_deadline_s=drain_deadline_s
        )
        for i in instances
    ]
    decisions += [_reconcile_unknown(o, now_s, heartbeat_timeout_s, suspected_orphans) for o in observed if o.instance_id not in known]
    return sorted((d for d in decisions if d is not None), key=lambda d: d.instance_id)


def _reconcile_known(
    instance: Instance, seen: ObservedInstance | None, *, now_s: float, heartbeat_timeout_s: float, drain_deadline_s: float
) -> Decision | None:
    if not instance.is_alive:
        if seen is not None and seen.cloud_state in ("pending", "running", "stopped", "stopping"):
            failed = instance.state is InstanceState.FAILED
            return _terminate(instance, f"recorded as {instance.state} but the cloud reports it {seen.cloud_state}", failed=failed)
        return None
    if seen is not None and (changed := observe_cloud_state(instance, seen.cloud_state)):
        return changed
    if instance.state is InstanceState.DRAINING and now_s - (instance.drain_at_s or now_s) > drain_deadline_s:
        return _terminate(instance, f"drain took more than {drain_deadline_s:.0f} s", failed=False)
    starting_s = now_s - instance.requested_at_s
    limit_s = max(LEAST_LAUNCH_TIMEOUT_S, LAUNCH_TIMEOUT_FACTOR * instance.offering.launch_overhead_s)
    if instance.state in (InstanceState.REQUESTED, InstanceState.WARMING) and starting_s > limit_s:
        return _terminate(instance, f"does not serve {starting_s:.0f} s after its request; the limit is {limit_s:.0f} s", failed=True)
    return _weigh_evidence(instance, _evidence(instance, seen, now_s, heartbeat_timeout_s))


def _evidence(instance: Instance, seen: ObservedInstance | None, now_s: float, heartbeat_timeout_s: float) -> str | None:
    if seen is None:
        # The cloud's lists are eventually consistent: a launch may take seconds to appear.
        return "the cloud does not list it" if now_s - instance.requested_at_s >= heartbeat_timeout_s else None
    if instance.state not in (InstanceState.SERVING, InstanceState.DRAINING):
        return None
    heard_at_s = max(instance.heartbeat_at_s or 0.0, instance.serving_at_s or 0.0, instance.requested_at_s)
    silent_s = now_s - heard_at_s
    return f"silent for {silent_s:.0f} s; the limit is {heartbeat_timeout_s:.0f} s" if silent_s > heartbeat_timeout_s else None


def _weigh_evidence(instance: Instance, evidence: str | None) -> Decision | None:
    if evidence is None:
        if instance.missed_cycles == 0:
            return None
        reason = "cleared: it was seen and heard"
        return Decision(step=Step.SUSPECT, instance_id=instance.instance_id, model=instance.model, reason=reason)
    cycles = instance.missed_cycles + 1
    if cycles < EVIDENCE_CYCLES:
        reason = f"{evidence} (cycle {cycles} of {EVIDENCE_CYCLES})"
        return Decision(step=Step.SUSPECT, instance_id=instance.instance_id, model=instance.model, reason=reason, missed_cycles=cycles)
    return _terminate(instance, f"{evidence}, in {cycles} cycles", failed=True)


def _reconcile_unknown(
    seen: ObservedInstance, now_s: float, heartbeat_timeout_s: float, suspected_orphans: Collection[str]
) -> Decision | None:
    if seen.cloud_state in ("shutting-down", "terminated") or now_s - seen.launched_at_s < heartbeat_timeout_s:
        return None  # young ones: their record may be on its way
    model = seen.model or ""
    if seen.purpose and now_s - seen.launched_at_s < MEASUREMENT_LIMIT_S:
        return None  # the run that launched it ends it; this is for what a run that died leaves behind
    if seen.instance_id not in suspected_orphans:
        reason = f"the cloud reports it {seen.cloud_state} with this stack's tag, the registry does not know it"
        return Decision(step=Step.SUSPECT_ORPHAN, instance_id=seen.instance_id, model=model, reason=reason)
    reason = "orphan: still running, still not in the registry"
    return Decision(step=Step.TERMINATE, instance_id=seen.instance_id, model=model, reason=reason, failed=False)


def apply(decisions: Sequence[Decision], instances: Sequence[Instance], *, now_s: float) -> list[Instance]:
    """Return the instances as planning should see them once the decisions are carried out.

    What is about to be terminated still costs money and counts towards the ceilings, but serves nothing.
    """
    by_id = {d.instance_id: d for d in decisions}
    result: list[Instance] = []
    for instance in instances:
        decision = by_id.get(instance.instance_id)
        if decision is not None and decision.step is Step.MOVE and decision.state is not None:
            result.append(move(instance, decision.state, at_s=now_s, reason=decision.reason))
        elif decision is not None and decision.step is Step.SUSPECT:
            result.append(replace(instance, missed_cycles=decision.missed_cycles))
        elif decision is not None and decision.step is Step.TERMINATE and InstanceState.DRAINING in LEGAL_TRANSITIONS[instance.state]:
            result.append(move(instance, InstanceState.DRAINING, at_s=now_s, reason=decision.reason))
        else:
            result.append(instance)
    return result


def measured_launch_overhead_s(instances: Sequence[Instance], *, default_s: float, least_samples: int = 3) -> float:
    """Request to first answer as recent launches show it: the upper quartile, or `default_s` while there are too few.

    The upper quartile, since an instance that comes late costs spill-over and one that comes early costs seconds.

    >>> measured_launch_overhead_s([], default_s=180.0)
    180.0
    """
    took_s = sorted(i.serving_at_s - i.requested_at_s for i in instances if i.serving_at_s is not None)
    if len(took_s) < least_samples:
        return default_s
    return took_s[min(len(took_s) - 1, round(0.75 * (len(took_s) - 1)))]


def _move(instance: Instance, state: InstanceState, reason: str) -> Decision:
    return Decision(step=Step.MOVE, instance_id=instance.instance_id, model=instance.model, state=state, reason=reason)


def _terminate(instance: Instance, reason: str, *, failed: bool) -> Decision:
    return Decision(step=Step.TERMINATE, instance_id=instance.instance_id, model=instance.model, reason=reason, failed=failed)
