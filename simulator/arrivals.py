"""A trace as arrivals of single requests, window by window, the same for the same seed.

Within a step of a count trace arrivals follow the trace's `process`, Poisson unless told otherwise. A trace
of single requests is replayed as it is; scaled by k, each request appears floor(k) times and once more with the
remaining probability, copies moved by less than a second so that they do not arrive as one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np

from simulator.assumptions import WINDOW_S
from simulator.service import Floats
from simulator.traces import Trace

COPY_SPREAD_S = 1.0
"""Copies of one recorded request are spread by up to this."""
BLOCK_ROWS = 2000
"""Rows of a request trace that are taken at once."""


@dataclass(frozen=True, slots=True)
class Window:
    """Arrivals of one counting window; instants count from the start of the replayed part."""

    at_s: float
    arrivals_s: Floats
    """Ascending."""
    is_known: bool
    """False where the trace has no data for at least half of the window."""


def windows(trace: Trace, *, seed: int) -> Iterator[Window]:
    """Arrivals of every counting window, in order; yields the same again when called again."""
    rng = np.random.default_rng([seed, 0xA441])
    pieces = _count_pieces(trace, rng) if trace.is_counts else _request_pieces(trace, rng)
    index, held, known_s = 0, [np.empty(0)], 0.0
    covered_to_s = 0.0
    for from_s, to_s, arrivals_s in pieces:
        begins_s = max(from_s, covered_to_s)
        held.append(arrivals_s)
        while to_s >= (index + 1) * WINDOW_S:
            ends_s = (index + 1) * WINDOW_S
            known_s += max(0.0, ends_s - max(begins_s, index * WINDOW_S))
            merged = np.sort(np.concatenate(held))
            cut = int(np.searchsorted(merged, ends_s))
            yield Window(index * WINDOW_S, merged[:cut], 2 * known_s >= WINDOW_S)
            index, held, known_s = index + 1, [merged[cut:]], 0.0
        known_s += max(0.0, to_s - max(begins_s, index * WINDOW_S))
        covered_to_s = max(covered_to_s, to_s)
    merged = np.sort(np.concatenate(held))
    if merged.size or known_s > 0:
        yield Window(index * WINDOW_S, merged, 2 * known_s >= WINDOW_S)


def _count_pieces(trace: Trace, rng: np.random.Generator) -> Iterator[tuple[float, float, Floats]]:
    """Yield steps as (from, to, arrivals), unsorted within a step."""
    step_s = trace.step_s or 1.0
    within = trace.process.begin(rng)
    for row in trace.rows():
        since_s = row.t_s - trace.start_s
        yield since_s, since_s + step_s, since_s + step_s * within(row.count * trace.factor_at(since_s), since_s)


def _request_pieces(trace: Trace, rng: np.random.Generator) -> Iterator[tuple[float, float, Floats]]:
    """Single requests, in blocks; the time between two of them is known to be quiet."""
    rows, previous_s = trace.rows(), 0.0
    while block := list(islice(rows, BLOCK_ROWS)):
        since_s = np.array([row.t_s for row in block]) - trace.start_s
        factors = np.array([trace.factor_at(at_s) for at_s in since_s]) if trace.surges else np.full(since_s.size, trace.scale)
        copies = factors.astype(np.int64)
        copies += rng.random(copies.size) < factors - copies
        at_s = np.repeat(since_s, copies) + COPY_SPREAD_S * rng.random(int(copies.sum()))
        originals = (np.cumsum(copies) - copies)[copies > 0]
        at_s[originals] = since_s[copies > 0]
        yield previous_s, float(since_s[-1]), at_s
        previous_s = float(since_s[-1])
