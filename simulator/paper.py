"""`mark-paper`: MArk as published: its batching constraints, persistence x 1.2, Algorithm 1, destroy after 6 plans.

On spot where spot is on: Algorithm 1 then sees spot offerings at their price, and stopped burstable standbys are started on
an interruption, and stopped again when what serves besides them meets the demand. The SLO monitor of the prototype adds the
instance of least cost per request. Left out: the LSTM; persistence stands in for it, to compare policies rather than
forecasters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from markserve.core.batching import BatchLimits
from markserve.core.capacity import Candidate, Room, SpotRules
from markserve.core.demand import Horizon, Trigger
from markserve.core.greedy import Choice, fill
from markserve.core.profiles import batch_latency_s
from markserve.core.task import Task
from markserve.core.types import BatchProfile, CapacityType, Instance, InstanceState, Offering
from markserve.errors import InfeasibleSlo
from simulator.assumptions import HORIZON_STEPS, MAX_HOURLY_COST_USD, MAX_INSTANCES, REPLY_OVERHEAD_S, STEP_S, TRANSPORT_PRIOR_S
from simulator.fleet import STANDBY, is_standby
from simulator.monitor import Monitor, PaperMonitor
from simulator.policies import Decision, View, launching_in
from simulator.service import ProfileFile

OVER_PROVISIONING = 1.2
"""The prototype's constant factor on the forecast."""
DESTROY_AFTER_PLANS = 6
"""The prototype destroys what none of its last 6 plans wanted."""


class PaperPolicy:
    """MArk as published."""

    def __init__(
        self,
        name: str,
        *,
        profile: ProfileFile,
        standbys: Sequence[Offering],
        rt_max_s: float,
        spot: bool,
        forecast_factor: float = 1.0,
        max_instances: int = MAX_INSTANCES,
    ) -> None:
        self.name = name
        self._max_instances = max_instances
        self._forecast_factor = forecast_factor
        self.uses_spot = spot
        self._model = profile.model
        self._standbys = tuple(standbys)
        budget_s = rt_max_s - TRANSPORT_PRIOR_S - REPLY_OVERHEAD_S
        found = {name: paper_limits(profile.profile(name), budget_s, profile.max_batch_size) for name in profile.instance_types}
        self._limits = {name: limits for name, limits in found.items() if limits is not None}
        if not self._limits:
            failing = (f"T(1) = {batch_latency_s(profile.profile(name), 1):.3f} s on {name}" for name in found)
            raise InfeasibleSlo(f"no instance type can meet the objective: {'; '.join(failing)}; the latency budget is {budget_s:.3f} s")

    def limits(self) -> dict[str, BatchLimits]:
        """Return the limits by the paper's constraints."""
        return self._limits

    def decide(self, view: View) -> Decision:
        """Run Algorithm 1 on the flat forecast; running and pending instances compete with launch overhead 0."""
        rate_rps = self._forecast_factor * next((rate for rate in reversed(view.history) if rate is not None), 0.0)
        demand_rps = rate_rps * OVER_PROVISIONING
        offers = self._offers(view)
        present = [i for i in view.instances if i.state is not InstanceState.DRAINING and not is_standby(i)]
        standbys = [i for i in view.instances if i.state is not InstanceState.DRAINING and is_standby(i)]
        choice = Choice(self._task(demand_rps, offers), existing=self._existing(present, self._horizon(view), view.now_s), offers=offers)
        room = self._max_instances - len(view.instances)
        fill([choice], Room(instances=room, usd_per_hour=MAX_HOURLY_COST_USD))
        if view.at_risk and offers and len(choice.launches) < room:
            choice.add(min(offers, key=lambda c: (c.usd_per_request, c.key)))
        step = 0 if view.trigger.is_urgent else 1
        unwanted = {i.instance_id: 0 if i.instance_id in choice.kept_ids else i.unwanted_cycles + step for i in present}
        serving_rps = sum(self._rate_rps(i) for i in present if i.state is InstanceState.SERVING)
        reason = f"Algorithm 1: {rate_rps:.1f} rps x {OVER_PROVISIONING} = {demand_rps:.1f} rps"
        drains = [(name, f"not in the last {n} plans") for name, n in unwanted.items() if n >= DESTROY_AFTER_PLANS]
        if serving_rps >= demand_rps:
            drains += [(i.instance_id, "standby stopped: the replacement serves") for i in standbys]
        return Decision(
            launches=[(c.offering, 1, reason) for c in choice.launches],
            standbys=self._started(
                view, demand_rps - serving_rps - sum(map(self._rate_rps, standbys)), most=max(0, room - len(choice.launches))
            ),
            drains=drains,
            unwanted_cycles=unwanted,
            demand_rps=demand_rps,
            quantiles_rps={0.5: rate_rps},
            reason=f"{reason}; {len(choice.launches)} launched, {len(choice.kept_ids)} of {len(present)} kept",
        )

    def monitor(self) -> Monitor | None:
        """Watch as the prototype does."""
        return PaperMonitor()

    def _rate_rps(self, instance: Instance) -> float:
        return self._limits[instance.offering.instance_type].service_rate_rps

    def _horizon(self, view: View) -> Horizon:
        return Horizon(start_at_s=view.now_s, step_s=STEP_S)

    def _started(self, view: View, short_rps: float, *, most: int) -> list[tuple[Offering, int, str]]:
        """Start as many standbys as the interruption left short of the demand."""
        usable = [o for o in self._standbys if o.instance_type in self._limits]
        if view.trigger is not Trigger.INTERRUPTION or short_rps <= 0 or not usable:
            return []
        best = min(usable, key=lambda o: (o.price_usd_per_hour / self._limits[o.instance_type].service_rate_rps, o.key))
        number = min(most, math.ceil(short_rps / self._limits[best.instance_type].service_rate_rps))
        return [(best, number, f"{STANDBY}: {short_rps:.1f} rps short after an interruption")] if number else []

    def _offers(self, view: View) -> list[Candidate]:
        horizon = self._horizon(view)
        return [
            Candidate(
                offering=launching_in(offering, view.launch_overhead_s),
                capacity_rps=self._limits[offering.instance_type].service_rate_rps,
                ready_step=horizon.ready_step(view.now_s + view.launch_overhead_s, view.now_s),
            )
            for offering in view.offerings
            if offering.instance_type in self._limits
            and offering.key not in view.unavailable
            and (self.uses_spot or offering.capacity_type is not CapacityType.SPOT)
        ]

    def _existing(self, present: Sequence[Instance], horizon: Horizon, now_s: float) -> list[Candidate]:
        return [
            Candidate(
                offering=i.offering,
                capacity_rps=self._limits[i.offering.instance_type].service_rate_rps,
                ready_step=0
                if i.state is InstanceState.SERVING
                else horizon.ready_step(i.requested_at_s + i.offering.launch_overhead_s, now_s),
                instance_id=i.instance_id,
                rank=rank,
            )
            for rank, i in enumerate(sorted(present, key=lambda i: (i.unwanted_cycles, i.instance_id)))
        ]

    def _task(self, demand_rps: float, offers: Sequence[Candidate]) -> Task:
        lead = max((c.ready_step for c in offers), default=0)
        return Task(
            model=self._model,
            demand_rps=(demand_rps,) * (HORIZON_STEPS + lead),
            step_s=STEP_S,
            lead_step=lead,
            spill=None,
            spot=SpotRules(max_share=1.0, pools=0),
        )


def paper_limits(profile: BatchProfile, budget_s: float, max_batch_size: int) -> BatchLimits | None:
    """Choose the batch of highest throughput under the paper's two constraints; None when no batch meets them.

        W + T(b) <= RT_max,    W + T(b) <= b / mu_nb,    mu_nb = 1 / T(1)

    W is what the tighter of the two leaves, so a batch is admissible when W is not negative.
    """
    mu_nb = 1 / batch_latency_s(profile, 1)
    latencies = {b: batch_latency_s(profile, b) for b in range(1, max_batch_size + 1)}
    waits = {b: min(budget_s, b / mu_nb) - latency_s for b, latency_s in latencies.items()}
    allowed = [b for b, wait_s in waits.items() if wait_s >= -1e-12]
    if not allowed:
        return None
    best = max(allowed, key=lambda b: (b / latencies[b], -b))
    return BatchLimits(
        max_batch_size=best,
        max_queue_delay_s=max(0.0, waits[best]),
        service_rate_rps=best / latencies[best],
        batch_latency_s=latencies[best],
        reason=f"b = {best}: W + T(b) <= {budget_s:.3f} s and <= b / mu_nb = {best / mu_nb:.3f} s",
    )
