"""The console's view of a model's load: arrivals against what was forecast against what the fleet could take."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from markserve.console_messages import BandPoint, CapacityPoint, ForecastNow, Load, PlanPoint, RatePoint
from markserve.core.arrivals import ArrivalCount
from markserve.core.types import Instance
from markserve.messages import ForecastRecord, PlanRecord

AHEAD_SHARE = 0.25
"""Share of the interval's length that the latest forecast is drawn into the future."""


def load_view(
    model: str,
    *,
    windows: Sequence[ArrivalCount],
    window_s: float,
    forecasts: Sequence[ForecastRecord],
    plans: Sequence[PlanRecord],
    instances: Sequence[Instance],
    since_s: float,
    until_s: float,
) -> Load:
    """Put the series of an interval side by side.

    Parameters
    ----------
    forecasts, plans
        Ascending; they may begin before the interval.
    """
    latest = forecasts[-1] if forecasts else None
    return Load(
        window_s=window_s,
        arrivals=[RatePoint(at_s=w.at_s, rate_rps=None if w.count is None else w.count / window_s) for w in windows],
        band=band(forecasts, since_s=since_s, until_s=until_s + AHEAD_SHARE * (until_s - since_s)),
        capacity=capacity(instances, since_s=since_s, until_s=until_s),
        plans=[
            PlanPoint(at_s=p.created_at_s, demand_rps=p.demand_rps[model], capacity_rps=p.capacity_rps.get(model, 0.0))
            for p in plans
            if model in p.demand_rps and p.created_at_s >= since_s
        ],
        forecast=None
        if latest is None
        else ForecastNow(
            origin_at_s=latest.origin_at_s,
            step_s=latest.step_s,
            forecaster=latest.forecaster,
            reason=latest.reason,
            quantiles=_edges(latest),
        ),
    )


def _edges(record: ForecastRecord) -> tuple[str, str, str]:
    """Lowest quantile, the one nearest the median, and the highest."""
    known = sorted(record.rates_rps, key=float)
    return known[0], min(known, key=lambda q: abs(float(q) - 0.5)), known[-1]


def band(forecasts: Sequence[ForecastRecord], *, since_s: float, until_s: float) -> list[BandPoint]:
    """Return what was forecast for each step of an interval by the latest forecast that was made before the step."""
    points: list[BandPoint] = []
    for index, record in enumerate(forecasts):
        next_at_s = forecasts[index + 1].origin_at_s if index + 1 < len(forecasts) else until_s
        low, middle, high = (record.rates_rps[q] for q in _edges(record))
        for step in range(len(middle)):
            at_s = record.origin_at_s + step * record.step_s
            end_s = min(at_s + record.step_s, next_at_s)
            if at_s >= min(next_at_s, until_s):
                break
            if end_s > since_s:
                points.append(
                    BandPoint(at_s=max(at_s, since_s), until_s=end_s, low_rps=low[step], middle_rps=middle[step], high_rps=high[step])
                )
    return points


def capacity(instances: Sequence[Instance], *, since_s: float, until_s: float) -> list[CapacityPoint]:
    """Return the sustainable rate of the workers that served, wherever it changed, by each one's latest refitted rate."""
    changes: list[tuple[float, float]] = []
    for instance in instances:
        if instance.serving_at_s is None:
            continue
        changes.append((instance.serving_at_s, instance.stats.service_rate_rps))
        ends = [at_s for at_s in (instance.drain_at_s, instance.terminated_at_s) if at_s is not None]
        if ends:
            changes.append((min(ends), -instance.stats.service_rate_rps))
    changes.sort()
    times = [at_s for at_s, _ in changes]

    def at(instant_s: float) -> float:
        return max(0.0, round(sum(rate for _, rate in changes[: bisect_right(times, instant_s)]), 9))

    instants = [since_s, *(at_s for at_s in dict.fromkeys(times) if since_s < at_s < until_s), until_s]
    return [CapacityPoint(at_s=at_s, capacity_rps=at(at_s)) for at_s in instants]
