"""Simulated instances: launched, warmed, drained and billed by the product's own lifecycle rules."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from markserve.core.cost import EC2_MINIMUM_S
from markserve.core.lifecycle import measured_launch_overhead_s, move
from markserve.core.types import Instance, InstanceState, Offering
from simulator.assumptions import STANDBY_START, Lognormal
from simulator.market import SpotMarket
from simulator.prices import Segment
from simulator.service import Kind
from simulator.state import Workers

RECENT_LAUNCHES = 20
"""Launches that a policy's measured launch overhead is taken from."""


INTERRUPTED = "interrupted"
WITHOUT_NOTICE = "interrupted without notice"
SIMULATION_ENDS = "the simulation ends"


@dataclass(frozen=True, kw_only=True, slots=True)
class Bill:
    """An ended instance's life and what it cost."""

    instance: Instance
    billed_s: int
    """From launch to termination, by the started second, a minute at least."""
    segments: tuple[Segment, ...]

    @property
    def cost_usd(self) -> float:
        """Sum over the stretches of its life."""
        return math.fsum(segment.cost_usd for segment in self.segments)

    @property
    def price_usd_per_hour(self) -> float:
        """Price it was billed at; the mean over its billed time where it changed."""
        return self.segments[0].price_usd_per_hour if len(self.segments) == 1 else self.cost_usd * 3600 / self.billed_s


class SimulatedFleet:
    """Instances that cost money, and the workers on them that serve."""

    def __init__(
        self, *, model: str, kinds: Sequence[Kind], launch_delay: Lognormal, rng: np.random.Generator, market: SpotMarket | None = None
    ) -> None:
        self._model = model
        self._kinds = tuple(kinds)
        self._kind_index = {kind.instance_type: index for index, kind in enumerate(kinds)}
        self._launch_delay = launch_delay
        self._rng = rng
        self._market = market
        self._alive: dict[int, Instance] = {}
        self._numbers: dict[str, int] = {}
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

    def find(self, name: str) -> Instance | None:
        """Return an instance that costs money; None when it has ended."""
        return self._alive.get(self._numbers.get(name, -1))

    def number(self, name: str) -> int:
        """Index of an instance that costs money in the workers' columns and the batches."""
        return self._numbers[name]

    def launch_overhead_s(self) -> float:
        """Launch overhead as a planner would know it."""
        return measured_launch_overhead_s(self._recent, default_s=self._launch_delay.median_s)

    def launch(
        self,
        offering: Offering,
        count: int,
        *,
        now_s: float,
        reason: str,
        plan_id: str,
        serving_at_once: bool = False,
        is_standby: bool = False,
    ) -> None:
        """Launch instances; they serve after the launch delay, or at once where the simulation starts with them.

        A standby is there already, stopped, and starts faster.
        """
        delay = STANDBY_START if is_standby else self._launch_delay
        added: list[tuple[int, int, float]] = []
        for _ in range(count):
            number = self._launched
            self._launched += 1
            delay_s = 0.0 if serving_at_once else delay.at(self._rng.standard_normal())
            self._alive[number] = Instance(
                instance_id=instance_id(number),
                model=self._model,
                offering=offering,
                state=InstanceState.REQUESTED,
                requested_at_s=now_s,
                reason=reason,
                plan_id=plan_id,
            )
            self._numbers[instance_id(number)] = number
            self._serves_at_s[number] = now_s + delay_s
            added.append((number, self._kind_index[offering.instance_type], now_s + delay_s))
        self.workers = self.workers.replaced(np.ones(self.workers.size, np.bool_), added, self._kinds)

    def drain(self, name: str, *, now_s: float, reason: str) -> None:
        """Give an instance no more work; it ends when its batch does."""
        if self.leave(name, now_s=now_s, reason=reason):
            self.stop(name, now_s=now_s)

    def leave(self, name: str, *, now_s: float, reason: str) -> bool:
        """Record that an instance is not to be counted on; one that serves goes on until `stop`. Return whether it serves."""
        number = self._numbers[name]
        instance = self._alive[number]
        self._alive[number] = move(instance, InstanceState.DRAINING, at_s=now_s, reason=reason)
        if instance.state is InstanceState.SERVING:
            self._ends_at_s[number] = math.inf
            return True
        self._ends_at_s[number] = now_s
        self.workers = self.workers.replaced(self.workers.instance != number, [], self._kinds)
        return False

    def stop(self, name: str, *, now_s: float) -> None:
        """Give an instance that is leaving no more work; it ends when its batch does."""
        number = self._numbers[name]
        mine = self.workers.instance == number
        self._ends_at_s[number] = max(now_s, float(self.workers.free_at_s[mine][0]))
        self.workers = self.workers.replaced(~mine, [], self._kinds)

    def batch_latency_s(self, name: str) -> float:
        """T(b) at an instance's batch limit."""
        return self._kinds[self._kind_index[self._alive[self._numbers[name]].offering.instance_type]].limits.batch_latency_s

    def kill(self, name: str, *, now_s: float, reason: str) -> None:
        """End an instance under its work: the cloud takes it back without a drain."""
        number = self._numbers[name]
        self.workers = self.workers.replaced(self.workers.instance != number, [], self._kinds)
        self._end(number, now_s, reason, state=InstanceState.FAILED)

    def reprice(self, now_s: float) -> None:
        """Let the planner see spot instances at the price in force."""
        if self._market is None:
            return
        for number, instance in self._alive.items():
            price = self._market.price_usd_per_hour(instance.offering, now_s)
            if price != instance.offering.price_usd_per_hour:
                self._alive[number] = replace(instance, offering=replace(instance.offering, price_usd_per_hour=price))

    def follow(self, now_s: float, unwanted_cycles: Mapping[str, int] | None = None) -> None:
        """Record what has happened by `now_s`: launches that serve, drains that are done."""
        for number, instance in list(self._alive.items()):
            current = instance
            if instance.state is InstanceState.REQUESTED and self._serves_at_s[number] <= now_s:
                current = move(instance, InstanceState.SERVING, at_s=self._serves_at_s[number], reason="it is ready")
                delay_s = self._serves_at_s[number] - instance.requested_at_s
                if delay_s > 0 and not is_standby(instance):
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
                self._alive[number] = move(instance, InstanceState.DRAINING, at_s=now_s, reason=SIMULATION_ENDS)
            ends_at_s = self._ends_at_s.get(number, now_s)
            self._end(number, max(now_s, ends_at_s) if math.isfinite(ends_at_s) else now_s, self._alive[number].end_reason or "")

    def _end(self, number: int, at_s: float, reason: str, *, state: InstanceState = InstanceState.TERMINATED) -> None:
        instance = self._alive.pop(number)
        for known in (self._serves_at_s, self._ends_at_s):
            known.pop(number, None)
        del self._numbers[instance.instance_id]
        self.ended.append(move(instance, state, at_s=at_s, reason=reason))

    def take_ended(self) -> list[Bill]:
        """Take out the bills of the instances that have ended since the last call."""
        ended, self.ended = self.ended, []
        return [self._bill(instance) for instance in ended]

    def _bill(self, instance: Instance) -> Bill:
        """Bill by the started second, a minute at least, from the launch (`core.cost.instance_cost_usd` with changing prices)."""
        lived_s = (instance.terminated_at_s or instance.requested_at_s) - instance.requested_at_s
        billed_s = max(EC2_MINIMUM_S, math.ceil(lived_s))
        if self._market is not None:
            paid = self._market.bill(instance.offering, from_s=instance.requested_at_s, billed_s=billed_s)
        else:
            ends_s = instance.requested_at_s + billed_s
            paid = [Segment(instance.requested_at_s, ends_s, instance.offering.price_usd_per_hour)]
        return Bill(instance=instance, billed_s=billed_s, segments=tuple(paid))


def instance_id(number: int) -> str:
    """Return an instance's name in the output files."""
    return f"i-{number:06d}"


def is_standby(instance: Instance) -> bool:
    """Whether the instance is a started standby of `mark-paper`."""
    return instance.reason.startswith(STANDBY)


STANDBY = "standby"
