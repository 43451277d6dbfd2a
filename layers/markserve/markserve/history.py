"""Recorded windows as the history that forecasters read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markserve.core.arrivals import ArrivalCount, series, step_maxima_rps, window_shape, window_start
from markserve.core.backtest import History
from markserve.ports import WindowStore
from markserve.settings import Settings

HISTORY_STEPS = 360
"""Steps a forecast reads: six hours of minutes, which fit one DynamoDB query page and give 0.99 some errors to learn from."""
SHAPE_STEPS = 60
"""Steps that tell how load varies within one: an hour, long enough for the ratios and short enough to follow the day."""
REPORT_DELAY_S = 2.0
"""A front reports about once a second and ingestion takes another: younger windows are not whole yet."""
TICK_GAP_STEPS = 2.0
"""A tick comes every step; one lost tick must not turn a quiet minute into a missing one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepGrid:
    """How time is cut: counting windows within planning steps, and how many steps ahead are forecast."""

    window_s: float
    step_s: float
    horizon_steps: int

    @classmethod
    def of(cls, settings: Settings) -> StepGrid:
        """Take the grid this stack is set to."""
        return cls(window_s=settings.window_s, step_s=settings.step_s, horizon_steps=settings.horizon_steps)


@dataclass(frozen=True, kw_only=True, slots=True)
class RecordedSteps:
    """Highest rate of each recorded step, from the model's first known one on."""

    rates_rps: History
    until_s: float
    """End of the last step."""
    shape: tuple[float, ...] = ()
    """How load varies within a step; see `core.arrivals.window_shape`."""

    @property
    def known(self) -> int:
        """Number of steps that are not missing."""
        return sum(rate is not None for rate in self.rates_rps)


@dataclass(frozen=True, kw_only=True, slots=True)
class RecordedWindows:
    """Consecutive counting windows, and the end of the last one."""

    windows: Sequence[ArrivalCount]
    until_s: float


def recorded_windows(model: str, *, windows: WindowStore, grid: StepGrid, steps: int, now_s: float) -> RecordedWindows:
    """Read the windows of the last `steps` steps, ending with the last one that every front has reported."""
    until_s = window_start(now_s - REPORT_DELAY_S, grid.window_s)
    since_s = until_s - steps * grid.step_s
    max_tick_gap_s = TICK_GAP_STEPS * grid.step_s
    recorded = series(
        windows.arrivals(model, since_s=since_s, until_s=until_s),
        windows.ticks(since_s=since_s, until_s=until_s + max_tick_gap_s),
        since_s=since_s,
        until_s=until_s,
        window_s=grid.window_s,
        max_tick_gap_s=max_tick_gap_s,
    )
    return RecordedWindows(windows=recorded, until_s=until_s)


def recorded_steps(model: str, *, windows: WindowStore, grid: StepGrid, steps: int, now_s: float) -> RecordedSteps:
    """Read the last `steps` steps, ending with the last window that every front has reported."""
    return steps_of(recorded_windows(model, windows=windows, grid=grid, steps=steps, now_s=now_s), grid)


def steps_of(recorded: RecordedWindows, grid: StepGrid) -> RecordedSteps:
    """Return the steps that end with the last window: the newest is whole, wherever the clock stands."""
    rates = step_maxima_rps(recorded.windows, window_s=grid.window_s, step_s=grid.step_s)
    first = next((index for index, rate in enumerate(rates) if rate is not None), len(rates))
    shape = window_shape(recorded.windows, window_s=grid.window_s, step_s=grid.step_s)
    return RecordedSteps(rates_rps=rates[first:], until_s=recorded.until_s, shape=shape)


def clock_steps(recorded: RecordedWindows, grid: StepGrid) -> dict[int, float | None]:
    """Return the whole steps that lie on the clock, by absolute number: what an archive can add to without overlaps."""
    end = math.floor(recorded.until_s / grid.step_s + 1e-9)
    whole = [window for window in recorded.windows if window.at_s < end * grid.step_s - 1e-6]
    rates = step_maxima_rps(whole, window_s=grid.window_s, step_s=grid.step_s)
    return dict(enumerate(rates, start=end - len(rates)))
