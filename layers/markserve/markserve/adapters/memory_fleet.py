"""Compute in memory: the fleet with dry pools, the spillover function and a model runner."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace

import msgspec

from markserve.core.types import CapacityType, ObservedInstance, Tier
from markserve.errors import CapacityUnavailable, DependencyUnavailable, Throttled
from markserve.messages import Answer, InferenceRequest, LaunchInstances


class MemoryFleet:
    """`Fleet` in memory: instances start pending; the test or the simulator moves them with `set_state`.

    Parameters
    ----------
    dry_pools
        Offering keys (`type/capacity/zone`) with no capacity at all.
    pool_capacity
        Instances left by offering key; a pool that is not named never runs out.
    prices
        Spot prices by (type, capacity type, zone).
    """

    def __init__(
        self,
        *,
        now: Callable[[], float] = time.time,
        dry_pools: Collection[str] = (),
        pool_capacity: Mapping[str, int] | None = None,
        prices: Mapping[tuple[str, CapacityType, str], float] | None = None,
        zones: Sequence[str] = ("us-east-1a",),
        unavailable: bool = False,
    ) -> None:
        self._now = now
        self.dry_pools = set(dry_pools)
        self.pool_capacity = dict(pool_capacity or {})
        self.prices = dict(prices or {})
        self._zones = sorted(zones)
        self.unavailable = unavailable
        self.launches: list[LaunchInstances] = []
        self._instances: dict[str, ObservedInstance] = {}
        self._by_action: dict[str, list[str]] = {}
        self._lock = threading.Lock()

    def launch(self, command: LaunchInstances) -> list[ObservedInstance]:
        self._fail_if_unavailable()
        with self._lock:
            if command.action_id in self._by_action:
                return [self._instances[instance_id] for instance_id in self._by_action[command.action_id]]
            key = command.offering.key
            granted = 0 if key in self.dry_pools else min(command.count, self.pool_capacity.get(key, command.count))
            if granted == 0:
                raise CapacityUnavailable(
                    f"{key}: no capacity for {command.count} instance(s)",
                    instance_type=command.offering.instance_type,
                    capacity_type=command.offering.capacity_type,
                    zone=command.offering.zone,
                )
            if key in self.pool_capacity:
                self.pool_capacity[key] -= granted
            launched = [self._start(command) for _ in range(granted)]
            self._by_action[command.action_id] = [instance.instance_id for instance in launched]
            self.launches.append(command)
            return launched

    def _start(self, command: LaunchInstances) -> ObservedInstance:
        instance = ObservedInstance(
            instance_id=f"i-{len(self._instances) + 1:017x}",
            instance_type=command.offering.instance_type,
            capacity_type=command.offering.capacity_type,
            zone=command.offering.zone,
            cloud_state="pending",
            launched_at_s=self._now(),
            model=command.model,
            purpose=command.purpose,
        )
        self._instances[instance.instance_id] = instance
        return instance

    def add(self, instance: ObservedInstance) -> None:
        """Let an instance appear that this system did not launch."""
        with self._lock:
            self._instances[instance.instance_id] = instance

    def set_state(self, instance_id: str, cloud_state: str) -> None:
        """Move an instance, as the cloud would."""
        with self._lock:
            self._instances[instance_id] = replace(self._instances[instance_id], cloud_state=cloud_state)

    def terminate(self, instance_ids: Sequence[str]) -> None:
        self._fail_if_unavailable()
        with self._lock:
            for instance_id in instance_ids:
                if instance_id in self._instances:
                    self._instances[instance_id] = replace(self._instances[instance_id], cloud_state="terminated")

    def describe(self) -> list[ObservedInstance]:
        self._fail_if_unavailable()
        with self._lock:
            return list(self._instances.values())

    def zones(self) -> Sequence[str]:
        self._fail_if_unavailable()
        return self._zones

    def prices_usd_per_hour(self, instance_types: Sequence[str]) -> Mapping[tuple[str, CapacityType, str], float]:
        self._fail_if_unavailable()
        return {key: price for key, price in self.prices.items() if key[0] in instance_types}

    def _fail_if_unavailable(self) -> None:
        if self.unavailable:
            raise DependencyUnavailable("the fleet's API does not answer")


class MemorySpilloverInvoker:
    """`SpilloverInvoker` that answers with `compute`.

    Parameters
    ----------
    compute
        Computes the answer; by default one without outputs.
    max_concurrency
        Invocations allowed at once; 0 throttles every one.
    failure
        Raised by every invocation, when set.
    """

    def __init__(
        self,
        compute: Callable[[InferenceRequest], Answer] | None = None,
        *,
        max_concurrency: int | None = None,
        failure: Exception | None = None,
    ) -> None:
        self._compute = compute or (lambda request: Answer(request_id=request.request_id, tier=Tier.LAMBDA))
        self._free = None if max_concurrency is None else threading.Semaphore(max_concurrency)
        self.failure = failure
        self.invoked: list[InferenceRequest] = []
        self.warmed: list[tuple[str, int]] = []

    def invoke(self, request: InferenceRequest) -> Answer:
        if self.failure is not None:
            raise self.failure
        if self._free is None:
            return self._run(request)
        if not self._free.acquire(blocking=False):
            raise Throttled("the spillover function is at its concurrency limit")
        try:
            return self._run(request)
        finally:
            self._free.release()

    def _run(self, request: InferenceRequest) -> Answer:
        self.invoked.append(request)
        return self._compute(request)

    def warm(self, *, model: str, environments: int) -> None:
        self.warmed.append((model, environments))


class MemoryModelRunner:
    """`ModelRunner` that computes each request on its own with `compute`.

    Parameters
    ----------
    compute
        Computes one answer; by default it echoes the inputs.
    failures
        What the model raises, by request id.
    """

    def __init__(
        self, compute: Callable[[InferenceRequest], Answer] | None = None, *, failures: Mapping[str, Exception] | None = None
    ) -> None:
        self._compute = compute or (lambda request: Answer(request_id=request.request_id, tier=Tier.WORKER, outputs=request.inputs))
        self._failures = dict(failures or {})
        self.batches: list[list[str]] = []
        """Request ids of every batch run."""

    def run(self, batch: Sequence[InferenceRequest]) -> list[Answer | Exception]:
        self.batches.append([request.request_id for request in batch])
        return [self._failures.get(request.request_id) or self._run_one(request, len(batch)) for request in batch]

    def _run_one(self, request: InferenceRequest, batch_size: int) -> Answer:
        return msgspec.structs.replace(self._compute(request), batch_size=batch_size)
