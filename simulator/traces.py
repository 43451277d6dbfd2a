"""Read recorded load: `t_s,count` traces of any step, and traces of one row per request; gzip or not. Or make one up: MMPP.

A trace is read in blocks and never held as a whole, so memory does not depend on its length. A missing row of a count trace
is missing data, not zero load: the simulation passes over it, and says how much it passed over.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, pairwise, starmap
from pathlib import Path

from markserve.errors import InvalidRequest
from simulator.mmpp import Mmpp
from simulator.prices import open_text
from simulator.processes import POISSON, Process

PROBED_ROWS = 10_000
"""Rows from which a count trace's step is told: the least distance between two of them."""
ARRIVAL_COLUMNS = ("arrival_s", "t_s")
GAP_COLUMN = "interarrival_us"
"""Microseconds since the request before."""


@dataclass(frozen=True, slots=True)
class Surge:
    """Load times `factor` for `for_s` seconds from `at_s` on."""

    at_s: float
    factor: float
    for_s: float

    @classmethod
    def parse(cls, text: str) -> Surge:
        """Read `AT:FACTOR:FOR`.

        >>> Surge.parse("600:2.5:60")
        Surge(at_s=600.0, factor=2.5, for_s=60.0)
        """
        try:
            at_s, factor, for_s = (float(part) for part in text.split(":"))
        except ValueError:
            raise InvalidRequest(f"{text!r} is not AT:FACTOR:FOR, such as 600:2.5:60", field="surge") from None
        if not (at_s >= 0 and 0 <= factor < math.inf and 0 < for_s < math.inf):
            raise InvalidRequest(f"{text!r}: AT and FACTOR must not be negative, FOR must be positive", field="surge")
        return cls(at_s, factor, for_s)


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a trace: `count` requests from `t_s` on, or one at `t_s`."""

    t_s: float
    count: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Trace:
    """A trace file that was looked into, or a generated one, and the part of it that is replayed.

    Attributes
    ----------
    step_s
        Distance between rows; None where a row is a request.
    start_s, end_s
        In the file's own times.
    first_s
        Of the file's first row, in the same times.
    process
        How arrivals lie within the steps of a count trace.
    """

    path: Path | Mmpp
    column: str
    step_s: float | None
    start_s: float
    end_s: float
    scale: float = 1.0
    surges: tuple[Surge, ...] = ()
    first_s: float = 0.0
    process: Process = POISSON

    @property
    def is_counts(self) -> bool:
        """Whether rows are counts."""
        return self.step_s is not None

    def rows(self) -> Iterator[Row]:
        """Rows within the replayed part, checked.

        Raises
        ------
        InvalidRequest
            Naming the file, the line and the rule that it breaks.
        """
        made = starmap(Row, self.path.rows()) if isinstance(self.path, Mmpp) else _rows(self.path, self.column, counts=self.is_counts)
        for row in made:
            if row.t_s >= self.end_s:
                return
            if row.t_s >= self.start_s:
                yield row

    def factor_at(self, since_start_s: float) -> float:
        """Scale times the surges under way; instants count from the start of the replayed part."""
        return self.scale * math.prod(s.factor for s in self.surges if s.at_s <= since_start_s < s.at_s + s.for_s)


def open_trace(
    path: Path | Mmpp,
    *,
    scale: float = 1.0,
    start_s: float | None = None,
    end_s: float | None = None,
    surges: tuple[Surge, ...] = (),
    process: Process | None = None,
) -> Trace:
    """Look into a trace and return what is to be replayed of it.

    `start_s` and `end_s` are in the trace's own times; without them all of it is replayed.

    Raises
    ------
    InvalidRequest
        If it is no trace, or nothing of it lies in the part asked for.
    """
    if not 0 < scale < math.inf:
        raise InvalidRequest(f"must be positive, got {scale}", field="scale")
    for name, value in (("start", start_s), ("end", end_s)):
        if value is not None and math.isnan(value):
            raise InvalidRequest("must be a number, got nan", field=name)
    if isinstance(path, Mmpp):
        column, counts = "t_s", True
        probed = list(starmap(Row, islice(path.rows(), PROBED_ROWS)))
    else:
        column, counts = _columns(path)
        probed = list(islice(_rows(path, column, counts=counts), PROBED_ROWS))
    if not probed:
        raise InvalidRequest(f"{path}: empty, there is no row below the header")
    step_s: float | None = None
    if counts:
        if len(probed) < 2:
            raise InvalidRequest(f"{path}: one row does not tell the step of a count trace")
        step_s = min(b.t_s - a.t_s for a, b in pairwise(probed))
    trace = Trace(
        path=path,
        column=column,
        step_s=step_s,
        start_s=probed[0].t_s if start_s is None else start_s,
        end_s=math.inf if end_s is None else end_s,
        scale=scale,
        surges=surges,
        first_s=probed[0].t_s,
        process=process or POISSON,
    )
    if next(iter(trace.rows()), None) is None:
        raise InvalidRequest(f"{path}: no row lies within --start {trace.start_s:g} and --end {trace.end_s:g}")
    return trace


def _columns(path: Path) -> tuple[str, bool]:
    with open_text(path) as file:
        header = [name.strip() for name in next(csv.reader(file), [])]
    if not header:
        raise InvalidRequest(f"{path}: empty, not even a header")
    column = next((name for name in (*ARRIVAL_COLUMNS, GAP_COLUMN) if name in header), None)
    if column is None:
        raise InvalidRequest(f"{path}: needs columns t_s,count or arrival_s or {GAP_COLUMN}, found {','.join(header)[:80]}")
    return column, column == "t_s" and "count" in header


def _rows(path: Path, column: str, *, counts: bool) -> Iterator[Row]:
    previous_s, gap_s = -math.inf, 0.0
    is_gap = column == GAP_COLUMN
    with open_text(path) as file:
        reader = csv.reader(file)
        header = [name.strip() for name in next(reader)]
        at, count_at = header.index(column), header.index("count") if counts else -1
        for line, cells in enumerate(reader, start=2):
            if not cells:
                continue
            try:
                t_s, count = float(cells[at]), float(cells[count_at]) if counts else 1.0
            except (IndexError, ValueError):
                raise InvalidRequest(f"{path}, line {line}: not numbers: {','.join(cells)[:80]!r}") from None
            if not (0 <= t_s < math.inf and 0 <= count < math.inf):
                raise InvalidRequest(f"{path}, line {line}: times and counts must be finite and not negative: {','.join(cells)[:80]!r}")
            if is_gap:
                gap_s += t_s / 1e6
                yield Row(gap_s, 1.0)
                continue
            if t_s < previous_s or (counts and t_s == previous_s):
                raise InvalidRequest(f"{path}, line {line}: times must rise, {t_s:g} comes after {previous_s:g}")
            previous_s = t_s
            yield Row(t_s, count)
