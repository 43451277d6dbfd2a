"""What other ways of serving the same load would have cost: Lambda alone, and a SageMaker real-time endpoint.

Estimates for an operator who looks at the last minutes, from arrivals per minute and measured batch latencies. Both favour the
alternative: it is taken to meet the objective, and what would need a simulation (launches, queues, spikes within a minute) costs it
nothing. The simulator's `sagemaker` policy is the exact comparison.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markserve.core.cost import PLUMBING_PRICES, spill_cost_per_request_usd
from markserve.core.sagemaker_prices import sagemaker_price_usd_per_hour
from markserve.core.types import BatchProfile, require

STEP_S = 60.0
SAFETY_FACTOR = 0.5
"""Share of an instance's capacity that AWS's guide to endpoint auto scaling suggests to begin a target with."""
SCALE_IN_STEPS = 15
"""One-minute data points before a target-tracking policy scales in."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WayToServe:
    """What serving a load in one way costs, and how that was reckoned."""

    name: str
    compute_usd: float
    plumbing_usd: float
    basis: str
    least_usd: float | None = None
    """Compute of a fleet that follows the load without delay or reserve: nothing of this kind costs less."""

    @property
    def total_usd(self) -> float:
        """Compute and plumbing."""
        return self.compute_usd + self.plumbing_usd


def all_lambda(requests: float, *, compute_s: float, memory_mb: int) -> WayToServe:
    """Every request alone in a function behind an HTTP API: no fleet, no queue, nothing idle.

    >>> way = all_lambda(1_000_000, compute_s=0.05, memory_mb=2048)
    >>> round(way.compute_usd, 2), way.plumbing_usd
    (1.87, 1.0)
    """
    each_usd = spill_cost_per_request_usd(spill_latency_s=compute_s, memory_mb=memory_mb)
    return WayToServe(
        name="lambda",
        compute_usd=requests * each_usd,
        plumbing_usd=requests * PLUMBING_PRICES["http_api"].usd,
        basis=f"{compute_s * 1000:.1f} ms (median measured) of {memory_mb} MB each, behind an HTTP API; cold starts left out",
    )


def sagemaker(
    arrivals_per_step: Sequence[float],
    *,
    profiles: Mapping[str, BatchProfile],
    prices_usd_per_hour: Mapping[str, float],
    latency_s: float,
) -> WayToServe | None:
    """Return the cheapest SageMaker endpoint of one instance type; None where no measured type meets the objective alone.

    With c = 60 / T(1) invocations a minute that an instance sustains without batching, and n_i the arrivals of minute i:

        fleet_i = max(1, max(n_j, i-14 <= j <= i) / (0.5 * c)),  least_i = max(1, n_i / c),  both rounded up

    The fleet scales out at once and in after 15 minutes, to the target that AWS suggests to begin with. A tuned target lies between
    that and `least`.

    Parameters
    ----------
    arrivals_per_step
        Of consecutive minutes.
    latency_s
        RT_max; a type whose p98 of one request exceeds it is left out.

    Examples
    --------
    >>> from markserve.core.types import ProfilePoint
    >>> point = ProfilePoint(batch_size=1, p50_s=0.1, p98_s=0.12, p99_s=0.13, samples=100)
    >>> profile = BatchProfile(instance_type="c5.large", points=(point,))
    >>> load = [600.0] * 60
    >>> way = sagemaker(load, profiles={"c5.large": profile}, prices_usd_per_hour={"c5.large": 0.085}, latency_s=0.2)
    >>> round(way.compute_usd, 3), round(way.least_usd, 3)
    (0.204, 0.102)
    >>> sagemaker(load, profiles={"c5.large": profile}, prices_usd_per_hour={"c5.large": 0.085}, latency_s=0.1) is None
    True
    """
    require(bool(arrivals_per_step), "arrivals_per_step must not be empty")
    found = [
        _endpoint(arrivals_per_step, profile, prices_usd_per_hour[name])
        for name, profile in sorted(profiles.items())
        if name in prices_usd_per_hour and profile.points[0].batch_size == 1 and profile.points[0].p98_s <= latency_s
    ]
    return min(found, key=lambda way: way.compute_usd, default=None)


def _endpoint(arrivals: Sequence[float], profile: BatchProfile, ec2_usd_per_hour: float) -> WayToServe:
    price_usd, source = sagemaker_price_usd_per_hour(profile.instance_type, ec2_usd_per_hour)
    capacity = STEP_S / profile.points[0].p50_s
    highest = [max(arrivals[max(0, i - SCALE_IN_STEPS + 1) : i + 1]) for i in range(len(arrivals))]
    fleet = [_instances(number / (SAFETY_FACTOR * capacity)) for number in highest]
    least = [_instances(number / capacity) for number in arrivals]
    return WayToServe(
        name="sagemaker",
        compute_usd=sum(fleet) * price_usd * STEP_S / 3600,
        plumbing_usd=0.0,
        least_usd=sum(least) * price_usd * STEP_S / 3600,
        basis=f"{max(fleet)} x ml.{profile.instance_type} at the busiest, {price_usd:g} USD/h ({source}); no batching, target at "
        f"{SAFETY_FACTOR:.0%} of {capacity:.0f} invocations a minute",
    )


def _instances(needed: float) -> int:
    return max(1, math.ceil(needed - 1e-9))
