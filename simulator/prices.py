"""Spot prices: a history of price changes as step functions by pool, replayed along a trace."""

from __future__ import annotations

import csv
import gzip
import math
import zlib
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

from markserve.errors import InvalidRequest

PRICE_COLUMNS = ("ts_utc", "az", "instance_type", "spot_usd_per_h")
EPOCH_FROM_S = 1e9
"""A trace whose times are this high is in Unix time, and is matched to the history's own dates."""
BILLED_HOUR_S = 3600.0
"""A spot price holds from the start of each hour of an instance to its end (AWS, "Spot Instances pricing"). Billed by the second."""

Pool = tuple[str, str]
"""(instance type, zone)."""


@dataclass(frozen=True, slots=True)
class Steps:
    """One pool's price as a step function; before its first change the first price holds."""

    at_s: tuple[float, ...]
    """Ascending, from the start of the replayed part; may be negative."""
    usd_per_hour: tuple[float, ...]

    def at(self, now_s: float) -> float:
        """Price in force."""
        return self.usd_per_hour[max(0, bisect_right(self.at_s, now_s) - 1)]

    def least(self, until_s: float) -> float:
        """Lowest price in force between the start and `until_s`."""
        inside = [usd for at_s, usd in zip(self.at_s, self.usd_per_hour, strict=True) if 0 < at_s <= until_s]
        return min([self.at(0.0), *inside])


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of one instance's life billed at one price."""

    from_s: float
    to_s: float
    price_usd_per_hour: float

    @property
    def cost_usd(self) -> float:
        """Its bill."""
        return (self.to_s - self.from_s) * self.price_usd_per_hour / 3600


def segments(steps: Steps, *, from_s: float, billed_s: float) -> list[Segment]:
    """Bill of one spot instance: the price at the start of each of its hours holds for that hour."""
    found: list[Segment] = []
    for hour in range(max(1, math.ceil(billed_s / BILLED_HOUR_S))):
        begins_s = from_s + hour * BILLED_HOUR_S
        ends_s = from_s + min(billed_s, (hour + 1) * BILLED_HOUR_S)
        price = steps.at(begins_s)
        if found and found[-1].price_usd_per_hour == price:
            found[-1] = Segment(found[-1].from_s, ends_s, price)
        else:
            found.append(Segment(begins_s, ends_s, price))
    return found


@contextmanager
def open_text(path: Path) -> Iterator[TextIO]:
    """Open a text file, gzip or not, and say so where it turns out to be something else.

    Raises
    ------
    InvalidRequest
        If it cannot be opened, is no text, or ends in the middle.
    """
    try:
        with path.open("rb") as file:
            compressed = file.read(2) == b"\x1f\x8b"
    except OSError as error:
        raise InvalidRequest(f"{path}: {error.strerror}") from error
    opener = gzip.open if compressed else open
    try:
        with opener(path, "rt", encoding="utf-8", newline="") as text:
            yield text
    except (UnicodeDecodeError, csv.Error, EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InvalidRequest(f"{path}: no CSV text: {error}") from error


def read_history(path: Path, instance_types: Sequence[str], *, start_s: float, first_s: float) -> dict[Pool, Steps]:
    """Read the price changes of some types.

    A trace in Unix time is matched to the history's dates. Otherwise the trace's first row is put at the first instant from
    which the history knows every pool of those types.

    Parameters
    ----------
    start_s, first_s
        Start of the replayed part and time of the trace's first row, in the trace's own times.
    """
    changes: dict[Pool, list[tuple[float, float]]] = {}
    for at_s, zone, name, usd in _changes(path, frozenset(instance_types)):
        changes.setdefault((name, zone), []).append((at_s, usd))
    if not changes:
        raise InvalidRequest(f"{path}: no price of any profiled type ({', '.join(instance_types)})")
    for known in changes.values():
        known.sort()
    zero_s = start_s if start_s >= EPOCH_FROM_S else max(known[0][0] for known in changes.values()) + start_s - first_s
    return {
        pool: Steps(tuple(at_s - zero_s for at_s, _ in known), tuple(usd for _, usd in known)) for pool, known in sorted(changes.items())
    }


def _changes(path: Path, wanted: frozenset[str]) -> Iterator[tuple[float, str, str, float]]:
    with open_text(path) as file:
        reader = csv.reader(file)
        header = next(reader, [])
        if any(name not in header for name in PRICE_COLUMNS):
            raise InvalidRequest(f"{path}: needs columns {','.join(PRICE_COLUMNS)}, found {','.join(header)[:80]}")
        columns = [header.index(name) for name in PRICE_COLUMNS]
        for line, cells in enumerate(reader, start=2):
            try:
                ts, zone, name, price = (cells[c] for c in columns)
                if name not in wanted:
                    continue
                at_s, usd = datetime.fromisoformat(ts).astimezone(UTC).timestamp(), float(price)
            except (IndexError, ValueError):
                raise InvalidRequest(f"{path}, line {line}: no price change: {','.join(cells)[:80]!r}") from None
            if not 0 < usd < math.inf:
                raise InvalidRequest(f"{path}, line {line}: a price must be positive and finite, got {price}")
            yield at_s, zone, name, usd


def merged(histories: Sequence[Mapping[Pool, Steps]]) -> dict[Pool, Steps]:
    """Put several histories together; the last one named wins a pool that two know."""
    return {pool: steps for history in histories for pool, steps in history.items()}
