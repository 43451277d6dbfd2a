"""Replay a trace against one policy: arrivals, control steps, queueing, spill-over, bill.

Every window of 5 s: at a step's start the policy decides on what was known 2 s earlier, as in the product; then the engine
decides all requests of the window; then spilled ones are invoked in order of time.
"""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import msgspec
import numpy as np

from markserve.core.arrivals import ArrivalCount, step_maxima_rps
from markserve.core.backtest import History
from markserve.core.batch_limits import BatchLimits
from markserve.core.types import InstanceState, Offering, Slo
from markserve.errors import InvariantViolated
from markserve.history import HISTORY_STEPS, REPORT_DELAY_S
from markserve.plan_inputs import LAMBDA
from simulator.arrivals import Window, windows
from simulator.assumptions import (
    LAUNCH_DELAY_S,
    MARGIN_SHARE,
    REPLY_OVERHEAD_S,
    SPILL_MARGIN_MIN_S,
    SPILL_MARGIN_SHARE,
    SPILL_OVERHEAD_S,
    STEP_S,
    TRANSPORT_PRIOR_S,
    WINDOW_S,
)
from simulator.fast import FastEngine
from simulator.fleet import SimulatedFleet, bill_usd, billed_s
from simulator.output import AuditFiles
from simulator.policies import Decision, Policy, View
from simulator.reference import ReferenceEngine
from simulator.service import Kind, ProfileFile, make_kind
from simulator.spill import SpillTier
from simulator.state import SETTLED, Engine, Requests, Terms
from simulator.summary import PERCENTILES, Summary, Tally, lower_bound_per_request_usd
from simulator.traces import Trace

WINDOWS_PER_STEP = round(STEP_S / WINDOW_S)
WORKER, ON_LAMBDA = 1, 2
"""Codes of `output.TIERS`."""
LINGERING_S = 120.0
"""After the trace's end the simulation goes on until every request is finished, at most this long."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scenario:
    """What is simulated, whatever the policy."""

    trace: Trace
    profile: ProfileFile
    offerings: Sequence[Offering]
    slo: Slo
    launch_delay_s: float = LAUNCH_DELAY_S
    seed: int = 1
    keep_requests: bool = True

    def terms(self) -> Terms:
        """Terms of service, with the product's own assumptions."""
        rt_max_s = self.slo.latency_s
        on_lambda_s = self.profile.profile(LAMBDA).points[0].p99_s if self.profile.can_spill else 0.0
        return Terms(
            slo=self.slo,
            transport_s=TRANSPORT_PRIOR_S,
            reply_overhead_s=REPLY_OVERHEAD_S,
            spill_latency_s=SPILL_OVERHEAD_S + on_lambda_s,
            spill_margin_s=max(SPILL_MARGIN_MIN_S, SPILL_MARGIN_SHARE * rt_max_s),
            spill_available=self.profile.can_spill,
            worker_margin_s=MARGIN_SHARE * rt_max_s,
        )


def step_maxima(scenario: Scenario) -> list[float]:
    """Highest window rate of every step of the trace, as it will arrive; what only `static` and `clairvoyant` may know."""
    maxima: list[float] = []
    for index, window in enumerate(windows(scenario.trace, seed=scenario.seed)):
        if index % WINDOWS_PER_STEP == 0:
            maxima.append(0.0)
        maxima[-1] = max(maxima[-1], window.arrivals_s.size / WINDOW_S)
    return maxima


def opening_rps(scenario: Scenario) -> float | None:
    """Highest window rate of the first step, which every policy starts with; None where the trace does not know it."""
    first = islice(windows(scenario.trace, seed=scenario.seed), WINDOWS_PER_STEP)
    return max((window.arrivals_s.size / WINDOW_S for window in first if window.is_known), default=None)


def simulate(
    scenario: Scenario,
    policy: Policy,
    folder: Path,
    *,
    engine: type[FastEngine] | type[ReferenceEngine] = FastEngine,
    progress: Callable[[float, int], None] | None = None,
) -> Summary:
    """Replay the trace under a policy; write its files into `folder` and return its figures."""
    began_s = time.perf_counter()
    with AuditFiles(folder, policy=policy.name, keep_requests=scenario.keep_requests) as files:
        run = _Run(scenario, policy, files, engine)
        for window in _lingering(windows(scenario.trace, seed=scenario.seed), run):
            run.window(window)
            if progress is not None:
                progress(run.now_s, run.tally.requests)
        run.close()
    summary = run.summary(wall_s=time.perf_counter() - began_s)
    (folder / "summary.json").write_bytes(msgspec.json.format(msgspec.json.encode(summary), indent=2) + b"\n")
    return summary


def _lingering(trace: Iterator[Window], run: _Run) -> Iterator[Window]:
    at_s = 0.0
    for window in trace:
        yield window
        at_s = window.at_s + WINDOW_S
    run.trace_ends_at_s = at_s
    while run.unfinished and at_s < run.trace_ends_at_s + LINGERING_S:
        yield Window(at_s, np.empty(0), False)
        at_s += WINDOW_S


class _Run:
    def __init__(self, scenario: Scenario, policy: Policy, files: AuditFiles, engine: type[FastEngine] | type[ReferenceEngine]) -> None:
        self._scenario, self._policy, self._files = scenario, policy, files
        limits = policy.limits()
        profile, terms = scenario.profile, scenario.terms()
        self._kinds: list[Kind] = [make_kind(profile.profile(name), limits[name]) for name in sorted(limits)]
        self._engine: Engine = engine(self._kinds, terms)
        self._spill = _spill_tier(profile)
        self._fleet = SimulatedFleet(
            model=profile.model,
            kinds=self._kinds,
            launch_delay_s=scenario.launch_delay_s,
            rng=np.random.default_rng([scenario.seed, 0x1A7]),
        )
        self._luck = np.random.default_rng([scenario.seed, 0x10CC])
        self._requests = Requests.arriving(np.empty(0), np.empty(0), np.empty(0))
        self._recorded: deque[ArrivalCount] = deque(maxlen=(HISTORY_STEPS + 1) * WINDOWS_PER_STEP)
        self._rate_rps = 0.0
        self._batch_id = 0
        self._instance_s = self._instances_usd = 0.0
        self._cycles = 0
        self._missing_s = 0.0
        self.now_s = 0.0
        self.trace_ends_at_s = math.inf
        self._opening_rps = opening_rps(scenario)
        self.tally = Tally(rt_max_s=scenario.slo.latency_s)

    @property
    def unfinished(self) -> int:
        """Requests that something is still to be decided for."""
        return self._requests.size

    def window(self, window: Window) -> None:
        """Advance by one counting window."""
        self.now_s = window.at_s
        in_trace = window.at_s < self.trace_ends_at_s
        if in_trace and round(window.at_s / WINDOW_S) % WINDOWS_PER_STEP == 0:
            self._control_step()
        n = window.arrivals_s.size
        luck = self._luck.standard_normal((2, n))
        self._requests = self._requests.joined(Requests.arriving(window.arrivals_s, luck[0], luck[1]))
        self._advance(window.at_s, window.at_s + WINDOW_S)
        if in_trace:
            self._recorded.append(ArrivalCount(window.at_s, n if window.is_known else None))
            self._missing_s += 0.0 if window.is_known else WINDOW_S
        self._rate_rps = n / WINDOW_S

    # --- control ----------------------------------------------------------------------------------------------------

    def _control_step(self) -> None:
        now_s, fleet = self.now_s, self._fleet
        fleet.follow(now_s)
        is_first = now_s == 0
        until_s = WINDOW_S * math.floor((now_s - REPORT_DELAY_S) / WINDOW_S)
        view = View(
            now_s=now_s,
            history_until_s=until_s,
            history=self._history(until_s),
            instances=fleet.instances,
            launch_overhead_s=fleet.launch_overhead_s(),
            is_first=is_first,
        )
        decision = self._policy.decide(view)
        self._carry_out(decision, now_s=now_s, is_first=is_first)
        self._files.control(now_s, decision, self._fleet_text())
        self._bill_ended()
        self._cycles += 1

    def _history(self, until_s: float) -> History:
        """Return the steps known at `until_s`; the rate that the simulation starts at stands before them, as a running system knows it."""
        known = [count for count in self._recorded if count.at_s + WINDOW_S <= until_s + 1e-9]
        maxima = step_maxima_rps(known[-HISTORY_STEPS * WINDOWS_PER_STEP :], window_s=WINDOW_S, step_s=STEP_S)
        return maxima if len(maxima) >= HISTORY_STEPS else [self._opening_rps, *maxima]

    def _carry_out(self, decision: Decision, *, now_s: float, is_first: bool) -> None:
        fleet = self._fleet
        fleet.follow(now_s, decision.unwanted_cycles)
        for name, reason in decision.drains:
            fleet.drain(name, now_s=now_s, reason=reason)
        for offering, count, reason in decision.launches:
            fleet.launch(offering, count, now_s=now_s, reason=reason, plan_id=f"plan-{now_s:.0f}", serving_at_once=is_first)
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
        self._files.batches(batches, first_id=self._batch_id, tier=WORKER)
        self._batch_id += batches.size.size
        self.tally.batched_sizes(batches.size)
        if self._spill is not None:
            invocations = self._spill.invoke_due(self._requests, until_s=until_s, first_batch_id=self._batch_id)
            self._files.batches(invocations, first_id=self._batch_id, tier=ON_LAMBDA)
            self._batch_id += invocations.size.size
        self._finish()

    def _finish(self) -> None:
        """Pass on the requests about which everything is known, up to the first about which something is not."""
        requests = self._requests
        is_open = (requests.state != SETTLED) | (np.isfinite(requests.spill_at_s) & np.isnan(requests.lambda_answer_s))
        cut = int(np.argmax(is_open)) if is_open.any() else requests.size
        done, self._requests = requests[:cut], requests[cut:]
        lambda_answer_s = np.where(np.isnan(done.lambda_answer_s), math.inf, done.lambda_answer_s)
        by_lambda = lambda_answer_s < done.worker_answer_s
        finished_s = np.where(by_lambda, lambda_answer_s, done.worker_answer_s)
        tier = np.where(by_lambda, ON_LAMBDA, np.where(np.isfinite(finished_s), WORKER, 0))
        batch_id = np.where(by_lambda, done.lambda_batch_id, done.batch_id)
        self.tally.finished(done.arrival_s, finished_s, tier, enqueued=int(np.count_nonzero(np.isfinite(done.answer_by_s))))
        self._files.requests(done.arrival_s, finished_s, tier, batch_id)

    # --- the end ----------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """End all instances with the trace."""
        if self._requests.size:
            raise InvariantViolated(f"{self._requests.size} requests are still open {LINGERING_S:.0f} s after the trace's end")
        self._fleet.close(min(self.trace_ends_at_s, self.now_s + WINDOW_S))
        self._bill_ended()

    def _bill_ended(self) -> None:
        ended = self._fleet.take_ended()
        self._files.instances(ended)
        self._instances_usd += math.fsum(bill_usd(i) for i in ended)
        self._instance_s += math.fsum(billed_s(i) for i in ended)

    def summary(self, *, wall_s: float) -> Summary:
        """Return the figures."""
        tally, scenario = self.tally, self._scenario
        lambda_usd = self._spill.cost_usd if self._spill else 0.0
        units = tally.plumbing_units(instance_s=self._instance_s, cycles=self._cycles)
        plumbing = tally.plumbing_usd(units)
        compute_usd, plumbing_usd = self._instances_usd + lambda_usd, math.fsum(plumbing.values())
        parts = {
            "instances": self._instances_usd,
            "lambda": lambda_usd,
            "compute": compute_usd,
            "plumbing": plumbing_usd,
            "total": compute_usd + plumbing_usd,
        }
        each_usd, bound = lower_bound_per_request_usd(scenario.profile, scenario.offerings, rt_max_s=scenario.slo.latency_s)
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
            interruptions=0,
            lambda_invocations=self._spill.invocations if self._spill else 0,
            lambda_refused=self._spill.refused if self._spill else 0,
            cold_starts=self._spill.cold_starts if self._spill else 0,
            batches=tally.batches,
            mean_batch_size=tally.batched / max(1, tally.batches),
            simulated_s=min(self.trace_ends_at_s, self.now_s + WINDOW_S),
            missing_s=self._missing_s,
            wall_s=round(wall_s, 3),
        )


def _spill_tier(profile: ProfileFile) -> SpillTier | None:
    if not profile.can_spill:
        return None
    alone = BatchLimits(
        max_batch_size=1, max_queue_delay_s=0.0, service_rate_rps=1.0, batch_latency_s=1.0, reason="spill-over is not batched"
    )
    return SpillTier(make_kind(profile.profile(LAMBDA), alone), memory_mb=profile.lambda_memory_mb)
