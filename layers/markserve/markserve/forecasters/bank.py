"""All forecasters side by side, step by step: forecast, score, calibrate, combine, and let the champion serve.

One state goes from cycle to cycle. A step costs the same however long the history is: each forecaster predicts once, the
forecasts whose outcome has just become known are scored, and the error table of one forecaster is made anew.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from types import MappingProxyType

import numpy as np

from markserve.core.backtest import QUANTILES, Rates
from markserve.core.champion import choose_champion
from markserve.core.forecasting import PRIOR_DRIFT, PRIOR_DRIFT_STEPS
from markserve.forecasters import linear
from markserve.forecasters.calibration import calibrate, note_coverage, worst_miscalibration
from markserve.forecasters.points import POINT_FORECASTERS
from markserve.forecasters.residuals import error_table, origins_to_learn_from, standing_of
from markserve.forecasters.scores import combination_weights, costs_of, pinball, score
from markserve.forecasters.series import DAYS_KEPT, Floats, Ints, Series
from markserve.forecasters.state import BankState

LINEAR, COMBINATION = "linear", "combination"
OWN = (*POINT_FORECASTERS, LINEAR, COMBINATION)
"""Forecasters that come with the product and need no training."""
SAFE, REFUGE = "recent_maximum", "persistence"
"""Who serves before anything can be compared, and after a shift of the level that nobody had foreseen."""
GRID = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 15, 20, 25, 30, 40, 50, 60)
"""Steps ahead that are forecast; those between are interpolated."""
REFRESH_STEPS = 60
"""An error table and the regression are at most about so old."""
YOUNG_STEPS = 720
"""Below this length everything due is refreshed in the same step; it is cheap, and much changes."""
FAR_SHARE, FAR_RATIO = 0.08, 2.0
"""A median further off than this share of the root (16 % of the rate), beyond noise, and than so many times persistence's, is far off."""
SURPRISES_IN_A_ROW = 2
SURPRISING_AHEAD = 3
"""Forecasts of so many steps ahead can surprise: up to the first step that a launch reaches, as those one step ahead recover first."""
REPLAYED_STEPS = 180
"""History gone through when there is no state: three hours give first scores, in about a second."""
ADMITTED_STEPS, ADMITTED_ORIGINS = 720, 60
"""A trained forecaster enters with its scores of the last 12 hours, at so many origins."""
LearnedForecast = Callable[[Sequence[int]], Mapping[int, Rates]]
"""A trained forecaster bound to a history: rates by origin, as `ports.LearnedForecaster.forecast` returns them."""
_NORMAL = np.array([NormalDist().inv_cdf(quantile) for quantile in QUANTILES])


@dataclass(frozen=True, kw_only=True, slots=True)
class BankForecast:
    """The forecast that serves, who made it and why, and how all of them have been doing."""

    rates_rps: Rates
    forecaster: str
    reason: str
    costs: Mapping[str, float]
    """Newsvendor cost by forecaster over persistence's, at the steps that a launch reaches; empty until comparable."""
    switched_from: str | None
    calibration_error: float | None
    """Largest distance of a quantile's coverage from its level, beyond chance, over the next 10 steps; None until known."""


def grid(horizon_steps: int) -> list[int]:
    """Return the steps ahead that are forecast for this horizon.

    >>> grid(4), grid(11)[-2:]
    ([1, 2, 3, 4], [10, 11])
    """
    inner = [ahead for ahead in GRID if ahead < horizon_steps]
    return [*inner, horizon_steps]


@dataclass(frozen=True, kw_only=True, slots=True)
class Terms:
    """How time is cut.

    Attributes
    ----------
    day
        Steps per day.
    """

    day: int
    window_s: float
    step_s: float
    horizon_steps: int


def new_state(terms: Terms, until_s: float) -> BankState:
    """Begin; the absolute step counts from the epoch, so that its remainder by a day is the time of day."""
    return BankState.new(list(OWN), grid(terms.horizon_steps), until_s=until_s, until_step=round(until_s / terms.step_s))


class Bank:
    """The forecasters at one origin: a series, and the state that was carried here."""

    def __init__(self, state: BankState, series: Series, *, window_s: float) -> None:
        self._state = state
        self._series = series
        self._ahead: Ints = np.array(state.ahead, dtype=np.int64)
        self._window_s = window_s

    def observe(self, root: float) -> None:
        """Take in the step that has just ended: score what was said of it, and move the calibration."""
        state = self._state
        step = state.until_step
        state.until_step += 1
        if np.isnan(root):
            return
        origins = step - self._ahead + 1
        slots = origins % len(state.pending_at)
        due = state.pending_at[slots] == origins
        if not due.any():
            return
        at = np.flatnonzero(due)
        said = state.pending[slots[at], :, at].astype(np.float64)  # (due step ahead, forecaster, quantile)
        self._notice_surprise(root, said, at)
        score(state, root, said, at)
        calibrate(state, root, said, at)
        note_coverage(state, root, state.served[slots[at], at].astype(np.float64), at)

    def _notice_surprise(self, root: float, said: Floats, at: Ints) -> None:
        """Count the steps in a row of which the champion was far off and persistence, at the same time, was not."""
        state = self._state
        near = said[self._ahead[at] <= SURPRISING_AHEAD]
        if not len(near) or state.champion not in state.names:
            return
        miss, refuge_miss = (np.abs(root - near[:, state.names.index(name), 0]) for name in (state.champion, REFUGE))
        noise = 2 * np.sqrt(0.25 / self._window_s)
        far = bool(((miss > FAR_SHARE * root + noise) & (miss > FAR_RATIO * refuge_miss)).any())
        if far:
            state.surprises = max(state.surprises, 0) + 1
        elif state.surprises >= SURPRISES_IN_A_ROW:
            state.surprises = -1
        else:
            state.surprises = 0

    def refresh(self) -> None:
        """Fit the regression and make error tables anew where they are due: all while young, later the oldest one."""
        state, series = self._state, self._series
        length = len(series)
        due_after = min(REFRESH_STEPS, 1 + length // 20)
        names = [name for name in OWN if name != COMBINATION]
        due = [name for name in names if state.until_step - state.refreshed[state.names.index(name)] >= due_after]
        if not due or length < 3:
            return
        due.sort(key=lambda name: state.refreshed[state.names.index(name)])
        origins = origins_to_learn_from(series)
        for name in due if length < YOUNG_STEPS or state.refreshed[state.names.index(due[0])] < 0 else due[:1]:
            position = state.names.index(name)
            state.refreshed[position] = state.until_step
            if name == LINEAR:
                weights = linear.fit(series, self._ahead)
                if weights is None:
                    continue
                state.weights = weights
            table = error_table(series, origins, self._paths(name, origins), self._ahead)
            state.tables[position], state.trust[position], state.unit[position] = table.quantiles, table.trust, table.unit
        for position, name in enumerate(state.names):
            if name not in names:
                state.unit[position] = state.unit[state.names.index(REFUGE)]

    def _paths(self, name: str, origins: Ints) -> Floats:
        if name != LINEAR:
            return POINT_FORECASTERS[name](self._series, origins, self._ahead)
        if not self._state.weights.size:
            return np.full((len(origins), len(self._ahead)), np.nan)
        return linear.predict(self._series, origins, self._ahead, self._state.weights)

    def _uncalibrated(self, name: str, origins: Ints) -> Floats:
        """Paths of one of our own with the quantiles of its errors, (origin, step ahead, quantile)."""
        state, series = self._state, self._series
        position = state.names.index(name)
        paths = self._paths(name, origins)[:, :, None]
        drift = PRIOR_DRIFT**2 * np.minimum(self._ahead, PRIOR_DRIFT_STEPS)[:, None]
        prior = np.sqrt(0.25 / self._window_s + drift * paths**2) * _NORMAL
        learnt = state.tables[position][standing_of(series, origins)]
        return np.asarray(paths + prior + state.trust[position] * (learnt - prior))

    def admit(self, name: str, forecast: LearnedForecast) -> None:
        """Take in a trained forecaster, with the score of what it would have said over the last hours.

        It is compared with persistence as it would have been at the same origins with today's error table, which flatters
        persistence a little.
        """
        state, series = self._state, self._series
        position = state.admit(name)
        last = len(series) - int(self._ahead[-1])
        first = max(1, last - ADMITTED_STEPS)
        stride = max(1, -(-(last - first) // ADMITTED_ORIGINS))
        origins = np.arange(first, max(first, last), stride)
        made = forecast([int(origin) for origin in origins])
        origins = np.array([origin for origin in origins if int(origin) in made], dtype=np.int64)
        if not len(origins):
            return
        outcome = series.at(origins[:, None] + self._ahead - 1)[:, :, None] ** 2
        said = np.stack([self._on_grid(made[int(origin)]) for origin in origins]) ** 2
        reference = _sane(self._uncalibrated(REFUGE, origins)) ** 2
        known = ~np.isnan(outcome + said + reference)
        state.losses[position] = stride * np.where(known, pinball(outcome, said), 0.0).sum(axis=0)
        state.reference[position] = stride * np.where(known, pinball(outcome, reference), 0.0).sum(axis=0)
        state.scored[position] = stride * known[:, :, 0].sum(axis=0)
        state.unit[position] = state.unit[state.names.index(REFUGE)]

    def _on_grid(self, rates: Rates) -> Floats:
        return np.sqrt(np.maximum([[rates[quantile][ahead - 1] for quantile in QUANTILES] for ahead in self._state.ahead], 0.0))

    def forecast(self, learned: Mapping[str, LearnedForecast]) -> Floats:
        """Forecast with every forecaster, calibrated: (forecaster, step ahead, quantile) in square roots, NaN where one cannot."""
        state, series = self._state, self._series
        now = np.array([len(series)])
        made = np.full((len(state.names), len(self._ahead), len(QUANTILES)), np.nan)
        for name in OWN:
            if name != COMBINATION:
                made[state.names.index(name)] = self._uncalibrated(name, now)[0]
        for name, forecast in learned.items():
            rates = forecast([len(series)])
            if len(series) in rates:
                made[state.names.index(name)] = self._on_grid(rates[len(series)])
        made[~np.isfinite(made).all(axis=(1, 2))] = np.nan
        made = _sane(made + state.offsets)
        combined = state.names.index(COMBINATION)
        # No calibration of its own: its parts are calibrated, and far ahead two loops on late outcomes swing.
        made[combined] = _sane(_blend(made, combination_weights(state, combined)))
        slot = state.until_step % len(state.pending_at)
        state.pending[slot], state.pending_at[slot] = made, state.until_step
        return made


def _blend(made: Floats, weights: Floats) -> Floats:
    """Average quantiles by the weights of those that could forecast."""
    share = np.where(np.isnan(made), 0.0, weights)
    total = share.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(total > 0, (np.nan_to_num(made) * share).sum(axis=0) / total, np.nan))


def _sane(roots: Floats) -> Floats:
    """Never negative, never crossing."""
    return np.asarray(np.maximum.accumulate(np.maximum(roots, 0.0), axis=-1))


def step(
    state: BankState,
    rates_rps: Floats,
    *,
    terms: Terms,
    quantile: float,
    until_s: float,
    learned: Mapping[str, LearnedForecast] = MappingProxyType({}),
    serve: str | None = None,
) -> BankForecast:
    """Advance the state to the end of this history and forecast from there.

    A cycle that repeats, or comes again within its step, finds nothing new and forecasts the same. A clock that went back, or
    a gap longer than the horizon, only makes pending forecasts void.

    Parameters
    ----------
    rates_rps
        The history, NaN where unknown, ending at `until_s`.
    quantile
        The quantile that the planner buys for, by which the champion is chosen.
    learned
        Trained forecasters by name. An origin counts steps of the series, which is the history's last `DAYS_KEPT` days.
    serve
        Let this forecaster serve whenever it can, instead of the champion.
    """
    series = Series.of(rates_rps[-DAYS_KEPT * terms.day :], terms.day)
    bank = Bank(state, series, window_s=terms.window_s)
    passed = round((until_s - state.until_s) / terms.step_s)
    if passed < 0 or passed > max(len(series), 1):
        state.pending_at[:] = -1
        state.until_step = round(until_s / terms.step_s)
    else:
        for root in series.roots[len(series) - passed :]:
            bank.observe(float(root))
    state.until_s = until_s
    if not np.nansum(rates_rps) > 0:
        return _nothing_known(rates_rps, terms.horizon_steps)
    bank.refresh()
    for name in [name for name in state.names if name not in OWN and name not in learned]:
        state.dismiss(name)
    for name, one in learned.items():
        if name not in state.names:
            bank.admit(name, one)
    made = bank.forecast(learned)
    return _served(state, made, quantile=quantile, horizon_steps=terms.horizon_steps, serve=serve)


def replay(rates_rps: Floats, *, terms: Terms, quantile: float, until_s: float) -> BankState:
    """Begin with a history at hand: go through its last steps as if they had just come, so that scores are not empty."""
    back = min(REPLAYED_STEPS, max(0, len(rates_rps) - 1))
    state = new_state(terms, until_s - back * terms.step_s)
    for left in range(back, 0, -1):
        step(state, rates_rps[: len(rates_rps) - left], terms=terms, quantile=quantile, until_s=until_s - left * terms.step_s)
    return state


def _nothing_known(rates_rps: Floats, horizon_steps: int) -> BankForecast:
    known = int((~np.isnan(rates_rps)).sum())
    return BankForecast(
        rates_rps=dict.fromkeys(QUANTILES, (0.0,) * horizon_steps),
        forecaster="none",
        reason=f"no arrivals in {known} known steps, so none are expected"
        if known
        else "no arrivals are recorded yet, so none are expected",
        costs={},
        switched_from=None,
        calibration_error=None,
    )


def _served(state: BankState, made: Floats, *, quantile: float, horizon_steps: int, serve: str | None) -> BankForecast:
    able = {name for position, name in enumerate(state.names) if not np.isnan(made[position]).any()}
    costs = {name: cost for name, cost in costs_of(state, quantile).items() if name in able}
    choice = choose_champion(costs, incumbent=state.champion, fallback=SAFE, quantile=quantile, preferred=COMBINATION)
    before, state.champion = state.champion, choice.champion
    serving, reason = choice.champion, choice.reason
    if serve is not None:
        serving, reason = (serve, "set") if serve in able else (SAFE, f"{serve} knows too little yet")
    elif state.surprises >= SURPRISES_IN_A_ROW or state.surprises < 0:
        serving = REFUGE
        reason = f"{REFUGE} serves until {choice.champion} has caught up: the level has shifted beyond its quantiles; {reason}"
    roots = made[state.names.index(serving)]
    state.served[state.until_step % len(state.pending_at)] = roots
    return BankForecast(
        rates_rps=_every_step(roots, state.ahead, horizon_steps),
        forecaster=serving,
        reason=reason,
        costs=costs,
        switched_from=before if before and choice.switched else None,
        calibration_error=worst_miscalibration(state),
    )


def _every_step(roots: Floats, ahead: list[int], horizon_steps: int) -> Rates:
    every = np.arange(1, horizon_steps + 1)
    return {q: tuple(float(rate) for rate in np.interp(every, ahead, roots[:, index]) ** 2) for index, q in enumerate(QUANTILES)}
