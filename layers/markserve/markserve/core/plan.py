"""What a plan says: launches, drains, warm-ups, and for every model the demand and what meets it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from markserve.core.demand import Trigger
from markserve.core.types import Offering


@dataclass(frozen=True, kw_only=True, slots=True)
class Drain:
    """An instance to give no more work."""

    model: str
    instance_id: str
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Rejected:
    """Something considered and not chosen."""

    offering: str
    cost_usd: float | None
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Launch:
    """Instances of one offering to buy."""

    model: str
    offering: Offering
    count: int
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class WarmUp:
    """Spillover environments to keep warm."""

    model: str
    environments: int
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelPlan:
    """One model's demand and what meets it, step by step: `capacity + spillover >= demand`."""

    model: str
    start_at_s: float
    step_s: float
    lead_step: int
    """First step that a launch made now reaches."""
    demand_rps: tuple[float, ...]
    capacity_rps: tuple[float, ...]
    spillover_rps: tuple[float, ...]
    """Demand left to the spillover function, or to nobody where it cannot take it."""
    infeasible: str | None
    """Why no offering can meet the objective; None when one can."""
    reason: str
    quantile: float | None = None
    """Quantile of the forecast that the demand is; None without a forecast."""
    quarantined: str | None = None
    """Why nothing is launched for it; None when launches may be made."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CapacityPlan:
    """One control cycle's decision."""

    plan_id: str
    created_at_s: float
    trigger: Trigger
    models: tuple[ModelPlan, ...]
    launches: tuple[Launch, ...]
    drains: tuple[Drain, ...]
    warm_ups: tuple[WarmUp, ...]
    unwanted_cycles: Mapping[str, int]
    """By instance id; to be stored, so that the next plan can count on."""
    alternatives: tuple[Rejected, ...]
    hourly_cost_usd: float
    """Everything that costs money once the launches run; drained instances count until they are gone."""
    reason: str
