"""What one front environment knows of the models it serves: cached records and fleets, and measured latencies."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from markserve.core.admitted_share import AdmittedShare, revise_share
from markserve.core.estimators import DecayingQuantile
from markserve.core.spillover import FleetView, PublishedView, fleet_view, usable_by
from markserve.core.tunables import Tunables
from markserve.core.types import Instance, Slo
from markserve.errors import Transient
from markserve.messages import ModelRecord, Traffic
from markserve.plan_inputs import model_spill_reserve
from markserve.ports import InstanceRegistry, ModelStore

RECORD_TTL_S = 30.0
"""A version's record changes with its profiles only; it is read once per environment in this time."""
TRAFFIC_TTL_S = 10.0
"""A promotion or a rollback reaches every environment within this time."""
FLEET_TTL_S = 1.0
"""Workers report once a second, so a fresher view would not know more."""
SUMMARY_AGE_MAX_S = 5.0
"""Beyond it nobody makes summaries: no front has reported for a while, or ingestion is behind. The workers themselves are read then."""

REPLY_OVERHEAD_PRIOR_S = 0.02
"""A result's write and its read, about 5 ms each from within a region, with room for their tail; until measured."""
SPILL_OVERHEAD_PRIOR_S = 0.05
"""A synchronous Lambda invocation beyond its computation; until measured."""
SPILL_COMPUTE_PRIOR_S = 0.2
"""Computation on Lambda of a model that was profiled nowhere; until measured."""

ValueT = TypeVar("ValueT")


@dataclass(slots=True)
class Measured:
    """Latencies of one model as this environment measures them."""

    spill_s: DecayingQuantile
    """Invocation of a warm spillover environment: p99, since what misses it misses the objective."""
    reply_s: DecayingQuantile = field(default_factory=lambda: DecayingQuantile(quantile=0.98, value=REPLY_OVERHEAD_PRIOR_S, window=50))
    """Finished computation to the answer in hand, time between polls not included: that is the front's own choice."""
    completion_s: DecayingQuantile | None = None
    """Enqueued to finished, lower quartile: when the first look is worth its price. None until a worker has answered."""

    def spilled(self, took_s: float) -> None:
        """Learn from an invocation of a warm environment."""
        self.spill_s = self.spill_s.observe(took_s)

    def replied(self, overhead_s: float) -> None:
        """Learn from the way of one answer from worker to front."""
        self.reply_s = self.reply_s.observe(overhead_s)

    def completed(self, took_s: float) -> None:
        """Learn from one answer of a worker."""
        tracker = self.completion_s or DecayingQuantile(quantile=0.25, value=took_s, window=20)
        self.completion_s = tracker.observe(took_s)

    def first_look_s(self, predicted_wait_s: float) -> float:
        """Wait before the first poll."""
        return predicted_wait_s if self.completion_s is None else min(predicted_wait_s, self.completion_s.value)


class _Cache(Generic[ValueT]):
    """Reads kept for a while, and for longer while the store does not answer."""

    def __init__(self, *, ttl_s: float, now_s: Callable[[], float]) -> None:
        self._ttl_s = ttl_s
        self._now_s = now_s
        self._entries: dict[Hashable, tuple[float, ValueT]] = {}

    def get(self, key: Hashable, read: Callable[[], ValueT]) -> ValueT:
        known = self._entries.get(key)
        if known is not None and self._now_s() - known[0] < self._ttl_s:
            return known[1]
        try:
            value = read()
        except Transient:
            if known is None:
                raise
            value = known[1]
        self._entries[key] = (self._now_s(), value)
        return value


class FrontView:
    """Cached reads of models and fleets, and what was measured of each model.

    Parameters
    ----------
    reads_summaries
        Read the published summary of a fleet instead of all its workers: what a stack with shards does.
    """

    def __init__(
        self,
        *,
        models: ModelStore,
        instances: InstanceRegistry,
        heartbeat_timeout_s: float,
        reads_summaries: bool,
        now_s: Callable[[], float],
    ) -> None:
        self._models = models
        self._instances = instances
        self._heartbeat_timeout_s = heartbeat_timeout_s
        self._reads_summaries = reads_summaries
        self._now_s = now_s
        self._records: _Cache[ModelRecord] = _Cache(ttl_s=RECORD_TTL_S, now_s=now_s)
        self._traffic: _Cache[Traffic] = _Cache(ttl_s=TRAFFIC_TTL_S, now_s=now_s)
        self._fleets: _Cache[list[Instance]] = _Cache(ttl_s=FLEET_TTL_S, now_s=now_s)
        self._summaries: _Cache[PublishedView | None] = _Cache(ttl_s=FLEET_TTL_S, now_s=now_s)
        self._measured: dict[str, Measured] = {}
        self._keeps_reserve: dict[Hashable, bool] = {}
        self._admitted: dict[str, AdmittedShare] = {}

    def record(self, model: str, version: str | None = None) -> ModelRecord:
        """Return a version of a model, by default the live one; raises `UnknownModel`."""
        chosen = version or self.traffic(model).live
        return self._records.get((model, chosen), lambda: self._models.get(model, chosen))

    def traffic(self, model: str) -> Traffic:
        """Return who answers requests that name no version; raises `UnknownModel`."""
        return self._traffic.get(model, lambda: self._models.traffic(model))

    def is_loaded(self, model: str, version: str) -> bool:
        """Whether every serving worker has loaded a version; so it is where none serves, since then nobody waits for one."""
        fleet = self.fleet(model)
        return fleet.serving_instances == 0 or fleet.has_loaded(version, live=self.traffic(model).live)

    def fleet(self, model: str) -> FleetView:
        """Summarise the model's workers."""
        if self._reads_summaries:
            known = self._summaries.get(model, lambda: self._instances.published_view(model))
            if known is not None and self._now_s() - known.at_s <= SUMMARY_AGE_MAX_S:
                return known.view
        instances = self._fleets.get(model, lambda: self._instances.list(model, up_to_date=False))
        # Judged at every call: a worker that went silent stops counting even while its record is cached.
        return fleet_view(instances, self._now_s(), self._heartbeat_timeout_s)

    def admitted(self, record: ModelRecord, slo: Slo) -> AdmittedShare:
        """Share of the model's requests that its workers can use; revised when they have reported anew."""
        fleet, known = self.fleet(record.model), self._admitted.get(record.model, AdmittedShare())
        if fleet.viewed_at_s is not None and fleet.viewed_at_s != known.viewed_at_s:
            known = revise_share(
                known,
                entered=fleet.entered,
                members=fleet.members,
                viewed_at_s=fleet.viewed_at_s,
                usable_rps=usable_by(fleet, slo=slo, spent_s=fleet.transport_s + self.measured(record).reply_s.value),
            )
            self._admitted[record.model] = known
        return known

    def keeps_reserve(self, record: ModelRecord, tunables: Tunables) -> bool:
        """Whether this model's workers leave time for spilling; worked out once per version and objective."""
        key = (record.model, record.version, tunables.rt_max_s, tunables.spillover_max_concurrency > 0, tunables.spill_reserve_cost_max)
        if key not in self._keeps_reserve:
            self._keeps_reserve[key] = model_spill_reserve(record, tunables).reserve_s > 0
        return self._keeps_reserve[key]

    def measured(self, record: ModelRecord) -> Measured:
        """Latencies of the model, starting from its profile."""
        known = self._measured.get(record.model)
        if known is None:
            prior_s = SPILL_OVERHEAD_PRIOR_S + _profiled_s(record)
            known = Measured(spill_s=DecayingQuantile(quantile=0.99, value=prior_s, window=100))
            self._measured[record.model] = known
        return known


def _profiled_s(record: ModelRecord) -> float:
    """p99 of one request on Lambda, or on the slowest profiled instance type if Lambda was not profiled."""
    profiles = [record.profiles["lambda"]] if record.profiles.get("lambda") else list(record.profiles.values())
    return max((points[0].p99_s for points in profiles if points), default=SPILL_COMPUTE_PRIOR_S)
