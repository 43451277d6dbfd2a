"""Valid values with sensible defaults; a test overrides what it is about.

an_instance(state=InstanceState.DRAINING, drain_at_s=100.0)
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

from markserve.core.types import (
    BatchProfile,
    CapacityType,
    Forecast,
    Instance,
    InstanceState,
    ObservedInstance,
    Offering,
    ProfilePoint,
    Slo,
    Tier,
    WorkerStats,
)
from markserve.messages import (
    Answer,
    AnswerError,
    ArrivalCounts,
    DecisionRecord,
    DrainInstance,
    ForecastRecord,
    InferenceRequest,
    LaunchInstances,
    MetricsBatch,
    ModelRecord,
    OutcomeCounts,
    PlanRecord,
    ProfilePointRecord,
    Tensor,
    TensorSpec,
    TerminateInstance,
    WarmSpillover,
)

MODEL = "digits"
NOW_S = 1_700_000_000.0
"""A fixed instant; a multiple of 5 s and not of 60 s."""


def an_slo(**overrides: Any) -> Slo:
    return Slo(**{"latency_s": 0.2, "percentile": 0.98, **overrides})


def an_offering(**overrides: Any) -> Offering:
    values: dict[str, Any] = {
        "instance_type": "c5.large",
        "capacity_type": CapacityType.ON_DEMAND,
        "zone": "us-east-1a",
        "price_usd_per_hour": 0.085,
        "launch_overhead_s": 180.0,
        "interruption_rate_per_hour": 0.0,
    }
    return Offering(**{**values, **overrides})


def a_spot_offering(**overrides: Any) -> Offering:
    values: dict[str, Any] = {"capacity_type": CapacityType.SPOT, "price_usd_per_hour": 0.034, "interruption_rate_per_hour": 0.05}
    return an_offering(**{**values, **overrides})


def a_profile(latencies_s: Mapping[int, float] | None = None, *, instance_type: str = "c5.large") -> BatchProfile:
    """Profile with these p98 latencies by batch size; default T(b) = 10 ms + 2.5 ms * b."""
    by_size = {b: 0.010 + 0.0025 * b for b in (1, 2, 4, 8, 16, 32)} if latencies_s is None else dict(latencies_s)
    return BatchProfile(
        instance_type=instance_type,
        points=tuple(
            ProfilePoint(batch_size=b, p50_s=0.9 * latency, p98_s=latency, p99_s=1.1 * latency, samples=200)
            for b, latency in sorted(by_size.items())
        ),
    )


def profile_records(profile: BatchProfile | None = None) -> tuple[ProfilePointRecord, ...]:
    """The same profile as a model record stores it."""
    return tuple(
        ProfilePointRecord(batch_size=p.batch_size, p50_s=p.p50_s, p98_s=p.p98_s, p99_s=p.p99_s, samples=p.samples)
        for p in (profile or a_profile()).points
    )


def a_forecast(rates_rps: Mapping[float, tuple[float, ...]] | None = None, **overrides: Any) -> Forecast:
    values: dict[str, Any] = {
        "model": MODEL,
        "origin_at_s": NOW_S,
        "step_s": 60.0,
        "rates_rps": dict(rates_rps) if rates_rps is not None else {0.5: (10.0,) * 10, 0.9: (15.0,) * 10, 0.99: (20.0,) * 10},
        "forecaster": "persistence",
        "reason": "built for a test",
    }
    return Forecast(**{**values, **overrides})


def a_forecast_record(**overrides: Any) -> ForecastRecord:
    values: dict[str, Any] = {
        "model": MODEL,
        "origin_at_s": NOW_S,
        "step_s": 60.0,
        "rates_rps": {"0.5": (10.0,) * 10, "0.9": (15.0,) * 10, "0.99": (20.0,) * 10},
        "forecaster": "persistence",
        "reason": "built for a test",
    }
    return ForecastRecord(**{**values, **overrides})


def worker_stats(**overrides: Any) -> WorkerStats:
    values: dict[str, Any] = {"service_rate_rps": 100.0, "batch_latency_s": 0.05, "max_batch_size": 16, "transport_s": 0.01}
    return WorkerStats(**{**values, **overrides})


def an_instance(**overrides: Any) -> Instance:
    """An instance that serves and was heard of just now."""
    values: dict[str, Any] = {
        "instance_id": "i-0001",
        "model": MODEL,
        "offering": an_offering(),
        "state": InstanceState.SERVING,
        "requested_at_s": NOW_S - 600.0,
        "reason": "built for a test",
        "plan_id": "plan-1",
        "running_at_s": NOW_S - 560.0,
        "serving_at_s": NOW_S - 500.0,
        "heartbeat_at_s": NOW_S,
        "stats": worker_stats(),
    }
    return Instance(**{**values, **overrides})


def an_observed_instance(**overrides: Any) -> ObservedInstance:
    values: dict[str, Any] = {
        "instance_id": "i-0001",
        "instance_type": "c5.large",
        "capacity_type": CapacityType.ON_DEMAND,
        "zone": "us-east-1a",
        "cloud_state": "running",
        "launched_at_s": NOW_S - 600.0,
        "model": MODEL,
    }
    return ObservedInstance(**{**values, **overrides})


def a_tensor(name: str = "image", values: tuple[float, ...] = (0.0,) * 64, shape: tuple[int, ...] | None = None) -> Tensor:
    """An FP32 tensor; default one flattened 8x8 image."""
    return Tensor(name=name, datatype="FP32", shape=shape or (1, len(values)), data=struct.pack(f"<{len(values)}f", *values))


def a_model_record(**overrides: Any) -> ModelRecord:
    values: dict[str, Any] = {
        "model": MODEL,
        "version": "1",
        "inputs": (TensorSpec(name="image", datatype="FP32", shape=(-1, 64)),),
        "outputs": (TensorSpec(name="scores", datatype="FP32", shape=(-1, 10)),),
        "artefact_key": "models/digits/1/model.pt",
        "artefact_sha256": "0" * 64,
        "max_batch_size": 32,
        "queue_url": "http://localhost/queue/markserve-work-digits",
        "profiles": {"c5.large": profile_records(), "lambda": profile_records(a_profile({1: 0.04, 2: 0.05}, instance_type="lambda"))},
        "created_at_s": NOW_S - 3600.0,
    }
    return ModelRecord(**{**values, **overrides})


def a_request(**overrides: Any) -> InferenceRequest:
    """A synchronous request that arrived just now, due 200 ms later."""
    values: dict[str, Any] = {
        "request_id": "00000000-0000-4000-8000-000000000001",
        "model": MODEL,
        "model_version": "1",
        "arrival_at_s": NOW_S,
        "inputs": (a_tensor(),),
        "deadline_at_s": NOW_S + 0.2,
        "spill_at_s": NOW_S + 0.12,
        "reply_overhead_s": 0.005,
    }
    return InferenceRequest(**{**values, **overrides})


def an_answer(**overrides: Any) -> Answer:
    values: dict[str, Any] = {
        "request_id": "00000000-0000-4000-8000-000000000001",
        "tier": Tier.WORKER,
        "outputs": (a_tensor("scores", (0.0,) * 9 + (1.0,)),),
        "instance_id": "i-0001",
        "batch_size": 1,
        "queued_s": 0.01,
        "batch_wait_s": 0.02,
        "compute_s": 0.03,
        "finished_at_s": NOW_S + 0.06,
    }
    return Answer(**{**values, **overrides})


def a_failed_answer(**overrides: Any) -> Answer:
    return an_answer(**{"outputs": (), "error": AnswerError(status=500, message="the model raised"), **overrides})


def a_metrics_batch(**overrides: Any) -> MetricsBatch:
    values: dict[str, Any] = {
        "batch_id": "batch-1",
        "sent_at_s": NOW_S + 6.0,
        "arrivals": (ArrivalCounts(model=MODEL, window_at_s=NOW_S, count=10),),
        "outcomes": (some_outcomes(),),
    }
    return MetricsBatch(**{**values, **overrides})


def some_outcomes(**overrides: Any) -> OutcomeCounts:
    values: dict[str, Any] = {
        "model": MODEL,
        "window_at_s": NOW_S,
        "tier": Tier.WORKER,
        "ok": 10,
        "errors": 0,
        "within_slo": 10,
        "latency_histogram": {"130": 10},
    }
    return OutcomeCounts(**{**values, **overrides})


def a_launch(**overrides: Any) -> LaunchInstances:
    values: dict[str, Any] = {
        "action_id": "plan-1-launch-0",
        "model": MODEL,
        "offering": an_offering(),
        "count": 1,
        "plan_id": "plan-1",
        "reason": "built for a test",
    }
    return LaunchInstances(**{**values, **overrides})


def a_drain(**overrides: Any) -> DrainInstance:
    values: dict[str, Any] = {
        "action_id": "plan-1-drain-0",
        "model": MODEL,
        "instance_id": "i-0001",
        "plan_id": "plan-1",
        "reason": "built for a test",
    }
    return DrainInstance(**{**values, **overrides})


def a_terminate(**overrides: Any) -> TerminateInstance:
    values: dict[str, Any] = {
        "action_id": "plan-1-terminate-0",
        "model": MODEL,
        "instance_id": "i-0001",
        "plan_id": "plan-1",
        "reason": "built for a test",
    }
    return TerminateInstance(**{**values, **overrides})


def a_warm_up(**overrides: Any) -> WarmSpillover:
    values: dict[str, Any] = {
        "action_id": "plan-1-warm-0",
        "model": MODEL,
        "environments": 2,
        "plan_id": "plan-1",
        "reason": "built for a test",
    }
    return WarmSpillover(**{**values, **overrides})


def a_plan_record(**overrides: Any) -> PlanRecord:
    values: dict[str, Any] = {
        "plan_id": "plan-1",
        "version": 1,
        "created_at_s": NOW_S,
        "trigger": "schedule",
        "demand_rps": {MODEL: 10.0},
        "capacity_rps": {MODEL: 100.0},
        "hourly_cost_usd": 0.085,
        "actions": (),
        "alternatives": (),
        "reason": "built for a test",
    }
    return PlanRecord(**{**values, **overrides})


def a_decision(**overrides: Any) -> DecisionRecord:
    values: dict[str, Any] = {
        "at_s": NOW_S,
        "model": MODEL,
        "subject": "i-0001",
        "event": "instance_launched",
        "reason": "built for a test",
    }
    return DecisionRecord(**{**values, **overrides})
