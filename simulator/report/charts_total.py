"""Charts of whole runs: latency distribution, cost by tier, batch sizes. They take values, whatever these were measured on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter

from simulator.report import style
from simulator.report.style import INK, LIMIT, MUTED, WIDE, Layout, chart, new_figure
from simulator.service import Floats, Ints

SHARES = (0.0, 0.5, 0.9, 0.98, 0.99, 0.999, 0.9999, 0.99999)
"""Marks on the axis of shares."""
LEAST_MISSING = 1e-5
"""Where that axis ends: one request in a hundred thousand."""


@chart
def latency_cdf(
    curves: Mapping[str, tuple[Floats, Floats]],
    *,
    rt_max_s: Sequence[float],
    sl_min: float,
    layout: Layout = WIDE,
    colours: Mapping[str, str] | None = None,
) -> Figure:
    """Draw the share of all requests answered within a latency, on a scale that shows the slowest one in a hundred thousand.

    A curve is (latencies in seconds, shares). One that ends below 100 % leaves requests unanswered.
    """
    colours = colours or style.colours(list(curves))
    figure, [axis] = new_figure(layout, rows=1, row_in=3.4 if layout is WIDE else 3.1)
    for label, (latency_s, share) in curves.items():
        if not latency_s.size:
            continue
        latency_s, height = np.append(latency_s[:1], latency_s), np.append(0.0, _stretched(share))  # rises from the axis
        kept = np.concatenate(([True], np.diff(np.round(height, 3)) > 0))
        axis.plot(1000 * latency_s[kept], height[kept], color=colours[label], linewidth=1.5, drawstyle="steps-post")
    _named(figure, axis, curves, colours, layout)
    top = -np.log10(LEAST_MISSING)
    axis.set_ylim(0, top * 1.01)
    ticks = [share for share in SHARES if share not in (0.98, 0.99)] + [sl_min]
    axis.yaxis.set_major_locator(FixedLocator([float(_stretched(np.array([share]))[0]) for share in sorted(ticks)]))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * (1 - 10**-value):.6g} %"))
    _latency_axis(
        axis, [1000 * latency_s for latency_s, _ in curves.values() if latency_s.size], [1000 * limit for limit in rt_max_s], layout
    )
    for limit_s in sorted(set(rt_max_s)):
        axis.axvline(1000 * limit_s, color=LIMIT, linewidth=1.0, linestyle=(0, (4, 2)))
        axis.annotate(
            f"RT_max {1000 * limit_s:g} ms",
            (1000 * limit_s, 0.0),
            xytext=(4, 6),
            textcoords="offset points",
            color=LIMIT,
            ha="left",
            va="bottom",
        )
    level = float(_stretched(np.array([sl_min]))[0])
    axis.axhline(level, color=LIMIT, linewidth=1.0, linestyle=(0, (4, 2)))
    axis.annotate(
        f"SL_min {100 * sl_min:g} %",
        (1.0, level),
        xycoords=("axes fraction", "data"),
        xytext=(-2, 3),
        textcoords="offset points",
        color=LIMIT,
        ha="right",
        va="bottom",
    )
    axis.set_ylabel("share of requests answered within")
    axis.set_xlabel("latency, ms")
    return figure


def _stretched(share: Floats) -> Floats:
    return np.asarray(-np.log10(np.maximum(1 - share, LEAST_MISSING)), np.float64)


def _named(figure: Figure, axis: Axes, curves: Mapping[str, object], colours: Mapping[str, str], layout: Layout) -> None:
    """Name curves in their own colour above the panel, where they hide nothing: they lie too close for labels at their ends."""
    handles = [axis.plot([], [], color=colours[label], linewidth=2)[0] for label in curves]
    figure.legend(
        handles,
        list(curves),
        loc="outside upper left",
        ncols=min(len(curves), 6 if layout is WIDE else 2) or 1,
        labelcolor="linecolor",
        handlelength=1.4,
        columnspacing=1.6,
    )


def _latency_axis(axis: Axes, values_ms: Sequence[Floats], limits_ms: Sequence[float], layout: Layout) -> None:
    """From the fastest to the slowest, or a little beyond the objective."""
    low = min([float(values[0]) for values in values_ms] + list(limits_ms))
    high = max([float(values[-1]) for values in values_ms] + list(limits_ms))
    axis.set_xscale("log")
    axis.set_xlim(low * 0.9, high * 1.25)
    marks = [m * 10.0**e for e in range(-1, 7) for m in (1, 2, 3, 5) if low * 0.9 <= m * 10.0**e <= high * 1.25]
    axis.xaxis.set_major_locator(
        FixedLocator(marks if len(marks) < (9 if layout is WIDE else 6) else [m for m in marks if f"{m:g}"[0] in "15"])
    )
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())


@chart
def cost_bars(
    bars: Mapping[str, Mapping[str, float]],
    *,
    tier_colours: Mapping[str, str],
    bounds: Mapping[str, float] | None = None,
    unit: str = "US dollars",
    layout: Layout = WIDE,
) -> Figure:
    """Draw a bar of costs by tier for each label, its total written at its end; `bounds` are marked on it."""
    figure, [axis] = new_figure(layout, rows=1, row_in=0.34 * len(bars) + 0.3)
    labels = list(bars)
    rows = np.arange(len(labels))
    left = np.zeros(len(labels))
    for tier in (tier for tier in tier_colours if any(parts.get(tier) for parts in bars.values())):
        widths = np.array([bars[label].get(tier, 0.0) for label in labels])
        axis.barh(rows, widths, left=left, height=0.62, color=tier_colours[tier], label=tier, linewidth=0)
        left += widths
    reach = float(left.max(initial=0.0)) or 1.0
    for row, total in zip(rows, left, strict=True):
        axis.annotate(f"{total:,.2f}", (total, row), xytext=(5, 0), textcoords="offset points", va="center", color=INK)
    if bounds:
        marks = [bounds.get(label, 0.0) for label in labels]
        axis.vlines(marks, rows - 0.42, rows + 0.42, color=LIMIT, linewidth=1.6, label="lower bound, compute")
        reach = max(reach, *marks)
    axis.set_xlim(0, reach * (1.1 if layout is WIDE else 1.22))
    axis.set_yticks(rows, labels)
    axis.tick_params(axis="y", labelcolor=INK)
    axis.invert_yaxis()
    axis.grid(visible=False, axis="y")
    axis.xaxis.set_major_locator(MaxNLocator(nbins=6 if layout is WIDE else 4))
    axis.set_xlabel(unit)
    handles, names = axis.get_legend_handles_labels()
    order = sorted(range(len(names)), key=lambda index: names[index] not in tier_colours)  # the bound after the tiers
    entries = ([handles[index] for index in order], [names[index] for index in order])
    figure.legend(
        *entries, loc="outside upper left", ncols=5 if layout is WIDE else 2, labelcolor=MUTED, handlelength=1.2, columnspacing=1.6
    )
    return figure


@chart
def batch_sizes(sizes: Mapping[str, Ints], *, layout: Layout = WIDE, colours: Mapping[str, str] | None = None) -> Figure:
    """Draw the share of requests served in batches of each size or smaller; `sizes` counts batches by size, from 0."""
    colours = colours or style.colours(list(sizes))
    figure, [axis] = new_figure(layout, rows=1, row_in=2.3)
    largest = max((counts.size - 1 for counts in sizes.values()), default=1)
    for label, counts in sizes.items():
        requests = np.zeros(largest + 1)
        requests[: counts.size] = counts * np.arange(counts.size)
        share = np.cumsum(requests) / max(1.0, requests.sum())
        axis.plot(np.arange(1, largest + 1), 100 * share[1:], color=colours[label], marker="o", markersize=3, linewidth=1.2)
    _named(figure, axis, sizes, colours, layout)
    axis.set_ylim(0, 102)
    axis.xaxis.set_major_locator(MaxNLocator(nbins=10, integer=True))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} %"))
    axis.set_ylabel("of worker-served requests")
    axis.set_xlabel("served in batches of this size or smaller")
    return figure
