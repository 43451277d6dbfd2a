"""Finding the highest rate that passes, with as few runs as possible."""

from __future__ import annotations

from collections.abc import Callable

GROWTH = 1.3
LOWEST_RPS = 2.0
HIGHEST_RPS = 6000.0
"""Far above what the model can do on one core; a search that gets here has found a broken check."""


def highest_passing(passes: Callable[[float], bool], start_rps: float, *, precision: float = 1.03, runs: int = 12) -> float:
    """Return the highest rate known to pass: bracket it from `start_rps` by factors, then bisect (geometric mean).

    Ends when the lowest failing rate is within `precision` of the highest passing one, or after `runs` trials. 0 where nothing passes.
    One trial is noisy, so its result is a proposal: confirm it with a longer run (`confirmed`).

    >>> 95 <= highest_passing(lambda rate: rate <= 100, 20.0) <= 100
    True
    """
    low, high = 0.0, float("inf")
    rate = start_rps
    for _ in range(runs):
        if passes(rate):
            low = rate
        else:
            high = rate
        if (low > 0 and high / low <= precision) or high <= LOWEST_RPS or low >= HIGHEST_RPS:
            break
        if high == float("inf"):
            rate = low * GROWTH
        elif low == 0:
            rate = max(LOWEST_RPS, high / GROWTH**2)
        else:
            rate = (low * high) ** 0.5
    return low


def confirmed(passes: Callable[[float], bool], rate_rps: float, *, step: float = 0.97, tries: int = 5) -> float:
    """Return the first of `rate_rps`, `rate_rps * step`, ... that passes a longer run; 0 where none of `tries` does.

    >>> round(confirmed(lambda rate: rate <= 96, 100.0), 1)
    94.1
    """
    for _ in range(tries):
        if rate_rps > 0 and passes(rate_rps):
            return rate_rps
        rate_rps *= step
    return 0.0
