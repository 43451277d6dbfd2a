"""Replay a trace against one policy: arrivals, control steps, queueing, spill-over, bill.

Every window of 5 s: at a step's start the policy decides on what was known 2 s earlier, as in the product; then the engine
decides all requests of the window; then spilled ones are invoked in order of time (`run.Run`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import msgspec
import numpy as np

from markserve.core.tunables import Tunables
from markserve.core.types import Offering, Slo
from markserve.plan_inputs import LAMBDA, model_spill_reserve
from simulator.arrivals import Window, windows
from simulator.assumptions import (
    LAMBDA_CONCURRENCY,
    LAUNCH_DELAY_S,
    LAUNCH_DELAY_SIGMA,
    MARGIN_SHARE,
    MAX_INSTANCES,
    REPLY_OVERHEAD_S,
    SPILL_MARGIN_MIN_S,
    SPILL_MARGIN_SHARE,
    SPILL_OVERHEAD_S,
    TRANSPORT_S,
    WINDOW_S,
    WINDOWS_PER_STEP,
)
from simulator.fast import FastEngine
from simulator.interruptions import Ordered
from simulator.market import SpotMarket
from simulator.output import AuditFiles, NoFiles
from simulator.policies import Policy, stack_tunables
from simulator.run import LINGERING_S, EngineType, Run
from simulator.service import ProfileFile
from simulator.state import Terms
from simulator.summary import Summary
from simulator.traces import Trace

ONE_PROXY_RESERVE_COST_MAX = 0.2
"""Share of the rate; a larger reserve would leave batches that were chosen without it no time to finish."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scenario:
    """What is simulated, whatever the policy.

    Attributes
    ----------
    offerings
        On demand.
    market
        Spot; None where everything is on demand.
    interrupts
        Interruptions ordered by hand.
    provisioned
        Lambda environments of provisioned concurrency.
    request_share
        Share of requests that `requests.parquet` gets.
    max_instances
        Ceiling on instances at once, which the planner is told. Nothing else enforces it.
    lambda_concurrency
        Invocations of the spillover function at once: what the account allows, and what the planner is told.
    planned_profile
        What policies take for the profile, where that is wrong; None where they know it. Work takes what `profile` says.
    """

    trace: Trace
    profile: ProfileFile
    offerings: Sequence[Offering]
    slo: Slo
    launch_delay_s: float = LAUNCH_DELAY_S
    launch_delay_sigma: float = LAUNCH_DELAY_SIGMA
    seed: int = 1
    request_share: float = 1.0
    market: SpotMarket | None = None
    interrupts: Sequence[Ordered] = ()
    provisioned: int = 0
    max_instances: int = MAX_INSTANCES
    lambda_concurrency: int = LAMBDA_CONCURRENCY
    planned_profile: ProfileFile | None = None

    @property
    def known_profile(self) -> ProfileFile:
        """The profile that policies plan with."""
        return self.planned_profile or self.profile

    def tunables(self, *, spot: bool = False) -> Tunables:
        """Operator parameters of the simulated stack."""
        return stack_tunables(
            rt_max_s=self.slo.latency_s,
            sl_min=self.slo.percentile,
            can_spill=self.known_profile.can_spill,
            spot=spot,
            max_instances=self.max_instances,
            lambda_concurrency=self.lambda_concurrency,
        )

    def terms(self, *, one_proxy: bool = False) -> Terms:
        """Terms of service, with the product's own assumptions.

        Parameters
        ----------
        one_proxy
            Serve as MArk's prototype does: one proxy, which sees its own queue, and chooses batches without a reserve for spilling.
            One that costs up to a fifth of the rate is kept all the same: it does the paper's policy good.
        """
        tunables = self.tunables()
        if one_proxy:
            tunables = replace(tunables, spill_reserve_cost_max=ONE_PROXY_RESERVE_COST_MAX)
        rt_max_s = self.slo.latency_s
        on_lambda_s = self.profile.profile(LAMBDA).points[0].p99_s if self.profile.can_spill else 0.0
        return Terms(
            slo=self.slo,
            transport_s=TRANSPORT_S,
            reply_overhead_s=REPLY_OVERHEAD_S,
            spill_latency_s=SPILL_OVERHEAD_S + on_lambda_s,
            spill_margin_s=max(SPILL_MARGIN_MIN_S, SPILL_MARGIN_SHARE * rt_max_s),
            spill_available=self.profile.can_spill,
            worker_margin_s=MARGIN_SHARE * rt_max_s,
            keeps_reserve=model_spill_reserve(self.profile.record(), tunables).reserve_s > 0,
            sees_queue=one_proxy,
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
    engine: EngineType = FastEngine,
    progress: Callable[[float, int], None] | None = None,
) -> Summary:
    """Replay the trace under a policy; write its files into `folder` and return its figures."""
    summary = _replayed(
        scenario,
        policy,
        AuditFiles(folder, policy=policy.name, request_share=scenario.request_share, seed=scenario.seed),
        engine=engine,
        progress=progress,
    )
    (folder / "summary.json").write_bytes(msgspec.json.format(msgspec.json.encode(summary), indent=2) + b"\n")
    return summary


def tried(scenario: Scenario, policy: Policy) -> Summary:
    """Replay the trace under a policy for its figures alone."""
    return _replayed(scenario, policy, NoFiles(), engine=FastEngine, progress=None)


def _replayed(
    scenario: Scenario,
    policy: Policy,
    opened: AuditFiles,
    *,
    engine: EngineType,
    progress: Callable[[float, int], None] | None,
) -> Summary:
    began_s = time.perf_counter()
    with opened as files:
        run = Run(scenario, policy, files, engine, opening_rps(scenario))
        for window in _lingering(windows(scenario.trace, seed=scenario.seed), run):
            run.window(window)
            if progress is not None:
                progress(run.now_s, run.tally.requests)
        run.close()
    return run.summary(wall_s=time.perf_counter() - began_s)


def _lingering(trace: Iterator[Window], run: Run) -> Iterator[Window]:
    at_s = 0.0
    for window in trace:
        yield window
        at_s = window.at_s + WINDOW_S
    run.trace_ends_at_s = at_s
    while run.unfinished and at_s < run.trace_ends_at_s + LINGERING_S:
        yield Window(at_s, np.empty(0), False)
        at_s += WINDOW_S
