"""What the console's endpoints answer: docs/console.md says what each field is for."""

from __future__ import annotations

import msgspec

from markserve.core.types import InstanceState
from markserve.messages import DecisionRecord, Message, PlanRecord


class RatePoint(msgspec.Struct, frozen=True, kw_only=True):
    """Arrival rate of one counting window; None where it is not known."""

    at_s: float
    rate_rps: float | None


class BandPoint(msgspec.Struct, frozen=True, kw_only=True):
    """What was forecast for one step, by the latest forecast made before it: lowest, middle and highest quantile known."""

    at_s: float
    until_s: float
    low_rps: float
    middle_rps: float
    high_rps: float


class CapacityPoint(msgspec.Struct, frozen=True, kw_only=True):
    """Rate that the workers serving from this instant on can sustain."""

    at_s: float
    capacity_rps: float


class PlanPoint(msgspec.Struct, frozen=True, kw_only=True):
    """What a plan bought for, and what it would have then."""

    at_s: float
    demand_rps: float
    capacity_rps: float


class ForecastNow(msgspec.Struct, frozen=True, kw_only=True):
    """The latest forecast."""

    origin_at_s: float
    step_s: float
    forecaster: str
    reason: str
    quantiles: tuple[str, ...]
    """Those that the band's lower edge, middle and upper edge are."""


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """Arrivals against forecast against capacity."""

    window_s: float
    arrivals: list[RatePoint]
    band: list[BandPoint]
    capacity: list[CapacityPoint]
    plans: list[PlanPoint]
    forecast: ForecastNow | None


class ServicePoint(msgspec.Struct, frozen=True, kw_only=True):
    """How the requests of `point_s` from this instant on ended."""

    at_s: float
    by_worker: int
    by_lambda: int
    rejected: int
    within_slo: int


class LatencyBar(msgspec.Struct, frozen=True, kw_only=True):
    """Requests whose latency lies above the bar before and at most at `upper_s`."""

    upper_s: float
    count: int


class Service(msgspec.Struct, frozen=True, kw_only=True):
    """How the interval's requests were served."""

    rt_max_s: float
    sl_min: float
    requests: int
    attainment: float | None
    """Of the interval; None without requests."""
    burn_rate_short: float
    burn_rate_long: float
    at_risk: bool
    reason: str
    by_tier: dict[str, int]
    point_s: float
    """Length of what each point sums up."""
    points: list[ServicePoint]
    latency: list[LatencyBar]
    p50_s: float | None
    p98_s: float | None
    p99_s: float | None


class FleetMember(msgspec.Struct, frozen=True, kw_only=True):
    """One instance, with the reason for what it does."""

    instance_id: str
    offering: str
    price_usd_per_hour: float
    state: InstanceState
    since_s: float
    """When it came into this state."""
    requested_at_s: float
    heartbeat_at_s: float | None
    capacity_rps: float
    completed: int
    mean_batch_size: float | None
    reason: str
    end_reason: str | None


class WayCost(msgspec.Struct, frozen=True, kw_only=True):
    """What serving the interval's load costs in one way."""

    name: str
    compute_usd_per_hour: float
    plumbing_usd_per_hour: float
    total_usd_per_hour: float
    usd_per_million: float | None
    """All in, of all requests; None without requests."""
    least_usd_per_hour: float | None
    """All in, where the estimate has a lower bound."""
    basis: str


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """What the interval's load costs here and elsewhere, estimated from counts at list prices."""

    since_s: float
    """Costs are averaged from here on: whole minutes, and not before the first window that is known."""
    workers_usd_per_hour: float
    lambda_usd_per_hour: float
    plumbing_usd_per_hour: float
    plumbing_by_kind_usd_per_hour: dict[str, float]
    fleet_usd_per_hour: float
    """Price of the instances that live now."""
    max_hourly_cost_usd: float
    workers_usd_per_million: float | None
    lambda_usd_per_million: float | None
    plumbing_usd_per_million: float | None
    ways: list[WayCost]
    """This system first."""
    missing: list[str]
    """Ways that cannot be estimated, and why."""


class Freshness(msgspec.Struct, frozen=True, kw_only=True):
    """When each part of the system was last heard of; None when never within the interval."""

    reported_at_s: float | None
    """End of the newest window with arrivals or a sign of life of the metrics pipeline."""
    forecast_at_s: float | None
    plan_at_s: float | None
    step_s: float
    stale: list[str]
    """Sentences about what is older than it should be."""


class Overview(Message, frozen=True, kw_only=True):
    """Everything the console draws of one model; the parts are None while no model is registered."""

    at_s: float
    stack: str
    models: list[str]
    model: str | None
    since_s: float
    until_s: float
    load: Load | None = None
    service: Service | None = None
    fleet: tuple[FleetMember, ...] = ()
    cost: Cost | None = None
    freshness: Freshness | None = None


class Decisions(Message, frozen=True, kw_only=True):
    """The latest plan with what it rejected, and the log, newest first."""

    at_s: float
    plan: PlanRecord | None
    decisions: list[DecisionRecord]


class ParameterView(msgspec.Struct, frozen=True, kw_only=True):
    """One operator parameter as it is in force, and what may be set."""

    name: str
    kind: str
    """`number`, `integer` or `boolean`."""
    value: float | int | bool
    default: float | int | bool
    lowest: float | None
    highest: float | None
    doc: str
    overridden: bool
    """Whether the model's value differs from the stack's."""


class Parameters(Message, frozen=True, kw_only=True):
    """All operator parameters, of the stack or of one model."""

    model: str | None
    in_force_within_s: float
    parameters: list[ParameterView]


class ParameterChange(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of a change."""

    value: str | float | int | bool
    model: str | None = None
    expected: str | float | int | bool | None = None
    """Value that the caller saw; the change is refused when it is another by now."""


class ParameterChanged(Message, frozen=True, kw_only=True):
    """Answer to a change."""

    name: str
    model: str | None
    old: float | int | bool
    new: float | int | bool
    by: str
    in_force_within_s: float
