"""How charts look: colours, sizes, and SVG that takes its colours from the page, so that it follows light and dark."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from simulator.service import Floats

Arguments = ParamSpec("Arguments")

INK, MUTED, GRID, PAPER, LOAD, LIMIT = "#1c2126", "#5a636d", "#dfe3e8", "#ffffff", "#c3c9d1", "#b3261e"
ON_DEMAND, SPOT, LAMBDA, PLUMBING = "#3f5a78", "#8fb0cc", "#e0a11b", "#c4c8ce"
SERIES = ("#0072b2", "#d55e00", "#00916e", "#c0659a", "#8a6d00", "#6a51a3", "#7a4a1e", "#5aa5dc", "#f2a65a", "#2f3b46")
"""Okabe and Ito's colours, told apart by the colour-blind, the light ones darkened to be read on white."""
DARK = {
    INK: "#e8eaed",
    MUTED: "#a2abb5",
    GRID: "#30363d",
    PAPER: "#14181c",
    LOAD: "#4a525b",
    LIMIT: "#ff8a80",
    ON_DEMAND: "#6f93bb",
    SPOT: "#b4d0e7",
    LAMBDA: "#f0bb4a",
    PLUMBING: "#5b636c",
    **dict(
        zip(
            SERIES,
            ("#56a8e8", "#ff8c42", "#2fc79c", "#e493c2", "#d9b73c", "#a996ea", "#c98f58", "#a5d2f5", "#ffc591", "#b8c2cc"),
            strict=True,
        )
    ),
}
NAMES = {colour: f"--c{index}" for index, colour in enumerate(DARK)}
"""Each colour's CSS variable on the page."""
PANELS_IN_FULL = 4
USUAL = (
    "mark",
    "mark-paper",
    "reactive",
    "static",
    "sagemaker",
    "clairvoyant",
    "all-lambda",
    "mark-on-demand",
    "mark-paper-on-demand",
)
"""Policies with a colour of their own, the same in every report."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """Size of a chart for one width of screen."""

    name: str
    width_in: float
    font_pt: float
    points: int
    """Most points of a line: more cannot be seen."""

    def points_of(self, panels: int) -> int:
        """Most points of a line among so many panels, so that the page does not grow with them."""
        return self.points * PANELS_IN_FULL // max(PANELS_IN_FULL, panels)


WIDE = Layout(name="wide", width_in=9.2, font_pt=8.0, points=480)
NARROW = Layout(name="narrow", width_in=4.1, font_pt=8.5, points=200)


def colours(labels: Sequence[str]) -> dict[str, str]:
    """Give each label a colour; a policy has its own, the rest take what is left, again from the start when all are gone."""
    taken: dict[str, str] = {label: SERIES[USUAL.index(label)] for label in labels if label in USUAL}
    for label in labels:
        if label not in taken:
            free = [colour for colour in SERIES if colour not in taken.values()]
            taken[label] = free[0] if free else SERIES[len(taken) % len(SERIES)]
    return taken


@contextmanager
def _settings(layout: Layout) -> Iterator[None]:
    settings: dict[Any, Any] = {
        "font.size": layout.font_pt,
        "font.family": ["sans-serif"],
        "font.sans-serif": ["Liberation Sans", "Arial", "Helvetica", "DejaVu Sans"],
        "axes.edgecolor": GRID,
        "axes.labelcolor": MUTED,
        "axes.titlecolor": INK,
        "axes.titlesize": layout.font_pt + 0.5,
        "axes.titlelocation": "left",
        "axes.titleweight": "bold",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.spines.left": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": GRID,
        "grid.linewidth": 0.6,
        "text.color": INK,
        "xtick.color": GRID,
        "ytick.color": GRID,
        "xtick.labelcolor": MUTED,
        "ytick.labelcolor": MUTED,
        "ytick.major.size": 0,
        "xtick.major.size": 3,
        "legend.frameon": False,
        "legend.borderaxespad": 0.2,
        "lines.linewidth": 1.3,
        "lines.solid_capstyle": "butt",
        "figure.facecolor": PAPER,
        "axes.facecolor": "none",
        "svg.fonttype": "none",
        "path.simplify_threshold": 0.3,
        "figure.constrained_layout.h_pad": 0.05,
    }
    with mpl.rc_context(settings):
        yield


def chart(draw: Callable[Arguments, Figure]) -> Callable[Arguments, Figure]:
    """Draw a chart in the house style; `layout` is among its keyword arguments, wide by default."""

    @wraps(draw)
    def styled(*arguments: Arguments.args, **options: Arguments.kwargs) -> Figure:
        layout = options.get("layout", WIDE)
        with _settings(layout if isinstance(layout, Layout) else WIDE):
            figure = draw(*arguments, **options)
            figure.draw_without_rendering()  # lays it out while the settings hold
        return figure

    return styled


def new_figure(layout: Layout, *, rows: int, row_in: float, share_y: bool = True) -> tuple[Figure, list[Axes]]:
    """Return a figure of panels one above the other, over the same x."""
    figure = Figure(figsize=(layout.width_in, rows * row_in + 0.55), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, 1, sharex=True, sharey=share_y, squeeze=False)
    return figure, [row[0] for row in panels]


def time_axis(panels: Sequence[Axes], until_s: float, *, from_s: float = 0.0, layout: Layout = WIDE) -> tuple[float, str]:
    """Label time from the start, in units that suit; return how many seconds a unit has, and its name."""
    unit_s, name = next(
        ((u, n) for u, n in ((86400.0, "days"), (3600.0, "hours"), (60.0, "minutes")) if until_s - from_s >= 3 * u), (1.0, "seconds")
    )
    if unit_s == 86400.0 and until_s - from_s < 4 * unit_s:
        unit_s, name = 3600.0, "hours"
    for panel in panels:
        panel.set_xlim(from_s / unit_s, until_s / unit_s)
        panel.xaxis.set_major_locator(
            MaxNLocator(nbins=9 if layout is WIDE else 5, steps=[1, 2, 3, 6, 10] if name == "hours" else [1, 2, 5, 10])
        )
        panel.grid(visible=False, axis="x")
    panels[-1].set_xlabel(f"{name} from the start")
    return unit_s, name


def thinned(times: Floats, values: Floats, points: int, *, highest: bool = True) -> tuple[Floats, Floats]:
    """Leave at most so many points of a series, each the highest (or lowest) of its neighbourhood, so that no peak is lost."""
    step = -(-values.size // points)
    if step <= 1:
        return times, values
    starts = np.arange(0, values.size, step)
    reduce = np.fmax if highest else np.fmin
    return times[starts], np.asarray(reduce.reduceat(values, starts), np.float64)


def save_png(figure: Figure, path: Path) -> None:
    """Write a chart as a picture on white."""
    figure.savefig(path, dpi=160, format="png", metadata={"Software": None})


def as_svg(figure: Figure, *, name: str, title: str) -> str:
    """Return a chart as inline SVG in the page's colours; `name` must be its own on the page."""
    written = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(written, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = written.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"\s*<metadata>.*?</metadata>|\s*<defs>\s*<style.*?</style>\s*</defs>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"| (width|height)="[\d.]+pt"| version="1.1"', "", svg)
    svg = svg.replace("xlink:href", "href")
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r"<!--.*?-->\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r"\n\s*", "\n", svg)
    svg = re.sub(r' (?:d|x|y|transform)="[^"]*"', lambda found: re.sub(r"(\d+\.\d)\d+", r"\1", found[0]), svg)
    svg = re.sub(r'font: (?:\w+ )?([\d.]+)px [^;"]*', r"font-size: \1px", svg)
    for colour, variable in NAMES.items():
        svg = svg.replace(colour, f"var({variable})")
    return svg.replace("<svg", f'<svg role="img" aria-label="{title}"', 1)
