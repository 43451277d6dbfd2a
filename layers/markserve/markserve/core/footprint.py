"""What serving a load costs here, reckoned from counts: workers by the second, Lambda by the answer, plumbing by the call.

An estimate of the bill for a display, not the bill: calls are counted by what a request needs, not at AWS.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markserve.core.cost import LAMBDA_GB_S_PRICES, plumbing_cost_breakdown_usd, spill_cost_per_request_usd
from markserve.core.types import Instance

CALLS_PER_CYCLE = {"step_functions": 6.0, "lambda": 3.0, "dynamodb_write": 8.0, "dynamodb_read": 8.0}
"""Forecast, plan, lifecycle; as the simulator counts them."""
SQS_BATCH = 10.0
"""Messages of one receive or delete."""
POLLS_OF_THE_ANSWER = 2.0


def queue_path_calls(mean_batch_size: float) -> dict[str, float]:
    """Metered calls that a request on a worker makes and a spilled one does not.

    One send, and its share of a receive and a delete, which hold up to ten; the front's polls for the answer.

    >>> queue_path_calls(10.0)
    {'sqs': 1.2, 'dynamodb_read': 2.0}
    """
    return {"sqs": 1.0 + 2.0 / min(SQS_BATCH, max(1.0, mean_batch_size)), "dynamodb_read": POLLS_OF_THE_ANSWER}


@dataclass(frozen=True, kw_only=True, slots=True)
class Traffic:
    """What happened to a load within an interval."""

    by_worker: int
    by_lambda: int
    rejected: int
    front_s: float
    """Time that fronts were busy or waited for answers, all requests together."""
    mean_batch_size: float
    cycles: float
    """Control cycles that ran, or this load's share of them."""

    @property
    def requests(self) -> int:
        """All, however they ended."""
        return self.by_worker + self.by_lambda + self.rejected


@dataclass(frozen=True, kw_only=True, slots=True)
class Footprint:
    """Cost of an interval in US dollars."""

    workers_usd: float
    lambda_usd: float
    plumbing_by_kind_usd: dict[str, float]
    """By kind of metered call, and `lambda_duration` for the front's waiting."""

    @property
    def compute_usd(self) -> float:
        """Workers and Lambda."""
        return self.workers_usd + self.lambda_usd

    @property
    def plumbing_usd(self) -> float:
        """All that carries requests and runs the controller."""
        return math.fsum(self.plumbing_by_kind_usd.values())

    @property
    def total_usd(self) -> float:
        """Compute and plumbing."""
        return self.compute_usd + self.plumbing_usd


def instance_seconds(instance: Instance, *, since_s: float, until_s: float) -> float:
    """Seconds of an interval for which an instance costs money: from its launch, boot included, to its end."""
    end_s = until_s if instance.terminated_at_s is None else min(instance.terminated_at_s, until_s)
    return max(0.0, end_s - max(instance.requested_at_s, since_s))


def footprint(
    traffic: Traffic,
    *,
    instances: Sequence[Instance],
    since_s: float,
    until_s: float,
    spill_compute_s: float,
    spillover_memory_mb: int,
    front_memory_mb: int,
    heartbeat_s: float,
) -> Footprint:
    """Add up an interval. An instance's bill is spread over its life, so the 60 s minimum of each launch is left out.

    Examples
    --------
    >>> quiet = Traffic(by_worker=0, by_lambda=0, rejected=0, front_s=0.0, mean_batch_size=1.0, cycles=1)
    >>> cost = footprint(quiet, instances=(), since_s=0.0, until_s=60.0, spill_compute_s=0.1, spillover_memory_mb=1769,
    ...     front_memory_mb=512, heartbeat_s=1.0)
    >>> cost.compute_usd, round(cost.plumbing_usd * 1e6, 1)
    (0.0, 156.6)
    """
    seconds = [(instance, instance_seconds(instance, since_s=since_s, until_s=until_s)) for instance in instances]
    instance_s = sum(s for _, s in seconds)
    answered = traffic.by_worker + traffic.by_lambda
    calls = {kind: each * traffic.cycles for kind, each in CALLS_PER_CYCLE.items()}
    for kind, number in {
        "http_api": float(traffic.requests),
        "lambda": float(traffic.requests),
        **{kind: traffic.by_worker * each for kind, each in queue_path_calls(traffic.mean_batch_size).items()},
        "dynamodb_write": answered + instance_s / heartbeat_s,
    }.items():
        calls[kind] = calls.get(kind, 0.0) + number
    front_usd = traffic.front_s * front_memory_mb / 1024 * LAMBDA_GB_S_PRICES["x86_64"].usd
    return Footprint(
        workers_usd=sum(instance.offering.price_usd_per_hour * s / 3600 for instance, s in seconds),
        lambda_usd=traffic.by_lambda * spill_cost_per_request_usd(spill_latency_s=spill_compute_s, memory_mb=spillover_memory_mb),
        plumbing_by_kind_usd={**plumbing_cost_breakdown_usd(calls), "lambda_duration": front_usd},
    )
