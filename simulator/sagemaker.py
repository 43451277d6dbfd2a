"""`sagemaker`: a real-time endpoint with target tracking on SageMakerVariantInvocationsPerInstance, as AWS documents it.

One instance type; requests go to the instance with the least work and wait there; no Lambda, no pacing, no admission. Without
batching in the model server, least work and one common queue are the same thing, and better than what an endpoint does (random,
or least outstanding requests). `--sagemaker-batch N` is a model server that takes up to N waiting requests whenever it is free,
from the common queue, which is again the generous reading.

Scaling: `capacity = ceil(current x metric / target)`, out after 3 one-minute data points above the target, in after 15 below 90 % of
it; 300 s cool-downs. Scaling out counts what is starting already, and overrides the cool-down when it needs more than that.
AWS refuses further scaling while an endpoint updates; that is left out, which is generous.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from markserve.core.batching import BatchLimits
from markserve.core.sagemaker_prices import Generation, sagemaker_price_usd_per_hour
from markserve.core.types import CapacityType, Instance, InstanceState, Offering
from simulator.assumptions import SAGEMAKER_OVERHEAD_S, SAGEMAKER_TIMEOUT_S
from simulator.fast import compiled
from simulator.monitor import Monitor
from simulator.policies import Decision, View
from simulator.service import Kind
from simulator.state import COMING, SETTLED, WAITING, Batches, Requests, Workers

OUT_POINTS, IN_POINTS = 3, 15
"""One-minute data points of the alarms (AWS documentation, target tracking)."""
IN_BELOW = 0.9
"""The low alarm's threshold, as a share of the target."""
COOL_DOWN_S = 300.0
"""Both cool-downs' default."""


@dataclass(slots=True)
class TargetTracking:
    """The two alarms, their cool-downs, and the capacity they lead to."""

    target: float
    """Invocations per instance and minute."""
    least: int = 1
    """Instances that the endpoint never scales in below: the scalable target's minimum capacity."""
    desired: int = 1
    out_since_s: float = -math.inf
    in_since_s: float = -math.inf
    above: int = 0
    below: int = 0

    def follow(self, invocations: int | None, *, in_service: int, now_s: float) -> int:
        """Take in one minute's data point and return the desired capacity; a missing point breaks both rows."""
        if invocations is None or in_service == 0:
            self.above = self.below = 0
            return self.desired
        metric = invocations / in_service
        self.above = self.above + 1 if metric > self.target else 0
        self.below = self.below + 1 if metric < IN_BELOW * self.target else 0
        needed = max(self.least, math.ceil(in_service * metric / self.target - 1e-9))
        if self.above >= OUT_POINTS and needed > self.desired:
            self.desired, self.out_since_s = needed, now_s
        elif self.below >= IN_POINTS and needed < self.desired and now_s >= max(self.out_since_s, self.in_since_s) + COOL_DOWN_S:
            self.desired, self.in_since_s = needed, now_s
        return self.desired


class SageMakerPolicy:
    """Target tracking on one instance type."""

    name = "sagemaker"
    uses_spot = False

    def __init__(
        self, *, offering: Offering, target: float, limits: BatchLimits, least: int = 1, search: dict[str, Any] | None = None
    ) -> None:
        self.search = search
        """How the settings were found."""
        self.offering = offering
        self.target = target
        self._limits = limits
        self._tracking = TargetTracking(target, least=least)

    def limits(self) -> dict[str, BatchLimits]:
        """Return the limits of the one type."""
        return {self.offering.instance_type: self._limits}

    def monitor(self) -> Monitor | None:
        """Watch nothing but the metric."""
        return None

    def decide(self, view: View) -> Decision:
        """Follow the metric of the last minute."""
        present = [i for i in view.instances if i.state is not InstanceState.DRAINING]
        if view.is_first:
            rate_rps = view.history[-1] if view.history and view.history[-1] is not None else 0.0
            self._tracking.desired = max(self._tracking.least, math.ceil(rate_rps * 60 / self.target))
        else:
            serving = sum(i.state is InstanceState.SERVING for i in present)
            self._tracking.follow(view.last_minute_requests, in_service=serving, now_s=view.now_s)
        desired = self._tracking.desired
        more = desired - len(present)
        reason = f"target tracking: {self.target:.0f} invocations per instance and minute, desired capacity {desired}"
        return Decision(
            launches=[(self.offering, more, reason)] if more > 0 else [],
            drains=[(i.instance_id, reason) for i in _newest(present, -more)],
            demand_rps=desired * self.target / 60,
            reason=reason,
        )


def _newest(present: Sequence[Instance], number: int) -> list[Instance]:
    """Choose what goes when scaling in: what does not serve yet first, then the newest."""
    order = sorted(present, key=lambda i: (i.state is InstanceState.SERVING, -i.requested_at_s, i.instance_id))
    return order[: max(0, number)]


def ml_offering(offering: Offering, generation: Generation) -> Offering:
    """Return the endpoint's instance for an EC2 offering, at SageMaker's price."""
    price, _ = sagemaker_price_usd_per_hour(offering.instance_type, offering.price_usd_per_hour, generation)
    return Offering(
        instance_type=f"ml.{offering.instance_type}",
        capacity_type=CapacityType.ON_DEMAND,
        zone=offering.zone,
        price_usd_per_hour=price,
        launch_overhead_s=offering.launch_overhead_s,
    )


class SageMakerEngine:
    """One common queue, first in, first out; an idle instance takes what waits, up to its batch limit."""

    def __init__(self, kinds: Sequence[Kind]) -> None:
        self._kinds = kinds

    def advance(self, requests: Requests, workers: Workers, *, until_s: float, first_batch_id: int, **_: float) -> Batches:
        """See `state.Engine`."""
        kind = self._kinds[0]
        open_ = np.flatnonzero(requests.state != SETTLED)
        worker, size = (np.empty(open_.size, np.int64) for _ in range(2))
        started, finished = (np.empty(open_.size) for _ in range(2))
        number = _serve(
            open_,
            requests.arrival_s,
            requests.luck,
            requests.state,
            requests.worker_answer_s,
            requests.batch_id,
            workers.serving_at_s,
            workers.free_at_s,
            workers.running,
            kind.p50_s,
            kind.sigma,
            kind.limits.max_batch_size,
            worker,
            size,
            started,
            finished,
            until_s,
            first_batch_id,
            SAGEMAKER_OVERHEAD_S / 2,
            SAGEMAKER_TIMEOUT_S,
        )
        return Batches(workers.instance[worker[:number]], size[:number], started[:number], finished[:number])


@compiled
def _serve(  # type: ignore[no-untyped-def]
    open_,
    arrival_s,
    luck,
    state,
    answer_s,
    batch_id,
    serving_at_s,
    free_at_s,
    running,
    p50,
    sigma,
    limit,
    batch_worker,
    batch_size,
    batch_started_s,
    batch_finished_s,
    until_s,
    first_batch_id,
    overhead_s,
    timeout_s,
):
    at, closed = 0, 0
    while at < open_.size:
        head = open_[at]
        reaches_s = arrival_s[head] + overhead_s
        best = -1
        for w in range(free_at_s.size):
            if best < 0 or max(free_at_s[w], serving_at_s[w]) < max(free_at_s[best], serving_at_s[best]):
                best = w
        start_s = np.inf if best < 0 else max(reaches_s, free_at_s[best], serving_at_s[best])
        gives_up_s = arrival_s[head] + timeout_s
        if start_s > gives_up_s and gives_up_s < until_s:
            state[head] = SETTLED
            at += 1
            continue
        if start_s >= until_s:
            break
        rows = 1
        while rows < limit and at + rows < open_.size and arrival_s[open_[at + rows]] + overhead_s <= start_s:
            rows += 1
        end_s = start_s + p50[rows] * math.exp(sigma[rows] * luck[head])
        for position in range(at, at + rows):
            i = open_[position]
            state[i] = SETTLED
            batch_id[i] = first_batch_id + closed
            answered_s = end_s + overhead_s
            answer_s[i] = answered_s if answered_s - arrival_s[i] <= timeout_s else np.inf
        free_at_s[best], running[best] = end_s, rows
        batch_worker[closed], batch_size[closed] = best, rows
        batch_started_s[closed], batch_finished_s[closed] = start_s, end_s
        closed += 1
        at += rows
    for position in range(at, open_.size):
        i = open_[position]
        state[i] = WAITING if arrival_s[i] + overhead_s < until_s else COMING
    return closed
