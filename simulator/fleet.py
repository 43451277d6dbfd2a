"""Simulated instances: launched, warmed, drained and billed by the product's own lifecycle rules."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from markserve.core.cost import instance_cost_usd
from markserve.core.lifecycle import measured_launch_overhead_s, move
from markserve.core.types import Instance, InstanceState, Offering
from simulator.assumptions import LAUNCH_DELAY_SIGMA
from simulator.service import Kind
from simulator.state import Workers

RECENT_LAUNCHES = 20
"""Launches that a policy's measured launch overhead is taken from."""


class SimulatedFleet:
    """Instances that cost money, and the workers on them that serve."""

    def __init__(self, *, model: str, kinds: Sequence[Kind], launch_delay_s: float, rng: np.random.Generator) -> None:
        self._model = model
        self._kinds = tuple(kinds)
        self._kind_index = {kind.instance_type: index for index, kind in enumerate(kinds)}
        self._launch_delay_s = launch_delay_s
        self._rng = rng
        self._alive: dict[int, Instance] = {}
        self._serves_at_s: dict[int, float] = {}
        self._ends_at_s: dict[int, float] = {}
        self._launched = 0
        self._recent: list[Instance] = []
        self.workers = Workers.none()
        self.ended: list[Instance] = []
        """Since they were last taken out."""

    @property
    def instances(self) -> list[Instance]:
        """What costs money, oldest first."""
        return list(self._alive.values())

    @property
    def launches(self) -> int:
        """Instances launched so far."""
        return self._launched

    def launch_overhead_s(self) -> float:
        """Launch overhead as a planner would know it."""
        return measured_launch_overhead_s(self._recent, default_s=self._launch_delay_s)

    def launch(self, offering: Offering, count: int, *, now_s: float, reason: str, plan_id: str, serving_at_once: bool = False) -> None:
        """Launch instances; they serve after the launch delay, or at once where the simulation starts with them."""
        added: list[tuple[int, int, float]] = []
        for _ in range(count):
            number = self._launched
            self._launched += 1
            delay_s = 0.0 if serving_at_once else self._launch_delay_s * math.exp(LAUNCH_DELAY_SIGMA * self._rng.standard_normal())
            self._alive[number] = Instance(
                instance_id=instance_id(number),
                model=self._model,
                offering=offering,
                state=InstanceState.REQUESTED,
                requested_at_s=now_s,
                reason=reason,
                plan_id=plan_id,
            )
            self._serves_at_s[number] = now_s + delay_s
            added.append((number, self._kind_index[offering.instance_type], now_s + delay_s))
        self.workers = self.workers.replaced(np.ones(self.workers.size, np.bool_), added, self._kinds)

    def drain(self, name: str, *, now_s: float, reason: str) -> None:
        """Give an instance no more work; it ends when its batch does."""
        number = next(n for n, i in self._alive.items() if i.instance_id == name)
        instance = self._alive[number]
        self._alive[number] = move(instance, InstanceState.DRAINING, at_s=now_s, reason=reason)
        mine = self.workers.instance == number
        busy_until_s = float(self.workers.free_at_s[mine][0]) if instance.state is InstanceState.SERVING else now_s
        self._ends_at_s[number] = max(now_s, busy_until_s)
        self.workers = self.workers.replaced(~mine, [], self._kinds)

    def follow(self, now_s: float, unwanted_cycles: Mapping[str, int] | None = None) -> None:
        """Record what has happened by `now_s`: launches that serve, drains that are done."""
        for number, instance in list(self._alive.items()):
            current = instance
            if instance.state is InstanceState.REQUESTED and self._serves_at_s[number] <= now_s:
                current = move(instance, InstanceState.SERVING, at_s=self._serves_at_s[number], reason="it is ready")
                if self._serves_at_s[number] > instance.requested_at_s:
                    self._recent = [*self._recent[1 - RECENT_LAUNCHES :], current]
            if instance.state is InstanceState.DRAINING and self._ends_at_s[number] <= now_s:
                self._end(number, self._ends_at_s[number], instance.end_reason or "")
                continue
            if unwanted_cycles is not None:
                current = replace(current, unwanted_cycles=unwanted_cycles.get(current.instance_id, current.unwanted_cycles))
            self._alive[number] = current

    def close(self, now_s: float) -> None:
        """End what is left with the simulation."""
        self.follow(now_s)
        for number, instance in list(self._alive.items()):
            if instance.state is not InstanceState.DRAINING:
                self._alive[number] = move(instance, InstanceState.DRAINING, at_s=now_s, reason="the simulation ends")
            self._end(number, max(now_s, self._ends_at_s.get(number, now_s)), self._alive[number].end_reason or "")

    def _end(self, number: int, at_s: float, reason: str) -> None:
        self.ended.append(move(self._alive.pop(number), InstanceState.TERMINATED, at_s=at_s, reason=reason))

    def take_ended(self) -> list[Instance]:
        """Take out the instances that have ended since the last call."""
        ended, self.ended = self.ended, []
        return ended


def instance_id(number: int) -> str:
    """Return an instance's name in the output files."""
    return f"i-{number:06d}"


def billed_s(instance: Instance) -> float:
    """Seconds from launch to termination."""
    return (instance.terminated_at_s or instance.requested_at_s) - instance.requested_at_s


def bill_usd(instance: Instance) -> float:
    """Bill of an ended instance: by the second, a minute at least, from its launch."""
    return instance_cost_usd(instance.offering.price_usd_per_hour, billed_s(instance))
