"""The experiments' pictures, from outcomes: each is a name and a figure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from simulator.experiments.cells import EVENT_FOR_S, Curve, Outcome
from simulator.experiments.plots import lines, missed_dots
from simulator.report import charts_time, charts_total, series, style
from simulator.report.charts_time import Series
from simulator.summary import Summary

TIER_COLOURS = {"instances": style.ON_DEMAND, series.LAMBDA: style.LAMBDA, series.PLUMBING: style.PLUMBING}
BEFORE_S, AFTER_S = 120.0, 60.0
"""Shown around an event."""


def compared_charts(outcomes: Sequence[Outcome]) -> Iterator[tuple[str, Figure]]:
    """Draw cost and missed shares of each workload, and the latencies of each workload and model."""
    for workload, mine in _by(outcomes, lambda o: o.group.partition(", ")[0]).items():
        ran = [(f"{o.group.partition(', ')[2]}: {o.policy}", o.summary) for o in mine if o.summary is not None]
        bars = {label: _per_million_usd(summary) for label, summary in ran}
        yield f"{workload}-cost", charts_total.cost_bars(bars, tier_colours=TIER_COLOURS, unit="US dollars per million requests, all-in")
        rows = {
            group.partition(", ")[2]: {o.policy: o.summary.slo_attainment for o in runs if o.summary is not None}
            for group, runs in _by(mine, lambda o: o.group).items()
        }
        yield f"{workload}-missed", missed_dots(rows, sl_min=_objective(mine)[1])
    for group, mine in _by(outcomes, lambda o: o.group).items():
        curves = {o.policy: (np.array(o.latency.x), np.array(o.latency.y)) for o in mine if o.latency is not None}
        if curves:
            limit_s, sl_min = _objective(mine)
            yield f"{group}-latency", charts_total.latency_cdf(curves, rt_max_s=[limit_s], sl_min=sl_min)


def event_charts(outcomes: Sequence[Outcome]) -> Iterator[tuple[str, Figure]]:
    """Draw latency over the time around each event."""
    for group, mine in _by(outcomes, lambda o: o.group).items():
        strips = {o.policy: {name: _series(curve) for name, curve in o.latency_over_time.items()} for o in mine if o.latency_over_time}
        if not strips:
            continue
        at_s = float(mine[0].described["event_at_s"])
        yield (
            f"{group}-latency",
            charts_time.latency_over_time(
                strips,
                rt_max_s=_objective(mine)[0],
                from_s=max(0.0, at_s - BEFORE_S),
                until_s=at_s + EVENT_FOR_S + AFTER_S,
                events_s=(at_s,),
            ),
        )


def sensitivity_charts(outcomes: Sequence[Outcome]) -> Iterator[tuple[str, Figure]]:
    """Draw cost and attainment over what was varied."""
    for group, mine in _by(outcomes, lambda o: o.group).items():
        marks = list(dict.fromkeys(o.value for o in mine))
        cost, attainment = "compute, US dollars per million requests", "attainment, %"
        panels: dict[str, dict[str, list[float | None]]] = {cost: {}, attainment: {}}
        for policy, runs in _by(mine, lambda o: o.policy).items():
            found = {o.value: o.summary for o in runs}
            held = [found.get(mark) for mark in marks]
            panels[cost][policy] = [None if s is None else s.per_million_usd.get("compute") for s in held]
            panels[attainment][policy] = [None if s is None else 100 * s.slo_attainment for s in held]
        yield group, lines(panels, marks=marks, unit=group, limits={attainment: 100 * _objective(mine)[1]})


def picture_name(name: str) -> str:
    """Return a file's name for a picture."""
    return re.sub(r"[^a-z0-9+.]+", "-", name.lower()).strip("-") + ".png"


def _by(outcomes: Sequence[Outcome], key: Callable[[Outcome], str]) -> Mapping[str, list[Outcome]]:
    groups: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault(key(outcome), []).append(outcome)
    return groups


def _per_million_usd(summary: Summary) -> dict[str, float]:
    each = summary.per_million_usd
    instances = each.get("instances", 0.0) + each.get("standby_disks", 0.0)
    on_lambda = each.get("lambda", 0.0) + each.get("provisioned", 0.0)
    return {"instances": instances, series.LAMBDA: on_lambda, series.PLUMBING: each.get("plumbing", 0.0)}


def _objective(outcomes: Sequence[Outcome]) -> tuple[float, float]:
    asked = outcomes[0].described["request"]
    return float(asked["rt_max_s"]), float(asked["sl_min"])


def _series(curve: Curve) -> Series:
    return np.array(curve.x), np.array(curve.y)
