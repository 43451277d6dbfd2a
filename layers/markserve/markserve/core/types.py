"""Value objects every policy speaks in.

Frozen and keyword-only, so a value that breaks its own rules cannot be built. Instants are `*_at_s` or
`now_s` (epoch seconds in AWS, seconds from zero in simulation); durations are plain `*_s`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


def require(condition: bool, message: str) -> None:
    """Raise `ValueError` with `message` unless `condition` holds."""
    if not condition:
        raise ValueError(message)


class CapacityType(StrEnum):
    """How an instance is bought."""

    ON_DEMAND = "on_demand"
    SPOT = "spot"


class Tier(StrEnum):
    """Where an answer was computed."""

    WORKER = "worker"
    LAMBDA = "lambda"


class InstanceState(StrEnum):
    """Life of an instance as this system sees it.

    REQUESTED → WARMING → SERVING → DRAINING → TERMINATED; FAILED from any state but TERMINATED.
    """

    REQUESTED = "requested"
    WARMING = "warming"
    SERVING = "serving"
    DRAINING = "draining"
    TERMINATED = "terminated"
    FAILED = "failed"


@dataclass(frozen=True, kw_only=True, slots=True)
class Slo:
    """Latency objective: `percentile` of requests answered within `latency_s`."""

    latency_s: float
    percentile: float = 0.98

    def __post_init__(self) -> None:
        require(self.latency_s > 0, f"slo.latency_s must be positive, got {self.latency_s}")
        require(0 < self.percentile < 1, f"slo.percentile must lie in (0, 1), got {self.percentile}")


@dataclass(frozen=True, kw_only=True, slots=True, order=True)
class Offering:
    """What can be bought: an instance type, in a capacity type, in a zone, at a price."""

    instance_type: str
    capacity_type: CapacityType
    zone: str
    price_usd_per_hour: float
    launch_overhead_s: float = 180.0
    """Request to first answer: boot, start and model load."""
    interruption_rate_per_hour: float = 0.0

    def __post_init__(self) -> None:
        require(self.price_usd_per_hour > 0, f"{self.instance_type}: price_usd_per_hour must be positive")
        require(self.launch_overhead_s >= 0, f"{self.instance_type}: launch_overhead_s must not be negative")

    @property
    def key(self) -> str:
        """Stable name of the pool: `type/capacity/zone`."""
        return f"{self.instance_type}/{self.capacity_type}/{self.zone}"


@dataclass(frozen=True, kw_only=True, slots=True)
class ProfilePoint:
    """Measured latency of one batch size on one instance type."""

    batch_size: int
    p50_s: float
    p98_s: float
    p99_s: float
    samples: int


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchProfile:
    """Measured batch latencies of one model on one instance type, by rising batch size."""

    instance_type: str
    points: tuple[ProfilePoint, ...]

    def __post_init__(self) -> None:
        sizes = [point.batch_size for point in self.points]
        require(bool(sizes), f"{self.instance_type}: a profile needs at least one batch size")
        require(sizes == sorted(set(sizes)) and sizes[0] >= 1, f"{self.instance_type}: batch sizes must rise from 1, got {sizes}")
        require(all(p.p98_s > 0 for p in self.points), f"{self.instance_type}: latencies must be positive")


@dataclass(frozen=True, kw_only=True, slots=True)
class Forecast:
    """Forecast maximum arrival rate of the coming steps, by quantile.

    `rates_rps[q][i]` is the q-quantile of the highest rate within
    `[origin_at_s + i*step_s, origin_at_s + (i+1)*step_s)`. Quantiles never cross and are never negative.
    """

    model: str
    origin_at_s: float
    step_s: float
    rates_rps: Mapping[float, tuple[float, ...]]
    forecaster: str
    reason: str

    def __post_init__(self) -> None:
        lengths = {len(values) for values in self.rates_rps.values()}
        require(len(lengths) == 1 and lengths != {0}, f"forecast of {self.model}: every quantile needs the same, non-zero number of steps")
        require(
            all(v >= 0 and v == v for values in self.rates_rps.values() for v in values),
            f"forecast of {self.model}: rates must be finite and not negative",
        )

    @property
    def steps(self) -> int:
        """Number of steps ahead."""
        return len(next(iter(self.rates_rps.values())))


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerStats:
    """What a worker reports with each heartbeat."""

    service_rate_rps: float = 0.0
    """Sustainable rate at its batch limit, from the refitted T(b); 0 once it takes no more requests."""
    batch_latency_s: float = 0.0
    """T(b) at the batch limit."""
    max_batch_size: int = 1
    queue_depth: int = 0
    """Messages visible in the model's work queue, as last seen."""
    transport_s: float = 0.0
    """Arrival at the front to receipt here, upper quantile of recent requests."""
    in_flight: int = 0
    completed: int = 0
    dropped: int = 0
    failed: int = 0
    batches: int = 0
    sqs_calls: int = 0
    versions: tuple[str, ...] = ()
    """Versions of the model that it has loaded; empty when it does not say."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Instance:
    """One instance as recorded in the registry."""

    instance_id: str
    model: str
    offering: Offering
    state: InstanceState
    requested_at_s: float
    reason: str
    plan_id: str = ""
    running_at_s: float | None = None
    serving_at_s: float | None = None
    drain_at_s: float | None = None
    terminated_at_s: float | None = None
    heartbeat_at_s: float | None = None
    end_reason: str | None = None
    missed_cycles: int = 0
    """Consecutive control cycles that found evidence against it."""
    unwanted_cycles: int = 0
    """Consecutive plans that did not want it."""
    stats: WorkerStats = field(default_factory=WorkerStats)

    @property
    def is_alive(self) -> bool:
        """Whether it still costs money."""
        return self.state not in (InstanceState.TERMINATED, InstanceState.FAILED)


@dataclass(frozen=True, kw_only=True, slots=True)
class ObservedInstance:
    """One instance as the cloud reports it."""

    instance_id: str
    instance_type: str
    capacity_type: CapacityType
    zone: str
    cloud_state: str
    """pending, running, shutting-down, terminated, stopping or stopped."""
    launched_at_s: float
    model: str | None = None
    """From the ownership tag; None when the tag is missing."""
    purpose: str = ""
    """Empty for one that serves, else the measurement it is for."""
