"""Judge forecasters by what they would have said: rolling back-test, pinball loss, promotion rule.

Decides whether a challenger serves. Must not know how any forecast was made: a forecast is numbers by quantile.

A history is the highest window rate (requests/s) of each past step, oldest first, None where nothing is known.
An origin `o` stands for the instant at which `history[:o]` is known; its forecast covers steps `o, o+1, ...`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

QUANTILES = (0.5, 0.8, 0.9, 0.95, 0.98, 0.99)

History = Sequence[float | None]
Rates = dict[float, tuple[float, ...]]
"""Quantile to one rate per step ahead, as in `Forecast.rates_rps`."""

BACKTEST_ORIGINS_MIN = 8
"""With fewer origins the losses say more about luck than about forecasters."""
BACKTEST_ORIGINS_MAX = 60
"""More origins change the ranking little and cost time in every control cycle."""
PROMOTION_MARGIN = 0.02
"""A challenger must be this much better: a tie is not worth the dependence on a trained model."""


def pinball_by_step_rps(forecasts: Mapping[int, Rates], history: History) -> tuple[float | None, ...]:
    """Mean pinball loss over quantiles and origins, by step ahead; None where no outcome is known.

    The loss of the q-quantile `f` at outcome `y` is `q (y - f)` if y >= f, else `(1 - q) (f - y)`: the mean is least
    for the true quantile, so a forecaster cannot win by being cautious.

    >>> flat = {q: (2.0,) for q in QUANTILES}
    >>> [round(loss or 0, 3) for loss in pinball_by_step_rps({1: flat}, [2.0, 3.0])]
    [0.853]
    """
    losses = _pinball_losses(forecasts, history)
    return tuple(sum(step) / len(step) if step else None for step in losses)


def pinball_loss_rps(forecasts: Mapping[int, Rates], history: History) -> float | None:
    """Mean pinball loss over everything forecast whose outcome is known; None when nothing is.

    >>> exact = {q: (2.0, 3.0) for q in QUANTILES}
    >>> pinball_loss_rps({1: exact}, [9.0, 2.0, 3.0]), pinball_loss_rps({1: exact}, [9.0])
    (0.0, None)
    """
    losses = [loss for step in _pinball_losses(forecasts, history) for loss in step]
    return sum(losses) / len(losses) if losses else None


def _pinball_losses(forecasts: Mapping[int, Rates], history: History) -> list[list[float]]:
    steps = max((len(rates[QUANTILES[0]]) for rates in forecasts.values()), default=0)
    losses: list[list[float]] = [[] for _ in range(steps)]
    for origin, rates in forecasts.items():
        for ahead, outcome in enumerate(history[origin : origin + steps]):
            if outcome is not None:
                errors = [(quantile, outcome - path[ahead]) for quantile, path in rates.items()]
                losses[ahead].append(sum(max(q * error, (q - 1) * error) for q, error in errors) / len(errors))
    return losses


def backtest_origins(first: int, end: int, limit: int = BACKTEST_ORIGINS_MAX) -> tuple[int, ...]:
    """At most `limit` origins in `[first, end)`, evenly spaced, the last one included.

    >>> backtest_origins(3, 6), backtest_origins(0, 100, limit=4), backtest_origins(4, 4)
    ((3, 4, 5), (24, 49, 74, 99), ())
    """
    stride = max(1, -(-(end - first) // limit))
    return tuple(range(end - 1, first - 1, -stride))[::-1]


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """Whether a challenger serves, and why."""

    wins: bool
    reason: str


def judge_challenger(challenger: str, losses_rps: Mapping[str, float], *, margin: float = PROMOTION_MARGIN) -> Verdict:
    """Let a challenger serve only if it beats the best other forecaster by `margin` on the same back-test.

    >>> judge_challenger("lstm", {"lstm": 0.9, "persistence": 1.0, "damped_trend": 1.2}).reason
    'lstm beats persistence: loss 0.9 rps against 1 rps'
    >>> judge_challenger("lstm", {"lstm": 0.99, "persistence": 1.0}).wins
    False
    """
    rivals = {name: loss for name, loss in losses_rps.items() if name != challenger}
    if challenger not in losses_rps or not rivals:
        return Verdict(wins=False, reason=f"{challenger} cannot be compared: no known outcome in the back-test")
    best = min(rivals, key=lambda name: rivals[name])
    ours, theirs = losses_rps[challenger], rivals[best]
    # Strictly better even with no margin: where every forecast is exact, the simple one serves.
    wins = ours < theirs * (1 - margin)
    needed = f", needs {margin:.0%} less" if margin and not wins else ""
    return Verdict(
        wins=wins,
        reason=f"{challenger} {'beats' if wins else 'does not beat'} {best}: loss {ours:.3g} rps against {theirs:.3g} rps{needed}",
    )
