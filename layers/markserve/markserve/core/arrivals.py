"""Arrival counts as a series in which missing is not zero, and as rates per planning step."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markserve.core.types import require


@dataclass(frozen=True, slots=True)
class ArrivalCount:
    """Arrivals within one window; `count` is None when nobody knows."""

    at_s: float
    count: int | None


def window_start(at_s: float, window_s: float) -> float:
    """Start of the counting window an instant falls into; windows are aligned to the epoch.

    >>> window_start(1_700_000_003.9, 5.0)
    1700000000.0
    """
    require(window_s > 0, f"window_s must be positive, got {window_s}")
    # Rounded to the microsecond so that equal windows are equal keys, and the epsilon keeps a start in its own window.
    return round(math.floor(at_s / window_s + 1e-9) * window_s, 6)


def series(
    counts: Mapping[float, int],
    ticks: Sequence[float],
    *,
    since_s: float,
    until_s: float,
    window_s: float,
    max_tick_gap_s: float,
) -> list[ArrivalCount]:
    """Every closed window of an interval, in order: its count, zero, or unknown.

    Fronts report only what arrived, so a window without a record is either quiet or lost. It is taken as quiet
    (zero) when a liveness tick passed through the same pipeline within `max_tick_gap_s` after the window's end:
    whatever was reported before the tick has come through. Otherwise it is unknown. A forecaster that reads a
    failed pipeline as zero load would scale in during the failure.

    Limits: a window that is recorded by one front and lost by another counts as recorded.

    Parameters
    ----------
    counts
        Arrivals by window start.
    ticks
        Instants of liveness, ascending.
    since_s, until_s
        The interval; windows that start before the one or end after the other are left out.

    Examples
    --------
    >>> [w.count for w in series({5.0: 7}, [11.0], since_s=0.0, until_s=20.0, window_s=5.0, max_tick_gap_s=6.0)]
    [0, 7, None, None]
    """
    first = round(math.ceil(since_s / window_s - 1e-9))
    last = math.floor(until_s / window_s + 1e-9)
    result: list[ArrivalCount] = []
    for index in range(first, last):
        at_s = round(index * window_s, 6)
        count = counts.get(at_s)
        if count is None and _alive_after(ticks, at_s + window_s, max_tick_gap_s):
            count = 0
        result.append(ArrivalCount(at_s, count))
    return result


def _alive_after(ticks: Sequence[float], end_s: float, max_gap_s: float) -> bool:
    position = bisect_left(ticks, end_s)
    return position < len(ticks) and ticks[position] <= end_s + max_gap_s


def step_maxima_rps(windows: Sequence[ArrivalCount], *, window_s: float, step_s: float) -> list[float | None]:
    """Highest window rate of each planning step, oldest first; None where too little is known.

    MArk forecasts the *maximum* rate of a step (its prototype: of the 12 windows of 5 s in a minute), since capacity
    that meets the mean falls short during half of the step. Steps end with the last window, so that the newest
    step is whole; windows left over at the start are dropped. A step of which less than half is known is unknown,
    because the maximum of few windows is biased low.

    Parameters
    ----------
    windows
        Consecutive windows, as `series` returns them.

    Examples
    --------
    >>> known = [ArrivalCount(5.0 * i, count) for i, count in enumerate([9, 10, 20, None, None, 5])]
    >>> step_maxima_rps(known, window_s=5.0, step_s=10.0)
    [2.0, 4.0, 1.0]
    """
    per_step = round(step_s / window_s)
    require(per_step >= 1, f"step_s must not be shorter than window_s, got {step_s} and {window_s}")
    maxima: list[float | None] = []
    for start in range(len(windows) % per_step, len(windows), per_step):
        known = [window.count for window in windows[start : start + per_step] if window.count is not None]
        maxima.append(max(known) / window_s if 2 * len(known) >= per_step else None)
    return maxima


SHAPE_POINTS = 10
"""Equally likely window-to-highest ratios that describe how load varies within a step."""
SHAPE_STEPS_MIN = 5
"""Steps with arrivals below which the ratios say more about chance than about the load."""


def window_shape(windows: Sequence[ArrivalCount], *, window_s: float, step_s: float) -> tuple[float, ...]:
    """How far windows fall below the highest one of their step: `SHAPE_POINTS` equally likely ratios, ascending.

    Forecasts are of a step's highest window. Capacity that is short of that is short for some windows only, and for how many
    decides whether spilling them is cheaper. Steady load at a high rate has ratios near 1, load that comes in bursts of a few
    seconds far less.

    Returns
    -------
    tuple
        Empty when fewer than `SHAPE_STEPS_MIN` steps had arrivals.

    Examples
    --------
    >>> bursts = [ArrivalCount(5.0 * i, 40 if i % 4 == 0 else 10) for i in range(40)]
    >>> window_shape(bursts, window_s=5.0, step_s=20.0)
    (0.25, 0.25, 0.25, 0.25, 0.25, 0.25, 0.25, 1.0, 1.0, 1.0)
    """
    per_step = round(step_s / window_s)
    ratios: list[float] = []
    steps = 0
    for start in range(len(windows) % per_step, len(windows), per_step):
        known = [window.count for window in windows[start : start + per_step] if window.count is not None]
        highest = max(known, default=0)
        if highest > 0 and 2 * len(known) >= per_step:
            steps += 1
            ratios += [count / highest for count in known]
    if steps < SHAPE_STEPS_MIN:
        return ()
    ratios.sort()
    return tuple(ratios[int((point + 0.5) / SHAPE_POINTS * len(ratios))] for point in range(SHAPE_POINTS))
