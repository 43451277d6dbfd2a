"""The stores in memory: models, results, windows, control records, instances and blobs.

Held to the same contract tests as the DynamoDB and S3 adapters. Every store is safe to share between threads.
`faults` maps a method's name to the exception that it raises, to test what callers do when a dependency fails.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

import msgspec

from markserve.core.spillover import FleetView, PublishedView
from markserve.core.types import Instance, InstanceState, WorkerStats
from markserve.errors import InvalidRequest, PayloadTooLarge, StaleWrite, Transient, UnknownModel
from markserve.messages import (
    Answer,
    DecisionRecord,
    ForecastRecord,
    MetricsBatch,
    ModelRecord,
    OutcomeCounts,
    PlanRecord,
    StoredResult,
    Traffic,
    encode,
)

NO_FAULTS: Mapping[str, Exception] = {}


def fail_if_told(faults: Mapping[str, Exception], method: str) -> None:
    """Raise the exception that `faults` holds for `method`, if any."""
    if (fault := faults.get(method)) is not None:
        raise fault


class MemoryModelStore:
    """`ModelStore` in memory."""

    def __init__(self, *records: ModelRecord) -> None:
        self._versions: dict[str, dict[str, ModelRecord]] = {}
        self._removed: dict[str, set[str]] = {}
        self._traffic: dict[str, Traffic] = {}
        for record in records:
            self.put(record)

    def get(self, model: str, version: str | None = None) -> ModelRecord:
        live = self._traffic[model].live if model in self._traffic else ""
        record = self._versions.get(model, {}).get(version or live)
        if record is None:
            raise UnknownModel(f"no model {model!r}" if version is None else f"no version {version!r} of model {model!r}", field="model")
        return record

    def versions(self, model: str) -> list[str]:
        records = sorted(self._versions.get(model, {}).values(), key=lambda r: (r.created_at_s, r.version))
        return [record.version for record in records]

    def removed(self, model: str) -> list[str]:
        return sorted(self._removed.get(model, set()))

    def list(self) -> list[ModelRecord]:
        return [self._versions[model][traffic.live] for model, traffic in sorted(self._traffic.items())]

    def put(self, record: ModelRecord) -> None:
        self.store(record)
        self._traffic[record.model] = Traffic(model=record.model, live=record.version)

    def store(self, record: ModelRecord) -> None:
        self._versions.setdefault(record.model, {})[record.version] = record

    def traffic(self, model: str) -> Traffic:
        if model not in self._traffic:
            raise UnknownModel(f"no model {model!r}", field="model")
        return self._traffic[model]

    def route(self, traffic: Traffic) -> None:
        now = self.traffic(traffic.model)
        for version in traffic.versions:
            self.get(traffic.model, version)
        if traffic.number != now.number + 1:
            raise StaleWrite(f"traffic of model '{traffic.model}' was changed by somebody else meanwhile")
        self._traffic[traffic.model] = traffic

    def delete_version(self, model: str, version: str) -> None:
        traffic = self._traffic.get(model)
        if traffic is not None:
            if version in (traffic.live, traffic.canary):
                raise StaleWrite(f"version {version} of model '{model}' gets traffic")
            if traffic.previous == version:
                self._traffic[model] = msgspec.structs.replace(traffic, previous=None)
        if self._versions.get(model, {}).pop(version, None) is not None:
            self._removed.setdefault(model, set()).add(version)

    def withdraw(self, model: str) -> None:
        self._traffic.pop(model, None)

    def delete(self, model: str) -> None:
        self.withdraw(model)
        for version in self.versions(model):
            self.delete_version(model, version)


class MemoryResultStore:
    """`ResultStore` in memory; `expiries_at_s` shows what the table's TTL would act on."""

    def __init__(self, *, max_answer_bytes: int = 390 * 1024, faults: Mapping[str, Exception] = NO_FAULTS) -> None:
        self._max_answer_bytes = max_answer_bytes
        self._results: dict[str, StoredResult] = {}
        self._lock = threading.Lock()
        self._faults = faults
        self.expiries_at_s: dict[str, float] = {}

    def put_pending(
        self,
        request_id: str,
        *,
        body_sha256: str,
        accepted_at_s: float,
        deadline_at_s: float | None,
        expires_at_s: float,
        owner: str = "",
        model: str = "",
        model_version: str = "",
    ) -> bool:
        fail_if_told(self._faults, "put_pending")
        with self._lock:
            if request_id in self._results:
                return False
            self._results[request_id] = StoredResult(
                request_id=request_id,
                answer=None,
                body_sha256=body_sha256,
                accepted_at_s=accepted_at_s,
                deadline_at_s=deadline_at_s,
                owner=owner,
                model=model,
                model_version=model_version,
            )
            self.expiries_at_s[request_id] = expires_at_s
            return True

    def put_answer(self, answer: Answer, *, expires_at_s: float, accepted_as: str = "") -> bool:
        fail_if_told(self._faults, "put_answer")
        size = len(encode(answer))
        if size > self._max_answer_bytes:
            raise PayloadTooLarge(f"answer of {size} bytes exceeds the results table's {self._max_answer_bytes}", field="outputs")
        with self._lock:
            known = self._results.get(answer.request_id, StoredResult(request_id=answer.request_id, answer=None))
            if accepted_as and known.body_sha256 != accepted_as:
                return False
            if known.answer is not None:
                return known.answer == answer
            self._results[answer.request_id] = msgspec.structs.replace(known, answer=answer)
            self.expiries_at_s[answer.request_id] = expires_at_s
            return True

    def put_answers(self, answers: Sequence[Answer], *, expires_at_s: float, accepted_as: Sequence[str] = ()) -> list[bool | Transient]:
        return [self._outcome(one, expires_at_s, body) for one, body in zip(answers, accepted_as or [""] * len(answers), strict=True)]

    def _outcome(self, answer: Answer, expires_at_s: float, accepted_as: str) -> bool | Transient:
        try:
            return self.put_answer(answer, expires_at_s=expires_at_s, accepted_as=accepted_as)
        except Transient as error:
            return error

    def get(self, request_id: str) -> StoredResult | None:
        fail_if_told(self._faults, "get")
        with self._lock:
            return self._results.get(request_id)


class MemoryWindowStore:
    """`WindowStore` in memory."""

    def __init__(self) -> None:
        self._applied: set[str] = set()
        self._arrivals: dict[str, dict[float, int]] = defaultdict(lambda: defaultdict(int))
        self._outcomes: dict[str, dict[tuple[float, str, str, str], OutcomeCounts]] = defaultdict(dict)
        self._ticks: set[float] = set()
        self._lock = threading.Lock()

    def apply(self, batches: Sequence[MetricsBatch], *, expires_at_s: float) -> list[bool | Transient]:  # noqa: ARG002  # nothing expires in memory
        with self._lock:
            return [self._apply(batch) for batch in batches]

    def _apply(self, batch: MetricsBatch) -> bool:
        if batch.batch_id in self._applied:
            return False
        self._applied.add(batch.batch_id)
        for arrival in batch.arrivals:
            self._arrivals[arrival.model][arrival.window_at_s] += arrival.count
        for counts in batch.outcomes:
            groups = self._outcomes[counts.model]
            groups[counts.group] = groups[counts.group].plus(counts) if counts.group in groups else counts
        if batch.tick_at_s is not None:
            self._ticks.add(batch.tick_at_s)
        return True

    def arrivals(self, model: str, *, since_s: float, until_s: float) -> dict[float, int]:
        with self._lock:
            windows = self._arrivals.get(model, {})
            return {at_s: windows[at_s] for at_s in sorted(windows) if since_s <= at_s < until_s}

    def ticks(self, *, since_s: float, until_s: float) -> list[float]:
        with self._lock:
            return sorted(at_s for at_s in self._ticks if since_s <= at_s < until_s)

    def outcomes(self, model: str, *, since_s: float, until_s: float) -> list[OutcomeCounts]:
        with self._lock:
            counted = [counts for counts in self._outcomes.get(model, {}).values() if since_s <= counts.window_at_s < until_s]
        return sorted(counted, key=lambda counts: counts.group)


class MemoryControlStore:
    """`ControlStore` in memory."""

    def __init__(self) -> None:
        self._forecasts: dict[str, dict[float, ForecastRecord]] = defaultdict(dict)
        self._plans: list[PlanRecord] = []
        self._decisions: list[DecisionRecord] = []
        self._held_until_s: dict[str, float] = {}
        self._lock = threading.Lock()

    def put_forecast(self, forecast: ForecastRecord) -> None:
        with self._lock:
            self._forecasts[forecast.model][forecast.origin_at_s] = forecast

    def latest_forecast(self, model: str) -> ForecastRecord | None:
        with self._lock:
            known = self._forecasts.get(model)
            return known[max(known)] if known else None

    def forecasts(self, model: str, *, since_s: float, until_s: float) -> list[ForecastRecord]:
        with self._lock:
            known = self._forecasts.get(model, {})
            return [known[at_s] for at_s in sorted(known) if since_s <= at_s < until_s]

    def put_plan(self, plan: PlanRecord) -> None:
        with self._lock:
            latest = self._plans[-1].version if self._plans else 0
            if plan.version != latest + 1:
                raise StaleWrite(f"plan version {plan.version} does not follow version {latest}: re-plan from the latest")
            self._plans.append(plan)

    def latest_plan(self) -> PlanRecord | None:
        with self._lock:
            return self._plans[-1] if self._plans else None

    def plans(self, *, since_s: float, until_s: float) -> list[PlanRecord]:
        with self._lock:
            return [plan for plan in self._plans if since_s <= plan.created_at_s < until_s]

    def log(self, record: DecisionRecord) -> None:
        with self._lock:
            self._decisions.append(record)

    def decisions(self, *, since_s: float, until_s: float) -> list[DecisionRecord]:
        with self._lock:
            return sorted((d for d in self._decisions if since_s <= d.at_s < until_s), key=lambda d: d.at_s)

    def claim(self, name: str, *, now_s: float, for_s: float) -> bool:
        with self._lock:
            if self._held_until_s.get(name, now_s) > now_s:
                return False
            self._held_until_s[name] = now_s + for_s
            return True

    def claims(self, prefix: str, *, now_s: float) -> list[str]:
        with self._lock:
            return sorted(name for name, until_s in self._held_until_s.items() if name.startswith(prefix) and until_s > now_s)


class MemoryInstanceRegistry:
    """`InstanceRegistry` in memory; start it with `instances` to set a scene."""

    def __init__(self, *instances: Instance) -> None:
        self._instances: dict[str, Instance] = {instance.instance_id: instance for instance in instances}
        self._views: dict[str, PublishedView] = {}
        self._lock = threading.Lock()

    def put(self, instance: Instance) -> None:
        with self._lock:
            self._instances.setdefault(instance.instance_id, instance)

    def transition(
        self, instance_id: str, *, expected: Sequence[InstanceState], state: InstanceState, at_s: float, reason: str
    ) -> Instance:
        with self._lock:
            instance = self._instances.get(instance_id)
            if instance is None or instance.state not in expected:
                found = "unknown" if instance is None else str(instance.state)
                raise StaleWrite(f"{instance_id} is {found}, not {' or '.join(expected)}: cannot become {state}")
            moved = self._instances[instance_id] = _stamp(replace(instance, state=state), at_s=at_s, reason=reason)
            return moved

    def heartbeat(self, instance_id: str, *, at_s: float, stats: WorkerStats) -> Instance:
        with self._lock:
            if instance_id not in self._instances:
                raise StaleWrite(f"{instance_id} is not registered: no heartbeat recorded")
            instance = self._instances[instance_id] = replace(self._instances[instance_id], heartbeat_at_s=at_s, stats=stats)
            return instance

    def count_evidence(self, instance_id: str, *, missed_cycles: int, unwanted_cycles: int) -> None:
        with self._lock:
            if instance_id in self._instances:
                self._instances[instance_id] = replace(
                    self._instances[instance_id], missed_cycles=missed_cycles, unwanted_cycles=unwanted_cycles
                )

    def list(self, model: str | None = None, *, up_to_date: bool = True) -> list[Instance]:  # noqa: ARG002  # memory always is
        with self._lock:
            chosen = [i for i in self._instances.values() if model is None or i.model == model]
        return sorted(chosen, key=lambda i: (i.requested_at_s, i.instance_id))

    def publish_view(self, model: str, view: FleetView, *, at_s: float) -> None:
        with self._lock:
            self._views[model] = PublishedView(at_s=at_s, view=view)

    def published_view(self, model: str) -> PublishedView | None:
        with self._lock:
            return self._views.get(model)


def _stamp(instance: Instance, *, at_s: float, reason: str) -> Instance:
    match instance.state:
        case InstanceState.REQUESTED:
            return instance
        case InstanceState.WARMING:
            return replace(instance, running_at_s=at_s)
        case InstanceState.SERVING:
            return replace(instance, serving_at_s=at_s)
        case InstanceState.DRAINING:
            return replace(instance, drain_at_s=at_s, end_reason=reason)
        case InstanceState.TERMINATED:
            # A drain's reason says more than "drained".
            return replace(instance, terminated_at_s=at_s, end_reason=instance.end_reason or reason)
        case InstanceState.FAILED:
            return replace(instance, terminated_at_s=at_s, end_reason=reason)


class MemoryBlobStore:
    """`BlobStore` in memory."""

    def __init__(self, blobs: Mapping[str, bytes] | None = None) -> None:
        self.blobs: dict[str, bytes] = dict(blobs or {})

    def get(self, key: str) -> bytes:
        if key not in self.blobs:
            raise InvalidRequest(f"no object {key!r}", field="key")
        return self.blobs[key]

    def put(self, key: str, data: bytes) -> None:
        self.blobs[key] = data
