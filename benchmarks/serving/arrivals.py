"""When requests are sent: schedules, drawn before the run so that no answer can delay a question."""

from __future__ import annotations

import random
from collections.abc import Callable

BURST_FACTOR = 5.0
"""A burst's rate over the quiet rate."""
QUIET_MEAN_S = 1.5
BURST_MEAN_S = 0.5


def poisson(rate_rps: float, duration_s: float, seed: int) -> list[float]:
    """Send times, in seconds from the start, of a Poisson process.

    The same seed at another rate gives the same times, stretched: a search over rates compares like with like.

    >>> [round(t, 3) for t in poisson(2.0, 2.0, seed=1)] == [round(t * 2, 3) for t in poisson(4.0, 1.0, seed=1)]
    True
    """
    return _times(lambda work: work / rate_rps, duration_s, random.Random(seed))


def mmpp(rate_rps: float, duration_s: float, seed: int) -> list[float]:
    """Send times of a two-state Markov-modulated Poisson process with the mean rate `rate_rps`.

    Quiet and burst states last 1.5 s and 0.5 s in the mean, and a burst sends at 5 times the quiet rate (2.5 times the mean). The
    states' times depend on the seed alone, so that at another rate the same bursts are higher, not elsewhere.
    """
    chance = random.Random(seed)
    states = _states(duration_s, random.Random(f"states {seed}"))
    # The realised mean over this path, not the process's: a short run must offer the rate that it claims.
    weight = sum((end - begin) * factor for begin, end, factor in states) / duration_s
    quiet_rps = rate_rps / weight
    clock = _WorkClock([(begin, end, factor * quiet_rps) for begin, end, factor in states])
    return _times(clock.time_of, duration_s, chance)


def _states(duration_s: float, chance: random.Random) -> list[tuple[float, float, float]]:
    states: list[tuple[float, float, float]] = []
    begin, is_burst = 0.0, False
    while begin < duration_s:
        stay_s = chance.expovariate(1 / (BURST_MEAN_S if is_burst else QUIET_MEAN_S))
        end = min(begin + stay_s, duration_s)
        states.append((begin, end, BURST_FACTOR if is_burst else 1.0))
        begin, is_burst = end, not is_burst
    return states


class _WorkClock:
    """Turns arrivals of a unit-rate process into times, under rates constant by piece. Asked in ascending order."""

    def __init__(self, pieces: list[tuple[float, float, float]]) -> None:
        self._pieces = pieces
        self._index = 0
        self._before = 0.0

    def time_of(self, work: float) -> float:
        while self._index < len(self._pieces):
            begin, end, rate_rps = self._pieces[self._index]
            within = (end - begin) * rate_rps
            if work <= self._before + within:
                return begin + (work - self._before) / rate_rps
            self._before += within
            self._index += 1
        return float("inf")


def _times(time_of: Callable[[float], float], duration_s: float, chance: random.Random) -> list[float]:
    times: list[float] = []
    work = 0.0
    while True:
        work += chance.expovariate(1.0)
        at = time_of(work)
        if at >= duration_s:
            return times
        times.append(at)
