"""One model's forecast in a control cycle: history and carried state in, forecast and new state out.

Objects of a model `m`: `forecasters/m/bank.npz`, the scores and the calibration so far, written each cycle; its archive is in
`archive`. Losing either costs quality for a while, never a forecast.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, replace

from markserve.archive import StepArchive, recorded_history
from markserve.core.backtest import History, Rates
from markserve.core.types import Forecast
from markserve.errors import InferenceFailed, InvalidRequest, Transient
from markserve.forecasters.bank import BankForecast, LearnedForecast, Terms, grid, replay, step
from markserve.forecasters.series import DAYS_KEPT, as_rates
from markserve.forecasters.state import BankState
from markserve.history import StepGrid
from markserve.messages import DecisionRecord, ForecastDrifted, ForecastRecord
from markserve.ports import BlobStore, ControlStore, EventPublisher, LearnedForecaster, WindowStore
from markserve.training import serving_weights

DEFAULT_QUANTILE = 0.9
"""Forecasters are judged by it until a plan says which quantile it buys for."""
MISCALIBRATED = 0.05
"""Distance of a coverage from its quantile, beyond chance, that is worth waking somebody: 0.95 that holds 90 % of the time."""
STALE_STEPS = 5
"""Steps without any known count after which a forecast is of the past."""
REPORTED_EVERY_S = 3600.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Forecasted:
    """A stored forecast and what the alarms watch."""

    record: ForecastRecord
    history_age_s: float | None
    """Since the last known step; None when nothing was ever known."""


@dataclass(kw_only=True)
class ForecastCycle:
    """What forecasting needs; one object per invocation, its cache per process.

    Attributes
    ----------
    forecaster
        Builds the trained forecaster, which takes a second the first time.
    events
        Where to say that a forecaster has drifted, so that it is trained anew; at most hourly.
    """

    windows: WindowStore
    control: ControlStore
    blobs: BlobStore
    forecaster: Callable[[], LearnedForecaster]
    grid: StepGrid
    cache: MutableMapping[str, bytes]
    events: EventPublisher | None = None

    def run(self, model: str, now_s: float) -> Forecasted:
        """Forecast, store the forecast and carry the state on."""
        history, until_s = self._history(model, now_s)
        rates = as_rates(history)
        terms = Terms(
            day=self._archive(model).steps_per_day,
            window_s=self.grid.window_s,
            step_s=self.grid.step_s,
            horizon_steps=self.grid.horizon_steps,
        )
        quantile = self._buying_quantile(model)
        state, can_save = self._state(model, until_s)
        if state is None:
            state = replay(rates, terms=terms, quantile=quantile, until_s=until_s)
        learned, passed_over = self._learned(model, history)
        made = step(
            state,
            rates,
            terms=terms,
            quantile=quantile,
            until_s=until_s,
            learned=learned,
        )
        if passed_over:
            made = replace(made, reason=f"{made.reason}; the trained forecaster was passed over: {passed_over[0]}")
        record = self._record(model, made, until_s)
        self.control.put_forecast(record)
        age_s = _age_s(history, self.grid.step_s)
        self._log(model, made, age_s, now_s)
        if can_save:
            self.blobs.put(_state_key(model), state.to_bytes())
        return Forecasted(record=record, history_age_s=age_s)

    def _archive(self, model: str) -> StepArchive:
        return StepArchive(blobs=self.blobs, model=model, step_s=self.grid.step_s, cache=self.cache)

    def _history(self, model: str, now_s: float) -> tuple[History, float]:
        archive = self._archive(model)
        steps = DAYS_KEPT * archive.steps_per_day
        recorded = recorded_history(archive, windows=self.windows, grid=self.grid, steps=steps, now_s=now_s, append=True)
        return recorded.rates_rps, recorded.until_s

    def _buying_quantile(self, model: str) -> float:
        plan = self.control.latest_plan()
        return plan.demand_quantiles.get(model, DEFAULT_QUANTILE) if plan else DEFAULT_QUANTILE

    def _state(self, model: str, until_s: float) -> tuple[BankState | None, bool]:
        """Return the carried state, None when there is none, and whether a new one may be written over it."""
        try:
            state = BankState.from_bytes(self.blobs.get(_state_key(model)))
        except (InvalidRequest, InferenceFailed):
            return None, True
        except Transient:
            return None, False
        if state.ahead != grid(self.grid.horizon_steps) or abs(state.until_s - until_s) > DAYS_KEPT * 86_400.0:
            return None, True
        return state, True

    def _learned(self, model: str, history: History) -> tuple[Mapping[str, LearnedForecast], list[str]]:
        """Bind the trained forecaster to this history; what goes wrong with it is told, and others serve."""
        passed_over: list[str] = []
        try:
            name, weights = serving_weights(model, blobs=self.blobs, grid=self.grid)
            forecaster = self.forecaster()
        except (InvalidRequest, InferenceFailed, Transient) as error:
            return {}, [str(error)]
        seen = history[-DAYS_KEPT * self._archive(model).steps_per_day :]

        def forecast(origins: Sequence[int]) -> Mapping[int, Rates]:
            try:
                return forecaster.forecast(weights, seen, origins=origins, horizon_steps=self.grid.horizon_steps)
            except (InvalidRequest, InferenceFailed, Transient) as error:
                passed_over.append(str(error))
                return {}

        return {name: forecast}, passed_over

    def _record(self, model: str, made: BankForecast, until_s: float) -> ForecastRecord:
        forecast = Forecast(
            model=model,
            origin_at_s=until_s,
            step_s=self.grid.step_s,
            rates_rps=made.rates_rps,
            forecaster=made.forecaster.split(" ")[0],
            reason=made.reason,
        )
        return ForecastRecord.from_forecast(forecast, dict(made.costs), made.calibration_error)

    def _log(self, model: str, made: BankForecast, age_s: float | None, now_s: float) -> None:
        if made.switched_from is not None:
            costs = {name: round(cost, 4) for name, cost in made.costs.items()}
            self.control.log(
                DecisionRecord(
                    at_s=now_s, model=model, subject=made.forecaster, event="forecaster_switched", reason=made.reason, detail={**costs}
                )
            )
        if made.calibration_error is not None and made.calibration_error > MISCALIBRATED:
            reason = f"a quantile is exceeded {made.calibration_error:.1%} more or less often than it says"
            if self._log_hourly(model, "forecast_miscalibrated", reason, now_s) and self.events is not None:
                self.events.publish(ForecastDrifted(model=model, at_s=now_s, reason=reason))
        if age_s is not None and age_s > STALE_STEPS * self.grid.step_s:
            self._log_hourly(model, "forecast_stale", f"no count is known of the last {age_s:.0f} s: the pipeline may be down", now_s)

    def _log_hourly(self, model: str, event: str, reason: str, now_s: float) -> bool:
        is_due = self.control.claim(f"report#{event}#{model}", now_s=now_s, for_s=REPORTED_EVERY_S)
        if is_due:
            self.control.log(DecisionRecord(at_s=now_s, model=model, subject="forecast", event=event, reason=reason))
        return is_due


def _age_s(history: History, step_s: float) -> float | None:
    missing = next((count for count, rate in enumerate(reversed(history)) if rate is not None), None)
    return None if missing is None else missing * step_s


def _state_key(model: str) -> str:
    return f"forecasters/{model}/bank.npz"
