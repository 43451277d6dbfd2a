"""How large batches may be on one kind of instance, decided once per (refitted) profile."""

from __future__ import annotations

from dataclasses import dataclass

from markserve.core.profiles import LatencyEstimate
from markserve.core.types import require
from markserve.errors import InfeasibleSlo

RATE_TOLERANCE = 0.01
"""Within 1 % of the best rate the smaller batch wins: latency for nothing is no gain, and profiles are not that exact."""
SERVE_RATE_TOLERANCE = 0.0
"""In `markserve serve`. A larger batch forms only behind a backlog, where the last per cent of rate counts; how T(b) happened to come out
in a few seconds of measuring would choose between half and all of it."""
EPSILON_S = 1e-6
"""Comparisons of times allow a microsecond: epoch seconds resolve 0.2 of it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchLimits:
    """How one model is batched on one kind of instance."""

    max_batch_size: int
    max_queue_delay_s: float
    """What is left for waiting when a full batch must still make the objective: budget - T(b)."""
    service_rate_rps: float
    """Nominal: b / T(b) at the limit, with work always waiting. `core.staffing` says how much of it a fleet can use."""
    batch_latency_s: float
    """T(b) at the limit."""
    reason: str


def choose_batch_limits(
    *, estimate: LatencyEstimate, latency_budget_s: float, max_batch_size: int, rate_tolerance: float = RATE_TOLERANCE
) -> BatchLimits:
    """Choose the batch size with the highest rate that still meets the objective, waiting overlapped with execution.

    Why not simply the largest b with T(b) within the budget: under load the next batch fills while one runs, so a
    request that arrives just after a batch has started waits for all of it and then runs in the next. Its latency
    is T(b) + T(b). At an arrival rate of b / T(b) exactly b requests collect meanwhile, so nobody waits longer and

        sustained:    b / T(b)   subject to   2 * T(b) <= budget                                         (1)

    The highest rate wins, or the smallest b within `rate_tolerance` of it. When not even 2 * T(1) fits but T(1) does, b = 1: one such
    instance can hardly be used, as whoever finds it busy is late, but of several that share a queue one is soon free.

    Regimes: a looser budget admits larger batches until T(b) / b stops falling or the model's limit is reached; a
    slower instance (scale above 1) gets smaller ones. The rate is nominal, a fluid limit: random arrivals need room,
    which `core.staffing` works out for the size of the fleet.

    Parameters
    ----------
    latency_budget_s
        The objective less transport, reply overhead, the reserve for spilling, and margin.
    max_batch_size
        The largest batch that the model accepts.
    rate_tolerance
        Share of the rate that smaller batches may cost: what a fleet is planned with gains from them, as its requests wait for less.

    Raises
    ------
    InfeasibleSlo
        If not even a request alone at an idle runner makes it; says by how much.

    Notes
    -----
    Deviates from MArk, whose two constraints are `W + T(b) <= RT_max` and `W + T(b) <= b / mu_nb` with W the time
    to fill the batch and `mu_nb` the best rate without batching. The second assumes that waiting and executing
    never overlap. Overlapped, batching beats not batching when `b / max(W, T(b)) >= mu_nb`; here W = T(b) in the
    saturated state, and the maximum over b, which includes b = 1, meets it by construction (to the tolerance). The first
    becomes (1): W is the running batch's T(b), not a free parameter. Nexus uses the same rule, twice the batch
    latency within the objective, for the sessions that saturate a GPU.

    References
    ----------
    MArk (Zhang et al., ATC '19), the batching constraints; Nexus (Shen et al., SOSP '19), saturated sessions.

    Examples
    --------
    >>> from markserve.core.types import BatchProfile, ProfilePoint
    >>> points = tuple(ProfilePoint(batch_size=b, p50_s=0.01, p98_s=0.01 + 0.005 * b, p99_s=0.2, samples=100) for b in (1, 32))
    >>> estimate = LatencyEstimate(BatchProfile(instance_type="c5.large", points=points))
    >>> limits = choose_batch_limits(estimate=estimate, latency_budget_s=0.15, max_batch_size=64)
    >>> limits.max_batch_size, round(limits.service_rate_rps), round(limits.max_queue_delay_s, 3)
    (13, 173, 0.075)
    >>> choose_batch_limits(estimate=estimate, latency_budget_s=0.012, max_batch_size=64)
    Traceback (most recent call last):
    ...
    markserve.errors.InfeasibleSlo: c5.large: T(1) = 0.015 s leaves nothing of the latency budget of 0.012 s, which is short by 0.003 s
    """
    require(max_batch_size >= 1, f"max_batch_size must be at least 1, got {max_batch_size}")
    alone_s = estimate.batch_latency_s(1)
    _check_feasible(estimate.profile.instance_type, alone_s, latency_budget_s)
    latencies = {b: estimate.batch_latency_s(b) for b in range(1, max_batch_size + 1)}
    rates = {b: b / latency for b, latency in latencies.items() if 2 * latency <= latency_budget_s + EPSILON_S}
    if not rates:
        return BatchLimits(
            max_batch_size=1,
            max_queue_delay_s=latency_budget_s - alone_s,
            service_rate_rps=1 / alone_s,
            batch_latency_s=alone_s,
            reason=(
                f"b = 1: 2 * T(1) = {2 * alone_s:.3f} s exceeds the budget of {latency_budget_s:.3f} s by "
                f"{2 * alone_s - latency_budget_s:.3f} s, so whoever waits for a whole request is late"
            ),
        )
    highest = max(rates.values())
    best = min(b for b, rate in rates.items() if rate >= (1 - rate_tolerance) * highest)
    return BatchLimits(
        max_batch_size=best,
        max_queue_delay_s=latency_budget_s - latencies[best],
        service_rate_rps=rates[best],
        batch_latency_s=latencies[best],
        reason=_limits_reason(best, latencies, latency_budget_s, max_batch_size, rate_tolerance),
    )


def _check_feasible(instance_type: str, alone_s: float, budget_s: float) -> None:
    if budget_s <= 0:
        raise InfeasibleSlo(
            f"{instance_type}: transport, reply, spill reserve and margin use up the objective and {-budget_s:.3f} s more, "
            "before any computation"
        )
    if alone_s >= budget_s:
        raise InfeasibleSlo(
            f"{instance_type}: T(1) = {alone_s:.3f} s leaves nothing of the latency budget of {budget_s:.3f} s, "
            f"which is short by {alone_s - budget_s:.3f} s"
        )


def _limits_reason(best: int, latencies: dict[int, float], budget_s: float, max_batch_size: int, rate_tolerance: float) -> str:
    twice_s = 2 * latencies[best]
    if best == max_batch_size:
        return f"b = {best}: the model's limit, as 2 * T({best}) = {twice_s:.3f} s is within the budget of {budget_s:.3f} s"
    if 2 * latencies[best + 1] > budget_s + EPSILON_S:
        return f"b = {best}: 2 * T({best + 1}) = {2 * latencies[best + 1]:.3f} s would exceed the budget of {budget_s:.3f} s"
    gain = f"less than {rate_tolerance:.0%} of rate" if rate_tolerance else "no rate"
    return f"b = {best}: larger batches within the budget of {budget_s:.3f} s gain {gain}"
