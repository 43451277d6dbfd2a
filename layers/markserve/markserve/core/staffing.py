"""How much of its nominal rate a fleet can use while random arrivals still make the objective.

A fleet cannot be loaded to 100 %: requests arrive at random, so queues form. How far it can be loaded depends on how many
servers share the queue, on the batch, and on what the objective leaves for waiting. Knows no prices and no instances.
"""

from __future__ import annotations

import math
from functools import lru_cache
from statistics import NormalDist

from markserve.core.batch_limits import BatchLimits
from markserve.core.profiles import LatencyEstimate
from markserve.core.types import require

LATE_SHARES = (0.005, 0.01, 0.02, 0.05, 0.1)
"""Shares of requests that may find no server in time at the planned rate. The least where being late is failing: the planned
rate is one of busy minutes, so the share over an hour is far below it, and an objective of 98 % keeps its allowance for
what nobody foresees. More where being late is being spilled, in time but at a price."""
BATCH_SHARES = (1.0, 0.85, 0.7, 0.5)
"""Batches looked at, as shares of the limit: smaller ones leave more time to wait, larger ones more rate."""
EXACT_SERVERS = 48
"""Up to this many servers Erlang's recursion is exact and cheap; beyond it the Halfin-Whitt limit is within 1 %."""


def late_share(*, servers: int, utilization: float, batch_size: int, batch_latency_s: float, budget_s: float) -> float:
    """Approximate share of requests that start too late, `servers` sharing a queue and taking up to `batch_size` each.

        P(late) = C(n, n rho) * exp(-theta * m),   m = b n w / T - (b - 1),   w = budget - T,   rho (e^theta - 1) = theta

    `w` is the time until a request must start. In it, `n w / T` servers fall free and take `b` each, less the company that
    a request waits for; `m` is therefore how many requests may be ahead. The queue's tail falls as `exp(-theta m)`, theta being
    the Cramér-Lundberg root for Poisson arrivals against deterministic service, and `C` is Erlang's probability that all
    servers are busy.

    For b = 1 it is the usual heavy-traffic approximation of M/D/n. Compared with simulation by a test.

    References
    ----------
    Tijms, *A First Course in Stochastic Models* (2003), 9.6: exponential tails of M/D/c. Asmussen, *Applied Probability and
    Queues* (2003), XIII: Cramér-Lundberg.

    Examples
    --------
    >>> [round(late_share(servers=n, utilization=0.8, batch_size=1, batch_latency_s=0.05, budget_s=0.15), 4) for n in (1, 4, 16)]
    [0.338, 0.019, 0.0]
    """
    require(0 < utilization < 1, f"utilization must lie in (0, 1), got {utilization}")
    slack = batch_size * servers * (budget_s - batch_latency_s) / batch_latency_s - (batch_size - 1)
    return _late_share(servers, utilization, slack)


def _late_share(servers: int, utilization: float, slack: float) -> float:
    if slack <= 0:
        return 1.0
    return erlang_c(servers, servers * utilization) * math.exp(-_tail_exponent(utilization) * slack)


def _tail_exponent(utilization: float) -> float:
    """Positive root of `rho (e^theta - 1) = theta`, by Newton from above, where the function is convex."""
    theta = 2 * (1 - utilization) / utilization
    for _ in range(20):
        grown = utilization * math.exp(theta)
        step = (grown - utilization - theta) / (grown - 1)
        theta -= step
        if abs(step) < 1e-9:
            break
    return theta


def erlang_c(servers: int, offered_load: float) -> float:
    """Probability that all servers are busy (M/M/n): Erlang B's recursion, or the Halfin-Whitt limit for many servers.

    >>> round(erlang_c(2, 1.0), 4), round(erlang_c(1, 0.7), 4)
    (0.3333, 0.7)
    """
    utilization = offered_load / servers
    if servers > EXACT_SERVERS:
        beta = (1 - utilization) * math.sqrt(servers)
        return 1 / (1 + beta * _STANDARD.cdf(beta) / _STANDARD.pdf(beta)) if beta < 30 else 0.0
    blocked = 1.0
    for n in range(1, servers + 1):
        blocked = offered_load * blocked / (n + offered_load * blocked)
    return blocked / (1 - utilization * (1 - blocked))


_STANDARD = NormalDist()


@lru_cache(maxsize=65536)
def utilization_bound(servers: int, batch_size: int, waits: float, late_share_max: float = LATE_SHARES[0]) -> float:
    """Highest utilization at which at most `late_share_max` of requests start too late; 0 when there is none.

    `waits` is what the objective leaves for waiting, in units of the batch latency.

    >>> [round(utilization_bound(n, 1, 2.0), 2) for n in (1, 4, 16, 64, 256)]
    [0.3, 0.74, 0.93, 0.98, 0.99]
    """
    slack = batch_size * servers * waits - (batch_size - 1)
    low, high = 0.0, 1.0
    for _ in range(12):
        middle = (low + high) / 2
        low, high = (middle, high) if _late_share(servers, middle, slack) <= late_share_max else (low, middle)
    return low if high < 1 else 1.0


def late_share_worth(cost_ratio: float) -> float:
    """Share of requests that it is worth spilling for want of a free server, an instance costing `cost_ratio` of spilling.

    By the newsvendor's rule capacity is worth its price while it is needed more than this share of the time.

    >>> late_share_worth(0.14), late_share_worth(0.001)
    (0.1, 0.005)
    """
    return max((share for share in LATE_SHARES if share <= cost_ratio), default=LATE_SHARES[0])


def sustainable_rps(estimate: LatencyEstimate, limits: BatchLimits, *, servers: int, late_share_max: float = LATE_SHARES[0]) -> float:
    """Rate that `servers` alike sustain together.

    Examples
    --------
    >>> from markserve.core.batch_limits import choose_batch_limits
    >>> from markserve.core.types import BatchProfile, ProfilePoint
    >>> point = ProfilePoint(batch_size=1, p50_s=0.05, p98_s=0.05, p99_s=0.05, samples=100)
    >>> estimate = LatencyEstimate(BatchProfile(instance_type="c5.large", points=(point,)))
    >>> limits = choose_batch_limits(estimate=estimate, latency_budget_s=0.15, max_batch_size=1)
    >>> [round(sustainable_rps(estimate, limits, servers=n) / n, 1) for n in (1, 4, 16)]
    [6.0, 14.8, 18.5]
    """
    budget_s = limits.max_queue_delay_s + limits.batch_latency_s
    best = 0.0
    for batch_size in {max(1, round(share * limits.max_batch_size)) for share in BATCH_SHARES}:
        latency_s = estimate.batch_latency_s(batch_size)
        waits = math.floor(100 * (budget_s - latency_s) / latency_s + 1e-6) / 100  # rounded, so that results are found again
        best = max(best, servers * batch_size / latency_s * utilization_bound(servers, batch_size, waits, late_share_max))
    return best


def _least_for_one_fewer(fleet_rate_rps: float, servers: int) -> float:
    """Rate per instance at which one instance fewer would nearly do.

    In a fleet of n each is good for more than in one of n - 1, so at `rate(n) / n` each, n - 1 may look like enough when they are not.
    """
    if servers == 1 or servers > EXACT_SERVERS:  # beyond, n is on a coarse grid, and one more or less is no matter
        return math.inf
    return fleet_rate_rps / (servers - 1) * (1 - 1e-6)


def rate_in_fleet_rps(
    estimate: LatencyEstimate, limits: BatchLimits, *, fleet_rate_rps: float, late_share_max: float = LATE_SHARES[0]
) -> float:
    """Rate per instance when a fleet of this type alone serves `fleet_rate_rps`; 0 where no number of them would do.

    Square-root staffing: the reserve for randomness is shared by the fleet, so an instance counts for more in a large one.

    Examples
    --------
    >>> from markserve.core.batch_limits import choose_batch_limits
    >>> from markserve.core.types import BatchProfile, ProfilePoint
    >>> point = ProfilePoint(batch_size=1, p50_s=0.05, p98_s=0.05, p99_s=0.05, samples=100)
    >>> estimate = LatencyEstimate(BatchProfile(instance_type="c5.large", points=(point,)))
    >>> limits = choose_batch_limits(estimate=estimate, latency_budget_s=0.15, max_batch_size=1)
    >>> [round(rate_in_fleet_rps(estimate, limits, fleet_rate_rps=rate), 1) for rate in (1.0, 50.0, 1000.0)]
    [6.0, 14.8, 19.5]
    """
    servers = max(1, math.ceil(fleet_rate_rps / limits.service_rate_rps - 1e-9))
    for _ in range(50):
        rate_rps = sustainable_rps(estimate, limits, servers=servers, late_share_max=late_share_max)
        if rate_rps >= fleet_rate_rps:
            return min(rate_rps / servers, _least_for_one_fewer(fleet_rate_rps, servers))
        each_rps = rate_rps / servers
        servers = max(servers + 1, min(math.ceil(fleet_rate_rps / each_rps - 1e-9) if each_rps > 0 else 2 * servers, 2 * servers))
        servers = servers if servers <= EXACT_SERVERS else math.ceil(servers / 8) * 8  # a coarse grid is found again
    return each_rps
