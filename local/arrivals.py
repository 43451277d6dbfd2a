"""When requests are sent: seeded Poisson arrivals over phases, or a recorded trace."""

from __future__ import annotations

import csv
import gzip
import itertools
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True, slots=True)
class Phase:
    """A stretch of load; the rate moves linearly from `rate_rps` to `end_rate_rps` when that is given."""

    name: str
    duration_s: float
    rate_rps: float
    end_rate_rps: float | None = None

    def rate_at(self, since_start_s: float) -> float:
        """Rate at an instant of the phase.

        >>> Phase(name="ramp", duration_s=10.0, rate_rps=2.0, end_rate_rps=12.0).rate_at(5.0)
        7.0
        """
        last_rps = self.rate_rps if self.end_rate_rps is None else self.end_rate_rps
        return self.rate_rps + (last_rps - self.rate_rps) * since_start_s / self.duration_s


@dataclass(frozen=True, kw_only=True, slots=True)
class Arrival:
    """One request to send `at_s` after the start of the load."""

    at_s: float
    phase: str


def poisson_arrivals(phases: Sequence[Phase], *, seed: int) -> list[Arrival]:
    """Draw a Poisson process whose rate follows `phases`, the same for the same seed.

    Notes
    -----
    Thinning (Lewis and Shedler 1979): candidates at the phase's highest rate, each kept with probability
    rate(t) / highest rate. Exact for any rate function, and independent of the phase's length.
    """
    rng = random.Random(seed)  # noqa: S311  # a workload, not a secret
    arrivals: list[Arrival] = []
    start_s = 0.0
    for phase in phases:
        highest_rps = max(phase.rate_at(0.0), phase.rate_at(phase.duration_s))
        at_s = rng.expovariate(highest_rps) if highest_rps > 0 else phase.duration_s
        while at_s < phase.duration_s:
            if rng.random() * highest_rps < phase.rate_at(at_s):
                arrivals.append(Arrival(at_s=start_s + at_s, phase=phase.name))
            at_s += rng.expovariate(highest_rps)
        start_s += phase.duration_s
    return arrivals


def trace_arrivals(rows: Iterable[tuple[float, float]], *, step_s: float, seed: int, scale: float = 1.0) -> list[Arrival]:
    """Spread a trace's counts over their steps: `count * scale` requests, uniform within `[t_s, t_s + step_s)`.

    Given the count of a step, a Poisson process is uniform within it. A fraction of a request is kept at random, so
    that scaling down keeps the mean. A step without a row is unknown and gets nothing.

    >>> [round(a.at_s, 1) for a in trace_arrivals([(0.0, 2.0), (1.0, 1.0)], step_s=1.0, seed=1)]
    [0.8, 0.8, 1.5]
    """
    rng = random.Random(seed)  # noqa: S311  # a workload, not a secret
    times: list[float] = []
    for t_s, count in rows:
        whole, fraction = divmod(count * scale, 1.0)
        times.extend(t_s + rng.random() * step_s for _ in range(int(whole) + (rng.random() < fraction)))
    return [Arrival(at_s=at_s, phase="trace") for at_s in sorted(times)]


def read_trace(path: Path) -> tuple[list[tuple[float, float]], float]:
    """Read a `t_s,count` CSV (plain or .gz); times start at zero.

    Returns
    -------
    (rows, step_s)
        The step is the smallest distance between rows.

    Raises
    ------
    ValueError
        Naming the file and the row that is not a trace's.
    """
    opener = gzip.open if path.suffix == ".gz" else open
    rows: list[tuple[float, float]] = []
    with opener(path, "rt", encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if not {"t_s", "count"} <= set(reader.fieldnames or ()):
            raise ValueError(f"{path}: a trace needs the columns t_s and count, found {reader.fieldnames}")
        for row in reader:
            try:
                rows.append((float(row["t_s"]), float(row["count"])))
            except (TypeError, ValueError):
                raise ValueError(f"{path}, line {reader.line_num}: t_s and count must be numbers, got {row}") from None
    if len(rows) < 2:
        raise ValueError(f"{path}: a trace needs at least two rows")
    rows.sort()
    step_s = min(later[0] - earlier[0] for earlier, later in itertools.pairwise(rows))
    if step_s <= 0:
        raise ValueError(f"{path}: two rows have the same t_s")
    return [(t_s - rows[0][0], count) for t_s, count in rows], step_s
