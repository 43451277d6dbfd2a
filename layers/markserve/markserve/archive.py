"""Weeks of step maxima in compact form: what seasonal forecasters read without paging through every counting window.

One object per model and day, `forecasters/<model>/history/<step>s/<day>.f32`: 4 bytes per step of the day, little-endian, NaN
where unknown. Steps lie on the clock (multiples of the step), so a cycle that repeats writes the same numbers to the same
places; a known number is only ever replaced by a known one.
"""

from __future__ import annotations

import math
import sys
from array import array
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from markserve.core.backtest import History
from markserve.errors import InvalidRequest
from markserve.history import HISTORY_STEPS, RecordedSteps, StepGrid, clock_steps, recorded_windows, steps_of
from markserve.ports import BlobStore, WindowStore

DAY_S = 86_400.0
APPEND_STEPS = 15
"""New steps are written once so many have come: what is not written yet is still among the counting windows."""
MISSING = float("nan")


@dataclass(kw_only=True)
class StepArchive:
    """The archive of one model.

    Attributes
    ----------
    cache
        Days that are over, by key; they are read once per process.
    """

    blobs: BlobStore
    model: str
    step_s: float
    cache: MutableMapping[str, bytes] = field(default_factory=dict)

    @cached_property
    def steps_per_day(self) -> int:
        """Steps of a day."""
        return max(1, round(DAY_S / self.step_s))

    def read(self, *, first_step: int, end_step: int) -> History:
        """Rates of absolute steps `[first_step, end_step)`; None where unknown."""
        days = range(first_step // self.steps_per_day, -(-end_step // self.steps_per_day))
        found = array("f")
        for day in days:
            found.extend(self._day(day, is_over=day < days[-1]))
        start = first_step - days.start * self.steps_per_day
        return [None if math.isnan(rate) else rate for rate in found[start : start + max(0, end_step - first_step)]]

    def append(self, rates_rps: Mapping[int, float | None]) -> int:
        """Record rates by absolute step; unknown ones change nothing. Return how many steps were new or changed.

        Nothing is written while fewer than `APPEND_STEPS` of a day are.
        """
        by_day: dict[int, dict[int, float]] = {}
        for step, rate in rates_rps.items():
            if rate is not None and step >= 0:
                by_day.setdefault(step // self.steps_per_day, {})[step % self.steps_per_day] = rate
        written = 0
        last = max(by_day, default=0)
        for day, steps in sorted(by_day.items()):
            rates = self._day(day, is_over=False)
            changed = {at: rate for at, rate in steps.items() if _as_stored(rate) != rates[at]}
            # A day that is over gets its last steps, however few.
            if len(changed) >= APPEND_STEPS or (changed and day < last):
                for at, rate in changed.items():
                    rates[at] = rate
                self.blobs.put(self._key(day), _little_endian(rates).tobytes())
                self.cache.pop(self._key(day), None)
                written += len(changed)
        return written

    def _day(self, day: int, *, is_over: bool) -> array[float]:
        key = self._key(day)
        data = self.cache.get(key) if is_over else None
        if data is None:
            try:
                data = self.blobs.get(key)
            except InvalidRequest:
                data = b""
            if is_over:
                self.cache[key] = data
        rates = array("f")
        if len(data) == self.steps_per_day * rates.itemsize:
            rates.frombytes(data)
            return _little_endian(rates)
        return array("f", [MISSING] * self.steps_per_day)

    def _key(self, day: int) -> str:
        return f"forecasters/{self.model}/history/{self.step_s:g}s/{day:06d}.f32"


def _as_stored(rate: float) -> float:
    return array("f", [rate])[0]


def _little_endian(rates: array[float]) -> array[float]:
    if sys.byteorder == "big":
        rates.byteswap()
    return rates


def recorded_history(
    archive: StepArchive, *, windows: WindowStore, grid: StepGrid, steps: int, now_s: float, append: bool
) -> RecordedSteps:
    """Return up to `steps` steps: weeks from the archive, the last hours from the windows themselves, from the first known one on.

    Parameters
    ----------
    append
        Whether to archive the steps that are new.
    """
    recorded = recorded_windows(archive.model, windows=windows, grid=grid, steps=min(steps, HISTORY_STEPS), now_s=now_s)
    if append:
        archive.append(clock_steps(recorded, grid))
    recent = steps_of(recorded, grid)
    end_step = round(recent.until_s / grid.step_s) - len(recent.rates_rps)
    older = archive.read(first_step=max(0, end_step + len(recent.rates_rps) - steps), end_step=end_step)
    first = next((index for index, rate in enumerate(older) if rate is not None), len(older))
    return replace(recent, rates_rps=[*older[first:], *recent.rates_rps])
