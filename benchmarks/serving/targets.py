"""The benchmark's own verdict: what markserve was meant to reach, against what was measured."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Entry = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One target; `is_met` is None where the results do not tell."""

    target: str
    measured: str
    is_met: bool | None

    @property
    def word(self) -> str:
        """For the table."""
        return {True: "met", False: "**missed**", None: "not measured"}[self.is_met]


def ratio_to(results: Entry, rival: str) -> float | None:
    """Return markserve's maximum over a peer's, from markserve's maxima just before and just after that peer; None without both."""
    rival_rps = results["contestants"].get(rival, {}).get("max_rps")
    if not rival_rps:
        return None
    ours = _beside(results, rival)
    return statistics.fmean(ours) / rival_rps if ours else None


def _beside(results: Entry, rival: str) -> list[float]:
    """Give the last maximum measured before the peer and the first after it."""
    first = results["contestants"].get("markserve", {})
    at = results["contestants"][rival]["at"]
    maxima = [(one["at"], one["max_rps"]) for one in ({"at": first.get("at", 0.0), "max_rps": first.get("max_rps")}, *results["rechecks"])]
    known = sorted((when, rps) for when, rps in maxima if rps)
    return [rps for when, rps in known if when <= at][-1:] + [rps for when, rps in known if when > at][:1]


def model_p50_s(entry: Entry) -> float:
    """Return the model's own time for one row: the smaller of those measured before and after the server."""
    return min(float(entry[when]["latency_s"]["1"]) for when in ("ceiling_before", "ceiling_after") if when in entry)


def ceiling_rps(entry: Entry) -> float:
    """Return the mean of the model's ceilings before and after."""
    return statistics.fmean(entry[when]["ceiling_rps"] for when in ("ceiling_before", "ceiling_after") if when in entry)


def verdicts(results: Entry) -> list[Verdict]:
    """Judge every target that concerns serving."""
    ours = results["contestants"].get("markserve", {})
    if not ours.get("max_rps"):
        return [Verdict(target="a maximum rate for markserve", measured="none", is_met=None)]
    return [*_against_peers(results), *_alone(ours)]


def _against_peers(results: Entry) -> list[Verdict]:
    ratios = {name: ratio for name in results["contestants"] if name != "markserve" and (ratio := ratio_to(results, name))}
    python = {name: ratio for name, ratio in ratios.items() if results["contestants"][name]["front"] == "python"}
    return [
        _least("maximum rate >= the best peer's", ratios, 1.0),
        _least("stretch: 1.10 x the best peer's", ratios, 1.1),
        _least("maximum rate >= 1.5 x the best peer's with a Python front", python, 1.5),
    ]


def _least(target: str, ratios: Mapping[str, float], wanted: float) -> Verdict:
    if not ratios:
        return Verdict(target=target, measured="no peer measured", is_met=None)
    name = min(ratios, key=ratios.__getitem__)
    return Verdict(target=target, measured=f"{ratios[name]:.2f} x {name}", is_met=ratios[name] >= wanted)


def _alone(ours: Entry) -> list[Verdict]:
    share = ours["max_rps"] / ceiling_rps(ours)
    goodput = ours["overload"]["goodput_rps"] / ours["max_rps"]
    low = ours["low"]["p50_s"]
    overhead_s = None if low is None else low - model_p50_s(ours)
    runs = [ours["low"], ours["at_maximum"], *ours["levels"].values()]
    faults = {kind: sum(run[kind] for run in runs) for kind in ("wrong", "lost", "doubled")}
    for kind in ("wrong", "doubled"):
        faults[kind] += ours["overload"][kind]
    before, during = ours["levels"]["0.8"]["rss_bytes"], ours["overload"]["rss_bytes"]
    return [
        Verdict(target="maximum rate >= 0.85 of the model's ceiling", measured=f"{share:.2f}", is_met=share >= 0.85),
        Verdict(target="goodput at 150 % overload >= 90 % of the maximum", measured=f"{goodput:.0%}", is_met=goodput >= 0.9),
        Verdict(
            target="p50 at 10/s <= 1.5 ms above the model's own time",
            measured="no answer" if overhead_s is None else f"{overhead_s * 1000:.2f} ms",
            is_met=overhead_s is not None and overhead_s <= 0.0015,
        ),
        Verdict(
            target="no reply wrong, lost or doubled",
            measured=", ".join(f"{n} {kind}" for kind, n in faults.items()),
            is_met=not any(faults.values()),
        ),
        Verdict(
            target="memory bounded: under overload <= 1.3 x that at 80 %",
            measured=f"{during >> 20} MiB against {before >> 20} MiB",
            is_met=during <= 1.3 * before,
        ),
    ]
