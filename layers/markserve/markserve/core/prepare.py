"""What one model's planning starts from: which types can meet its objective, at what rate, and how much is asked."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from markserve.core.batching import BatchLimits, choose_batch_limits
from markserve.core.capacity import Candidate, SpillTier, SpotRules
from markserve.core.demand import DemandPath, Trigger, buying_rule, demand_path, quantile_path
from markserve.core.greedy import Choice
from markserve.core.plan import Rejected
from markserve.core.profiles import LatencyEstimate
from markserve.core.pruning import undominated
from markserve.core.scale_in import STARTED_OR_STARTING
from markserve.core.staffing import LATE_SHARES, late_share_worth, rate_in_fleet_rps
from markserve.core.task import Task
from markserve.core.tunables import Tunables
from markserve.core.types import BatchProfile, CapacityType, Forecast, Instance, InstanceState, Offering
from markserve.errors import InfeasibleSlo

UNPROTECTED_SPOT_SHARE = 0.7
"""Largest share of capacity on spot where Lambda cannot take in time what an interruption leaves: half of the spot fleet may go
at once (`capacity.POOL_MAX_SHARE`), and two thirds of the capacity keep most requests in time until replacements serve."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelDemand:
    """What one model asks of the fleet."""

    model: str
    profiles: Mapping[str, BatchProfile]
    """By instance type."""
    latency_budget_s: float
    """The objective less transport, reply overhead, the reserve for spilling and margin."""
    max_batch_size: int
    tunables: Tunables = field(default_factory=Tunables)
    """With the model's overrides."""
    forecast: Forecast | None = None
    measured_rate_rps: float | None = None
    """Highest rate of the last windows; None when unknown."""
    spill: SpillTier | None = None
    """None when the spillover function is off, or too slow for the objective."""
    at_risk: bool = False
    """Whether its objective is at risk and needs one more instance."""
    quarantined: str | None = None
    """Why no instance may be launched for it now, whatever the demand; see `core.quarantine`."""
    stranded: int = 0
    """Requests in its queue while it has no instance at all: only an instance can answer them."""
    window_s: float = 5.0
    """Counting window whose highest rate forecasts are of."""
    shape: tuple[float, ...] = ()
    """How load varies within a step, as measured; see `core.arrivals.window_shape`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """One model, ready for Algorithm 1."""

    demand: ModelDemand
    path: DemandPath
    task: Task
    existing: tuple[Candidate, ...]
    offers: tuple[Candidate, ...]
    capacities_rps: Mapping[str, float]
    """By instance id."""
    serving_rps: float
    has_pending: bool
    """Whether launches are under way."""
    is_settled: bool
    """Whether nothing is: no launch, no drain."""
    held_ids: frozenset[str]
    """What the plan that ordered the pending launches wanted; empty when none is pending."""
    infeasible: str | None
    rejected: tuple[Rejected, ...]

    @property
    def model(self) -> str:
        """The model's name."""
        return self.demand.model

    @property
    def needed_now_rps(self) -> float:
        """Below this the serving capacity must not be shrunk."""
        measured = (self.demand.measured_rate_rps or 0.0) * self.demand.tunables.headroom
        return max(measured, self.task.demand_rps[0])

    def choice(self, *, may_replace: bool = False) -> Choice:
        """Return a choice to fill: empty, or with what is held while launches are pending."""
        choice = Choice(self.task, existing=self.existing, offers=self.offers, may_replace=may_replace)
        choice.set_chosen(c for c in self.existing if c.instance_id in self.held_ids)
        if self.task.spot_refusal(choice.holding) is not None:
            # Spot that the rules do not allow any more is not held either: else this plan drains what the next one buys in its place.
            choice.set_chosen(c for c in choice.chosen if not c.is_spot)
        return choice


def type_capacities(
    demand: ModelDemand,
    instance_types: Collection[str],
    instances: Sequence[Instance],
    offerings: Sequence[Offering],
    *,
    fleet_rate_rps: float,
) -> tuple[dict[str, float], dict[str, str]]:
    """Rate that an instance of each type is good for within the objective, in a fleet that serves `fleet_rate_rps`.

    Serving workers refit their profile online; where any report, the mean of their rates replaces the profile's.

    Returns
    -------
    (capacities, refusals)
        Requests/s by type; and why the other types cannot be used.
    """
    refusals: dict[str, str] = {}
    limits: dict[str, BatchLimits] = {}
    for name in sorted(instance_types):
        if (profile := demand.profiles.get(name)) is None:
            refusals[name] = f"{demand.model}: no measured profile on {name}"
            continue
        try:
            limits[name] = choose_batch_limits(
                estimate=LatencyEstimate(profile), latency_budget_s=demand.latency_budget_s, max_batch_size=demand.max_batch_size
            )
        except InfeasibleSlo as error:
            refusals[name] = f"{demand.model}: {error}"
    late_share_max = _late_share_max(demand, limits, offerings)
    capacities: dict[str, float] = {}
    for name, chosen in limits.items():
        usable_rps = rate_in_fleet_rps(
            LatencyEstimate(demand.profiles[name]), chosen, fleet_rate_rps=fleet_rate_rps, late_share_max=late_share_max
        )
        if usable_rps <= 0:
            refusals[name] = f"{demand.model}: random arrivals miss the objective on {name}, however many share them"
            continue
        measured = [
            i.stats.service_rate_rps
            for i in instances
            if i.offering.instance_type == name and i.state is InstanceState.SERVING and i.stats.service_rate_rps > 0
        ]
        slowdown = math.fsum(measured) / len(measured) / chosen.service_rate_rps if measured else 1.0
        capacities[name] = usable_rps * slowdown
    return capacities, refusals


def _late_share_max(demand: ModelDemand, limits: Mapping[str, BatchLimits], offerings: Sequence[Offering]) -> float:
    """Share of requests that may find no server in time: few where they fail, more where it is cheaper to spill them."""
    if demand.spill is None:
        return LATE_SHARES[0]
    usable = [o for o in offerings if o.instance_type in limits]
    cheapest = min((o.price_usd_per_hour / 3600 / limits[o.instance_type].service_rate_rps for o in usable), default=0.0)
    return late_share_worth(cheapest / demand.spill.usd_per_request)


def expected_rate_rps(demand: ModelDemand, now_s: float, within_s: float) -> float:
    """Rate that the fleet will serve until launches made now have served for a while: what capacities are stated for.

    The highest median of the forecast between now and twice `within_s`; the measured rate where there is no forecast.
    """
    forecast = demand.forecast
    if forecast is None:
        return demand.measured_rate_rps or 0.0
    first = max(0, math.floor((now_s - forecast.origin_at_s) / forecast.step_s + 1e-9))
    last = math.ceil((now_s + 2 * within_s - forecast.origin_at_s) / forecast.step_s)
    return max(quantile_path(forecast, 0.5)[first : max(first + 1, last)], default=demand.measured_rate_rps or 0.0)


def prepare(
    demand: ModelDemand,
    *,
    instances: Sequence[Instance],
    offerings: Sequence[Offering],
    unavailable: Collection[str],
    now_s: float,
    trigger: Trigger,
    default_step_s: float,
    default_steps: int,
) -> Prepared:
    """Turn a model's demand, its instances and the offerings into a task for the fill loop.

    A type that cannot meet the objective is dropped; where none is left, `infeasible` says so and everything
    spills. An expected interruption takes a spot offering out for one launch overhead, so its capacity counts
    `1 - interruption rate * launch overhead`, which is the over-provisioning it needs.
    """
    own = [i for i in instances if i.model == demand.model and i.state in STARTED_OR_STARTING]
    types = {o.instance_type for o in offerings} | {i.offering.instance_type for i in own}
    fleet_rate_rps = expected_rate_rps(demand, now_s, max((o.launch_overhead_s for o in offerings), default=0.0))
    spill_usd = demand.spill.usd_per_request if demand.spill else None
    capacities, refusals = type_capacities(demand, types, own, offerings, fleet_rate_rps=fleet_rate_rps)
    usable, rejected = _usable(demand, offerings, capacities, refusals, unavailable)
    # The instance that one more would be: the cheapest for the rate at hand, which a large one may exceed many times.
    typical = min(usable, key=lambda o: (_usd_per_request(o, capacities, fleet_rate_rps), o.price_usd_per_hour, o.key), default=None)
    buying = buying_rule(
        demand_quantile=demand.tunables.demand_quantile,
        spill_usd_per_request=spill_usd,
        worker_usd_per_request=typical.price_usd_per_hour / 3600 / _capacity_rps(typical, capacities) if typical else None,
        lump_rps=_capacity_rps(typical, capacities) if typical else 1.0,
        spillable_rps=demand.spill.capacity_rps if demand.spill else math.inf,
        launch_s=typical.launch_overhead_s if typical else 0.0,
        review_s=demand.tunables.scale_in_cycles * (demand.forecast.step_s if demand.forecast else default_step_s),
    )
    path = demand_path(
        forecast=demand.forecast,
        measured_rate_rps=demand.measured_rate_rps,
        buying=buying,
        headroom=demand.tunables.headroom,
        trigger=trigger,
        now_s=now_s,
        default_step_s=default_step_s,
        default_steps=default_steps,
        window_s=demand.window_s,
        shape=demand.shape,
    )
    ready_steps = {s: path.horizon.ready_step(now_s + s, now_s) for s in {o.launch_overhead_s for o in usable}}
    market = [(o, _capacity_rps(o, capacities), ready_steps[o.launch_overhead_s]) for o in usable]
    kept = undominated(market)
    offers = tuple(Candidate(offering=o, capacity_rps=rate_rps, ready_step=step) for o, rate_rps, step in (market[i] for i in kept))
    dropped = len(usable) - len(kept)
    if dropped:
        rejected.append(Rejected(offering=f"{dropped} offerings", cost_usd=None, reason=f"{demand.model}: dominated by others"))
    existing = _existing(own, capacities, path, now_s)
    has_pending = any(i.state is not InstanceState.SERVING for i in own)
    path = path.extended(1 + max((*ready_steps.values(), *(c.ready_step for c in existing)), default=0))
    last = len(path.rates_rps) - 1
    lead_step = min(last, max(ready_steps.values(), default=last))
    return Prepared(
        demand=demand,
        path=path,
        task=Task(
            model=demand.model,
            demand_rps=_decided_now(path.rates_rps, lead_step),
            step_s=path.horizon.step_s,
            lead_step=lead_step,
            spill=demand.spill,
            spot=SpotRules(max_share=_spot_max_share(demand), pools=sum(o.capacity_type is CapacityType.SPOT for o in usable)),
            min_instances=max(demand.tunables.min_instances, int(demand.stranded > 0)),
        ),
        existing=existing,
        offers=offers,
        capacities_rps={c.instance_id: c.capacity_rps for c in existing},
        serving_rps=math.fsum(
            capacities.get(i.offering.instance_type, 0.0) for i in own if i.state is InstanceState.SERVING and i.missed_cycles == 0
        ),
        has_pending=has_pending,
        is_settled=not has_pending and not any(i.model == demand.model and i.state is InstanceState.DRAINING for i in instances),
        held_ids=frozenset(i.instance_id for i in own if has_pending and i.unwanted_cycles == 0),
        infeasible=None
        if capacities
        else f"no instance type can meet the objective: {'; '.join(refusals.values()) or 'none to choose from'}",
        rejected=tuple(rejected),
    )


def _usable(
    demand: ModelDemand,
    offerings: Sequence[Offering],
    capacities: Mapping[str, float],
    refusals: Mapping[str, str],
    unavailable: Collection[str],
) -> tuple[list[Offering], list[Rejected]]:
    rejected = [Rejected(offering=name, cost_usd=None, reason=why) for name, why in refusals.items()]
    usable: list[Offering] = []
    if demand.quarantined is not None:
        rejected.append(Rejected(offering="every offering", cost_usd=None, reason=f"{demand.model}: {demand.quarantined}"))
        return [], sorted(rejected, key=lambda r: (r.offering, r.reason))
    for offering in offerings:
        if offering.instance_type not in capacities:
            continue
        if offering.key in unavailable:
            rejected.append(Rejected(offering=offering.key, cost_usd=None, reason="it was dry or interrupted within the last minutes"))
        elif offering.capacity_type is CapacityType.SPOT and not demand.tunables.spot_enabled:
            rejected.append(Rejected(offering=offering.key, cost_usd=None, reason=f"{demand.model}: spot-enabled is false"))
        else:
            usable.append(offering)
    return usable, sorted(rejected, key=lambda r: (r.offering, r.reason))


def _capacity_rps(offering: Offering, capacities: Mapping[str, float]) -> float:
    lost_share = min(0.5, offering.interruption_rate_per_hour * offering.launch_overhead_s / 3600)
    return capacities[offering.instance_type] * (1 - lost_share)


def _decided_now(rates_rps: Sequence[float], lead_step: int) -> tuple[float, ...]:
    """Demand that this plan decides for: what rises beyond the first step that a launch reaches can still be launched later.

    Left in, it would be bought now: the plan sees that nothing serves it, and not that the next plan can. How wide the
    forecast grows with its horizon would then decide what is bought. What is needed at that step pays for as long as
    demand stays as high, so later steps count up to that rate.
    """
    return tuple(rate if step <= lead_step else min(rate, rates_rps[lead_step]) for step, rate in enumerate(rates_rps))


def _spot_max_share(demand: ModelDemand) -> float:
    share = demand.tunables.spot_max_share
    return share if demand.spill else min(share, UNPROTECTED_SPOT_SHARE)


def _usd_per_request(offering: Offering, capacities: Mapping[str, float], rate_rps: float) -> float:
    capacity_rps = _capacity_rps(offering, capacities)
    return offering.price_usd_per_hour / 3600 / (min(capacity_rps, rate_rps) if rate_rps > 0 else capacity_rps)


def _existing(own: Sequence[Instance], capacities: Mapping[str, float], path: DemandPath, now_s: float) -> tuple[Candidate, ...]:
    order = sorted(own, key=lambda i: (i.unwanted_cycles, i.state is not InstanceState.SERVING, i.requested_at_s, i.instance_id))
    return tuple(
        Candidate(
            offering=i.offering,
            capacity_rps=_capacity_rps(i.offering, capacities),
            # An overdue launch counts as ready: whether it ever comes is the lifecycle's business.
            ready_step=0
            if i.state is InstanceState.SERVING
            else path.horizon.ready_step(i.requested_at_s + i.offering.launch_overhead_s, now_s),
            instance_id=i.instance_id,
            rank=rank,
        )
        for rank, i in enumerate(order)
        if i.offering.instance_type in capacities
    )
