"""Rolling back-test: go through a history as the product would, keep what everybody said, and judge it afterwards."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from markserve.core.backtest import QUANTILES, Rates
from markserve.forecasters.bank import OWN, LearnedForecast, Terms, new_state, step
from markserve.forecasters.scores import LAUNCH_STEPS, pinball
from markserve.forecasters.series import DAYS_KEPT, Floats, Ints

CHAMPION = "champion"
"""What the champion rule served."""
JUDGED_AHEAD = (1, 3, 10, 60)
"""Steps ahead that tables show: at once, what a launch reaches, what it still serves, and the horizon."""
PreparedForecasts = Callable[[Sequence[int]], Mapping[int, Rates]]
"""A trained forecaster over the whole history: rates by origin."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rolled:
    """What was said, by whom.

    Attributes
    ----------
    origins
        At which forecasts were kept.
    ahead
        Steps ahead that were kept.
    said
        Rates by forecaster, (origin, step ahead, quantile); NaN where one could not forecast.
    served_by
        Forecaster that the champion rule let serve, by origin.
    """

    origins: Ints
    ahead: Ints
    said: Mapping[str, Floats]
    served_by: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Judgement:
    """How one forecaster did at one distance."""

    forecaster: str
    ahead: str
    """Steps ahead, or a range of them."""
    origins: int
    pinball_rps: float
    """Mean over the quantiles."""
    newsvendor_rps: Mapping[float, float]
    """Cost by buying quantile, in requests/s spilled at the spill price; the pinball loss at that quantile."""
    coverage: Mapping[float, float]
    """Share of outcomes at or below each quantile."""
    smape: float
    """Of the median: mean of 2 |y - f| / (y + f)."""


def roll(
    rates_rps: Floats,
    *,
    terms: Terms,
    since_s: float,
    quantile: float,
    first_kept: int,
    learned: Mapping[str, PreparedForecasts] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Rolled:
    """Go through the history step by step; keep forecasts from origin `first_kept` on."""
    state = new_state(terms, since_s)
    launch = range(LAUNCH_STEPS[0], LAUNCH_STEPS[1] + 1)
    ahead = np.array([h for h in state.ahead if h in JUDGED_AHEAD or h in launch], dtype=np.int64)
    columns = [state.ahead.index(int(h)) for h in ahead]
    origins = np.arange(max(first_kept, 1), len(rates_rps))
    said: dict[str, Floats] = {}
    served_by: list[str] = []
    for origin in range(1, len(rates_rps)):
        first = max(0, origin - DAYS_KEPT * terms.day)
        made = step(
            state,
            rates_rps[first:origin],
            terms=terms,
            quantile=quantile,
            until_s=since_s + origin * terms.step_s,
            learned={name: partial(_shifted, forecast, first) for name, forecast in (learned or {}).items()},
        )
        if progress is not None:
            progress(origin)
        if origin < origins[0]:
            continue
        row = origin - origins[0]
        served_by.append(made.forecaster)
        _keep(said, CHAMPION, row, len(origins), np.array([made.rates_rps[q] for q in QUANTILES]).T[ahead - 1])
        if made.forecaster != "none":
            slot = state.pending[state.until_step % len(state.pending_at)]
            for position, name in enumerate(state.names):
                _keep(said, name, row, len(origins), slot[position, columns].astype(np.float64) ** 2)
    return Rolled(origins=origins, ahead=ahead, said=said, served_by=tuple(served_by))


def _shifted(forecast: LearnedForecast, first: int, origins: Sequence[int]) -> Mapping[int, Rates]:
    return {origin - first: rates for origin, rates in forecast([origin + first for origin in origins]).items()}


def _keep(said: dict[str, Floats], name: str, row: int, rows: int, rates: Floats) -> None:
    if name not in said:
        said[name] = np.full((rows, *rates.shape), np.nan)
    said[name][row] = rates


def judge(rolled: Rolled, rates_rps: Floats, *, quantiles: Sequence[float], names: Sequence[str] | None = None) -> list[Judgement]:
    """Judge forecasters at each distance, and over the steps that a launch reaches; one that never forecast is left out."""
    near = (rolled.ahead >= LAUNCH_STEPS[0]) & (rolled.ahead <= LAUNCH_STEPS[1])
    groups: list[tuple[str, NDArray[np.bool_]]] = [("launch", near)] if near.any() else []
    groups += [(str(h), rolled.ahead == h) for h in JUDGED_AHEAD if h in rolled.ahead]
    outcome = outcomes(rolled, rates_rps)
    return [
        judgement
        for name in (names or [CHAMPION, *(n for n in rolled.said if n != CHAMPION)])
        if name in rolled.said
        for label, columns in groups
        if (judgement := judge_one(name, label, rolled.said[name][:, columns], outcome[:, columns], quantiles)) is not None
    ]


def outcomes(rolled: Rolled, rates_rps: Floats) -> Floats:
    """Return what came, (origin, step ahead); NaN where unknown or beyond the end."""
    index = rolled.origins[:, None] + rolled.ahead - 1
    return np.where(index < len(rates_rps), rates_rps[np.minimum(index, len(rates_rps) - 1)], np.nan)


def judge_one(name: str, label: str, said: Floats, outcome: Floats, quantiles: Sequence[float]) -> Judgement | None:
    """Judge rates (origin, step ahead, quantile) by what came; None if there is nothing to compare."""
    known = ~np.isnan(outcome) & ~np.isnan(said).any(axis=2)
    if not known.any():
        return None
    y, f = outcome[known][:, None], said[known]
    losses = pinball(y, f).mean(axis=0)
    covered = (y <= f + 1e-9).mean(axis=0)
    bottom = y[:, 0] + f[:, 0]
    smape = np.where(bottom > 0, 2 * np.abs(y[:, 0] - f[:, 0]) / np.where(bottom > 0, bottom, 1.0), 0.0)
    return Judgement(
        forecaster=name,
        ahead=label,
        origins=int(known.any(axis=1).sum()),
        pinball_rps=float(losses.mean()),
        newsvendor_rps={q: float(np.interp(q, QUANTILES, losses)) for q in quantiles},
        coverage={q: float(covered[at]) for at, q in enumerate(QUANTILES)},
        smape=float(smape.mean()),
    )


def known_names(names: Sequence[str]) -> list[str]:
    """Return names that no forecaster bears."""
    return [name for name in names if name not in (*OWN, CHAMPION)]
