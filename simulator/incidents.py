"""Interruptions of the simulated fleet: which instances a capacity event takes, their notices, and their ends."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from markserve.core.lifecycle import serves_until_s
from markserve.core.types import CapacityType, Instance, InstanceState
from simulator.assumptions import DRY_POOL_S, NO_NOTICE_SHARE, POOL_EVENT_SPREAD_S, SPOT_NOTICE_S
from simulator.fleet import INTERRUPTED, WITHOUT_NOTICE, SimulatedFleet
from simulator.interruptions import Ordered
from simulator.market import SpotMarket


@dataclass(frozen=True, slots=True, order=True)
class Incident:
    """Something that happens to the fleet between two control steps."""

    at_s: float
    number: int
    """Order of incidents at the same instant."""
    kind: str
    """pool, ordered, ordered-end, notice, stop, end or alarm."""
    subject: str = ""
    """Pool key, instance id, or the alarm's reason."""
    share: float = 0.0


class Incidents:
    """What is due when, and what it does to the fleet."""

    def __init__(self, fleet: SimulatedFleet, market: SpotMarket | None, ordered: Sequence[Ordered], *, seed: int) -> None:
        self._fleet = fleet
        self._events = market.events(seed) if market else None
        self._rng = np.random.default_rng([seed, 0x1C1D])
        self._due: list[Incident] = []
        self._number = 0
        self._dry_until_s: dict[str, float] = {}
        self.interruptions = 0
        for order in ordered:
            self.add(order.at_s, "ordered" if order.has_notice else "ordered-end", share=order.share)

    def add(self, at_s: float, kind: str, subject: str = "", share: float = 0.0) -> None:
        """Let something happen later."""
        self._number += 1
        heapq.heappush(self._due, Incident(at_s, self._number, kind, subject, share))

    def next_at_s(self, until_s: float) -> float | None:
        """Instant of the next incident before `until_s`; None when there is none."""
        if self._events is not None:
            for at_s, key, share in self._events.until(until_s):
                self.add(at_s, "pool", key, share)
        return self._due[0].at_s if self._due and self._due[0].at_s < until_s else None

    def take(self, at_s: float) -> list[Incident]:
        """Take out what happens at an instant."""
        taken: list[Incident] = []
        while self._due and self._due[0].at_s <= at_s:
            taken.append(heapq.heappop(self._due))
        return taken

    def unavailable(self, now_s: float) -> frozenset[str]:
        """Pools that are not to be bought from, as the product remembers them."""
        self._dry_until_s = {key: until_s for key, until_s in self._dry_until_s.items() if until_s > now_s}
        return frozenset(self._dry_until_s)

    def mark_dry(self, key: str, now_s: float) -> None:
        """Remember a pool that gave nothing or lost an instance."""
        self._dry_until_s[key] = now_s + DRY_POOL_S

    # --- what they do -----------------------------------------------------------------------------------------------

    def strike(self, incident: Incident) -> None:
        """Choose whom a capacity event takes: notices follow one another within minutes, some never come."""
        for instance in self._chosen(self._in_pool(incident.subject), incident.share):
            notice_at_s = incident.at_s + float(self._rng.exponential(POOL_EVENT_SPREAD_S))
            if self._rng.random() < NO_NOTICE_SHARE:
                self.add(notice_at_s + SPOT_NOTICE_S, "end", instance.instance_id)
            else:
                self.add(notice_at_s, "notice", instance.instance_id)

    def strike_largest(self, incident: Incident) -> None:
        """Give notice to a share of the largest spot pool at once, or take it back at once."""
        pools: dict[str, list[Instance]] = {}
        for instance in self._fleet.instances:
            if instance.offering.capacity_type is CapacityType.SPOT and instance.state is not InstanceState.DRAINING:
                pools.setdefault(instance.offering.key, []).append(instance)
        if pools:
            largest = max(pools, key=lambda key: (len(pools[key]), key))
            for instance in self._chosen(pools[largest], incident.share):
                self.add(incident.at_s, "notice" if incident.kind == "ordered" else "end", instance.instance_id)

    def _in_pool(self, key: str) -> list[Instance]:
        return [i for i in self._fleet.instances if i.offering.key == key and i.state is not InstanceState.DRAINING]

    def _chosen(self, pool: Sequence[Instance], share: float) -> list[Instance]:
        number = min(len(pool), math.ceil(share * len(pool) - 1e-9))
        picked = sorted(self._rng.choice(len(pool), size=number, replace=False)) if number else []
        return [pool[int(i)] for i in picked]

    def notify(self, incident: Incident) -> bool:
        """Count on it no longer and avoid the pool, as `lifecycle_events` does; return whether anything changed.

        The worker serves on until shortly before its end, as `worker.lifeline` does.
        """
        instance = self._fleet.find(incident.subject)
        if instance is None:
            return False
        self.interruptions += 1
        self.mark_dry(instance.offering.key, incident.at_s)
        self.add(incident.at_s + SPOT_NOTICE_S, "end", incident.subject)
        if instance.state is InstanceState.DRAINING:
            return False
        if self._fleet.leave(incident.subject, now_s=incident.at_s, reason=INTERRUPTED):
            stops_at_s = serves_until_s(incident.at_s + SPOT_NOTICE_S, batch_latency_s=self._fleet.batch_latency_s(incident.subject))
            self.add(max(incident.at_s, stops_at_s), "stop", incident.subject)
        return True

    def stop(self, incident: Incident) -> None:
        """Let an instance that is leaving take no more work."""
        if self._fleet.find(incident.subject) is not None:
            self._fleet.stop(incident.subject, now_s=incident.at_s)

    def end(self, incident: Incident) -> Instance | None:
        """Take an instance back, finished or not; return it if it was still there."""
        instance = self._fleet.find(incident.subject)
        if instance is None:
            return None
        noticed = instance.state is InstanceState.DRAINING and instance.end_reason == INTERRUPTED
        self.interruptions += not noticed
        if not noticed:
            self.mark_dry(instance.offering.key, incident.at_s)
        self._fleet.kill(incident.subject, now_s=incident.at_s, reason=INTERRUPTED if noticed else WITHOUT_NOTICE)
        return instance
