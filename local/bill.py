"""What a run would have cost on AWS, at list prices: compute, plumbing, total."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from markserve.core.cost import LAMBDA_GB_S_PRICES, PLUMBING_PRICES, instance_cost_usd, plumbing_cost_breakdown_usd
from markserve.core.types import Instance


class FunctionUsage(msgspec.Struct, frozen=True, kw_only=True):
    """What one Lambda function used."""

    function: str
    memory_mb: int
    invocations: float
    duration_s: float
    """All invocations together."""

    @property
    def compute_usd(self) -> float:
        """Memory times time, without the price of the invocations."""
        return self.duration_s * self.memory_mb / 1024 * LAMBDA_GB_S_PRICES["x86_64"].usd


class Bill(msgspec.Struct, frozen=True, kw_only=True):
    """Cost of a run in US dollars. Compute makes answers; plumbing carries requests to it and runs the controller."""

    instances_usd: float
    spillover_usd: float
    compute_usd: float
    """Instances and spill-over."""
    plumbing_by_kind_usd: dict[str, float]
    """By kind of metered call, and `lambda_duration` for the functions that do not compute answers."""
    plumbing_usd: float
    total_usd: float
    per_million_usd: dict[str, float]
    """Compute, plumbing and total per million answered requests; empty when none was answered."""


def instance_usd(instance: Instance, *, until_s: float) -> float:
    """Bill of one instance, from its launch to its end or `until_s`, whichever is first."""
    end_s = until_s if instance.terminated_at_s is None else min(instance.terminated_at_s, until_s)
    return instance_cost_usd(instance.offering.price_usd_per_hour, max(0.0, end_s - instance.requested_at_s))


def make_bill(
    *,
    instances: Sequence[Instance],
    functions: Sequence[FunctionUsage],
    spillover_function: str,
    units: Mapping[str, float],
    state_transitions: int,
    answered: int,
    until_s: float,
) -> Bill:
    """Price everything a run used.

    Parameters
    ----------
    units
        Metered units by kind, as counted at the AWS endpoint. Lambda invocations and state transitions are not in
        there: they happen inside AWS, and are counted by Lambda and Step Functions themselves.
    """
    metered = {
        **units,
        "lambda": sum(usage.invocations for usage in functions if usage.function != spillover_function),
        "step_functions": float(state_transitions),
    }
    spill = [usage for usage in functions if usage.function == spillover_function]
    plumbing = plumbing_cost_breakdown_usd(metered)
    plumbing["lambda_duration"] = sum(usage.compute_usd for usage in functions if usage.function != spillover_function)
    instances_usd = sum(instance_usd(instance, until_s=until_s) for instance in instances)
    spillover_usd = sum(usage.compute_usd + usage.invocations * PLUMBING_PRICES["lambda"].usd for usage in spill)
    compute_usd, plumbing_usd = instances_usd + spillover_usd, sum(plumbing.values())
    parts = {"compute": compute_usd, "plumbing": plumbing_usd, "total": compute_usd + plumbing_usd}
    return Bill(
        instances_usd=instances_usd,
        spillover_usd=spillover_usd,
        compute_usd=compute_usd,
        plumbing_by_kind_usd=plumbing,
        plumbing_usd=plumbing_usd,
        total_usd=compute_usd + plumbing_usd,
        per_million_usd={part: usd / answered * 1e6 for part, usd in parts.items()} if answered else {},
    )
