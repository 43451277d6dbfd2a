"""The report's charts, from runs: what each shows, and what must be known to read it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from matplotlib.figure import Figure

from simulator.report import charts_time, charts_total, series, style
from simulator.report.charts_time import LoadPanel, Series
from simulator.report.reading import PolicyRun
from simulator.report.style import Layout
from simulator.service import Floats
from simulator.summary import MINUTE_S

TIER_COLOURS = {series.ON_DEMAND: style.ON_DEMAND, series.SPOT: style.SPOT, series.LAMBDA: style.LAMBDA, series.PLUMBING: style.PLUMBING}
NOTHING: Series = (np.empty(0), np.empty(0))


@dataclass(frozen=True, kw_only=True, slots=True)
class Chart:
    """A chart of the report."""

    name: str
    title: str
    note: str
    draw: Callable[[Layout], Figure]


def report_charts(runs: Sequence[PolicyRun]) -> list[Chart]:
    """Return the charts that these runs have data for."""
    colours = style.colours([run.label for run in runs])
    until_s = max(run.summary.simulated_s for run in runs)
    charts = [_load(runs, colours, until_s), *_costs(runs, colours, until_s)]
    recorded = [run for run in runs if run.requests is not None and run.requests.rows]
    if recorded:
        charts += _service(recorded, colours, until_s)
    sizes = {run.label: run.batches.sizes for run in runs if run.batches is not None and run.batches.sizes[1:].any()}
    if any(counts.size > 2 for counts in sizes.values()):
        charts.append(
            Chart(
                name="batches",
                title="Batch sizes",
                note="Requests that workers served, by the size of the batch they were in; invocations of Lambda are not batched.",
                draw=lambda layout: charts_total.batch_sizes(sizes, layout=layout, colours=colours),
            )
        )
    return charts


def _load(runs: Sequence[PolicyRun], colours: Mapping[str, str], until_s: float) -> Chart:
    panels = {run.label: _load_panel(run) for run in runs}
    return Chart(
        name="load",
        title="Load, forecast and capacity",
        note="Forecast and demand stand where they apply: they were made one launch time earlier. Capacity is what the policy counts on "
        "the serving instances to answer in time; load above it waits, or spills to Lambda.",
        draw=lambda layout: charts_time.load_and_capacity(panels, until_s=until_s, layout=layout, colours=colours),
    )


def _load_panel(run: PolicyRun) -> LoadPanel:
    starts_s = run.edges_s[:-1]
    arrived, capacity = series.arrivals(run), series.capacity_rps(run)
    load = run.requests.peak_rps if run.requests is not None else arrived / run.bin_s if arrived is not None else np.zeros(starts_s.size)
    return LoadPanel(
        load=(starts_s, load),
        forecast_low=series.forecast_rps(run, 0.5),
        forecast_high=series.forecast_rps(run, 0.95),
        demand=series.demand_rps(run),
        capacity=NOTHING if capacity is None else (starts_s, capacity),
    )


def _costs(runs: Sequence[PolicyRun], colours: Mapping[str, str], until_s: float) -> list[Chart]:
    bars = {run.label: series.tier_costs_usd(run) for run in runs}
    bounds = {run.label: run.summary.lower_bound_usd for run in runs}
    rates = {run.label: {tier: (run.edges_s[:-1], usd) for tier, usd in series.usd_per_hour(run).items()} for run in runs}
    return [
        Chart(
            name="cost",
            title="Cost of the whole run",
            note=f"Plumbing is what is paid around computation: API calls, queues, tables, the front. {_bounds(runs)}",
            draw=lambda layout: charts_total.cost_bars(bars, tier_colours=TIER_COLOURS, bounds=bounds, layout=layout),
        ),
        Chart(
            name="cost-over-time",
            title="Cost over time",
            note="An instance's bill is spread over its life, Lambda's over the time that invocations ran, plumbing over requests.",
            draw=lambda layout: charts_time.cost_over_time(
                rates, tier_colours=TIER_COLOURS, apart=(series.PLUMBING,), until_s=until_s, layout=layout, colours=colours
            ),
        ),
    ]


def _bounds(runs: Sequence[PolicyRun]) -> str:
    """Say which lower bound of compute each run is held against."""
    said: dict[str, list[str]] = {}
    for run in runs:
        said.setdefault(run.summary.lower_bound, []).append(run.label)
    if len(said) == 1:
        return f"Lower bound of compute: {next(iter(said))}."
    return " ".join(f"Lower bound of compute for {', '.join(labels)}: {bound}." for bound, labels in said.items())


def _service(runs: Sequence[PolicyRun], colours: Mapping[str, str], until_s: float) -> list[Chart]:
    recorded = {run.label: run.requests for run in runs if run.requests is not None}
    limits_s = [run.summary.rt_max_s for run in runs]
    sl_min = max(run.summary.sl_min for run in runs)
    curves = {label: requests.distribution() for label, requests in recorded.items()}
    minutes = {label: _in_steps(requests.minute_attainment, MINUTE_S) for label, requests in recorded.items()}
    latency = {
        label: {name: _in_steps(requests.quantile_over_time_s(q), requests.bin_s) for name, q in (("p50", 0.5), ("p98", 0.98))}
        for label, requests in recorded.items()
    }
    over_time = partial(charts_time.latency_over_time, latency, rt_max_s=max(limits_s), until_s=until_s, colours=colours)
    return [
        Chart(
            name="latency",
            title="Latency",
            note="Of all requests; a curve that ends early leaves requests unanswered. The scale of shares is stretched towards 100 %: "
            "each further 9 takes the same height.",
            draw=lambda layout: charts_total.latency_cdf(curves, rt_max_s=limits_s, sl_min=sl_min, layout=layout, colours=colours),
        ),
        Chart(
            name="attainment",
            title="Attainment per minute",
            note="What hangs from 100 % is the share of a minute's requests that were late or never answered; minutes of fewer than "
            "100 requests are left out. What misses by far more than SL_min allows is cut off; its worst minute is named.",
            draw=lambda layout: charts_time.attainment_over_time(minutes, sl_min=sl_min, until_s=until_s, layout=layout, colours=colours),
        ),
        Chart(
            name="latency-over-time",
            title="Latency over time",
            note="Quantiles of the requests that arrived in each interval; each point is the highest of those that share its pixel.",
            draw=lambda layout: over_time(layout=layout),
        ),
    ]


def _in_steps(values: Floats, step_s: float) -> Series:
    return np.asarray(np.arange(values.size) * step_s, np.float64), values
