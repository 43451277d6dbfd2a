"""Which forecaster serves: the one whose quantiles would have cost least, and not another one every minute.

Decides from losses alone. Must not know how any forecast was made.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from markserve.core.types import require

SWITCH_MARGIN = 0.02
"""A challenger must be this much cheaper than the champion. Below that the difference is luck, and every switch moves the
quantiles that the planner buys for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ChampionChoice:
    """Who serves, and why."""

    champion: str
    reason: str
    switched: bool


def newsvendor_cost(quantile: float, bought: float, demand: float) -> float:
    """Cost of having bought `bought` when `demand` came, in units of the price of spilling one.

    Too much costs a worker's price `c` per unit, too little costs `s - c`: what spilling costs more. With the buying
    quantile `q = (s - c) / s` and divided by `s` this is the pinball loss at `q`.

    >>> round(newsvendor_cost(0.75, 10.0, 8.0), 3), round(newsvendor_cost(0.75, 8.0, 10.0), 3)
    (0.5, 1.5)
    """
    require(0 < quantile < 1, f"quantile must lie within 0 and 1, got {quantile}")
    return (1 - quantile) * (bought - demand) if bought >= demand else quantile * (demand - bought)


def choose_champion(
    costs: Mapping[str, float], *, incumbent: str, fallback: str, quantile: float, preferred: str | None = None
) -> ChampionChoice:
    """Let the cheapest serve; the incumbent stays while nobody is cheaper by `SWITCH_MARGIN`.

    Parameters
    ----------
    costs
        Newsvendor cost by forecaster, over persistence's at the same origins; empty until enough is known.
    fallback
        Serves meanwhile.
    preferred
        Serves unless another one is cheaper by the margin, and comes back without one. An average of good forecasters is: on
        what is yet to come it does better than its score says, and the best of many does worse than its own.

    Examples
    --------
    >>> choose_champion({"linear": 0.95, "persistence": 1.0}, incumbent="persistence", fallback="persistence", quantile=0.9).reason
    'linear costs least at quantile 0.90: 0.950 of persistence, before persistence 1.000'
    >>> choose_champion({"linear": 0.995, "persistence": 1.0}, incumbent="persistence", fallback="persistence", quantile=0.9).champion
    'persistence'
    """
    if not costs:
        reason = f"{fallback} serves: too little is known for a back-test"
        return ChampionChoice(champion=fallback, reason=reason, switched=fallback != incumbent)
    best = min(costs, key=lambda name: costs[name])
    champion = next((name for name in (preferred, incumbent) if name and _stays(name, best, preferred, costs)), best)
    others = sorted((name for name in costs if name != champion), key=lambda name: costs[name])[:2]
    against = ", ".join(f"{name} {costs[name]:.3f}" for name in others)
    verb = "costs least" if champion == best else "serves, nobody being clearly cheaper,"
    reason = f"{champion} {verb} at quantile {quantile:.2f}: {costs[champion]:.3f} of persistence"
    return ChampionChoice(champion=champion, reason=reason + (f", before {against}" if against else ""), switched=champion != incumbent)


def _stays(name: str, best: str, preferred: str | None, costs: Mapping[str, float]) -> bool:
    """Whether nobody is clearly cheaper; against the preferred one, an incumbent must itself be clearly cheaper or cheapest."""
    if name not in costs or costs[name] * (1 - SWITCH_MARGIN) > costs[best]:
        return False
    return preferred is None or name == preferred or preferred not in costs or costs[name] < costs[preferred]
