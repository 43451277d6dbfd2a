"""The benchmark's tables and plots."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from markserve.core.backtest import QUANTILES
from markserve.forecasters.rolling import CHAMPION, Judgement

if TYPE_CHECKING:
    from benchmarks.forecast import TraceResult

PAGE, BEGIN, END = "forecasting.md", "<!-- results: begin -->", "<!-- results: end -->"
FIXED = ("persistence x 1.2", "MArk's recipe")
REFERENCE = "persistence"
DISTANCES = ("1", "3", "10", "60")
LAUNCH = "launch"


def write_report(results: Sequence[TraceResult], out: Path | None) -> None:
    """Print the tables, or put them into the page and draw the plots."""
    text = "\n".join(_tables(results))
    if out is None:
        print(text)  # noqa: T201  # a benchmark's output
        return
    page = out / PAGE
    found = page.read_text(encoding="utf-8")
    page.write_text(re.sub(f"{BEGIN}.*{END}", lambda _: f"{BEGIN}\n{text}\n{END}", found, flags=re.DOTALL), encoding="utf-8")
    _plots(results, out / "img")


def _one(result: TraceResult, name: str, ahead: str) -> Judgement | None:
    return next((one for one in result.judged if (one.forecaster, one.ahead) == (name, ahead)), None)


def _names(results: Sequence[TraceResult]) -> list[str]:
    found = dict.fromkeys(one.forecaster for result in results for one in result.judged)
    return [CHAMPION, *(name for name in found if name != CHAMPION)]


def _ratio(result: TraceResult, name: str, ahead: str, quantile: float | None) -> float | None:
    """Cost (or with no quantile the mean pinball loss) over persistence's."""
    one, base = _one(result, name, ahead), _one(result, REFERENCE, ahead)
    if one is None or base is None:
        return None
    ours, theirs = (
        (one.pinball_rps, base.pinball_rps) if quantile is None else (one.newsvendor_rps[quantile], base.newsvendor_rps[quantile])
    )
    return ours / theirs if theirs > 0 else None


def _tables(results: Sequence[TraceResult]) -> list[str]:
    traces = [result.trace for result in results]
    lines = ["", "| trace | minutes (missing) | mean rate | rows | judged minutes | champion was |", "|---|---|---|---|---|---|"]
    for r in results:
        judged = _one(r, CHAMPION, "1")
        served = ", ".join(
            f"{name} {share:.0%}" for name, share in sorted(r.served.items(), key=lambda item: -item[1])[:3] if share >= 0.005
        )
        rows = "requests" if r.row_s is None else f"{r.row_s:g} s"
        lines.append(
            f"| {r.trace} | {r.steps:,} ({r.missing:,}) | {r.mean_rps:.2f}/s | {rows} | {judged.origins if judged else 0:,} | {served} |"
        )
    for quantile in (0.8, 0.9, 0.95):
        lines += ["", f"Cost at the {quantile:.0%} quantile, 3 to 10 minutes ahead, over persistence's:", ""]
        lines += _grid(results, _names(results), lambda r, n, q=quantile: _ratio(r, n, LAUNCH, q))
    for ahead in DISTANCES:
        lines += ["", f"Mean pinball loss {ahead} min ahead, over persistence's:", ""]
        names = [name for name in _names(results) if name not in FIXED]
        lines += _grid(results, names, lambda r, n, a=ahead: _ratio(r, n, a, None))
    lines += ["", "sMAPE of the median:", "", f"| forecaster, minutes ahead | {' | '.join(traces)} |", "|---" * (len(traces) + 1) + "|"]
    for name in (CHAMPION, REFERENCE):
        for ahead in DISTANCES:
            cells = [f"{one.smape:.1%}" if (one := _one(r, name, ahead)) else "-" for r in results]
            lines.append(f"| {name}, {ahead} | {' | '.join(cells)} |")
    lines += ["", "Share of outcomes at or below each of the champion's quantiles:", ""]
    lines += [f"| trace, minutes ahead | {' | '.join(f'{q:.0%}' for q in QUANTILES)} |", "|---" * (len(QUANTILES) + 1) + "|"]
    for r in results:
        for ahead in DISTANCES:
            if one := _one(r, CHAMPION, ahead):
                lines.append(f"| {r.trace}, {ahead} | {' | '.join(f'{one.coverage[q]:.1%}' for q in QUANTILES)} |")
    return [*lines, *_rivals(results), *_targets(results), ""]


def _grid(results: Sequence[TraceResult], names: Sequence[str], value: Any) -> list[str]:
    lines = [f"| | {' | '.join(result.trace for result in results)} | mean |", "|---" * (len(results) + 2) + "|"]
    for name in names:
        found = [value(result, name) for result in results]
        known = [ratio for ratio in found if ratio is not None]
        mean = f"{np.mean(known):.3f}" if len(known) == len(found) else "-"
        lines.append(f"| {name} | {' | '.join('-' if ratio is None else f'{ratio:.3f}' for ratio in found)} | {mean} |")
    return lines


def _rivals(results: Sequence[TraceResult]) -> list[str]:
    names = list(dict.fromkeys(one.forecaster for result in results for one in result.rivals))
    if not names:
        return []
    lines = [
        "",
        "At the few origins at which statsforecast's models were fitted anew, cost at 90 %, 3 to 10 minutes ahead, over persistence's:",
        "",
    ]

    def ratio(result: TraceResult, name: str) -> float | None:
        at_launch = {one.forecaster: one.newsvendor_rps[0.9] for one in result.rivals if one.ahead == LAUNCH}
        return at_launch[name] / at_launch[REFERENCE] if name in at_launch and at_launch[REFERENCE] > 0 else None

    return lines + _grid(results, names, ratio)


def _targets(results: Sequence[TraceResult]) -> list[str]:
    lines = ["", "Targets:", "", "| target | found | met |", "|---|---|---|"]
    single = [name for name in _names(results) if name not in (CHAMPION, "combination", *FIXED)]
    worst, where = max(_regret(r, single) for r in results)
    rows = [
        (
            "champion's cost at 90 % <= the best single one's on every trace, within 1 %",
            f"at worst {worst - 1:+.1%} ({where})",
            worst <= 1.01,
        )
    ]
    for rival in FIXED:
        gains = [1 - _cost(r, CHAMPION, q) / _cost(r, rival, q) for r in results for q in (0.9,) if _one(r, rival, LAUNCH)]
        if gains:
            rows.append((f">= 15 % below {rival} on average", f"{np.mean(gains):.1%} below", float(np.mean(gains)) >= 0.15))
    long = [r for r in results if r.steps >= 3 * 1440]
    if long:
        off, where = max(_miscoverage(r) for r in long)
        rows.append(
            ("coverage within 2 points at 1 to 10 min, traces of >= 3 days", f"at worst {100 * off:.1f} points ({where})", off <= 0.02)
        )
    behind, where = max(
        (ratio, f"{r.trace}, {a} min") for r in results for a in (LAUNCH, *DISTANCES) if (ratio := _ratio(r, CHAMPION, a, 0.9))
    )
    rows.append(("champion nowhere more than 2 % above persistence", f"at worst {behind - 1:+.1%} ({where})", behind <= 1.02))
    return lines + [f"| {target} | {found} | {'yes' if is_met else 'no'} |" for target, found, is_met in rows]


def _cost(result: TraceResult, name: str, quantile: float) -> float:
    one = _one(result, name, LAUNCH)
    return one.newsvendor_rps[quantile] if one else float("nan")


def _regret(result: TraceResult, names: Sequence[str]) -> tuple[float, str]:
    base = _one(result, CHAMPION, LAUNCH)
    # A forecaster that could forecast only a part of the time was judged on other minutes.
    full = [one for name in names if (one := _one(result, name, LAUNCH)) and base and one.origins >= 0.98 * base.origins]
    best = min(full, key=lambda one: one.newsvendor_rps[0.9])
    return _cost(result, CHAMPION, 0.9) / best.newsvendor_rps[0.9], f"{result.trace}, best {best.forecaster}"


def _miscoverage(result: TraceResult) -> tuple[float, str]:
    found = [
        (abs(one.coverage[q] - q), f"{result.trace}, {a} min, {q:.0%}")
        for a in ("1", "3", "10")
        for q in QUANTILES
        if (one := _one(result, CHAMPION, a))
    ]
    return max(found)


def _plots(results: Sequence[TraceResult], folder: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    names = [name for name in _names(results) if name != REFERENCE]
    figure, axes = plt.subplots(figsize=(9, 0.36 * len(names) + 1))
    for offset, result in enumerate(results):
        ratios = [_ratio(result, name, LAUNCH, 0.9) for name in names]
        axes.scatter(
            [np.nan if ratio is None else ratio for ratio in ratios],
            range(len(names)),
            label=result.trace,
            s=28,
            alpha=0.8,
            marker="osDv^P"[offset % 6],
        )
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0.5, 2.2)
    axes.set_xlabel("cost at the 90 % quantile, 3 to 10 minutes ahead, over persistence's (beyond 2.2 not shown)")
    axes.legend(fontsize=7)
    axes.grid(axis="x", alpha=0.3)
    figure.tight_layout()
    figure.savefig(folder / "forecast-cost.png", dpi=80)
    plt.close(figure)
    figure, axes = plt.subplots(figsize=(7, 3.6))
    for result in results:
        if one := _one(result, CHAMPION, LAUNCH):
            axes.plot(range(len(QUANTILES)), [100 * (one.coverage[q] - q) for q in QUANTILES], marker="o", label=result.trace)
    axes.axhspan(-2, 2, alpha=0.1)
    axes.set_xticks(range(len(QUANTILES)), [f"{q:.0%}" for q in QUANTILES])
    axes.set_ylabel("coverage minus quantile, points")
    axes.set_xlabel("champion's quantile, 3 to 10 minutes ahead")
    axes.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(folder / "forecast-coverage.png", dpi=80)
    plt.close(figure)
