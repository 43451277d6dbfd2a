"""Plots of forecasts and back-tests, as small PNG files."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli.console import Problem

if TYPE_CHECKING:
    from markserve.forecasters.rolling import Judgement
    from markserve.messages import ForecastRecord

DPI = 90
BANDS = (("0.5", "0.8", 0.5), ("0.8", "0.9", 0.35), ("0.9", "0.95", 0.25), ("0.95", "0.98", 0.15), ("0.98", "0.99", 0.08))
"""Lower and upper quantile, opacity."""


def fan_chart(record: ForecastRecord, history_rps: Sequence[float], path: Path) -> None:
    """Draw the last hours, and the quantiles of what comes."""
    plt = _pyplot()
    figure, axes = plt.subplots(figsize=(8, 4))
    minutes = record.step_s / 60
    past = [(at - len(history_rps) + 1) * minutes for at in range(len(history_rps))]
    ahead = [(step + 1) * minutes for step in range(len(record.rates_rps["0.5"]))]
    axes.plot(past, history_rps, color="black", linewidth=1, label="highest rate of each step")
    axes.plot(ahead, record.rates_rps["0.5"], color="tab:blue", linewidth=1.5, label="median")
    for low, high, opacity in BANDS:
        axes.fill_between(
            ahead,
            record.rates_rps[low],
            record.rates_rps[high],
            color="tab:blue",
            alpha=opacity,
            linewidth=0,
            label=f"to {float(high):.0%}",
        )
    axes.set_xlabel("minutes from the forecast's origin")
    axes.set_ylabel("requests/s")
    axes.set_title(f"{record.model}, by {record.forecaster}", fontsize=10)
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=7, loc="upper left")
    _save(plt, figure, path)


def cost_chart(judged: Sequence[Judgement], quantile: float, path: Path) -> None:
    """Draw each forecaster's cost over the steps that a launch reaches, cheapest on top."""
    plt = _pyplot()
    costs = {one.forecaster: one.newsvendor_rps[quantile] for one in judged if one.ahead == "launch"}
    names = sorted(costs, key=lambda name: -costs[name])
    figure, axes = plt.subplots(figsize=(7, 0.6 + 0.32 * len(names)))
    axes.barh(names, [costs[name] for name in names], color=["tab:orange" if name == "champion" else "tab:blue" for name in names])
    axes.set_xlabel(f"cost at the {quantile:.0%} quantile, 3 to 10 minutes ahead, requests/s")
    axes.tick_params(labelsize=8)
    _save(plt, figure, path)


def _pyplot() -> Any:
    if importlib.util.find_spec("matplotlib") is None:
        raise Problem("plots need matplotlib", next_step="pip install -e '.[simulate]'")
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _save(plt: Any, figure: Any, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, dpi=DPI)
    plt.close(figure)
