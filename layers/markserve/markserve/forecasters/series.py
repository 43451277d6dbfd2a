"""A history as arrays: square roots of rates, and what every forecaster asks of them.

Must not know any forecaster. All work is done between square roots, where Poisson noise is equally wide at every
level and a factor on the load stays a factor. An origin `o` has seen the first `o` steps; step `h` ahead of it
(from 1) has index `o + h - 1`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

LAST_RATE_MAX_RPS = 1e12
"""Beyond any load; a larger number is a fault of whoever counted."""
STEADY_SHARE = 1e-9
"""A variance below this share of the mean square is rounding."""
DAYS_KEPT = 14
"""Two of each weekday."""


def as_rates(history: Sequence[float | None]) -> Floats:
    """Rates as an array, NaN where unknown; what is no rate (negative, infinite) counts as unknown.

    >>> as_rates([1.0, None, -2.0]).tolist()
    [1.0, nan, nan]
    """
    rates = np.array([np.nan if rate is None else rate for rate in history], dtype=np.float64)
    with np.errstate(invalid="ignore"):
        rates[~((rates >= 0) & (rates <= LAST_RATE_MAX_RPS))] = np.nan
    return rates


@dataclass(frozen=True)
class Series:
    """Square roots of the rates, NaN where unknown, and how many steps make a day."""

    roots: Floats
    day: int

    @classmethod
    def of(cls, rates_rps: Floats, day: int) -> Series:
        """Take rates, NaN where unknown."""
        return cls(np.sqrt(rates_rps), day)

    def __len__(self) -> int:
        return len(self.roots)

    @cached_property
    def filled(self) -> Floats:
        """The last known value at each step; NaN before any."""
        at = np.maximum.accumulate(np.where(np.isnan(self.roots), -1, np.arange(len(self.roots))))
        return np.where(at < 0, np.nan, self.roots[at]) if len(at) else self.roots

    @cached_property
    def _sums(self) -> tuple[Floats, Floats]:
        known = ~np.isnan(self.roots)
        zero = np.zeros(1)
        return np.concatenate([zero, np.cumsum(np.where(known, self.roots, 0.0))]), np.concatenate([zero, np.cumsum(known)])

    @cached_property
    def _square_sums(self) -> tuple[Floats, Floats]:
        known = ~np.isnan(self.roots)
        return np.concatenate([np.zeros(1), np.cumsum(np.where(known, self.roots, 0.0) ** 2)]), self._sums[1]

    def mean(self, start: Ints, end: Ints) -> Floats:
        """Mean over steps `[start, end)`, NaN where none is known or the range begins before the history."""
        return _range_mean(self._sums, start, end)

    def recent_mean(self, origins: Ints, width: int) -> Floats:
        """Mean of the last `width` steps, or of as many as there are."""
        return _range_mean(self._sums, np.maximum(origins - width, 0), origins)

    def standing(self, origins: Ints) -> Floats:
        """How many standard deviations the last known step lies above the mean of the day before; 0 where nothing varies."""
        start = np.maximum(origins - self.day, 0)
        mean, square = _range_mean(self._sums, start, origins), _range_mean(self._square_sums, start, origins)
        variance = square - mean**2
        varies = variance > STEADY_SHARE * square  # False where nothing is known
        return np.where(varies, (self.last(origins) - mean) / np.sqrt(np.where(varies, variance, 1.0)), 0.0)

    def last(self, origins: Ints) -> Floats:
        """Last known value before each origin; NaN before any."""
        padded = np.concatenate([[np.nan], self.filled])
        return np.asarray(padded[origins])

    def window(self, origins: Ints, width: int) -> Floats:
        """Return the `width` steps before each origin, oldest first; NaN where unknown or before the history."""
        at = origins[:, None] + np.arange(-width, 0)
        return np.where(at >= 0, self.roots[np.maximum(at, 0)], np.nan) if len(self.roots) else np.full(at.shape, np.nan)

    def at(self, index: Ints) -> Floats:
        """Values at steps of any index; NaN outside."""
        inside = (index >= 0) & (index < len(self.roots))
        return np.where(inside, self.roots[np.where(inside, index, 0)], np.nan) if len(self.roots) else np.full(index.shape, np.nan)


def _range_mean(sums: tuple[Floats, Floats], start: Ints, end: Ints) -> Floats:
    total, count = sums
    inside = (start >= 0) & (end <= len(total) - 1)
    first, last = np.where(inside, start, 0), np.where(inside, end, 0)
    known = count[last] - count[first]
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(inside & (known > 0), np.maximum(total[last] - total[first], 0.0) / known, np.nan))
