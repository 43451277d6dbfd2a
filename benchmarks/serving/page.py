"""The results page and its plot, written from the results file alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.serving.targets import ceiling_rps, model_p50_s, ratio_to, verdicts

Entry = Mapping[str, Any]
NOISY_SHARE = 0.05

METHOD = """\
One model, one core for the server with all its processes, another core for the load. The model is an LSTM text classifier in TorchScript
(48 tokens, 512 units) on one torch thread; its ceiling is the highest b / T(b), measured around each server on the server's core. Load is
open-loop: send times are drawn beforehand, latency counts from the scheduled time, connections are kept alive, and each reply is compared
with the output computed beforehand (within 0.001 per score). The maximum is the highest Poisson rate with 98 % of all requests answered
rightly within 200 ms: searched by bisection, confirmed by a longer run. "Bursty" is a two-state MMPP whose bursts send at five times the
quiet rate, given by its mean rate. The ratio divides markserve's maximum by the peer's, with markserve's measured just before and just
after that peer, because the machine drifts. Every peer's batch size and wait were searched over the grid in
`benchmarks/serving/contestants.py`; where the table says "default", they were not. markserve has nothing to set. Repeat it: `make
bench-serving`.
"""

LIMITS = """\
- One core, one model, JSON bodies, one machine: more cores, large tensors and GPUs are not measured here.
- A request without a reply after 2 s is given up, and its connection closed; it counts as missed, never as answered.
- Memory is the sum of the processes' resident sets: shared pages count in each.
- The share of the core in the model is by the clock: a model that was interrupted by its own front counts the interruption.
- KServe is not among the peers: its Python server does not batch, and its batcher is a separate Go agent that no package index carries.
"""


def write(results: Entry, target: Path) -> None:
    """Write the page, and beside it (in `img/`) the plot."""
    target.parent.mkdir(parents=True, exist_ok=True)
    measured = {name: one for name, one in results["contestants"].items() if one.get("max_rps")}
    text = ["# Serving engines compared", "", METHOD, *_caveats(results), ""]
    if measured:
        image = target.parent / "img/serving-benchmark.png"
        image.parent.mkdir(exist_ok=True)
        _plot(measured).savefig(image, dpi=80)
        text += [f"![Maximum rate of each server](img/{image.name})", ""]
    text += ["## Maximum rate and idle latency", "", *_maxima(results, measured), ""]
    text += ["## Latency below the maximum, and beyond it", "", *_levels(measured), ""]
    text += ["## Resources", "", *_resources(measured), ""]
    text += ["## Targets", "", *_table(["target", "measured", ""], [[one.target, one.measured, one.word] for one in verdicts(results)]), ""]
    text += ["## Knobs that were searched", "", *_knobs(results), "", "## What it does not tell", "", LIMITS]
    target.write_text("\n".join(text).rstrip() + "\n", encoding="utf-8")


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (heads, ["---"] * len(heads), *rows)]


def _caveats(results: Entry) -> list[str]:
    lines: list[str] = []
    if results["plan"]["name"] == "quick":
        lines.append(
            "**Quick run**: runs of a few seconds, and markserve measured once, before the peers. "
            "Neighbouring figures may be in another order next time."
        )
    generator = results.get("generator")
    if generator:
        state = "was saturated: the figures say more about it than about the servers" if generator["is_saturated"] else "had room"
        lines.append(
            f"The generator {state}: at {generator['rate_rps']:g}/s against a server that only replies it lagged "
            f"{generator['lag_p99_s'] * 1000:.2f} ms (p99) and worked {generator['busy_share']:.0%} of the time."
        )
    runs = [run for one in results["contestants"].values() for run in _runs(one)]
    noisy = [run for run in runs if run["foreign_share"] > NOISY_SHARE]
    late = [run for run in runs if run["generator_saturated"]]
    if runs and (noisy or late):
        worst = max(run["foreign_share"] for run in runs)
        lines.append(
            f"**The machine was not quiet**: in {len(noisy)} of {len(runs)} runs other programs used more than {NOISY_SHARE:.0%} of "
            f"the server's core (up to {worst:.0%}); in {len(late)} the generator was late."
        )
    return [part for line in lines for part in (line, "")]


def _runs(entry: Entry) -> list[Entry]:
    return [*(entry[key] for key in ("low", "at_maximum", "overload") if key in entry), *entry.get("levels", {}).values()]


def _ms(seconds: float | None) -> str:
    return "over 2,000" if seconds is None else f"{seconds * 1000:.1f}" if seconds < 0.1 else f"{seconds * 1000:.0f}"


def _maxima(results: Entry, measured: Mapping[str, Entry]) -> list[str]:
    def row(name: str, one: Entry) -> list[str]:
        ratio = ratio_to(results, name) if name != "markserve" else None
        low = one["low"]["p50_s"]
        overhead = "-" if low is None else f"{(low - model_p50_s(one)) * 1000:.1f}"
        tuned = one["knobs"] if one["tuned"] else f"{one['knobs']} (default)"
        return [
            one["title"],
            "none" if name == "markserve" else tuned,
            f"{one['max_rps']:.0f}",
            f"{one['max_rps'] / ceiling_rps(one):.2f}",
            "-" if ratio is None else f"{ratio:.2f}",
            overhead,
            f"{one['bursty_max_rps']:.0f}" if one["bursty_max_rps"] else "no tried rate passed",
        ]

    best_first = sorted(measured.items(), key=lambda item: -item[1]["max_rps"])
    heads = [
        "server",
        "knobs",
        "maximum, 1/s",
        "of the ceiling",
        "markserve over it",
        "p50 over the model at 10/s, ms",
        "bursty maximum, 1/s",
    ]
    failed = [f"- {one['title']}: {one['failed']}" for one in results["contestants"].values() if one.get("failed")]
    return [*_table(heads, [row(name, one) for name, one in best_first]), *(["", "Not measured:", "", *failed] if failed else [])]


def _levels(measured: Mapping[str, Entry]) -> list[str]:
    def pair(run: Entry) -> str:
        return f"{_ms(run['p50_s'])} / {_ms(run['p99_s'])}"

    rows = []
    for one in measured.values():
        over = one["overload"]
        failed = over["unanswered"] + over["lost"] + over["errors"]
        fate = f"{over['within']} in time, {over['late']} late, {over['rejected']} refused, {failed} failed"
        levels = [pair(one["levels"][share]) for share in ("0.2", "0.5", "0.8")]
        rows.append([one["title"], *levels, f"{over['goodput_rps'] / one['max_rps']:.0%}", fate])
    heads = ["server", "20 %: p50 / p99, ms", "50 %", "80 %", "goodput at 150 %, of the maximum", "requests at 150 %"]
    return _table(heads, rows)


def _resources(measured: Mapping[str, Entry]) -> list[str]:
    rows = []
    for one in measured.values():
        top = one["at_maximum"]
        model = "-" if top["model_share"] is None else f"{top['model_share']:.0%}"
        batch = "-" if top["mean_batch"] is None else f"{top['mean_batch']:.1f}"
        memory = [one["low"]["rss_bytes"], one["levels"]["0.8"]["rss_bytes"], one["overload"]["rss_bytes"]]
        rows.append(
            [one["title"], model, batch, " / ".join(str(size >> 20) for size in memory), f"{one['ready_s']:.1f}", str(one["restarts"])]
        )
    heads = [
        "server",
        "core's time in the model, at the maximum",
        "mean batch there",
        "RSS at 10/s / 80 % / 150 %, MiB",
        "ready after, s",
        "restarts",
    ]
    return _table(heads, rows)


def _knobs(results: Entry) -> list[str]:
    lines = []
    for one in results["contestants"].values():
        if one.get("tuned"):
            tried = [f"{k['mode']} {k['batch']}/{k['wait_s'] * 1000:g} ms: {k['passed_rps']:.0f}".strip() for k in one["tuned"]["tried"]]
            lines.append(f"- {one['title']}: kept {one['knobs']}. Tried: {'; '.join(tried)}.")
    if not lines:
        return ["None were: defaults."]
    return ["Batch / wait: the rate that passed, 0 where it did not pass 5 % above the best before it.", "", *lines]


def _plot(measured: Mapping[str, Entry]) -> Figure:
    figure = Figure(figsize=(9, 0.5 * len(measured) + 1.6), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    entries = sorted(measured.values(), key=lambda one: float(one["max_rps"]))
    titles = [one["title"] for one in entries]
    colours = ["tab:orange" if title == "markserve" else "tab:blue" for title in titles]
    panels: tuple[tuple[str, Callable[[Entry], float]], ...] = (
        ("highest rate with 98 % within 200 ms, 1/s", lambda one: float(one["max_rps"])),
        ("goodput at 150 % of it, 1/s", lambda one: float(one["overload"]["goodput_rps"])),
    )
    for axis, (label, value) in zip(axes, panels, strict=True):
        bars = axis.barh(titles, [value(one) for one in entries], color=colours)
        axis.bar_label(bars, fmt="{:.0f}", padding=2, fontsize=8)
        axis.set_xlabel(label)
        axis.margins(x=0.12)
    ceilings = [ceiling_rps(one) for one in entries]
    axes[0].axvline(sum(ceilings) / len(ceilings), color="grey", linestyle="--", linewidth=1)
    axes[0].set_title("dashed: the model alone", fontsize=8, loc="right")
    return figure
