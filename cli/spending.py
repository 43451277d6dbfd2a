"""What a stack costs now, per answer and per month, against SageMaker and Lambda alone on the same load.

From what the stack itself has counted in a window: instances from the registry, answers by tier and latencies from the outcome
windows, arrivals from the arrival windows. Nothing is read from a bill: AWS's comes a day later.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from markserve.core.cost import LAMBDA_GB_S_PRICES, plumbing_cost_breakdown_usd, spill_cost_per_request_usd
from markserve.core.histogram import from_text, merge, quantile_s
from markserve.core.sagemaker_prices import sagemaker_price_usd_per_hour
from markserve.core.types import Instance, Tier
from markserve.messages import ModelRecord, OutcomeCounts
from markserve.plan_inputs import LAMBDA
from simulator.assumptions import (
    FRONT_MEMORY_MB,
    SAGEMAKER_OVERHEAD_S,
    SQS_CALLS_PER_TEN,
    UNITS_PER_ANSWER,
    UNITS_PER_CYCLE,
    UNITS_PER_ENQUEUED,
    UNITS_PER_INSTANCE_S,
    UNITS_PER_REQUEST,
)

MONTH_H = 730.0
SAGEMAKER_UTILISATION = 0.7
"""Share of an instance's sequential throughput that an endpoint is sized for: the value of AWS's own target-tracking examples."""
ASSUMPTIONS = (
    "list prices of us-east-1 and the catalog's or the fleet's live spot prices; no free tier, no savings plan, no data transfer",
    "instances: their seconds within the window; AWS also charges at least 60 s each",
    "Lambda: each spilled request at the median of the model's `lambda` profile and the spillover function's memory",
    "plumbing: metered calls per request, answer, instance-second and control cycle, as simulator/assumptions.py lists them",
    "a month is 730 hours of a load like the window's",
    f"SageMaker: the cheapest measured type that answers in time, one request at a time, enough for the window's busiest minute at "
    f"{SAGEMAKER_UTILISATION:.0%} utilisation, at least one, all the time; no charge for its plumbing; `markserve simulate` scales it",
    "Lambda alone: every request through the API and the front to the spillover function, no queue, no control cycle",
)


@dataclass(frozen=True, kw_only=True)
class ModelLoad:
    """What was asked of one model in the window."""

    record: ModelRecord
    rt_max_s: float
    arrivals: Mapping[float, int]
    """By window start."""
    outcomes: Sequence[OutcomeCounts]


@dataclass(frozen=True, kw_only=True)
class Observed:
    """What the stack knows of itself."""

    since_s: float
    until_s: float
    instances: Sequence[Instance]
    loads: Sequence[ModelLoad]
    spillover_memory_mb: int
    step_s: float
    prices_usd_per_hour: Mapping[str, float] = field(default_factory=dict)
    """On demand, by instance type, for what SageMaker would charge."""


class Rival(msgspec.Struct, frozen=True, kw_only=True):
    """What another way to serve the same load costs."""

    name: str
    usd_per_hour: float | None
    usd_per_million: float | None
    usd_per_month: float | None
    note: str


class Spending(msgspec.Struct, frozen=True, kw_only=True):
    """Figures in US dollars."""

    window_s: float
    requests: int
    answered_by: dict[str, int]
    fleet_usd_per_hour: float
    """Of the instances that are alive now, by their offerings' prices."""
    fleet: dict[str, int]
    window_usd: dict[str, float]
    """instances, lambda, plumbing, total: of the window."""
    usd_per_hour: float
    """Of everything, at the window's load and the present fleet."""
    usd_per_million: dict[str, float]
    """worker and lambda per million of their own answers; plumbing and total per million of all. Absent without answers."""
    plumbing_by_kind_usd: dict[str, float]
    usd_per_month: float
    rivals: tuple[Rival, ...]
    assumptions: tuple[str, ...] = ASSUMPTIONS


def spending(seen: Observed) -> Spending:
    """Add up a window."""
    window_s = seen.until_s - seen.since_s
    hours = window_s / 3600
    by_tier: Counter[str] = Counter()
    for load in seen.loads:
        for counts in load.outcomes:
            by_tier[str(counts.tier or "rejected")] += counts.ok + counts.errors
    answered = {tier: by_tier[tier] for tier in (str(Tier.WORKER), str(Tier.LAMBDA))}
    total_answers = sum(answered.values())
    instance_s = {i.instance_id: _seconds_within(i, seen) for i in seen.instances}
    instances_usd = sum(i.offering.price_usd_per_hour / 3600 * instance_s[i.instance_id] for i in seen.instances)
    lambda_usd = sum(_spilled(load) * (_lambda_usd(load, seen) or 0.0) for load in seen.loads)
    plumbing = _plumbing(seen, answered, rejected=by_tier["rejected"], instance_s=sum(instance_s.values()))
    plumbing_usd = sum(plumbing.values())
    alive = [i for i in seen.instances if i.is_alive]
    fleet_usd_per_hour = math.fsum(i.offering.price_usd_per_hour for i in alive)
    usd_per_hour = fleet_usd_per_hour + (lambda_usd + plumbing_usd) / hours
    parts = {
        "worker": (instances_usd, answered[str(Tier.WORKER)]),
        "lambda": (lambda_usd, answered[str(Tier.LAMBDA)]),
        "plumbing": (plumbing_usd, total_answers),
        "total": (instances_usd + lambda_usd + plumbing_usd, total_answers),
    }
    return Spending(
        window_s=window_s,
        requests=by_tier.total(),
        answered_by=dict(by_tier),
        fleet_usd_per_hour=fleet_usd_per_hour,
        fleet=dict(Counter(i.offering.key for i in alive)),
        window_usd={"instances": instances_usd, "lambda": lambda_usd, "plumbing": plumbing_usd, "total": parts["total"][0]},
        usd_per_hour=usd_per_hour,
        usd_per_million={name: 1e6 * usd / number for name, (usd, number) in parts.items() if number},
        plumbing_by_kind_usd=plumbing,
        usd_per_month=usd_per_hour * MONTH_H,
        rivals=(_sagemaker(seen, total_answers, hours), _all_lambda(seen, total_answers, hours)),
    )


def _seconds_within(instance: Instance, seen: Observed) -> float:
    end_s = seen.until_s if instance.terminated_at_s is None else min(instance.terminated_at_s, seen.until_s)
    if not instance.is_alive and instance.terminated_at_s is None:
        return 0.0
    return max(0.0, end_s - max(instance.requested_at_s, seen.since_s))


def _spilled(load: ModelLoad) -> int:
    return sum(counts.ok + counts.errors for counts in load.outcomes if counts.tier is Tier.LAMBDA)


def _lambda_usd(load: ModelLoad, seen: Observed) -> float | None:
    """Price of one request on Lambda; None for a model without that profile."""
    points = load.record.profiles.get(LAMBDA)
    return spill_cost_per_request_usd(spill_latency_s=points[0].p50_s, memory_mb=seen.spillover_memory_mb) if points else None


def _front_usd(seen: Observed, requests: int) -> float:
    """Price of the front's function while it waits, at the median response time."""
    merged = merge(*(from_text(counts.latency_histogram) for load in seen.loads for counts in load.outcomes))
    return requests * (quantile_s(merged, 0.5) or 0.0) * FRONT_MEMORY_MB / 1024 * LAMBDA_GB_S_PRICES["x86_64"].usd


def _plumbing(seen: Observed, answered: Mapping[str, int], *, rejected: int, instance_s: float) -> dict[str, float]:
    batches, completed = (sum(getattr(i.stats, name) for i in seen.instances) for name in ("batches", "completed"))
    per_batch = max(1.0, completed / batches) if batches else 1.0
    by_workers, all_answers = answered[str(Tier.WORKER)], sum(answered.values())
    times = (
        (UNITS_PER_REQUEST, all_answers + rejected),
        (UNITS_PER_ENQUEUED, by_workers),
        (UNITS_PER_ANSWER, all_answers),
        ({"sqs": SQS_CALLS_PER_TEN * math.ceil(per_batch / 10) / per_batch}, by_workers),
        (UNITS_PER_INSTANCE_S, instance_s),
        (UNITS_PER_CYCLE, (seen.until_s - seen.since_s) / seen.step_s),
    )
    units: dict[str, float] = defaultdict(float)
    for each, number in times:
        for kind, amount in each.items():
            units[kind] += amount * number
    return {**plumbing_cost_breakdown_usd(units), "lambda_duration": _front_usd(seen, all_answers)}


def _rival(name: str, usd: float | None, answers: int, hours: float, note: str) -> Rival:
    """Make a rival from its cost over the window."""
    return Rival(
        name=name,
        usd_per_hour=None if usd is None else usd / hours,
        usd_per_million=None if usd is None or not answers else 1e6 * usd / answers,
        usd_per_month=None if usd is None else usd / hours * MONTH_H,
        note=note,
    )


def _sagemaker(seen: Observed, answers: int, hours: float) -> Rival:
    total, notes = 0.0, []
    for load in seen.loads:
        best = _endpoint(load, seen)
        if best is None:
            return _rival("SageMaker", None, answers, hours, f"no measured type answers {load.record.model} within {load.rt_max_s:g} s")
        usd_per_hour, note = best
        total += usd_per_hour
        notes.append(note)
    return _rival("SageMaker", total * hours, answers, hours, "; ".join(notes) or "no model is registered")


def _endpoint(load: ModelLoad, seen: Observed) -> tuple[float, str] | None:
    """Return the cheapest endpoint that carries the load's busiest minute, per hour."""
    minutes: Counter[int] = Counter()
    for at_s, count in load.arrivals.items():
        minutes[int(at_s // 60)] += count
    peak_rps = max(minutes.values(), default=0) / 60
    found = []
    for name, points in load.record.profiles.items():
        alone = points[0]
        price = seen.prices_usd_per_hour.get(name)
        if name == LAMBDA or price is None or alone.p98_s + SAGEMAKER_OVERHEAD_S > load.rt_max_s:
            continue
        number = max(1, math.ceil(peak_rps * alone.p50_s / SAGEMAKER_UTILISATION))
        ml_usd, _ = sagemaker_price_usd_per_hour(name, price)
        found.append((number * ml_usd, f"{number} x ml.{name} for {peak_rps:.1f}/s of {load.record.model}"))
    return min(found, default=None)


def _all_lambda(seen: Observed, answers: int, hours: float) -> Rival:
    usd = 0.0
    for load in seen.loads:
        each = _lambda_usd(load, seen)
        if each is None:
            return _rival("Lambda alone", None, answers, hours, f"{load.record.model} has no lambda profile")
        usd += each * sum(counts.ok + counts.errors for counts in load.outcomes if counts.tier is not None)
    plumbing = plumbing_cost_breakdown_usd({kind: units * answers for kind, units in UNITS_PER_REQUEST.items()})
    return _rival("Lambda alone", usd + sum(plumbing.values()) + _front_usd(seen, answers), answers, hours, f"{answers} answers")
