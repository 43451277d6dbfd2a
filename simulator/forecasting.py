"""How `mark` forecasts in the simulator: with the product's own bank of forecasters, carried from step to step."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from markserve.core.types import Forecast
from markserve.errors import InvalidRequest
from markserve.forecasters.bank import OWN, Terms, new_state, step
from markserve.forecasters.series import DAYS_KEPT, as_rates
from markserve.forecasters.state import BankState
from simulator.assumptions import BUYING_QUANTILE, HORIZON_STEPS, STEP_S, WINDOW_S

if TYPE_CHECKING:
    from simulator.policies import View

BEST = "best"
"""Let the champion rule choose the forecaster, as the product does."""
FORECASTERS = (BEST, *OWN)
DAY_STEPS = round(86_400 / STEP_S)


def forecaster(model: str, name: str) -> Callable[[View], Forecast | None]:
    """Return how `mark` forecasts: by one of the product's forecasters, or by its champion rule.

    At the start nothing is known but the present rate, which the planner holds flat.
    """
    if name not in FORECASTERS:
        raise InvalidRequest(f"{name!r} is none of {', '.join(FORECASTERS)}", field="forecaster")
    terms = Terms(day=DAY_STEPS, window_s=WINDOW_S, step_s=STEP_S, horizon_steps=HORIZON_STEPS)
    state: BankState | None = None
    known = np.empty(0)

    def forecast(view: View) -> Forecast | None:
        nonlocal state, known
        if view.is_first:
            return None
        if state is None:
            state = new_state(terms, view.history_until_s - STEP_S * len(view.history))
        passed = max(0, round((view.history_until_s - state.until_s) / STEP_S))
        # A view holds the last hours only; seasons need what came before.
        newest = as_rates(view.history)[-passed:] if passed else np.empty(0)
        gap = np.full(passed - len(newest), np.nan)
        known = np.concatenate([known, gap, newest])[-DAYS_KEPT * DAY_STEPS :]
        made = step(
            state,
            known,
            terms=terms,
            quantile=BUYING_QUANTILE if view.bought_quantile is None else view.bought_quantile,
            until_s=view.history_until_s,
            serve=None if name == BEST else name,
        )
        if made.forecaster == "none":
            return None
        return Forecast(
            model=model,
            origin_at_s=view.history_until_s,
            step_s=STEP_S,
            rates_rps=made.rates_rps,
            forecaster=made.forecaster,
            reason="set by --forecaster" if name != BEST else made.reason,
        )

    return forecast
