"""What a request costs and how long it takes on everything that can be rented, from measured batch latencies.

The measurement study of MArk (section 2) as a policy: instances against containers against functions, CPU against GPU, with
and without batching. A machine that was not measured is estimated from one that was, and says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from markserve.core.cost import lambda_cost_usd
from markserve.core.profiles import batch_latency_s
from markserve.core.types import BatchProfile, require

LAMBDA_MB_PER_VCPU = 1769
"""AWS gives a function one vCPU at this memory, and less in proportion below."""
MEASURED = "measured"


@dataclass(frozen=True, kw_only=True, slots=True)
class Rent:
    """Something that runs a model and is paid for."""

    provider: str
    """AWS or Google Cloud."""
    service: str
    """IaaS, CaaS or FaaS."""
    machine: str
    profile: str
    """Name of the profile it is judged by."""
    price_usd_per_hour: float = 0.0
    """Of IaaS and CaaS."""
    memory_mb: int = 0
    """Of FaaS, which its price goes by."""
    slowdown: float = 1.0
    """Factor on the profile's latencies."""
    has_gpu: bool = False
    basis: str = MEASURED
    """`measured`, or what the latencies are taken from."""

    def __post_init__(self) -> None:
        require(self.slowdown > 0, f"{self.machine}: slowdown must be positive, got {self.slowdown}")
        require(
            (self.memory_mb > 0) == (self.service == "FaaS") and (self.price_usd_per_hour > 0) == (self.service != "FaaS"),
            f"{self.machine}: FaaS has memory_mb, everything else a price_usd_per_hour",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Economics:
    """One way to serve: a machine at a batch size, kept busy."""

    rent: Rent
    batch_size: int
    p50_s: float
    p98_s: float
    worst_s: float
    """Wait for the batch before, then T(b): what the unluckiest request of a busy machine sees of it."""
    throughput_rps: float
    """Of one machine, or of one environment."""
    usd_per_million: float
    meets_objective: bool

    @property
    def is_batched(self) -> bool:
        """Whether requests share a run."""
        return self.batch_size > 1


def characterize(profiles: Mapping[str, BatchProfile], rents: Iterable[Rent], *, rt_max_s: float) -> list[Economics]:
    """Judge each machine alone at batch size 1, and at the batch size with the highest throughput that meets the objective.

    While a batch runs, the next one fills, so a request waits for at most one T(b) and then takes one: `2 T(b) <= RT_max`,
    by p98. Without batching a request waits for nobody: `T(1) <= RT_max`. Cost goes by the median: over many batches it is what
    the machine is busy for. Functions do not batch across requests, and cost by duration and request.

    Returns
    -------
    list of Economics
        Cheapest first; those that meet the objective before those that do not.

    Examples
    --------
    >>> from markserve.core.types import ProfilePoint
    >>> points = [ProfilePoint(batch_size=b, p50_s=t, p98_s=t, p99_s=t, samples=50) for b, t in ((1, 0.020), (8, 0.080))]
    >>> profiles = {"c5.large": BatchProfile(instance_type="c5.large", points=tuple(points))}
    >>> rents = [Rent(provider="AWS", service="IaaS", machine="c5.large", profile="c5.large", price_usd_per_hour=0.085)]
    >>> [(e.batch_size, round(e.throughput_rps), round(e.usd_per_million, 3)) for e in characterize(profiles, rents, rt_max_s=0.2)]
    [(8, 100, 0.236), (1, 50, 0.472)]
    """
    require(rt_max_s > 0, f"rt_max_s must be positive, got {rt_max_s}")
    judged = [entry for rent in rents if rent.profile in profiles for entry in _judge(rent, profiles[rent.profile], rt_max_s)]
    return sorted(judged, key=lambda e: (not e.meets_objective, e.usd_per_million, e.rent.provider, e.rent.machine, e.batch_size))


def _judge(rent: Rent, profile: BatchProfile, rt_max_s: float) -> list[Economics]:
    options = [_economics(rent, profile, point.batch_size, point.p50_s, rt_max_s) for point in profile.points]
    alone = [option for option in options if not option.is_batched]
    together = [option for option in options if option.is_batched and option.meets_objective and rent.service != "FaaS"]
    return alone + ([max(together, key=lambda option: option.throughput_rps)] if together else [])


def _economics(rent: Rent, profile: BatchProfile, batch_size: int, measured_p50_s: float, rt_max_s: float) -> Economics:
    p50_s, p98_s = measured_p50_s * rent.slowdown, batch_latency_s(profile, batch_size) * rent.slowdown
    throughput_rps = batch_size / p50_s
    if rent.service == "FaaS":
        usd = lambda_cost_usd(duration_s=p50_s, memory_mb=rent.memory_mb)
    else:
        usd = rent.price_usd_per_hour / 3600 / throughput_rps
    worst_s = p98_s if batch_size == 1 else 2 * p98_s
    return Economics(
        rent=rent,
        batch_size=batch_size,
        p50_s=p50_s,
        p98_s=p98_s,
        worst_s=worst_s,
        throughput_rps=throughput_rps,
        usd_per_million=usd * 1e6,
        meets_objective=worst_s <= rt_max_s,
    )


def lambda_sizes(*, profile: str, measured_mb: int, sizes_mb: Sequence[int]) -> list[Rent]:
    """List functions of several memory sizes, from one that was measured.

    Time falls with memory up to one vCPU and no further: a second one helps only models that use it, and the estimate
    rather flatters the small sizes than the large.

    >>> [(r.memory_mb, round(r.slowdown, 2)) for r in lambda_sizes(profile="lambda", measured_mb=1769, sizes_mb=[884, 1769, 3538])]
    [(884, 2.0), (1769, 1.0), (3538, 1.0)]
    """
    speed = min(measured_mb, LAMBDA_MB_PER_VCPU)
    return [
        Rent(
            provider="AWS",
            service="FaaS",
            machine=f"lambda-{size}MB",
            profile=profile,
            memory_mb=size,
            slowdown=speed / min(size, LAMBDA_MB_PER_VCPU),
            basis=MEASURED if size == measured_mb else f"from {measured_mb} MB",
        )
        for size in sorted({*sizes_mb, measured_mb})
    ]
