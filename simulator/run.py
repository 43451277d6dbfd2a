"""One replay under way: the state of a simulation, and how it moves from window to window.

A window in which something happens to the fleet (a spot notice, an instance that goes, an alarm of the objective) is cut
there, and the policy may plan at once.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from markserve.core.arrivals import ArrivalCount, step_maxima_rps, window_shape
from markserve.core.backtest import History
from markserve.core.batch_limits import BatchLimits
from markserve.core.planning import Trigger
from markserve.core.slo import SloWindow
from markserve.core.types import CapacityType, InstanceState, Offering
from markserve.errors import InvariantViolated
from markserve.history import HISTORY_STEPS, REPORT_DELAY_S, SHAPE_STEPS
from markserve.plan_inputs import LAMBDA
from simulator.arrivals import Window
from simulator.assumptions import (
    LEAST_REPLY_S,
    ROUND_TRIP,
    SAGEMAKER_LAUNCH,
    SPILL_OVERHEAD,
    STANDBY_DISK_USD_PER_HOUR,
    STEP_S,
    TRANSPORT_S,
    WINDOW_S,
    WINDOWS_PER_STEP,
    Lognormal,
)
from simulator.fast import FastEngine
from simulator.fleet import SimulatedFleet, is_standby
from simulator.incidents import Incident, Incidents
from simulator.output import AuditFiles
from simulator.paper import PaperPolicy
from simulator.policies import Decision, Policy, View
from simulator.reference import ReferenceEngine
from simulator.sagemaker import SageMakerEngine, SageMakerPolicy
from simulator.service import Floats, Ints, Kind, make_kind
from simulator.spill import SpillTier
from simulator.state import SETTLED, Batches, Engine, Requests
from simulator.summary import PERCENTILES, Summary, Tally, lower_bound_per_request_usd

if TYPE_CHECKING:
    from simulator.simulation import Scenario

EngineType = type[FastEngine] | type[ReferenceEngine]
WORKER, ON_LAMBDA = 1, 2
"""Codes of `output.TIERS`."""
LINGERING_S = 120.0
"""After the trace's end the simulation goes on until every request is finished, at most this long."""


@dataclass(slots=True)
class _Running:
    """Batches that have not ended yet: they may be lost with their instance."""

    batches: Batches = field(default_factory=Batches)
    ids: Ints = field(default_factory=lambda: np.empty(0, np.int64))


class Run:
    """One replay under way."""

    def __init__(self, scenario: Scenario, policy: Policy, files: AuditFiles, engine: EngineType, opening_rps: float | None) -> None:
        self._scenario, self._policy, self._files = scenario, policy, files
        limits = policy.limits()
        profile = scenario.profile
        self._terms = scenario.terms(one_proxy=isinstance(policy, PaperPolicy))
        self._is_endpoint = isinstance(policy, SageMakerPolicy)
        self._kinds: list[Kind] = [make_kind(profile.profile(name), limits[name]) for name in sorted(limits)]
        self._engine: Engine = SageMakerEngine(self._kinds) if self._is_endpoint else engine(self._kinds, self._terms)
        self._spill = None if self._is_endpoint else _spill_tier(scenario)
        self._market = scenario.market if policy.uses_spot else None
        self._fleet = SimulatedFleet(
            model=profile.model,
            kinds=self._kinds,
            launch_delay=SAGEMAKER_LAUNCH if self._is_endpoint else Lognormal(scenario.launch_delay_s, scenario.launch_delay_sigma),
            rng=np.random.default_rng([scenario.seed, 0x1A7]),
            market=self._market,
        )
        self._incidents = Incidents(self._fleet, self._market, scenario.interrupts if self._market else (), seed=scenario.seed)
        self._monitor = policy.monitor()
        self._outcomes = (0, 0)
        self._luck = np.random.default_rng([scenario.seed, 0x10CC])
        self._requests = Requests.arriving(*(np.empty(0) for _ in range(5)))
        self._running = _Running()
        self._recorded: deque[ArrivalCount] = deque(maxlen=(HISTORY_STEPS + 1) * WINDOWS_PER_STEP)
        self._rate_rps = 0.0
        self._batch_id = 0
        self._instance_s = self._instances_usd = 0.0
        self._cycles = self._alarms = self._most_standbys = 0
        self._missing_s = 0.0
        self.now_s = 0.0
        self.trace_ends_at_s = math.inf
        self._opening_rps = opening_rps
        self.tally = Tally(rt_max_s=scenario.slo.latency_s)

    @property
    def unfinished(self) -> int:
        """Requests that something is still to be decided for."""
        return self._requests.size

    def window(self, window: Window) -> None:
        """Advance by one counting window."""
        self.now_s = window.at_s
        in_trace = window.at_s < self.trace_ends_at_s
        if in_trace:
            self._watch()
            if round(window.at_s / WINDOW_S) % WINDOWS_PER_STEP == 0:
                self._control(window.at_s, Trigger.SCHEDULE)
        n = window.arrivals_s.size
        self._requests = self._requests.joined(self._arriving(window.arrivals_s))
        until_s = window.at_s + WINDOW_S
        while in_trace and (at_s := self._incidents.next_at_s(until_s)) is not None:
            if at_s > self.now_s:
                self._advance(self.now_s, at_s)
                self.now_s = at_s
            self._happen(at_s)
        self._advance(self.now_s, until_s)
        if in_trace:
            self._recorded.append(ArrivalCount(window.at_s, n if window.is_known else None))
            self._missing_s += 0.0 if window.is_known else WINDOW_S
        self._rate_rps = n / WINDOW_S

    def _arriving(self, arrivals_s: Floats) -> Requests:
        luck = self._luck.standard_normal((4, arrivals_s.size))
        round_trip_s = ROUND_TRIP.median_s * np.exp(ROUND_TRIP.sigma * luck[2])
        overhead_s = SPILL_OVERHEAD.median_s * np.exp(SPILL_OVERHEAD.sigma * luck[3])
        return Requests.arriving(arrivals_s, luck[0], luck[1], np.maximum(LEAST_REPLY_S, round_trip_s - TRANSPORT_S), overhead_s)

    # --- what happens between control steps ---------------------------------------------------------------------------

    def _watch(self) -> None:
        """Judge the outcomes of the last window, which are known `REPORT_DELAY_S` after its end."""
        if self._monitor is None or self.now_s == 0:
            return
        known_at_s = self.now_s + REPORT_DELAY_S
        requests, within = self._outcomes
        self._outcomes = (0, 0)
        window = SloWindow(at_s=self.now_s - WINDOW_S, requests=requests, within_slo=within)
        reason = self._monitor.alarm(window, now_s=known_at_s)
        if reason is not None:
            self._incidents.add(known_at_s, "alarm", reason)

    def _happen(self, at_s: float) -> None:
        """Let everything that is due happen, then plan once if capacity is short for it."""
        self._fleet.follow(at_s)
        urgent: Trigger | None = None
        for incident in self._incidents.take(at_s):
            match incident.kind:
                case "pool":
                    self._incidents.strike(incident)
                case "ordered" | "ordered-end":
                    self._incidents.strike_largest(incident)
                case "notice":
                    urgent = Trigger.INTERRUPTION if self._incidents.notify(incident) else urgent
                case "stop":
                    self._incidents.stop(incident)
                case "end":
                    urgent = Trigger.INTERRUPTION if self._end_instance(incident) else urgent
                case _:
                    self._alarms += 1
                    urgent = urgent or Trigger.SLO_AT_RISK
        if urgent is not None:
            self._control(at_s, urgent)

    def _end_instance(self, incident: Incident) -> bool:
        """Take an instance back, with the batch that runs on it; return whether it was capacity still counted on."""
        number = self._fleet.number(incident.subject) if self._fleet.find(incident.subject) else -1
        gone = self._incidents.end(incident)
        if gone is None:
            return False
        running = self._running
        lost = (running.batches.worker == number) & (running.batches.finished_s > incident.at_s)
        running.batches.finished_s[lost] = math.inf
        requests = self._requests
        hit = np.isin(requests.batch_id, running.ids[lost])
        requests.worker_answer_s[hit] = math.inf
        requests.batch_id[hit] = -1
        # The front spills what has no answer by then. Redelivery after the queue's 30 s would be too late for any RT_max.
        waits = hit & ~np.isfinite(requests.spill_at_s)
        if self._terms.spill_available:
            requests.spill_at_s[waits] = requests.answer_by_s[waits]
        return gone.state is not InstanceState.DRAINING

    # --- control ----------------------------------------------------------------------------------------------------

    def _control(self, now_s: float, trigger: Trigger) -> None:
        fleet = self._fleet
        fleet.follow(now_s)
        fleet.reprice(now_s)
        is_first = now_s == 0 and trigger is Trigger.SCHEDULE
        if is_first and self._market is not None:  # a running system has tried them before
            for pool in self._market.pools:
                if not self._market.is_available(pool.key, now_s):
                    self._incidents.mark_dry(pool.key, now_s)
        until_s = WINDOW_S * math.floor((now_s - REPORT_DELAY_S) / WINDOW_S)
        view = View(
            now_s=now_s,
            history_until_s=until_s,
            history=self._history(until_s),
            shape=self._shape(until_s),
            instances=fleet.instances,
            launch_overhead_s=fleet.launch_overhead_s(),
            offerings=self._offerings(now_s),
            unavailable=self._incidents.unavailable(now_s),
            trigger=trigger,
            at_risk=trigger is Trigger.SLO_AT_RISK,
            last_minute_requests=self._last_minute(now_s),
            is_first=is_first,
        )
        decision = self._policy.decide(view)
        self._carry_out(decision, now_s=now_s, is_first=is_first)
        self._files.control(now_s, trigger, decision, self._fleet_text())
        self._bill_ended()
        self._cycles += 1

    def _offerings(self, now_s: float) -> list[Offering]:
        return [*self._scenario.offerings, *(self._market.offerings(now_s) if self._market else ())]

    def _last_minute(self, now_s: float) -> int | None:
        last = [count.count for count in list(self._recorded)[-WINDOWS_PER_STEP:] if now_s - STEP_S - 1e-9 <= count.at_s]
        known = [number for number in last if number is not None]
        return round(sum(known) * WINDOWS_PER_STEP / len(known)) if 2 * len(known) >= WINDOWS_PER_STEP else None

    def _shape(self, until_s: float) -> tuple[float, ...]:
        recent = list(islice(reversed(self._recorded), SHAPE_STEPS * WINDOWS_PER_STEP))[::-1]
        return window_shape([c for c in recent if c.at_s + WINDOW_S <= until_s + 1e-9], window_s=WINDOW_S, step_s=STEP_S)

    def _history(self, until_s: float) -> History:
        """Return the steps known at `until_s`; the rate that the simulation starts at stands before them, as a running system knows it."""
        known = [count for count in self._recorded if count.at_s + WINDOW_S <= until_s + 1e-9]
        maxima = step_maxima_rps(known[-HISTORY_STEPS * WINDOWS_PER_STEP :], window_s=WINDOW_S, step_s=STEP_S)
        return maxima if len(maxima) >= HISTORY_STEPS else [self._opening_rps, *maxima]

    def _carry_out(self, decision: Decision, *, now_s: float, is_first: bool) -> None:
        fleet = self._fleet
        fleet.follow(now_s, decision.unwanted_cycles)
        for name, reason in decision.drains:
            fleet.drain(name, now_s=now_s, reason=f"drained: {reason}")
        plan_id = f"plan-{now_s:.0f}"
        for offering, count, reason in decision.launches:
            if self._market and offering.capacity_type is CapacityType.SPOT and not self._market.is_available(offering.key, now_s):
                self._incidents.mark_dry(offering.key, now_s)
                continue
            fleet.launch(offering, count, now_s=now_s, reason=reason, plan_id=plan_id, serving_at_once=is_first)
        for offering, count, reason in decision.standbys:
            fleet.launch(offering, count, now_s=now_s, reason=reason, plan_id=plan_id, is_standby=True)
        self._most_standbys = max(self._most_standbys, sum(is_standby(i) for i in fleet.instances))
        fleet.follow(now_s)
        if self._spill is not None and decision.warm_environments:
            self._spill.keep_warm(decision.warm_environments, now_s=now_s)

    def _fleet_text(self) -> str:
        alive = [i for i in self._fleet.instances if i.state is not InstanceState.DRAINING]
        by_type = Counter((i.offering.instance_type, i.state) for i in alive)
        return " ".join(f"{number}x{name}:{state}" for (name, state), number in sorted(by_type.items()))

    # --- requests ---------------------------------------------------------------------------------------------------

    def _advance(self, from_s: float, until_s: float) -> None:
        batches = self._engine.advance(
            self._requests,
            self._fleet.workers,
            rate_rps=self._rate_rps,
            from_s=from_s,
            until_s=until_s,
            first_batch_id=self._batch_id,
        )
        self._started(batches)
        self._record_ended(until_s)
        self.tally.batched_sizes(batches.size)
        if self._spill is not None:
            invocations = self._spill.invoke_due(self._requests, until_s=until_s, first_batch_id=self._batch_id)
            self._files.batches(invocations, self._ids(invocations.size.size), tier=ON_LAMBDA)
        self._finish(until_s)

    def _ids(self, number: int) -> Ints:
        first, self._batch_id = self._batch_id, self._batch_id + number
        return np.arange(first, first + number, dtype=np.int64)

    def _started(self, batches: Batches) -> None:
        ids = self._ids(batches.size.size)
        running = self._running
        if running.ids.size:
            batches = Batches(*(np.concatenate((getattr(running.batches, c), getattr(batches, c))) for c in Batches.__slots__))
            ids = np.concatenate((running.ids, ids))
        self._running = _Running(batches, ids)

    def _record_ended(self, until_s: float) -> None:
        """Record the batches that nothing can happen to any more."""
        batches, ids = self._running.batches, self._running.ids
        goes_on = (batches.finished_s > until_s) & np.isfinite(batches.finished_s)
        ended, going = (Batches(*(getattr(batches, c)[part] for c in Batches.__slots__)) for part in (~goes_on, goes_on))
        self._files.batches(ended, ids[~goes_on], tier=WORKER)
        self._running = _Running(going, ids[goes_on])

    def _finish(self, until_s: float) -> None:
        """Pass on the requests about which everything is known, up to the first about which something is not."""
        requests = self._requests
        is_open = (requests.state != SETTLED) | (np.isfinite(requests.spill_at_s) & np.isnan(requests.lambda_answer_s))
        if self._market is not None:  # what still computes may be lost with its instance
            is_open |= np.isfinite(requests.worker_answer_s) & (requests.worker_answer_s - requests.reply_s > until_s)
        cut = int(np.argmax(is_open)) if is_open.any() else requests.size
        done, self._requests = requests[:cut], requests[cut:]
        lambda_answer_s = np.where(np.isnan(done.lambda_answer_s), math.inf, done.lambda_answer_s)
        by_lambda = lambda_answer_s < done.worker_answer_s
        finished_s = np.where(by_lambda, lambda_answer_s, done.worker_answer_s)
        tier = np.where(by_lambda, ON_LAMBDA, np.where(np.isfinite(finished_s), WORKER, 0))
        batch_id = np.where(by_lambda, done.lambda_batch_id, done.batch_id)
        self.tally.finished(done.arrival_s, finished_s, tier, enqueued=int(np.count_nonzero(np.isfinite(done.answer_by_s))))
        self._files.requests(done.arrival_s, finished_s, tier, batch_id)
        if self._monitor is not None:
            within = int(np.count_nonzero(finished_s - done.arrival_s <= self._scenario.slo.latency_s))
            self._outcomes = (self._outcomes[0] + done.size, self._outcomes[1] + within)

    # --- the end ----------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """End all instances with the trace."""
        if self._requests.size:
            raise InvariantViolated(f"{self._requests.size} requests are still open {LINGERING_S:.0f} s after the trace's end")
        self._record_ended(math.inf)
        self._fleet.close(min(self.trace_ends_at_s, self.now_s + WINDOW_S))
        self._bill_ended()

    def _bill_ended(self) -> None:
        bills = self._fleet.take_ended()
        self._files.instances(bills)
        self._instances_usd += math.fsum(bill.cost_usd for bill in bills)
        self._instance_s += math.fsum(bill.billed_s for bill in bills)

    def _costs(self, simulated_s: float, plumbing_usd: float) -> dict[str, float]:
        parts = {
            "instances": self._instances_usd,
            "lambda": self._spill.cost_usd if self._spill else 0.0,
            "provisioned": self._spill.provisioned_usd(simulated_s) if self._spill else 0.0,
            "standby_disks": self._most_standbys * simulated_s / 3600 * STANDBY_DISK_USD_PER_HOUR,
        }
        compute_usd = math.fsum(parts.values())
        return {**parts, "compute": compute_usd, "plumbing": plumbing_usd, "total": compute_usd + plumbing_usd}

    def summary(self, *, wall_s: float) -> Summary:
        """Return the figures."""
        tally, scenario = self.tally, self._scenario
        simulated_s = min(self.trace_ends_at_s, self.now_s + WINDOW_S)
        units = {} if self._is_endpoint else tally.plumbing_units(instance_s=self._instance_s, cycles=self._cycles)
        plumbing = tally.plumbing_usd(units) if units else {}
        parts = self._costs(simulated_s, math.fsum(plumbing.values()))
        compute_usd = parts["compute"]
        each_usd, bound = lower_bound_per_request_usd(
            scenario.profile,
            [*scenario.offerings, *(self._market.least_priced(simulated_s) if self._market else ())],
            rt_max_s=scenario.slo.latency_s,
            provisioned=scenario.provisioned > 0,
        )
        minute, hour = tally.worst()
        return Summary(
            policy=self._policy.name,
            rt_max_s=scenario.slo.latency_s,
            sl_min=scenario.slo.percentile,
            capacity_rps={name: limits.service_rate_rps for name, limits in sorted(self._policy.limits().items())},
            requests=tally.requests,
            answered=tally.answered,
            slo_attainment=tally.met / max(1, tally.requests),
            worst_minute_attainment=minute,
            worst_hour_attainment=hour,
            latency_s={name: tally.quantile_s(q) for name, q in PERCENTILES.items()},
            cost_usd=parts,
            plumbing_units=units,
            plumbing_usd=plumbing,
            per_million_usd={name: usd / tally.answered * 1e6 for name, usd in parts.items()} if tally.answered else {},
            lower_bound_usd=each_usd * tally.answered,
            lower_bound=bound,
            cost_over_bound=compute_usd / (each_usd * tally.answered) if each_usd * tally.answered > 0 else None,
            spill_share=tally.on_lambda / max(1, tally.requests),
            launches=self._fleet.launches,
            interruptions=self._incidents.interruptions,
            slo_alarms=self._alarms,
            control_steps=self._cycles,
            lambda_invocations=self._spill.invocations if self._spill else 0,
            lambda_refused=self._spill.refused if self._spill else 0,
            cold_starts=self._spill.cold_starts if self._spill else 0,
            batches=tally.batches,
            mean_batch_size=tally.batched / max(1, tally.batches),
            simulated_s=simulated_s,
            missing_s=self._missing_s,
            wall_s=round(wall_s, 3),
            search=self._policy.search if isinstance(self._policy, SageMakerPolicy) else None,
        )


def _spill_tier(scenario: Scenario) -> SpillTier | None:
    profile = scenario.profile
    if not profile.can_spill:
        return None
    alone = BatchLimits(
        max_batch_size=1, max_queue_delay_s=0.0, service_rate_rps=1.0, batch_latency_s=1.0, reason="spill-over is not batched"
    )
    return SpillTier(
        make_kind(profile.profile(LAMBDA), alone),
        memory_mb=profile.lambda_memory_mb,
        rng=np.random.default_rng([scenario.seed, 0xC01D]),
        concurrency=scenario.lambda_concurrency,
        provisioned=scenario.provisioned,
    )
