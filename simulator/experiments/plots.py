"""Charts that reports do not have: one figure of many runs as dots, and figures over what was varied."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from simulator.report import style
from simulator.report.style import INK, LIMIT, MUTED, WIDE, Layout, chart, new_figure

Rows = Mapping[str, Mapping[str, float]]
"""By row and label."""
DOTS_APART = 0.6
"""Part of a row's height that its dots are spread over."""
LEAST_MISSED = 1e-5
"""Where the axis of missed shares ends: one request in a hundred thousand, or none."""


@chart
def ratio_dots(rows: Rows, *, unit: str, limit: float | None = None, limit_name: str = "", layout: Layout = WIDE) -> Figure:
    """Draw a dot for each row and label on a logarithmic axis of ratios; a limit is a line across."""
    figure, axis = _dots(rows, layout)
    axis.set_xscale("log")
    values = [value for labels in rows.values() for value in labels.values()] + ([limit] if limit is not None else [])
    low, high = min(values, default=1.0) / 1.15, max(values, default=1.0) * 1.15
    axis.set_xlim(low, high)
    axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)) if high / low > 3 else MaxNLocator(nbins=6))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())
    _limit(axis, limit, limit_name)
    axis.set_xlabel(unit)
    return figure


@chart
def missed_dots(rows: Rows, *, sl_min: float, layout: Layout = WIDE) -> Figure:
    """Draw the share of requests that missed the objective, from attainments; less is further left."""
    figure, axis = _dots({row: {label: missed(share) for label, share in labels.items()} for row, labels in rows.items()}, layout)
    axis.set_xscale("log")
    axis.set_xlim(LEAST_MISSED / 1.5, 1.5)
    axis.xaxis.set_major_locator(LogLocator())
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g} %" + (" or less" if value <= LEAST_MISSED else "")))
    axis.xaxis.set_minor_formatter(NullFormatter())
    _limit(axis, 1 - sl_min, f"SL_min {100 * sl_min:g} %")
    axis.set_xlabel("requests that were late or never answered")
    return figure


def missed(share: float) -> float:
    """Share that missed, not less than the axis shows."""
    return max(LEAST_MISSED, 1 - share)


def _dots(rows: Rows, layout: Layout) -> tuple[Figure, Axes]:
    labels = list(dict.fromkeys(label for row in rows.values() for label in row))
    colours = style.colours(labels)
    figure, [axis] = new_figure(layout, rows=1, row_in=0.34 * len(rows) + 0.3)
    for rank, label in enumerate(labels):
        aside = DOTS_APART * (rank - (len(labels) - 1) / 2) / len(labels)  # so that equal ones are all seen
        held = [(row[label], at + aside) for at, row in enumerate(rows.values()) if label in row]
        axis.plot([x for x, _ in held], [y for _, y in held], "o", color=colours[label], markersize=4)
    axis.set_yticks(np.arange(len(rows)), list(rows))
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.tick_params(axis="y", labelcolor=INK)
    _named(figure, labels, layout, marker="o")
    return figure, axis


@chart
def lines(
    panels: Mapping[str, Mapping[str, Sequence[float | None]]],
    *,
    marks: Sequence[str],
    unit: str,
    limits: Mapping[str, float] | None = None,
    layout: Layout = WIDE,
) -> Figure:
    """Draw figures by what was varied: a panel for each figure, a line for each label, a mark on x for each value."""
    labels = list(dict.fromkeys(label for panel in panels.values() for label in panel))
    colours = style.colours(labels)
    figure, axes = new_figure(layout, rows=len(panels), row_in=1.3, share_y=False)
    at = np.arange(len(marks))
    for axis, (title, panel) in zip(axes, panels.items(), strict=True):
        for label, values in panel.items():
            heights = [np.nan if value is None else value for value in values]
            axis.plot(at, heights, color=colours[label], marker="o", markersize=4, linewidth=1.3)
        axis.set_title(title)
        axis.yaxis.set_major_locator(MaxNLocator(nbins=4))
        limit = (limits or {}).get(title)
        if limit is not None:
            axis.axhline(limit, color=LIMIT, linewidth=0.9, linestyle=(0, (4, 2)))
    axes[0].set_xlim(-0.3, len(marks) - 0.7)
    axes[-1].set_xticks(at, list(marks))
    axes[-1].set_xlabel(unit)
    _named(figure, labels, layout)
    return figure


def _limit(axis: Axes, limit: float | None, name: str) -> None:
    if limit is None:
        return
    axis.axvline(limit, color=LIMIT, linewidth=1.0, linestyle=(0, (4, 2)))
    axis.annotate(
        name,
        (limit, 0.0),
        xycoords=("data", "axes fraction"),
        xytext=(3, 3),
        textcoords="offset points",
        color=LIMIT,
        va="bottom",
        ha="left",
    )


def _named(figure: Figure, labels: Sequence[str], layout: Layout, *, marker: str | None = None) -> None:
    colours = style.colours(list(labels))
    handles = [Line2D([], [], color=colours[label], marker=marker, linestyle="" if marker else "-", linewidth=2) for label in labels]
    columns = min(len(labels), 5 if layout is WIDE else 2) or 1
    figure.legend(handles, list(labels), loc="outside upper left", ncols=columns, labelcolor=MUTED, handlelength=1.2, columnspacing=1.4)
