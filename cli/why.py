"""Why one request went where it went: its answer, the front's log line, who served then, and what each way costs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from markserve import wiring
from markserve.core.cost import spill_cost_per_request_usd, worker_cost_per_request_usd
from markserve.core.types import Instance, Tier
from markserve.errors import UnknownModel
from markserve.messages import Answer, ModelRecord, PlanRecord
from markserve.plan_inputs import LAMBDA

PLAN_MEMORY_S = 3600.0
"""A plan is in force until the next one; one older than this says nothing about a request."""
INSTANT_S = 1e-6
"""Instants are kept to the microsecond, and an interval excludes its end."""


class Way(msgspec.Struct, frozen=True, kw_only=True):
    """A way in which the request could be answered, and its price."""

    way: str
    usd: float | None
    note: str


class RequestStory(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of one request."""

    request_id: str
    at_s: float
    model: str
    tier: str
    reason: str
    """The front's own, at the moment it decided."""
    status: int | None
    timings_ms: dict[str, float]
    instance_id: str
    batch_size: int
    cold_start: bool
    serving: tuple[str, ...]
    """Workers that served its model when it arrived."""
    ways: tuple[Way, ...]
    plan: PlanRecord | None
    """The plan in force."""


def request_story(request_id: str, *, front_line: dict[str, Any], line_at_s: float | None) -> RequestStory | None:
    """Put together what the results table, the front's log line, the registry and the plans know.

    Parameters
    ----------
    front_line
        Fields of the api function's log line of this request; empty when there is none any more.
    line_at_s
        When that line was written.

    Returns
    -------
    None when nothing is known of the request.
    """
    stored = wiring.results().get(request_id)
    answer = stored.answer if stored else None
    if not front_line and answer is None and stored is None:
        return None
    latency_s = float(front_line.get("latency_s", 0.0))
    arrival_s = line_at_s - latency_s if line_at_s is not None else (stored.accepted_at_s if stored else 0.0) or _arrival_s(answer)
    known = wiring.instances().list()
    computed_by = next((i for i in known if answer and i.instance_id == answer.instance_id), None)
    model = str(front_line.get("model") or (stored.model if stored else "") or (computed_by.model if computed_by else ""))
    serving = [i for i in known if i.model == model and _served_at(i, arrival_s)]
    return RequestStory(
        request_id=request_id,
        at_s=arrival_s,
        model=model,
        tier=str(front_line.get("tier") or (answer.tier if answer else "pending")),
        reason=str(front_line.get("reason") or "the front's log line is not there any more"),
        status=front_line.get("status") or (answer.error.status if answer and answer.error else None),
        timings_ms=dict(front_line.get("timings_ms") or _timings_ms(answer)),
        instance_id=answer.instance_id if answer else "",
        batch_size=answer.batch_size if answer else int(front_line.get("batch_size", 0)),
        cold_start=bool(answer and answer.cold_start),
        serving=tuple(f"{i.instance_id} ({i.offering.key}, {i.stats.service_rate_rps:.1f}/s)" for i in serving),
        ways=tuple(_ways(_record(model), answer, serving)),
        plan=plan_in_force(arrival_s),
    )


def plan_in_force(at_s: float) -> PlanRecord | None:
    """Return the last plan made before an instant."""
    plans = wiring.control().plans(since_s=at_s - PLAN_MEMORY_S, until_s=at_s + INSTANT_S)
    return plans[-1] if plans else None


def _arrival_s(answer: Answer | None) -> float:
    return answer.finished_at_s - answer.compute_s - answer.batch_wait_s - answer.queued_s if answer else 0.0


def _served_at(instance: Instance, at_s: float) -> bool:
    ended_s = instance.drain_at_s or instance.terminated_at_s
    return instance.serving_at_s is not None and instance.serving_at_s <= at_s and (ended_s is None or ended_s > at_s)


def _timings_ms(answer: Answer | None) -> dict[str, float]:
    if answer is None:
        return {}
    parts = {"queue": answer.queued_s, "batch": answer.batch_wait_s, "compute": answer.compute_s}
    return {name: round(1000 * seconds, 1) for name, seconds in parts.items()}


def _record(model: str) -> ModelRecord | None:
    try:
        return wiring.models().get(model) if model else None
    except UnknownModel:
        return None


def _ways(record: ModelRecord | None, answer: Answer | None, serving: Sequence[Instance]) -> list[Way]:
    """Price each way to answer the request: on Lambda, and as its share of each worker that served."""
    ways = []
    spilled = answer is not None and answer.tier is Tier.LAMBDA
    seconds = answer.compute_s if answer and spilled else None
    if seconds is None and record and record.profiles.get(LAMBDA):
        seconds = record.profiles[LAMBDA][0].p50_s
    if seconds is not None:
        usd = spill_cost_per_request_usd(spill_latency_s=seconds, memory_mb=wiring.settings().spillover_memory_mb)
        ways.append(Way(way="Lambda", usd=usd, note=f"{seconds:.3f} s, {'as measured' if spilled else 'by the profile'}"))
    for instance in serving:
        rate, price = instance.stats.service_rate_rps, instance.offering.price_usd_per_hour
        usd_or_none = worker_cost_per_request_usd(price_usd_per_hour=price, service_rate_rps=rate) if rate > 0 else None
        note = f"its share of ${price:.4f}/h at {rate:.1f}/s; paid for whether used or not"
        ways.append(Way(way=f"worker {instance.instance_id}", usd=usd_or_none, note=note))
    if not serving:
        ways.append(Way(way="worker", usd=None, note="none served this model when the request arrived"))
    return ways
