"""What the policy benchmark says: a table against the targets, a table of everything, and two pictures a profile."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from matplotlib.figure import Figure

from simulator.experiments.cells import Outcome
from simulator.experiments.plots import missed_dots, ratio_dots
from simulator.experiments.tables import markdown, number, percent
from simulator.summary import Summary

MOST_OVER_CLAIRVOYANT, LEAST_SAGEMAKER_RATIO = 1.20, 7.8
LEAST_ATTAINMENT, LEAST_WORST_HOUR = 0.995, 0.98
LEAST_MEAN_RPS = 50.0
"""The target against `clairvoyant` holds for loads of at least this mean."""
CLAIRVOYANT, SAGEMAKER, PAPER, ON_DEMAND, MARK = "clairvoyant", "sagemaker", "mark-paper", "mark-on-demand", "mark"
Runs = Mapping[str, Summary]
"""By policy, of one load and profile."""


def by_load(outcomes: Sequence[Outcome], profile: str) -> dict[str, dict[str, Summary]]:
    """Return what ran on a profile: by load, by policy."""
    loads: dict[str, dict[str, Summary]] = {}
    for outcome in outcomes:
        if outcome.group == profile and outcome.summary is not None:
            loads.setdefault(outcome.value, {})[outcome.policy] = outcome.summary
    return loads


def page_section(outcomes: Sequence[Outcome]) -> str:
    """Return the tables of every profile as Markdown."""
    parts: list[str] = []
    for profile in dict.fromkeys(outcome.group for outcome in outcomes):
        loads = by_load(outcomes, profile)
        refused = [f"{o.policy} on {o.value}: {o.refused}" for o in outcomes if o.group == profile and o.refused]
        parts += [
            f"#### {profile}, against the targets",
            markdown(*targets_table(loads)),
            f"#### {profile}, all policies",
            markdown(*full_table(loads)),
            *(["Cannot be simulated: " + "; ".join(refused) + "."] if refused else []),
        ]
    return "\n\n".join(parts)


def full_table(loads: Mapping[str, Runs]) -> tuple[list[str], list[list[str]]]:
    """Return a row for each load and policy."""
    header = [
        "load",
        "policy",
        "cost / clairvoyant",
        "cost / bound",
        "SageMaker / ours, compute",
        "all-in",
        "attainment",
        "worst hour",
        "spilled",
        "$/million, compute",
        "all-in",
    ]
    rows = [
        [
            load,
            policy,
            number(ratio(s, runs.get(CLAIRVOYANT), "compute")),
            number(s.cost_over_bound),
            sagemaker_ratio(s, runs.get(SAGEMAKER), "compute"),
            sagemaker_ratio(s, runs.get(SAGEMAKER), "total"),
            percent(s.slo_attainment, digits=3),
            percent(s.worst_hour_attainment),
            percent(s.spill_share),
            number(s.per_million_usd.get("compute")),
            number(s.per_million_usd.get("total")),
        ]
        for load, runs in loads.items()
        for policy, s in runs.items()
    ]
    return header, rows


def targets_table(loads: Mapping[str, Runs]) -> tuple[list[str], list[list[str]]]:
    """Return a row for each load with what has a target; a figure that misses it is bold."""
    header = [
        "load",
        "mean, requests/s",
        f"{ON_DEMAND} / clairvoyant",
        f"{ON_DEMAND}: attainment",
        "worst hour",
        f"SageMaker / {MARK}, compute",
        "all-in",
        f"{MARK}: attainment",
        "worst hour",
        f"{PAPER} / {MARK}, compute",
        f"{PAPER}: attainment",
    ]
    return header, [[load, *_target_cells(runs)] for load, runs in loads.items()]


def _target_cells(runs: Runs) -> list[str]:
    ours, spot, paper = runs.get(ON_DEMAND), runs.get(MARK), runs.get(PAPER)
    mean_rps = max((mean_rate_rps(s) for s in runs.values()), default=0.0)
    over = ratio(ours, runs.get(CLAIRVOYANT), "compute")
    times = ratio(runs.get(SAGEMAKER), spot, "compute")
    dearer = ratio(paper, spot, "compute")
    worse = paper is None or spot is None or paper.slo_attainment <= spot.slo_attainment
    return [
        f"{mean_rps:,.0f}",
        _bold(number(over), over is not None and over > MOST_OVER_CLAIRVOYANT and mean_rps >= LEAST_MEAN_RPS),
        *_service_cells(ours),
        _bold(sagemaker_ratio(spot, runs.get(SAGEMAKER), "compute"), times is not None and times < LEAST_SAGEMAKER_RATIO),
        sagemaker_ratio(spot, runs.get(SAGEMAKER), "total"),
        *_service_cells(spot),
        _bold(number(dearer), dearer is not None and dearer <= 1),
        _bold(percent(None if paper is None else paper.slo_attainment, digits=3), not worse),
    ]


def _service_cells(s: Summary | None) -> list[str]:
    if s is None:
        return ["–", "–"]
    hour = s.worst_hour_attainment
    return [
        _bold(percent(s.slo_attainment, digits=3), s.slo_attainment < LEAST_ATTAINMENT),
        _bold(percent(hour), hour is not None and hour < LEAST_WORST_HOUR),
    ]


def _bold(text: str, is_missed: bool) -> str:
    return f"**{text}**" if is_missed else text


def mean_rate_rps(s: Summary) -> float:
    """Mean rate over the time that the trace knows."""
    return s.requests / max(1.0, s.simulated_s - s.missing_s)


def ratio(dearer: Summary | None, cheaper: Summary | None, part: str) -> float | None:
    """Return one's cost over the other's; None where it is not known."""
    if dearer is None or cheaper is None or cheaper.cost_usd[part] <= 0:
        return None
    return dearer.cost_usd[part] / cheaper.cost_usd[part]


def sagemaker_ratio(ours: Summary | None, sagemaker: Summary | None, part: str) -> str:
    """Return SageMaker's cost over ours, starred where SageMaker misses the objective: it then does less for its price."""
    value = ratio(sagemaker, ours, part)
    if value is None or sagemaker is None or ours is sagemaker:
        return "–"
    return number(value) + ("" if sagemaker.slo_attainment >= sagemaker.sl_min else "*")


def charts(outcomes: Sequence[Outcome]) -> Iterator[tuple[str, str, Figure]]:
    """Draw, for each profile, costs over clairvoyant and missed shares: a name, what it shows, and the figure."""
    for profile in dict.fromkeys(outcome.group for outcome in outcomes):
        loads = by_load(outcomes, profile)
        if not loads:
            continue
        costs = {
            load: {policy: value for policy, s in runs.items() if (value := ratio(s, runs.get(CLAIRVOYANT), "compute"))}
            for load, runs in loads.items()
        }
        if any(costs.values()):
            figure = ratio_dots(
                costs,
                unit="compute cost over clairvoyant's",
                limit=MOST_OVER_CLAIRVOYANT,
                limit_name=f"{MOST_OVER_CLAIRVOYANT:g}, target of {ON_DEMAND}",
            )
            yield f"policy-{profile}-cost", f"compute cost over clairvoyant's by load and policy, {profile}", figure
        shares = {load: {policy: s.slo_attainment for policy, s in runs.items()} for load, runs in loads.items()}
        sl_min = next(s.sl_min for runs in loads.values() for s in runs.values())
        yield f"policy-{profile}-missed", f"share of requests that missed the objective, {profile}", missed_dots(shares, sl_min=sl_min)
