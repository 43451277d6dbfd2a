"""When spot capacity goes away: recorded drops, a hazard where nothing was recorded, and interruptions ordered by hand."""

from __future__ import annotations

import csv
import heapq
import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, count, pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from markserve.errors import InvalidRequest
from simulator.assumptions import POOL_EVENT_SHARE
from simulator.prices import open_text

NODE_COLUMNS = ("trace", "t_s", "event", "node")
REUSE_SHIFT_S = 6 * 3600.0
"""A recorded pool that stands for several simulated ones is replayed this much later for each further one."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """How many instances a recorded pool gave at each time; it repeats when it ends."""

    name: str
    at_s: tuple[float, ...]
    """Ascending, from 0."""
    available: tuple[float, ...]
    length_s: float

    def at(self, now_s: float) -> float:
        """Instances to be had."""
        return self.available[max(0, bisect_right(self.at_s, now_s % self.length_s) - 1)]

    def drops(self, shift_s: float) -> Iterator[tuple[float, float]]:
        """Instants from the start on, and shares of the pool that go then; endless."""
        found = [(b_s, 1 - b / a) for (_, a), (b_s, b) in pairwise(zip(self.at_s, self.available, strict=True)) if b < a]
        if not found:
            return
        first_round = math.floor(shift_s / self.length_s)
        for number in count(first_round):
            for at_s, share in found:
                since_s = number * self.length_s + at_s - shift_s
                if since_s >= 0:
                    yield since_s, share


@dataclass(frozen=True, slots=True)
class Ordered:
    """A share of the largest spot pool is interrupted at an instant, with notice or without."""

    at_s: float
    share: float
    has_notice: bool = True

    @classmethod
    def parse(cls, text: str) -> Ordered:
        """Read `AT:SHARE` or `AT:SHARE:no-notice`.

        >>> Ordered.parse("600:0.5"), Ordered.parse("600:1:no-notice").has_notice
        (Ordered(at_s=600.0, share=0.5, has_notice=True), False)
        """
        plain = text.removesuffix(":no-notice")
        try:
            at_s, share = (float(part) for part in plain.split(":"))
        except ValueError:
            raise InvalidRequest(f"{text!r} is not AT:SHARE or AT:SHARE:no-notice, such as 600:0.5", field="interrupt") from None
        if not (0 <= at_s < math.inf and 0 < share <= 1):
            raise InvalidRequest(f"{text!r}: AT must not be negative, SHARE must lie above 0 and up to 1", field="interrupt")
        return cls(at_s, share, plain == text)


def hazard_events(rate_per_hour: float, rng: np.random.Generator) -> Iterator[tuple[float, float]]:
    """Capacity events of a pool in which each instance has this hazard: endless (instant, share of the pool)."""
    at_s = 0.0
    while rate_per_hour > 0:
        at_s += float(rng.exponential(3600 * POOL_EVENT_SHARE / rate_per_hour))
        yield at_s, 1 - float(rng.random())


class PoolEvents:
    """Capacity events of all pools in order of time."""

    def __init__(self, pools: Sequence[tuple[str, Iterator[tuple[float, float]]]]) -> None:
        self._sources = [events for _, events in pools]
        self._heap: list[tuple[float, int, str, float]] = []
        for index, (key, events) in enumerate(pools):
            self._push(index, key, events)

    def _push(self, index: int, key: str, events: Iterator[tuple[float, float]]) -> None:
        following = next(events, None)
        if following is not None:
            heapq.heappush(self._heap, (following[0], index, key, following[1]))

    def until(self, now_s: float) -> Iterator[tuple[float, str, float]]:
        """Take out the events before `now_s`: (instant, pool, share)."""
        while self._heap and self._heap[0][0] < now_s:
            at_s, index, key, share = heapq.heappop(self._heap)
            self._push(index, key, self._sources[index])
            yield at_s, key, share


# --- files ----------------------------------------------------------------------------------------------------------


def read_recorded(path: Path) -> list[Recorded]:
    """Read SkyPilot's availability traces (JSON) or node events (CSV `trace,t_s,event,node`).

    Raises
    ------
    InvalidRequest
        Naming the file and what is wrong with it.
    """
    return _read_json(path) if path.suffix == ".json" else _read_nodes(path)


class _Availability(msgspec.Struct, frozen=True):
    kind: str
    zone: str
    gap_seconds: float
    rle_value_count: tuple[tuple[float, int], ...]
    experiment: str = ""
    hardware: str = ""


def _read_json(path: Path) -> list[Recorded]:
    try:
        series = msgspec.json.decode(path.read_bytes(), type=tuple[_Availability, ...])
    except OSError as error:
        raise InvalidRequest(f"{path}: {error.strerror}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"{path}: {error}") from error
    found = [_recorded(path, one) for one in series if one.rle_value_count and one.gap_seconds > 0]
    if not found:
        raise InvalidRequest(f"{path}: no availability series")
    return found


def _recorded(path: Path, one: _Availability) -> Recorded:
    if any(value < 0 or ticks < 1 for value, ticks in one.rle_value_count):
        raise InvalidRequest(f"{path}: values must not be negative, run lengths must be positive")
    ends = list(accumulate(ticks for _, ticks in one.rle_value_count))
    at_s = tuple(one.gap_seconds * tick for tick in (0, *ends[:-1]))
    name = " ".join(part for part in (one.experiment, one.zone, one.hardware) if part)
    return Recorded(name, at_s, tuple(value for value, _ in one.rle_value_count), one.gap_seconds * ends[-1])


def _read_nodes(path: Path) -> list[Recorded]:
    changes: dict[str, Counter[float]] = {}
    with open_text(path) as file:
        reader = csv.DictReader(file)
        if any(name not in (reader.fieldnames or ()) for name in NODE_COLUMNS):
            raise InvalidRequest(f"{path}: needs columns {','.join(NODE_COLUMNS)}, found {','.join(reader.fieldnames or ())[:80]}")
        for line, row in enumerate(reader, start=2):
            at_s, step = _node_event(path, line, row)
            changes.setdefault(row["trace"], Counter())[at_s] += step
    if not changes:
        raise InvalidRequest(f"{path}: empty, there is no row below the header")
    return [_counted(name, by_time) for name, by_time in sorted(changes.items())]


def _node_event(path: Path, line: int, row: dict[str, Any]) -> tuple[float, int]:
    try:
        at_s = float(row["t_s"])
        step = {"add": 1, "remove": -1}[row["event"]]
    except (TypeError, ValueError, KeyError):
        raise InvalidRequest(f"{path}, line {line}: no node event (add or remove at t_s)") from None
    if not 0 <= at_s < math.inf:
        raise InvalidRequest(f"{path}, line {line}: t_s must be finite and not negative, got {row['t_s']}")
    return at_s, step


def _counted(name: str, by_time: Counter[float]) -> Recorded:
    times = sorted(by_time)
    running = [max(0, n) for n in accumulate(by_time[at_s] for at_s in times)]
    return Recorded(name, tuple(at_s - times[0] for at_s in times), tuple(float(n) for n in running), times[-1] - times[0] + 60.0)
