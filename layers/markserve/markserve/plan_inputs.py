"""What planning is told of one model: its record, parameters and measurements as a `ModelDemand`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from markserve.core.cost import plumbing_cost_usd, spill_cost_per_request_usd
from markserve.core.footprint import SQS_BATCH, queue_path_calls
from markserve.core.planning import ModelDemand, SpillTier
from markserve.core.spillover import SpillReserve, spill_reserve
from markserve.core.tunables import Tunables
from markserve.core.types import BatchProfile, Forecast, Instance, InstanceState
from markserve.messages import ModelRecord
from markserve.profiling import batch_profile

LAMBDA = "lambda"
"""Key of the spillover function among a model's profiles."""
TRANSPORT_PRIOR_S = 0.02
"""Front to worker through SQS within a region, until workers have measured it."""
TRANSPORT_MAX_SHARE = 0.25
"""Share of the objective beyond which a measured transport is queueing. Counting that as transport would declare every
type too slow just when more instances are needed."""
REPLY_OVERHEAD_S = 0.02
"""A result's write and its read; what fronts assume until they have measured it."""
SPILL_OVERHEAD_S = 0.05
"""A synchronous invocation beyond its computation; what fronts assume until they have measured it."""
FRONT_OVERHEAD_S = 0.02
"""API Gateway and the front around a request that is spilled at once."""
SPILL_MARGIN_SHARE, SPILL_MARGIN_MIN_S = 0.05, 0.01
"""Slack before the deadline at which fronts spill."""
LEAST_WORTH_USD = 1e-9
"""What a place on a worker is worth where the queue's calls alone cost more than spilling: next to nothing."""
MARGIN_SHARE = 0.02
"""Slack that workers keep."""


def model_demand(
    record: ModelRecord,
    *,
    tunables: Tunables,
    forecast: Forecast | None,
    measured_rate_rps: float | None,
    instances: Sequence[Instance],
    spillover_memory_mb: int,
    at_risk: bool,
    shape: tuple[float, ...] = (),
    quarantined: str | None = None,
    stranded: int = 0,
) -> ModelDemand:
    """Gather what planning needs, with the latency budget that workers and fronts will leave to a batch.

    Like them, it keeps a reserve for spilling before the deadline where that is worth its cost (`model_spill_reserve`).
    """
    profiles, on_lambda = _profiles(record)
    spill_s = _spill_latency_s(on_lambda, profiles)
    budget_s = tunables.rt_max_s * (1 - MARGIN_SHARE) - _transport_s(instances, tunables.rt_max_s) - REPLY_OVERHEAD_S
    return ModelDemand(
        model=record.model,
        profiles=profiles,
        latency_budget_s=budget_s - model_spill_reserve(record, tunables).reserve_s,
        max_batch_size=record.max_batch_size,
        tunables=tunables,
        forecast=forecast,
        measured_rate_rps=measured_rate_rps,
        spill=_spill_tier(on_lambda, spill_s, tunables, spillover_memory_mb),
        at_risk=at_risk,
        shape=shape,
        quarantined=quarantined,
        stranded=stranded,
    )


def model_spill_reserve(record: ModelRecord, tunables: Tunables) -> SpillReserve:
    """Time that this model's workers leave to the spillover function.

    From the profile and priors alone, so that fronts, workers and the planner come to the same whatever each has measured.
    """
    if not tunables.spillover_max_concurrency:
        return SpillReserve(reserve_s=0.0, reason="spill-over is off")
    profiles, on_lambda = _profiles(record)
    return spill_reserve(
        profiles.values(),
        budget_s=tunables.rt_max_s * (1 - MARGIN_SHARE) - TRANSPORT_PRIOR_S - REPLY_OVERHEAD_S,
        reserve_s=_spill_latency_s(on_lambda, profiles) + max(SPILL_MARGIN_MIN_S, SPILL_MARGIN_SHARE * tunables.rt_max_s),
        max_batch_size=record.max_batch_size,
        cost_max=tunables.spill_reserve_cost_max,
    )


def _profiles(record: ModelRecord) -> tuple[dict[str, BatchProfile], BatchProfile | None]:
    """Profiles by instance type, and that of the spillover function."""
    profiles = {name: batch_profile(name, points) for name, points in record.profiles.items() if points}
    return profiles, profiles.pop(LAMBDA, None)


def _transport_s(instances: Sequence[Instance], rt_max_s: float) -> float:
    measured = sorted(i.stats.transport_s for i in instances if i.state is InstanceState.SERVING and i.stats.transport_s > 0)
    typical_s = measured[len(measured) // 2] if measured else TRANSPORT_PRIOR_S
    return min(typical_s, TRANSPORT_MAX_SHARE * rt_max_s)


def _spill_latency_s(on_lambda: BatchProfile | None, profiles: Mapping[str, BatchProfile]) -> float:
    """p99 of one invocation; the slowest instance type stands in for a function that was not profiled."""
    known = [on_lambda] if on_lambda else list(profiles.values())
    return SPILL_OVERHEAD_S + max((profile.points[0].p99_s for profile in known), default=0.0)


def _spill_tier(on_lambda: BatchProfile | None, spill_s: float, tunables: Tunables, memory_mb: int) -> SpillTier | None:
    """Describe the spillover function as a tier to plan with; None where it is off or would miss the objective.

    Spilling saves the queue's calls, so they come off its price. The batches that they are shared by are not known yet; full
    ones are taken, which make the queue as cheap as it can be.
    """
    if tunables.spillover_max_concurrency == 0 or spill_s + FRONT_OVERHEAD_S >= tunables.rt_max_s:
        return None
    billed_s = on_lambda.points[0].p50_s if on_lambda else spill_s
    spilled_usd = spill_cost_per_request_usd(spill_latency_s=billed_s, memory_mb=memory_mb)
    return SpillTier(
        usd_per_request=max(LEAST_WORTH_USD, spilled_usd - plumbing_cost_usd(queue_path_calls(SQS_BATCH))),
        latency_s=spill_s,
        capacity_rps=tunables.spillover_max_concurrency / spill_s,
    )
