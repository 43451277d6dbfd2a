"""A cloud that boots, interrupts and fails to deliver, and the workers on its instances: what the controller cannot see."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable, Mapping
from typing import Any

from markserve.adapters.memory import MemoryFleet, MemoryInstanceRegistry
from markserve.core.types import CapacityType, InstanceState, ObservedInstance, WorkerStats
from markserve.errors import StaleWrite
from markserve.lifecycle_events import Notification
from markserve.messages import InstanceDrained, InstanceReady, LaunchInstances, to_plain

RATE_RPS = 20.0
LISTED_S = 3600.0
"""How long the cloud still lists what has ended."""
STARTED = (InstanceState.REQUESTED, InstanceState.WARMING, InstanceState.SERVING)
MISHAPS: Mapping[str, float] = {
    "never boots": 0.03,
    "interrupted": 0.004,
    "no notice": 0.3,
    "event lost": 0.1,
    "event twice": 0.2,
    "event late": 0.1,
}
"""Chances: per launch, per spot instance and minute, per interruption, and per event."""


class Cloud(MemoryFleet):
    """Instances that live on their own; it tells `notify` of them, as EventBridge would: late, twice or not at all.

    Attributes
    ----------
    serving
        Instances whose worker serves.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float],
        registry: MemoryInstanceRegistry,
        notify: Callable[[Notification], None],
        rng: random.Random,
        has_mishaps: bool,
        **options: Any,
    ) -> None:
        super().__init__(now=clock, **options)
        self._clock = clock
        self._registry = registry
        self._notify = notify
        self._rng = rng
        self.has_mishaps = has_mishaps
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._sequence = itertools.count(1)
        self._draining: set[str] = set()
        self._ended_at_s: dict[str, float] = {}
        self._hidden: set[str] = set()
        self.serving: set[str] = set()
        self.interrupted = self.never_booted = 0

    def _start(self, command: LaunchInstances) -> ObservedInstance:
        started = super()._start(command)
        instance_id = started.instance_id
        if self._happens("never boots"):
            self.never_booted += 1
            return started
        boot_s = self._rng.uniform(20.0, 60.0)
        self._at(boot_s, lambda: self._boots(instance_id))
        self._at(boot_s + self._rng.uniform(30.0, 90.0), lambda: self._serves(instance_id))
        return started

    def advance(self, now_s: float, set_clock: Callable[[float], None]) -> None:
        """Let everything happen that is due by `now_s`, in order."""
        while self._due and self._due[0][0] <= now_s:
            at_s, _, happen = heapq.heappop(self._due)
            set_clock(at_s)
            happen()
        set_clock(now_s)
        for seen in self.describe():
            if seen.cloud_state == "terminated":
                self._ends(seen.instance_id)
        for instance_id, at_s in list(self._ended_at_s.items()):
            if now_s - at_s > LISTED_S:
                # MemoryFleet counts ids by what it holds, so the record itself stays; it is no longer listed.
                self._hidden.add(instance_id)
                del self._ended_at_s[instance_id]

    def minute(self) -> None:
        """Heartbeats, and interruptions of spot instances."""
        for instance_id in sorted(self.serving):
            self._beat(instance_id)
        for seen in self.describe():
            if seen.capacity_type is CapacityType.SPOT and seen.cloud_state == "running" and self._happens("interrupted"):
                self._interrupt(seen.instance_id)

    @property
    def paid_for(self) -> list[ObservedInstance]:
        """Instances that cost money now."""
        return [seen for seen in self.describe() if seen.cloud_state in ("pending", "running")]

    def describe(self) -> list[ObservedInstance]:
        """Leave out what ended long ago."""
        return [seen for seen in super().describe() if seen.instance_id not in self._hidden]

    def _boots(self, instance_id: str) -> None:
        if self._is(instance_id, "pending"):
            self.set_state(instance_id, "running")
            self._tell("aws.ec2", "EC2 Instance State-change Notification", {"instance-id": instance_id, "state": "running"})

    def _serves(self, instance_id: str) -> None:
        if not self._is(instance_id, "running"):
            return
        try:
            known = self._registry.transition(
                instance_id,
                expected=(InstanceState.REQUESTED, InstanceState.WARMING),
                state=InstanceState.SERVING,
                at_s=self._clock(),
                reason="warmed up",
            )
        except StaleWrite:
            return  # drained before it served; the drain's deadline ends it
        self.serving.add(instance_id)
        self._beat(instance_id)
        ready = InstanceReady(model=known.model, instance_id=instance_id, at_s=self._clock())
        self._tell("markserve", "InstanceReady", to_plain(ready))

    def _beat(self, instance_id: str) -> None:
        stats = WorkerStats(service_rate_rps=RATE_RPS, batch_latency_s=0.05, transport_s=0.01)
        try:
            known = self._registry.heartbeat(instance_id, at_s=self._clock(), stats=stats)
        except StaleWrite:
            return
        if known.state not in STARTED and instance_id not in self._draining:
            self._draining.add(instance_id)
            self.serving.discard(instance_id)
            drained = InstanceDrained(model=known.model, instance_id=instance_id, at_s=self._clock(), reason="drained")
            self._tell("markserve", "InstanceDrained", to_plain(drained))

    def _interrupt(self, instance_id: str) -> None:
        self.interrupted += 1
        if self._happens("no notice"):
            self._take(instance_id)
            return
        self._tell("aws.ec2", "EC2 Spot Instance Interruption Warning", {"instance-id": instance_id, "instance-action": "terminate"})
        self._at(120.0, lambda: self._take(instance_id))

    def _take(self, instance_id: str) -> None:
        if self._is(instance_id, "running"):
            self.set_state(instance_id, "terminated")
            self._ends(instance_id)
            self._tell("aws.ec2", "EC2 Instance State-change Notification", {"instance-id": instance_id, "state": "terminated"})

    def _ends(self, instance_id: str) -> None:
        self.serving.discard(instance_id)
        if instance_id not in self._hidden:
            self._ended_at_s.setdefault(instance_id, self._clock())

    def _tell(self, source: str, detail_type: str, detail: dict[str, Any]) -> None:
        notification = Notification(source=source, detail_type=detail_type, detail=detail)
        if self._happens("event lost"):
            return
        delay_s = self._rng.uniform(3600.0, 7200.0) if self._happens("event late") else self._rng.uniform(0.1, 3.0)
        self._at(delay_s, lambda: self._notify(notification))
        if self._happens("event twice"):
            self._at(delay_s + self._rng.uniform(0.0, 300.0), lambda: self._notify(notification))

    def _is(self, instance_id: str, cloud_state: str) -> bool:
        return any(seen.instance_id == instance_id and seen.cloud_state == cloud_state for seen in self.describe())

    def _at(self, delay_s: float, happen: Callable[[], None]) -> None:
        heapq.heappush(self._due, (self._clock() + delay_s, next(self._sequence), happen))

    def _happens(self, mishap: str) -> bool:
        return self.has_mishaps and self._rng.random() < MISHAPS[mishap]
