"""Charts over time, one panel per run and one scale for all. They take values, whatever these were measured on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from simulator.report import style
from simulator.report.style import INK, LIMIT, LOAD, MUTED, WIDE, Layout, chart, new_figure, thinned, time_axis
from simulator.service import Floats

Series = tuple[Floats, Floats]
"""Times in seconds from the start, and values."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadPanel:
    """One run's load and what was done about it, in requests per second; series may be empty."""

    load: Series
    forecast_low: Series
    forecast_high: Series
    demand: Series
    capacity: Series


@chart
def load_and_capacity(
    panels: Mapping[str, LoadPanel], *, until_s: float, from_s: float = 0.0, layout: Layout = WIDE, colours: Mapping[str, str] | None = None
) -> Figure:
    """Draw load, forecast, the demand that was bought for, and the capacity that serves."""
    colours = colours or style.colours(list(panels))
    figure, axes = new_figure(layout, rows=len(panels), row_in=1.45)
    unit_s, _ = time_axis(axes, until_s, from_s=from_s, layout=layout)
    top = 0.0
    for axis, (label, panel) in zip(axes, panels.items(), strict=True):
        at_s, load = thinned(*panel.load, layout.points)
        axis.fill_between(at_s / unit_s, load, step="post", color=LOAD, linewidth=0)
        _band(axis, panel.forecast_low, panel.forecast_high, unit_s, layout, colours[label])
        at_s, demand = thinned(*panel.demand, layout.points)
        axis.plot(at_s / unit_s, demand, color=INK, linewidth=0.8, linestyle=(0, (1.2, 1.0)))
        at_s, capacity = _steps(*panel.capacity)
        axis.plot(at_s / unit_s, capacity, color=colours[label], drawstyle="steps-post", linewidth=1.6)
        axis.set_title(label, color=colours[label])
        top = max([top, *(float(np.nanmax(values)) for values in (load, capacity, demand) if values.size)])
    axes[0].set_ylim(0, top * 1.05 or 1.0)
    axes[len(axes) // 2].set_ylabel("requests per second")
    colour = colours[next(iter(panels))]
    _legend(
        figure,
        layout,
        [
            (Patch(color=LOAD), "load, highest 5 s"),
            (Patch(color=colour, alpha=0.3, linewidth=0), "forecast, median to q95"),
            (Line2D([], [], color=INK, linewidth=0.8, linestyle=(0, (1.2, 1.0))), "demand bought for"),
            (Line2D([], [], color=colour, linewidth=1.6), "capacity serving"),
        ],
    )
    return figure


def _band(axis: Axes, low: Series, high: Series, unit_s: float, layout: Layout, colour: str) -> None:
    at_s, least = thinned(*low, layout.points)
    if not at_s.size:
        return
    if high[0].size:  # some policies forecast one figure, not a distribution
        most = np.interp(at_s, *thinned(*high, layout.points))
        axis.fill_between(at_s / unit_s, least, np.maximum(least, most), color=colour, alpha=0.3, linewidth=0)
    axis.plot(at_s / unit_s, least, color=colour, alpha=0.45, linewidth=0.7)


def _steps(at_s: Floats, values: Floats) -> Series:
    """Leave out points that change nothing."""
    if values.size < 3:
        return at_s, values
    kept = np.concatenate(([True], np.diff(values) != 0))
    kept[-1] = True
    return at_s[kept], values[kept]


@chart
def attainment_over_time(
    strips: Mapping[str, Series],
    *,
    sl_min: float,
    until_s: float,
    from_s: float = 0.0,
    events_s: Sequence[float] = (),
    layout: Layout = WIDE,
    colours: Mapping[str, str] | None = None,
) -> Figure:
    """Draw the share answered in time, as what is missing from 100 %; the worst minute is named."""
    colours = colours or style.colours(list(strips))
    figure, axes = new_figure(layout, rows=len(strips), row_in=0.95)
    unit_s, unit = time_axis(axes, until_s, from_s=from_s, layout=layout)
    worst = min((float(np.nanmin(values)) for _, values in strips.values() if np.isfinite(values).any()), default=1.0)
    floor = max(0.0, min(worst, sl_min) - 0.25 * (1 - min(worst, sl_min)))
    for axis, (label, (times_s, values)) in zip(axes, strips.items(), strict=True):
        at_s, least = thinned(times_s, values, layout.points, highest=False)
        axis.fill_between(at_s / unit_s, 100.0, 100 * least, step="post", color=colours[label], linewidth=0.6)
        axis.axhline(100 * sl_min, color=LIMIT, linewidth=0.9, linestyle=(0, (4, 2)))
        _events(axis, events_s, unit_s)
        axis.set_title(label, color=colours[label])
        if np.isfinite(values).any():
            lowest = int(np.nanargmin(values))
            said = (
                f"worst minute {_percent(values[lowest])} at {times_s[lowest] / unit_s:.3g} {unit}"
                if values[lowest] < 1
                else "every minute 100 %"
            )
            axis.set_title(said, loc="right", color=MUTED, fontweight="normal", fontsize=layout.font_pt)
    axes[0].set_ylim(100 * floor, 100.0)
    axes[0].yaxis.set_major_formatter(lambda value, _: f"{value:g} %")
    axes[0].yaxis.set_major_locator(MaxNLocator(nbins=3))
    axes[0].annotate(
        f"SL_min {100 * sl_min:g} %",
        (1.0, 100 * sl_min),
        xycoords=("axes fraction", "data"),
        xytext=(-2, 2),
        textcoords="offset points",
        ha="right",
        va="bottom",
        color=LIMIT,
    )
    return figure


@chart
def latency_over_time(
    strips: Mapping[str, Mapping[str, Series]],
    *,
    rt_max_s: float,
    until_s: float,
    from_s: float = 0.0,
    events_s: Sequence[float] = (),
    layout: Layout = WIDE,
    colours: Mapping[str, str] | None = None,
) -> Figure:
    """Draw latency quantiles, e.g. `{"p50": ..., "p98": ...}`, of each run; `events_s` are marked, such as a surge."""
    colours = colours or style.colours(list(strips))
    figure, axes = new_figure(layout, rows=len(strips), row_in=1.1)
    unit_s, _ = time_axis(axes, until_s, from_s=from_s, layout=layout)
    top_s = rt_max_s
    for axis, (label, quantiles) in zip(axes, strips.items(), strict=True):
        for rank, (times_s, values) in enumerate(reversed(list(quantiles.values()))):
            at_s, most = thinned(times_s, values, layout.points)
            axis.plot(
                at_s / unit_s, 1000 * most, color=colours[label], alpha=1.0 if rank == 0 else 0.5, linewidth=1.1 if rank == 0 else 0.9
            )
            top_s = max(top_s, float(np.nanmax(most, initial=0.0)))
        axis.axhline(1000 * rt_max_s, color=LIMIT, linewidth=0.9, linestyle=(0, (4, 2)))
        _events(axis, events_s, unit_s)
        axis.set_title(label, color=colours[label])
    names = list(next(iter(strips.values()), {}))
    shades = [(Line2D([], [], color=MUTED, alpha=1.0 if name == names[-1] else 0.5), name) for name in reversed(names)]
    _legend(
        figure, layout, [*shades, (Line2D([], [], color=LIMIT, linewidth=0.9, linestyle=(0, (4, 2))), f"RT_max {1000 * rt_max_s:g} ms")]
    )
    axes[len(axes) // 2].set_ylabel("latency, ms")
    if top_s > 5 * rt_max_s:
        axes[0].set_yscale("log")
        axes[0].yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    else:
        axes[0].set_ylim(0, 1000 * top_s * 1.08)
        axes[0].yaxis.set_major_locator(MaxNLocator(nbins=4))
    return figure


@chart
def cost_over_time(
    panels: Mapping[str, Mapping[str, Series]],
    *,
    tier_colours: Mapping[str, str],
    until_s: float,
    apart: Sequence[str] = (),
    layout: Layout = WIDE,
    colours: Mapping[str, str] | None = None,
) -> Figure:
    """Draw money per hour, stacked by tier; the tiers named in `apart` have one panel for all runs, on a scale of its own."""
    colours = colours or style.colours(list(panels))
    figure, axes = new_figure(layout, rows=len(panels) + len(apart), row_in=1.15, share_y=False)
    unit_s, _ = time_axis(axes, until_s, layout=layout)
    stacked = [tier for tier in tier_colours if tier not in apart and any(p[tier][1].any() for p in panels.values())]
    top = 0.0
    for axis, (label, panel) in zip(axes, panels.items(), strict=False):
        rates = [_mean_of(panel[tier], layout.points) for tier in stacked]
        heights = np.array([values for _, values in rates])
        if rates:
            axis.stackplot(rates[0][0] / unit_s, heights, step="post", colors=[tier_colours[tier] for tier in stacked], linewidth=0)
            top = max(top, float(heights.sum(axis=0).max()))
        spent = sum(math.fsum(panel[tier][1]) for tier in stacked) * _bin_s(panel) / 3600
        axis.set_title(label, color=colours[label])
        axis.set_title(f"compute ${spent:,.2f}", loc="right", color=MUTED, fontweight="normal", fontsize=layout.font_pt)
    for axis in axes[: len(panels)]:
        axis.set_ylim(0, top * 1.08 or 1.0)
    for axis, tier in zip(axes[len(panels) :], apart, strict=True):
        for label, panel in panels.items():
            at_s, values = _mean_of(panel[tier], layout.points)
            axis.plot(at_s / unit_s, values, color=colours[label], linewidth=1.0)
        axis.set_title(f"{tier}, every policy", color=INK)
        axis.set_ylim(bottom=0)
    for axis in axes:
        axis.yaxis.set_major_locator(MaxNLocator(nbins=4))
    axes[len(axes) // 2].set_ylabel("US dollars per hour")
    _legend(figure, layout, [(Patch(color=tier_colours[tier]), tier) for tier in stacked])
    return figure


def _bin_s(panel: Mapping[str, Series]) -> float:
    times_s = next(iter(panel.values()))[0]
    return float(times_s[1] - times_s[0]) if times_s.size > 1 else 0.0


def _mean_of(series: Series, points: int) -> Series:
    times_s, values = series
    step = -(-values.size // points)
    starts = np.arange(0, values.size, max(1, step))
    counts = np.diff(np.append(starts, values.size))
    return times_s[starts], np.add.reduceat(values, starts) / counts


def _events(axis: Axes, events_s: Sequence[float], unit_s: float) -> None:
    for event_s in events_s:
        axis.axvline(event_s / unit_s, color=MUTED, linewidth=0.8, linestyle=(0, (1, 2)))


def _legend(figure: Figure, layout: Layout, entries: Sequence[tuple[Line2D | Patch, str]]) -> None:
    handles, labels = [handle for handle, _ in entries], [label for _, label in entries]
    columns = len(entries) if layout is WIDE else 2
    figure.legend(handles, labels, loc="outside upper left", ncols=max(1, columns), handlelength=1.6, columnspacing=1.6, labelcolor=MUTED)


def _percent(share: float) -> str:
    """Round down, and to as many digits as tell it from 100 %."""
    digits = min(4, max(2, math.ceil(-math.log10(1 - share)))) if share < 1 else 0
    return f"{math.floor(share * 100 * 10**digits) / 10**digits:.{digits}f} %"
