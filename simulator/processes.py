"""How arrivals lie within the steps of a count trace: Poisson, a renewal process of a given variability, or a MAP(2).

All but Poisson run in operational time, in which one unit is one expected request: the process has rate 1 there, and a
step of mean m is m units long. So bursts go on across the borders of steps, and every step keeps its own rate.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from markserve.errors import InvalidRequest
from simulator.fast import compiled
from simulator.prices import open_text
from simulator.service import Floats

HOUR_S = 3600.0
MAP_COLUMNS = tuple(f"{matrix}_{i}{j}" for matrix in ("D0", "D1") for i in "12" for j in "12")

Within = Callable[[float, float], Floats]
"""From a step's mean and its start to the positions of its arrivals, as shares of the step."""


class Process(Protocol):
    """A law of arrivals within steps."""

    def begin(self, rng: np.random.Generator) -> Within:
        """Start at the first step; steps are then asked for in order."""
        ...


@dataclass(frozen=True, slots=True)
class Poisson:
    """A Poisson number of arrivals, uniform within the step."""

    def begin(self, rng: np.random.Generator) -> Within:
        """See `Process`."""
        return lambda mean, _: rng.random(int(rng.poisson(mean)))


POISSON = Poisson()


@dataclass(frozen=True, slots=True)
class Renewal:
    """Independent gaps with a coefficient of variation: gamma up to 1, two-phase hyper-exponential of balanced means above."""

    cv: float

    def begin(self, rng: np.random.Generator) -> Within:
        """See `Process`."""
        left = float(self._gaps(rng, 1)[0]) * rng.random()

        def within(mean: float, since_s: float) -> Floats:  # noqa: ARG001
            nonlocal left
            parts: list[Floats] = []
            while left < mean:
                gaps = self._gaps(rng, max(16, int((mean - left) * 1.1)))
                at = left + np.concatenate((np.zeros(1), np.cumsum(gaps)))
                parts.append(at[:-1][at[:-1] < mean])
                number = parts[-1].size
                left = float(at[number])
            left -= mean
            return np.concatenate(parts) / mean if parts else np.empty(0)

        return within

    def _gaps(self, rng: np.random.Generator, number: int) -> Floats:
        square = self.cv**2
        if self.cv == 0:
            return np.ones(number)
        if self.cv <= 1:
            return rng.gamma(1 / square, square, number)
        p = (1 + math.sqrt((square - 1) / (square + 1))) / 2
        rates = np.where(rng.random(number) < p, 2 * p, 2 * (1 - p))
        return rng.exponential(1.0, number) / rates


@dataclass(frozen=True, slots=True)
class Map2:
    """Markovian arrival processes of two phases, one for each hour in turn, each scaled to rate 1 in operational time."""

    hours: tuple[tuple[float, ...], ...]
    """D0_11, D0_12, D0_21, D0_22, D1_11, D1_12, D1_21, D1_22 of each hour."""

    def begin(self, rng: np.random.Generator) -> Within:
        """See `Process`."""
        scaled = [np.array(row) / _map_rate(row) for row in self.hours]
        state = np.array([0.0, rng.standard_exponential()])  # phase, and time left in it at its own pace

        def within(mean: float, since_s: float) -> Floats:
            law = scaled[int(since_s // HOUR_S) % len(scaled)]
            at = np.empty(max(64, int(mean * 1.5 + 10 * math.sqrt(mean + 1))))
            parts: list[Floats] = []
            begun = 0.0
            while begun < mean:
                number, begun = _map_arrivals(rng, law, state, at, begun, mean)
                parts.append(at[:number].copy())
            return np.concatenate(parts) / mean if parts else np.empty(0)

        return within


def _map_rate(row: Sequence[float]) -> float:
    """Arrivals per unit of time: the stationary phases times their rates of arrival."""
    to_2, to_1 = row[1] + row[5], row[2] + row[6]
    share_1 = to_1 / (to_1 + to_2)
    return share_1 * (row[4] + row[5]) + (1 - share_1) * (row[6] + row[7])


@compiled
def _map_arrivals(rng, law, state, at, now, until):  # type: ignore[no-untyped-def]
    """Arrivals from `now` to `until` into `at`, as many as it holds; returns their number and how far it came."""
    number = 0
    while number < at.size:
        phase = int(state[0])
        pace = -law[3 * phase]
        step = state[1] / pace
        if now + step >= until:
            state[1] -= (until - now) * pace
            return number, until
        now += step
        draw = rng.random() * pace
        hidden = law[1 + phase]
        if draw < hidden:
            state[0] = 1 - phase
        else:
            at[number] = now
            number += 1
            if draw >= hidden + law[4 + 2 * phase]:
                state[0] = 1.0
            else:
                state[0] = 0.0
        state[1] = rng.standard_exponential()
    return number, now


def parse_process(text: str) -> Process:
    """Read `poisson`, `cv=NUMBER` or `map=FILE[#TRACE]`.

    >>> parse_process("cv=2")
    Renewal(cv=2.0)
    """
    kind, _, value = text.partition("=")
    match kind:
        case "poisson" if not value:
            return POISSON
        case "cv" if _is_number(value) and 0 <= float(value) <= 100:
            return Renewal(float(value))
        case "map" if value:
            name, _, trace = value.partition("#")
            return Map2(_read_maps(Path(name), trace))
        case _:
            raise InvalidRequest(f"{text!r} is none of poisson, cv=NUMBER from 0 to 100, map=FILE[#TRACE]", field="arrivals")


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _read_maps(path: Path, trace: str) -> tuple[tuple[float, ...], ...]:
    with open_text(path) as file:
        reader = csv.DictReader(file)
        missing = [name for name in MAP_COLUMNS if name not in (reader.fieldnames or ())]
        if missing:
            raise InvalidRequest(f"{path}: needs columns {','.join(MAP_COLUMNS)}, lacks {','.join(missing)}")
        rows = list(reader)
    wanted = trace or (rows[0].get("trace") if rows else None)
    chosen = [row for row in rows if row.get("trace") == wanted]
    if not chosen:
        raise InvalidRequest(f"{path}: no row{f' of {trace}' if trace else ' below the header'}")
    return tuple(_law(path, line, row) for line, row in enumerate(chosen, start=2))


def _law(path: Path, line: int, row: dict[str, str]) -> tuple[float, ...]:
    try:
        law = tuple(float(row[name]) for name in MAP_COLUMNS)
    except (TypeError, ValueError):
        raise InvalidRequest(f"{path}, row {line}: not numbers") from None
    is_law = all(math.isfinite(x) for x in law) and law[0] < 0 and law[3] < 0 and min(law[1], law[2], *law[4:]) >= 0
    sums = (law[0] + law[1] + law[4] + law[5], law[2] + law[3] + law[6] + law[7])
    if not is_law or max(map(abs, sums)) > 1e-3 * max(-law[0], -law[3]) or law[1] + law[5] + law[2] + law[6] <= 0:
        raise InvalidRequest(f"{path}, row {line}: no MAP(2): rows of D0 + D1 must sum to 0, with rates not negative off D0's diagonal")
    return law
