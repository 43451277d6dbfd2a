"""Provisioning policies by name: all but `mark-paper` ask the product's planner, and differ in what they tell it.

- `mark`: this system. Forecast quantiles, newsvendor demand, Algorithm 1, local search, hysteresis.
- `mark-on-demand`: the same, never on spot.
- `reactive`: the same planner without a forecast; the highest rate of the last two minutes, held flat.
- `static`: the fleet that the planner buys for the highest rate of the whole trace, from start to end.
- `all-lambda`: no instance at all.
- `clairvoyant`: the planner, told the true rate of the coming minutes; still pays launches and whole instances.
- `mark-paper`, `mark-paper-on-demand`, `mark-paper-no-standbys`: `paper.PaperPolicy`. `sagemaker`: `sagemaker.SageMakerPolicy`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from markserve.core.backtest import History
from markserve.core.batching import BatchLimits, choose_batch_limits
from markserve.core.planning import CapacityPlan, ModelDemand, Trigger, plan_capacity
from markserve.core.profiles import LatencyEstimate
from markserve.core.tunables import Tunables
from markserve.core.types import Forecast, Instance, Offering
from markserve.errors import InfeasibleSlo
from markserve.plan_inputs import model_demand
from simulator.assumptions import HORIZON_STEPS, LAMBDA_CONCURRENCY, MAX_HOURLY_COST_USD, MAX_INSTANCES, STEP_S
from simulator.monitor import Monitor, ProductMonitor
from simulator.service import ProfileFile


@dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """What a policy sees at a control step, or between two of them when something went wrong."""

    now_s: float
    history_until_s: float
    history: History
    """Highest window rate of each past step, oldest first."""
    instances: Sequence[Instance]
    launch_overhead_s: float
    offerings: Sequence[Offering]
    """What may be bought, at the prices in force."""
    unavailable: frozenset[str] = frozenset()
    """Pools that were dry or interrupted within the last minutes."""
    trigger: Trigger = Trigger.SCHEDULE
    at_risk: bool = False
    """Whether the SLO monitor asked for this plan."""
    last_minute_requests: int | None = None
    """Arrivals of the last whole minute; None where the trace does not know them."""
    shape: tuple[float, ...] = ()
    """How load varies within a step; see `core.arrivals.window_shape`."""
    bought_quantile: float | None = None
    """Quantile that the policy's last plan bought for; None before there is one."""
    is_first: bool = False
    """Whether the simulation starts here: history then holds the first step's rate, and launches serve at once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """What a policy wants done."""

    launches: Sequence[tuple[Offering, int, str]] = ()
    standbys: Sequence[tuple[Offering, int, str]] = ()
    """Stopped instances to start."""
    drains: Sequence[tuple[str, str]] = ()
    unwanted_cycles: Mapping[str, int] = field(default_factory=dict)
    warm_environments: int = 0
    demand_rps: float = 0.0
    """Demand at the step that a launch made now reaches."""
    quantiles_rps: Mapping[float, float] = field(default_factory=dict)
    """Forecast of that step."""
    reason: str = ""


class Policy(Protocol):
    """A way to provision."""

    name: str
    uses_spot: bool

    def limits(self) -> dict[str, BatchLimits]:
        """Batch limits on each instance type that it can use."""
        ...

    def decide(self, view: View) -> Decision:
        """Decide what to launch and to drain now."""
        ...

    def monitor(self) -> Monitor | None:
        """Return a fresh watch over the objective, for policies that act between two control steps."""
        ...


def feasible_limits(profile: ProfileFile, latency_budget_s: float) -> dict[str, BatchLimits]:
    """Batch limits of the types that can meet the objective.

    Raises
    ------
    InfeasibleSlo
        If none can; says for each which constraint fails and by how much.
    """
    limits: dict[str, BatchLimits] = {}
    refusals: list[str] = []
    for name in profile.instance_types:
        try:
            limits[name] = choose_batch_limits(
                estimate=LatencyEstimate(profile.profile(name)), latency_budget_s=latency_budget_s, max_batch_size=profile.max_batch_size
            )
        except InfeasibleSlo as error:
            refusals.append(str(error))
    if not limits:
        raise InfeasibleSlo(f"no instance type can meet the objective: {'; '.join(refusals)}")
    return limits


def stack_tunables(
    *,
    rt_max_s: float,
    sl_min: float,
    can_spill: bool,
    spot: bool = False,
    max_instances: int = MAX_INSTANCES,
    lambda_concurrency: int = LAMBDA_CONCURRENCY,
) -> Tunables:
    """Operator parameters of a simulated stack: ceilings out of the way unless they are asked for."""
    return Tunables(
        rt_max_s=rt_max_s,
        sl_min=sl_min,
        launches_enabled=True,
        max_instances=max_instances,
        max_hourly_cost_usd=MAX_HOURLY_COST_USD,
        spot_enabled=spot,
        warm_environments_max=100,
        spillover_max_concurrency=lambda_concurrency if can_spill else 0,
    )


class PlannedPolicy:
    """Plans with `core.planning`, from a forecast of its own making."""

    def __init__(
        self,
        name: str,
        *,
        profile: ProfileFile,
        tunables: Tunables,
        forecast: Callable[[View], Forecast | None],
        is_monitored: bool = True,
    ) -> None:
        self.name = name
        self.uses_spot = tunables.spot_enabled
        self._profile = profile
        self._tunables = tunables
        self._forecast = forecast
        self._latest: Forecast | None = None
        self._bought_quantile: float | None = None
        self._is_monitored = is_monitored
        self._limits = feasible_limits(profile, self._demand(None, None, (), at_risk=False).latency_budget_s)

    def limits(self) -> dict[str, BatchLimits]:
        """Return the limits that the planner counts on."""
        return self._limits

    def decide(self, view: View) -> Decision:
        """Plan as the plan function does: once a step on a new forecast, on the last one when it is urgent."""
        if view.trigger is Trigger.SCHEDULE:
            self._latest = self._forecast(replace(view, bought_quantile=self._bought_quantile))
        forecast = self._latest
        measured = max((rate for rate in view.history[-2:] if rate is not None), default=None)
        plan = plan_capacity(
            demands=[self._demand(forecast, measured, view.instances, at_risk=view.at_risk, shape=view.shape)],
            instances=view.instances,
            offerings=[launching_in(offering, view.launch_overhead_s) for offering in view.offerings],
            tunables=self._tunables,
            unavailable=view.unavailable,
            now_s=view.now_s,
            plan_id=f"plan-{view.now_s:.0f}",
            trigger=view.trigger,
            default_step_s=STEP_S,
            default_steps=HORIZON_STEPS,
        )
        self._bought_quantile = plan.models[0].quantile
        return _decision(plan, forecast)

    def monitor(self) -> Monitor | None:
        """Watch as the product does."""
        return ProductMonitor(self._tunables.slo) if self._is_monitored else None

    def _demand(
        self,
        forecast: Forecast | None,
        measured_rps: float | None,
        instances: Sequence[Instance],
        *,
        at_risk: bool = False,
        shape: tuple[float, ...] = (),
    ) -> ModelDemand:
        return model_demand(
            self._profile.record(),
            tunables=self._tunables,
            forecast=forecast,
            measured_rate_rps=measured_rps,
            instances=instances,
            spillover_memory_mb=self._profile.lambda_memory_mb,
            at_risk=at_risk,
            shape=shape,
        )


class StaticPolicy:
    """Buys once, for the peak."""

    name = "static"
    uses_spot = False

    def __init__(self, planner: PlannedPolicy) -> None:
        self._planner = planner

    def limits(self) -> dict[str, BatchLimits]:
        """Return the planner's limits."""
        return self._planner.limits()

    def decide(self, view: View) -> Decision:
        """Let the planner buy at the start, and nothing ever after."""
        return self._planner.decide(view) if view.is_first else Decision(reason="static: the fleet stays as it is")

    def monitor(self) -> Monitor | None:
        """Watch nothing."""
        return None


class NoInstances:
    """Leaves everything to the spillover function."""

    name = "all-lambda"
    uses_spot = False

    def limits(self) -> dict[str, BatchLimits]:
        """Return nothing."""
        return {}

    def decide(self, view: View) -> Decision:  # noqa: ARG002
        """Decide nothing."""
        return Decision(reason="all-lambda: nothing is ever launched")

    def monitor(self) -> Monitor | None:
        """Watch nothing."""
        return None


def launching_in(offering: Offering, launch_overhead_s: float) -> Offering:
    """Return the offering with the launch overhead that was measured."""
    return replace(offering, launch_overhead_s=launch_overhead_s)


def no_forecast(view: View) -> Forecast | None:  # noqa: ARG001
    """Forecast nothing, as `reactive` does: the planner then holds the measured rate flat."""
    return None


def foresight(model: str, maxima_rps: Sequence[float]) -> Callable[[View], Forecast | None]:
    """Return how `clairvoyant` forecasts: it reads the highest window rate of every coming step off the trace."""

    def forecast(view: View) -> Forecast | None:
        first = round(view.now_s / STEP_S)
        path = tuple(maxima_rps[first : first + HORIZON_STEPS]) or (0.0,)
        path += (0.0,) * (HORIZON_STEPS - len(path))
        return Forecast(
            model=model, origin_at_s=view.now_s, step_s=STEP_S, rates_rps={0.5: path, 0.99: path}, forecaster="foresight", reason=""
        )

    return forecast


def the_peak(model: str, peak_rps: float) -> Callable[[View], Forecast | None]:
    """Return how `static` forecasts: the trace's highest window rate, for ever."""

    def forecast(view: View) -> Forecast:
        path = (peak_rps,) * HORIZON_STEPS
        return Forecast(model=model, origin_at_s=view.now_s, step_s=STEP_S, rates_rps={0.5: path, 0.99: path}, forecaster="peak", reason="")

    return forecast


def misled(forecast: Callable[[View], Forecast | None], factor: float) -> Callable[[View], Forecast | None]:
    """Return a forecaster whose every quantile is wrong by a factor; for asking what a forecast error costs."""
    if factor == 1.0:
        return forecast

    def wrong(view: View) -> Forecast | None:
        made = forecast(view)
        if made is None:
            return None
        return replace(made, rates_rps={q: tuple(factor * rate for rate in path) for q, path in made.rates_rps.items()})

    return wrong


def _decision(plan: CapacityPlan, forecast: Forecast | None) -> Decision:
    model = plan.models[0]
    lead = model.lead_step
    quantiles = {q: path[min(lead, len(path) - 1)] for q, path in forecast.rates_rps.items()} if forecast else {}
    return Decision(
        launches=[(launch.offering, launch.count, launch.reason) for launch in plan.launches],
        drains=[(drain.instance_id, drain.reason) for drain in plan.drains],
        unwanted_cycles=plan.unwanted_cycles,
        warm_environments=sum(warm.environments for warm in plan.warm_ups),
        demand_rps=model.demand_rps[lead],
        quantiles_rps=quantiles,
        reason=plan.reason,
    )
