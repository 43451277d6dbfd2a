"""A Markov-modulated Poisson process as a trace: MArk's second workload, without a file."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from markserve.errors import InvalidRequest

PREFIX = "mmpp:"
STEP_S = 1.0


@dataclass(frozen=True, slots=True)
class Mmpp:
    """States of constant rate, each held for an exponential time, each other one equally likely to follow."""

    rates_rps: tuple[float, ...]
    mean_s: float
    duration_s: float
    seed: int = 1

    @classmethod
    def parse(cls, text: str, *, seed: int = 1) -> Mmpp:
        """Read `mmpp:RATE,RATE[,...]:MEAN_S:DURATION_S`.

        >>> Mmpp.parse("mmpp:20,200:300:7200").rates_rps
        (20.0, 200.0)
        """
        try:
            rates, mean_s, duration_s = text.removeprefix(PREFIX).split(":")
            made = cls(tuple(float(rate) for rate in rates.split(",")), float(mean_s), float(duration_s), seed)
        except ValueError:
            raise InvalidRequest(f"{text!r} is not mmpp:RATE,RATE[,...]:MEAN_S:DURATION_S, such as mmpp:20,200:300:7200") from None
        if not all(0 <= rate < math.inf for rate in made.rates_rps) or len(made.rates_rps) < 2:
            raise InvalidRequest(f"{text!r}: an MMPP needs two or more rates, finite and not negative")
        if not (0 < made.mean_s < math.inf and 2 * STEP_S <= made.duration_s < math.inf):
            raise InvalidRequest(f"{text!r}: MEAN_S must be positive, DURATION_S at least {2 * STEP_S:g}, both finite")
        return made

    def rows(self) -> Iterator[tuple[float, float]]:
        """Mean number of requests of every second, which the state's changes within it share by their time."""
        rng = np.random.default_rng([self.seed, 0x3399])
        state = int(rng.integers(len(self.rates_rps)))
        left_s = float(rng.exponential(self.mean_s))
        for step in range(int(self.duration_s // STEP_S)):
            mean, open_s = 0.0, STEP_S
            while left_s < open_s:
                mean += left_s * self.rates_rps[state]
                open_s -= left_s
                state = (state + 1 + int(rng.integers(len(self.rates_rps) - 1))) % len(self.rates_rps)
                left_s = float(rng.exponential(self.mean_s))
            mean += open_s * self.rates_rps[state]
            left_s -= open_s
            yield step * STEP_S, mean
