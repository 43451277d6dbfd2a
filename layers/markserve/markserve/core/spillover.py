"""Admission: enqueue for the workers, spill to Lambda, or reject; and how long to wait for what was enqueued."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from markserve.core.admitted_share import AdmittedShare, usable_rate_rps
from markserve.core.batch_limits import choose_batch_limits
from markserve.core.profiles import LatencyEstimate
from markserve.core.types import BatchProfile, Instance, InstanceState, Slo, WorkerStats, require

QUEUE_LIMIT = 100_000
"""Backlog beyond which nothing is enqueued, async or not: SQS holds 120,000 messages in flight."""
COLD_RETRY_AFTER_S = 30.0
"""Retry-After when nothing serves, nothing is starting and spill-over is off: half a control cycle."""


class AdmissionAction(StrEnum):
    """What to do with a request."""

    ENQUEUE = "enqueue"
    SPILL = "spill"
    REJECT = "reject"


@dataclass(frozen=True, kw_only=True, slots=True)
class FleetView:
    """What admission needs to know of one model's workers."""

    serving_instances: int
    service_rate_rps: float
    """All serving instances together."""
    batch_latency_s: float
    """T(b) at the batch limit of the slowest serving instance."""
    queue_depth: int
    transport_s: float
    """Arrival at the front to receipt by a worker, upper quantile of recent requests, waiting in the queue included."""
    in_flight: int = 0
    """Received by workers and not yet answered."""
    versions: frozenset[str] | None = None
    """Versions of the model that every serving instance has loaded; None when one of them does not say."""
    ready_at_s: float | None = None
    """When the next starting instance should serve; None when none is starting, or those that are, are overdue."""
    entered: int = 0
    """Requests that the serving instances have finished, given up, failed or hold, and those in the queue."""
    members: str = ""
    """Fingerprint of the serving instances: it stays the same for as long as they do."""
    viewed_at_s: float | None = None
    """Latest heartbeat of any of them; None for a view of this moment."""

    def has_loaded(self, version: str, *, live: str) -> bool:
        """Whether no worker would have to load `version` first; of workers that do not say, that is taken of the live one."""
        return version == live if self.versions is None else version in self.versions

    @property
    def backlog(self) -> int:
        """Requests ahead of a new one."""
        return self.queue_depth + self.in_flight

    @property
    def backlog_s(self) -> float:
        """Time to work the backlog off."""
        return self.backlog / self.service_rate_rps if self.service_rate_rps > 0 else math.inf if self.backlog else 0.0

    @property
    def wait_s(self) -> float:
        """Time until a worker takes up a new request.

        With n workers that serve b at a time in T(b), one falls free every T(b)/n, and takes b off the queue. A request
        with q ahead of it thus waits for q/b (rounded down) of them, after half an interval for the first, or none while
        a worker must be idle. Counting what is in flight as if it were ahead would turn work away from idle workers.
        """
        if self.service_rate_rps <= 0 or self.serving_instances == 0:
            return math.inf
        batch_size = max(1.0, self.service_rate_rps * self.batch_latency_s / self.serving_instances)
        takes = math.floor(self.queue_depth / batch_size + 1e-9) + 0.5 * min(1.0, self.in_flight / self.serving_instances)
        return takes * batch_size / self.service_rate_rps

    def free_in_s(self, now_s: float) -> float:
        """Time until a worker takes up a new request, had nothing arrived since the view.

        What did arrive since is known by its rate (`core.admitted_share`). To take the queue of a second ago for that of now
        would turn work away for as long as the view lasts, over a queue that has gone in a tenth of that.
        """
        age_s = 0.0 if self.viewed_at_s is None else max(0.0, now_s - self.viewed_at_s)
        return max(0.0, self.wait_s - age_s)


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishedView:
    """A view that one process made for all."""

    at_s: float
    view: FleetView


@dataclass(frozen=True, kw_only=True, slots=True)
class Admission:
    """Decision on one request."""

    action: AdmissionAction
    deadline_at_s: float | None
    """None for an async request."""
    spill_at_s: float | None
    """When the front stops waiting and spills; None when it cannot."""
    predicted_wait_s: float
    """From now to the worker's answer; 0 when no worker is asked."""
    reason: str
    retry_after_s: float | None = None
    status: int = 202
    """HTTP status of a rejection: 429 overloaded, 503 nothing serves."""


def fleet_view(instances: Iterable[Instance], now_s: float, heartbeat_timeout_s: float) -> FleetView:
    """Summary of one model's instances as admission sees them.

    Serving means recorded as serving *and* heard of within `heartbeat_timeout_s`: a worker that died is not
    counted on from then. One that is draining serves as long as it reports a rate: after a spot notice a worker goes on for
    most of the two minutes. All workers report the same queue, so its depth comes from the latest heartbeat.

    Examples
    --------
    >>> fleet_view([], now_s=0.0, heartbeat_timeout_s=15.0).serving_instances
    0
    """
    alive = [i for i in instances if i.is_alive]
    serving = [
        i
        for i in alive
        if (i.state is InstanceState.SERVING or (i.state is InstanceState.DRAINING and i.stats.service_rate_rps > 0))
        and i.heartbeat_at_s is not None
        and now_s - i.heartbeat_at_s <= heartbeat_timeout_s
    ]
    starting = [
        i.requested_at_s + i.offering.launch_overhead_s for i in alive if i.state in (InstanceState.REQUESTED, InstanceState.WARMING)
    ]
    latest = max(serving, key=lambda i: (i.heartbeat_at_s or 0.0, i.instance_id), default=None)
    return FleetView(
        serving_instances=len(serving),
        service_rate_rps=sum(i.stats.service_rate_rps for i in serving),
        batch_latency_s=max((i.stats.batch_latency_s for i in serving), default=0.0),
        queue_depth=latest.stats.queue_depth if latest else 0,
        transport_s=max((i.stats.transport_s for i in serving), default=0.0),
        in_flight=sum(i.stats.in_flight for i in serving),
        versions=_versions([i.stats.versions for i in serving]),
        ready_at_s=min((at_s for at_s in starting if at_s >= now_s), default=None),
        entered=sum(_entered(i.stats) for i in serving) + (latest.stats.queue_depth if latest else 0),
        members=_fingerprint(i.instance_id for i in serving),
        viewed_at_s=latest.heartbeat_at_s if latest else None,
    )


def _fingerprint(instance_ids: Iterable[str]) -> str:
    """Digest a set of ids: a fleet of thousands is compared, stored and read as 16 bytes."""
    return hashlib.blake2b("\n".join(sorted(instance_ids)).encode(), digest_size=8).hexdigest()


def _entered(stats: WorkerStats) -> int:
    return stats.completed + stats.dropped + stats.failed + stats.in_flight


def usable_by(fleet: FleetView, *, slo: Slo, spent_s: float) -> float:
    """Rate at which the fleet serves all but the objective's allowance in time, where nothing is set aside for spilling.

    Parameters
    ----------
    spent_s
        Transport and reply.
    """
    return usable_rate_rps(
        servers=fleet.serving_instances,
        service_rate_rps=fleet.service_rate_rps,
        batch_latency_s=fleet.batch_latency_s,
        waiting_s=slo.latency_s - spent_s - fleet.batch_latency_s,
        late_share_max=1 - slo.percentile,
    )


def _versions(loaded: Sequence[tuple[str, ...]]) -> frozenset[str] | None:
    return frozenset.intersection(*map(frozenset, loaded)) if loaded and all(loaded) else None


ADMIT_ALL = AdmittedShare()


def admit(
    *,
    fleet: FleetView,
    slo: Slo,
    arrival_at_s: float,
    now_s: float,
    spill_latency_s: float,
    reply_overhead_s: float,
    margin_s: float,
    spill_available: bool,
    keeps_reserve: bool = True,
    asynchronous: bool = False,
    admitted: AdmittedShare = ADMIT_ALL,
    lot: float = 0.0,
) -> Admission:
    """Decide where a request is computed, before anything is spent on it.

    MArk's "bouncer" with two refinements: the decision is per request against its own deadline, and what is
    enqueued keeps a way out, since the front spills it at

        spill_at = deadline - T_lambda(p99) - margin,    deadline = arrival + RT_max

    A worker's answer is predicted at

        now + max(transport, wait for a worker) + T(b) + reply overhead

    (the larger of the two, not the sum: measured transport already contains waiting in the queue). It must come
    before `spill_at`, or before the deadline where there is no spill-over.

    Regimes
    -------
    Steady: everything is enqueued. Overload: what would be late is spilled at once, so that the backlog stays at
    what can be served in time and workers do not compute what nobody waits for. Recovery: a prediction is ignored
    while the backlog is below one batch, because the measured transport is that of the last requests served, and
    if none were admitted it could never be corrected; the way out at `spill_at` bounds what this costs.
    Objective too tight for a reserve (`RT_max < T(b) + reply + T_lambda + margin`, or not `keeps_reserve`): workers
    could never, or not at a sensible cost, answer before `spill_at`, so it moves to the deadline: spilling then answers
    late, but answers. So what cannot be served must not be admitted: beyond the share that workers can use, and where the
    queue alone makes it late, requests are spilled at once, in time.
    Nothing serves: spill; else enqueue if a starting instance will be in time; else 503.
    No spill-over: what would be late is rejected with 429 and the time until the backlog has gone.
    Async requests have no deadline and are always enqueued, up to `QUEUE_LIMIT`.

    Parameters
    ----------
    spill_latency_s
        p99 of a warm spillover invocation, seen from the front.
    reply_overhead_s
        Finished computation to the client's answer, as the front measures it.
    margin_s
        Slack for what is not measured: clocks, scheduling.
    keeps_reserve
        Whether time for spilling is set aside; see `spill_reserve`.
    admitted
        Share that workers can use, by `admitted_share.revise_share`.
    lot
        Of this request, uniform on [0, 1).

    References
    ----------
    MArk (ATC '19): the Bouncer before each backend. Clockwork (OSDI '20): predictable latencies make it possible to
    refuse work that cannot make its deadline before doing any of it.

    Examples
    --------
    >>> fleet = FleetView(serving_instances=1, service_rate_rps=100.0, batch_latency_s=0.04, queue_depth=0, transport_s=0.01)
    >>> decision = admit(fleet=fleet, slo=Slo(latency_s=0.2), arrival_at_s=10.0, now_s=10.0, spill_latency_s=0.06,
    ...                  reply_overhead_s=0.01, margin_s=0.01, spill_available=True)
    >>> decision.action.value, round(decision.spill_at_s, 3), round(decision.predicted_wait_s, 3)
    ('enqueue', 10.13, 0.06)
    """
    if fleet.backlog >= QUEUE_LIMIT:
        return _reject(429, fleet.backlog_s, f"backlog of {fleet.backlog} has reached the limit of {QUEUE_LIMIT}")
    if asynchronous:
        wait_s = fleet.backlog_s + fleet.batch_latency_s if fleet.serving_instances else 0.0
        return Admission(
            action=AdmissionAction.ENQUEUE,
            deadline_at_s=None,
            spill_at_s=None,
            predicted_wait_s=wait_s,
            reason="async: no deadline to miss",
        )
    deadline_at_s = arrival_at_s + slo.latency_s
    if fleet.serving_instances == 0 or fleet.service_rate_rps <= 0:
        return _admit_without_workers(fleet, deadline_at_s, now_s, reply_overhead_s, spill_available=spill_available)

    compute_s = fleet.batch_latency_s + reply_overhead_s
    spill_at_s, spills_late = None, False
    if spill_available:
        spills_late = not keeps_reserve or slo.latency_s - spill_latency_s - margin_s < compute_s
        spill_at_s = deadline_at_s if spills_late else deadline_at_s - spill_latency_s - margin_s
    if spills_late and admitted.turns_away(lot):
        return _spill_at_once(deadline_at_s, now_s, f"spilled at arrival: {admitted.reason}")
    answer_by_s = deadline_at_s if spill_at_s is None else spill_at_s
    free_in_s = fleet.free_in_s(now_s) if spills_late else fleet.wait_s
    wait_s = max(fleet.transport_s, free_in_s) + compute_s
    late_s = now_s + wait_s - answer_by_s
    # Even an empty fleet needs T(b): a request so old that this is too long is not worth a probe. Nor is one that the queue
    # itself makes late where it would be spilled late for it.
    probe_s = compute_s + free_in_s if spills_late else compute_s
    probe = free_in_s <= fleet.batch_latency_s and now_s + probe_s <= answer_by_s

    if late_s <= 0 or probe:
        return Admission(
            action=AdmissionAction.ENQUEUE,
            deadline_at_s=deadline_at_s,
            spill_at_s=spill_at_s,
            predicted_wait_s=wait_s,
            reason=_enqueue_reason(fleet, wait_s, late_s),
        )
    why = f"workers would answer {late_s:.3f} s too late behind a backlog of {fleet.backlog} at {fleet.service_rate_rps:.1f} rps"
    if spill_available:
        return _spill_at_once(deadline_at_s, now_s, f"spilled: {why}")
    return _reject(429, late_s, f"rejected: {why}, and spill-over is off", deadline_at_s=deadline_at_s)


def _spill_at_once(deadline_at_s: float, now_s: float, reason: str) -> Admission:
    return Admission(action=AdmissionAction.SPILL, deadline_at_s=deadline_at_s, spill_at_s=now_s, predicted_wait_s=0.0, reason=reason)


def _enqueue_reason(fleet: FleetView, wait_s: float, late_s: float) -> str:
    if late_s > 0:
        return f"enqueued: backlog of {fleet.backlog} is below one batch, though recent requests predict {late_s:.3f} s too late"
    return f"enqueued: answer expected in {wait_s:.3f} s, {-late_s:.3f} s before it must be there"


def _admit_without_workers(
    fleet: FleetView, deadline_at_s: float, now_s: float, reply_overhead_s: float, *, spill_available: bool
) -> Admission:
    if spill_available:
        return _spill_at_once(deadline_at_s, now_s, "spilled: no worker serves")
    if fleet.ready_at_s is None:
        return _reject(
            503, COLD_RETRY_AFTER_S, "rejected: no worker serves or is starting, and spill-over is off", deadline_at_s=deadline_at_s
        )
    wait_s = fleet.ready_at_s - now_s + fleet.batch_latency_s + reply_overhead_s
    if now_s + wait_s <= deadline_at_s:
        return Admission(
            action=AdmissionAction.ENQUEUE,
            deadline_at_s=deadline_at_s,
            spill_at_s=None,
            predicted_wait_s=wait_s,
            reason=f"enqueued: a worker should serve in {fleet.ready_at_s - now_s:.3f} s",
        )
    why = f"rejected: the next worker serves in {fleet.ready_at_s - now_s:.1f} s, and spill-over is off"
    return _reject(503, fleet.ready_at_s - now_s, why, deadline_at_s=deadline_at_s)


@dataclass(frozen=True, kw_only=True, slots=True)
class SpillReserve:
    """Time that workers leave to the spillover function."""

    reserve_s: float
    """0 where none is kept: fronts then spill at the deadline what they had not already turned away at arrival."""
    reason: str


def spill_reserve(
    profiles: Iterable[BatchProfile], *, budget_s: float, reserve_s: float, max_batch_size: int, cost_max: float
) -> SpillReserve:
    """Decide whether to set time aside for spilling what was admitted and then not served.

    The reserve comes out of what a batch may take, so instances serve less. It is kept if at least half of the usable types
    lose at most `cost_max` of their rate by it.

    Parameters
    ----------
    budget_s
        What the objective leaves to waiting and computing without a reserve.
    reserve_s
        p99 of an invocation, and margin.
    cost_max
        Share of an instance's rate that it may cost.

    Examples
    --------
    >>> from markserve.core.types import ProfilePoint
    >>> point = ProfilePoint(batch_size=1, p50_s=0.02, p98_s=0.02, p99_s=0.02, samples=100)
    >>> profile = BatchProfile(instance_type="c5.large", points=(point,))
    >>> spill_reserve([profile], budget_s=0.26, reserve_s=0.13, max_batch_size=1, cost_max=0.4).reserve_s
    0.13
    >>> spill_reserve([profile], budget_s=0.16, reserve_s=0.13, max_batch_size=1, cost_max=0.4).reason
    'no time is set aside for spilling: 0.130 s of 0.160 s would cost 100% of the rate on a typical type'
    """
    losses = [_rate_lost(profile, budget_s, reserve_s, max_batch_size) for profile in profiles]
    usable = sorted(loss for loss in losses if loss is not None)
    typical = usable[(len(usable) - 1) // 2] if usable else 1.0
    keeps = typical <= cost_max
    verb = "would cost" if not keeps else "costs"
    head = f"{reserve_s:.3f} s are" if keeps else "no time is"
    return SpillReserve(
        reserve_s=reserve_s if keeps else 0.0,
        reason=f"{head} set aside for spilling: {reserve_s:.3f} s of {budget_s:.3f} s {verb} {typical:.0%} of the rate on a typical type",
    )


def _rate_lost(profile: BatchProfile, budget_s: float, reserve_s: float, max_batch_size: int) -> float | None:
    """Share of the rate that the reserve costs; 1 where a busy instance could not serve at all; None for a useless type."""
    estimate = LatencyEstimate(profile)
    if estimate.batch_latency_s(1) >= budget_s:
        return None
    if 2 * estimate.batch_latency_s(1) > budget_s - reserve_s:
        return 1.0
    rates = [
        choose_batch_limits(estimate=estimate, latency_budget_s=left_s, max_batch_size=max_batch_size).service_rate_rps
        for left_s in (budget_s - reserve_s, budget_s)
    ]
    return max(0.0, 1 - rates[0] / rates[1])


def _reject(status: int, retry_after_s: float, reason: str, *, deadline_at_s: float | None = None) -> Admission:
    return Admission(
        action=AdmissionAction.REJECT,
        deadline_at_s=deadline_at_s,
        spill_at_s=None,
        predicted_wait_s=0.0,
        # HTTP's Retry-After is in whole seconds; an unbounded one would tell a client to give up.
        retry_after_s=float(min(max(1, math.ceil(retry_after_s)) if math.isfinite(retry_after_s) else 60, 60)),
        status=status,
        reason=reason,
    )


def poll_delays_s(
    *, first_s: float, total_s: float, shortest_s: float = 0.01, growth: float = 1.5, longest_s: float = 0.25
) -> Iterator[float]:
    """Sleeps between polls for an answer: the first poll at its predicted completion, then at growing intervals.

    The last sleep ends exactly at `total_s`, so that the last poll is never early and never past the point where
    waiting ends. Each poll is a billed read: with growth g the number of polls is logarithmic in how wrong the
    prediction was, and the answer is seen late by at most (g - 1) of that error, or `longest_s`.

    Parameters
    ----------
    first_s
        Predicted wait for the answer.
    total_s
        Time left until waiting ends; nothing is yielded when it is not positive.

    Examples
    --------
    >>> [round(delay, 4) for delay in poll_delays_s(first_s=0.06, total_s=0.13)]
    [0.06, 0.01, 0.015, 0.0225, 0.0225]
    """
    require(shortest_s > 0 and growth >= 1, "shortest_s must be positive and growth at least 1")
    remaining_s = total_s
    delay_s = max(first_s, shortest_s)
    step_s = shortest_s
    while remaining_s > 0:
        # A rest too short for another interval joins this one instead of costing a poll of its own.
        delay_s = remaining_s if remaining_s - delay_s < shortest_s else delay_s
        yield delay_s
        remaining_s -= delay_s
        delay_s, step_s = step_s, min(step_s * growth, longest_s)


def warm_environments(*, spill_rate_rps: float, spill_latency_s: float, limit: int) -> int:
    """Lambda environments to keep warm: as many as the expected spill-over keeps busy (Little's law), no more.

        environments = min(ceil(spill rate * T_lambda), limit)

    MArk's "strategic concurrency warm-up": a cold start breaks the objective, an idle warm environment costs only
    the ping that keeps it. Take the rate from the forecast's upper tail less the planned capacity.

    >>> warm_environments(spill_rate_rps=12.0, spill_latency_s=0.3, limit=10)
    4
    >>> warm_environments(spill_rate_rps=0.0, spill_latency_s=0.3, limit=10)
    0
    """
    require(spill_rate_rps >= 0 and spill_latency_s >= 0 and limit >= 0, "spill_rate_rps, spill_latency_s and limit must not be negative")
    return min(math.ceil(spill_rate_rps * spill_latency_s - 1e-9), limit)
