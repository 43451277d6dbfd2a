"""A run's figures, gathered as requests finish; the lower bound that they are held against."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from markserve.core.batch_limits import BatchLimits
from markserve.core.cost import LAMBDA_GB_S_PRICES, plumbing_cost_breakdown_usd, spill_cost_per_request_usd
from markserve.core.profiles import LatencyEstimate
from markserve.core.types import CapacityType, Offering
from markserve.plan_inputs import LAMBDA
from simulator.assumptions import (
    FRONT_MEMORY_MB,
    PROVISIONED_DURATION_GB_S_USD,
    REPLY_OVERHEAD_S,
    SQS_CALLS_PER_TEN,
    TRANSPORT_S,
    UNITS_PER_ANSWER,
    UNITS_PER_CYCLE,
    UNITS_PER_ENQUEUED,
    UNITS_PER_INSTANCE_S,
    UNITS_PER_REQUEST,
)
from simulator.service import Floats, Ints, ProfileFile, make_kind

LATENCY_RESOLUTION = 0.002
"""Latency quantiles are exact to this relative error."""
LEAST_LATENCY_S = 1e-4
MINUTE_S, HOUR_S = 60.0, 3600.0
LEAST_REQUESTS = 100
"""Worst minute and hour are taken over those with this many requests: in a minute of three requests one miss is 33 %."""
PERCENTILES = {"p50_s": 0.5, "p98_s": 0.98, "p99_s": 0.99, "p999_s": 0.999}


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """One policy's figures; money in US dollars."""

    policy: str
    rt_max_s: float
    sl_min: float
    """The objective: this share of requests within `rt_max_s`."""
    capacity_rps: dict[str, float]
    """By instance type: nominal rate at its batch limit, of which random arrivals leave some unused."""
    requests: int
    answered: int
    slo_attainment: float
    """Share of all requests that were answered within RT_max; unanswered ones count as missed."""
    worst_minute_attainment: float | None
    worst_hour_attainment: float | None
    latency_s: dict[str, float | None]
    """Of answered requests."""
    cost_usd: dict[str, float]
    """By tier: instances, lambda (use), provisioned (environments that are there), standby_disks; compute is all of
    these, total adds plumbing."""
    plumbing_units: dict[str, float]
    plumbing_usd: dict[str, float]
    per_million_usd: dict[str, float]
    lower_bound_usd: float
    lower_bound: str
    cost_over_bound: float | None
    """Compute, without plumbing."""
    spill_share: float
    """Share of requests that the spillover function answered."""
    launches: int
    interruptions: int
    """Spot instances that were taken back, with notice or without."""
    slo_alarms: int
    """Plans that the SLO monitor asked for."""
    control_steps: int
    """All plans."""
    lambda_invocations: int
    lambda_refused: int
    cold_starts: int
    batches: int
    mean_batch_size: float
    simulated_s: float
    missing_s: float
    """Time without data in the trace; nothing arrives then, and policies are told that it is unknown."""
    wall_s: float
    search: dict[str, Any] | None = None
    """How the policy's settings were found, where they were searched for (`sagemaker`)."""


class _Worst:
    """Lowest attainment over the periods of one length, which are seen in order."""

    def __init__(self, period_s: float) -> None:
        self._period_s = period_s
        self._open: dict[int, list[int]] = {}
        self.value: float | None = None

    def add(self, arrival_s: Floats, met: np.ndarray) -> None:
        periods = (arrival_s / self._period_s).astype(np.int64)
        for period in range(int(periods[0]), int(periods[-1]) + 1):
            mine = slice(int(np.searchsorted(periods, period)), int(np.searchsorted(periods, period + 1)))
            counts = self._open.setdefault(period, [0, 0])
            counts[0] += mine.stop - mine.start
            counts[1] += int(np.count_nonzero(met[mine]))
        self._close(before=int(periods[-1]) - 1)

    def _close(self, before: float) -> None:
        for period in [p for p in self._open if p < before]:
            number, met = self._open.pop(period)
            if number >= LEAST_REQUESTS:
                self.value = min(met / number, 1.0 if self.value is None else self.value)

    def finish(self) -> float | None:
        self._close(math.inf)
        return self.value


class Tally:
    """Running figures of one policy; its size does not depend on the number of requests."""

    def __init__(self, *, rt_max_s: float) -> None:
        self._rt_max_s = rt_max_s
        self._histogram = np.zeros(1, np.int64)
        self._minute, self._hour = _Worst(MINUTE_S), _Worst(HOUR_S)
        self.requests = self.answered = self.met = self.on_lambda = self.enqueued = 0
        self.batches = self.batched = 0
        self.front_s = 0.0
        self.sqs_calls = 0.0

    def finished(self, arrival_s: Floats, finished_s: Floats, tier: Ints, *, enqueued: int) -> None:
        """Count requests; `finished_s` is infinite for what was not answered."""
        if arrival_s.size == 0:
            return
        latency_s = finished_s - arrival_s
        answered = np.isfinite(latency_s)
        met = latency_s <= self._rt_max_s
        self.requests += arrival_s.size
        self.answered += int(np.count_nonzero(answered))
        self.met += int(np.count_nonzero(met))
        self.on_lambda += int(np.count_nonzero(tier == 2))
        self.enqueued += enqueued
        # The front waits for an answer until the deadline where there is none.
        waited_s = np.where(answered, latency_s, self._rt_max_s)
        self.front_s += float(np.ceil(waited_s * 1000).sum()) / 1000
        index = np.log(np.maximum(latency_s[answered], LEAST_LATENCY_S) / LEAST_LATENCY_S) / LATENCY_RESOLUTION
        counts = np.bincount(index.astype(np.int64), minlength=self._histogram.size)
        counts[: self._histogram.size] += self._histogram
        self._histogram = counts
        self._minute.add(arrival_s, met)
        self._hour.add(arrival_s, met)

    def batched_sizes(self, size: Ints) -> None:
        """Count the batches of workers."""
        self.batches += size.size
        self.batched += int(size.sum())
        self.sqs_calls += SQS_CALLS_PER_TEN * float(np.ceil(size / 10).sum())

    def quantile_s(self, q: float) -> float | None:
        """Latency quantile of answered requests."""
        if self.answered == 0:
            return None
        index = int(np.searchsorted(np.cumsum(self._histogram), q * self.answered))
        return float(LEAST_LATENCY_S * math.exp((index + 0.5) * LATENCY_RESOLUTION))

    def plumbing_units(self, *, instance_s: float, cycles: int) -> dict[str, float]:
        """Metered units of everything that is not computation of answers."""
        units: dict[str, float] = {}
        for number, per_one in (
            (self.requests, UNITS_PER_REQUEST),
            (self.enqueued, UNITS_PER_ENQUEUED),
            (self.answered, UNITS_PER_ANSWER),
            (instance_s, UNITS_PER_INSTANCE_S),
            (cycles, UNITS_PER_CYCLE),
            (self.sqs_calls, {"sqs": 1.0}),
        ):
            for kind, each in per_one.items():
                units[kind] = units.get(kind, 0.0) + number * each
        return units

    def plumbing_usd(self, units: Mapping[str, float]) -> dict[str, float]:
        """Price of the units, and of the front's waiting."""
        waiting_usd = self.front_s * FRONT_MEMORY_MB / 1024 * LAMBDA_GB_S_PRICES["x86_64"].usd
        return {**plumbing_cost_breakdown_usd(units), "lambda_duration": waiting_usd}

    def worst(self) -> tuple[float | None, float | None]:
        """Attainment of the worst minute and hour."""
        return self._minute.finish(), self._hour.finish()


def lower_bound_per_request_usd(
    profile: ProfileFile, offerings: Sequence[Offering], *, rt_max_s: float, provisioned: bool = False
) -> tuple[float, str]:
    """Least compute cost of one answered request that any policy can reach here, and which resource reaches it.

    Every answer takes one b-th of a batch on an instance, or one invocation. No batch starts whose p98 latency exceeds
    `RT_max - transport - reply` (the median transport, which every request waits; the reply that pacing counts on), so on a
    type the mean rent of a request is at least `price * min_b E[T(b)] / b` over those b; and one invocation costs its mean
    billed time and the request. The least of these, times the number of answers, bounds the expected bill from below: it
    leaves out idling, launches, whole instances and the minimum of 60 s.
    Spot offerings come at the lowest price of the whole run, below which none was ever billed. With provisioned
    concurrency an invocation costs at least its (lower) duration price; that the environments are there is left out.
    """
    budget_s = rt_max_s - TRANSPORT_S - REPLY_OVERHEAD_S
    costs: dict[str, float] = {}
    least_prices: dict[tuple[str, CapacityType], float] = {}
    for offering in offerings:
        kind_of = (offering.instance_type, offering.capacity_type)
        least_prices[kind_of] = min(offering.price_usd_per_hour, least_prices.get(kind_of, math.inf))
    for (instance_type, capacity_type), price in least_prices.items():
        least = _least_execution_s(profile, instance_type, budget_s)
        if least is not None:
            where = instance_type if capacity_type is CapacityType.ON_DEMAND else f"{instance_type} on spot"
            costs[f"{where} in batches of {least[1]}, always full"] = price / 3600 * least[0]
    if profile.can_spill:
        alone = BatchLimits(max_batch_size=1, max_queue_delay_s=0, service_rate_rps=1, batch_latency_s=1, reason="")
        mean_s = make_kind(profile.profile(LAMBDA), alone).mean_s(1)
        # Billed milliseconds are rounded up, so unrounded ones bound them.
        billed_s, memory_mb = math.floor(mean_s * 1000) / 1000, profile.lambda_memory_mb
        costs["the spillover function"] = spill_cost_per_request_usd(spill_latency_s=billed_s, memory_mb=memory_mb)
        if provisioned:
            request_usd = spill_cost_per_request_usd(spill_latency_s=0.0, memory_mb=memory_mb)
            costs["provisioned concurrency"] = request_usd + billed_s * memory_mb / 1024 * PROVISIONED_DURATION_GB_S_USD
    if not costs:
        return 0.0, "nothing can answer in time, so zero"
    name = min(costs, key=lambda key: (costs[key], key))
    return costs[name], f"answers x cheapest feasible cost per request: ${costs[name] * 1e6:.4f} per million, on {name}"


def _least_execution_s(profile: ProfileFile, instance_type: str, budget_s: float) -> tuple[float, int] | None:
    """Least mean execution time of one request over the batches that fit, and the batch; None when none fits."""
    measured = profile.profile(instance_type)
    estimate = LatencyEstimate(measured)
    sizes = [b for b in range(1, profile.max_batch_size + 1) if estimate.batch_latency_s(b) <= budget_s + 1e-6]
    if not sizes:
        return None
    whole = BatchLimits(max_batch_size=sizes[-1], max_queue_delay_s=0, service_rate_rps=1, batch_latency_s=1, reason="")
    kind = make_kind(measured, whole)
    return min((kind.mean_s(b) / b, b) for b in sizes)
