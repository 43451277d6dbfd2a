"""Figures of requests and batches, from Parquet files of any length: read in pieces, counted in bins, never held."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from markserve.errors import InvalidRequest
from simulator.assumptions import WINDOW_S
from simulator.service import Floats, Ints
from simulator.summary import LATENCY_RESOLUTION, LEAST_LATENCY_S, LEAST_REQUESTS, MINUTE_S

ROWS_AT_ONCE = 250_000
LONGEST_LATENCY_S = 3600.0
"""Longer ones count as this long."""
LATENCY_BINS = math.ceil(math.log(LONGEST_LATENCY_S / LEAST_LATENCY_S) / LATENCY_RESOLUTION) + 1
COARSE = 10
"""Latency over time is exact to 2 %: ten fine bins to one."""
MOST_TIME_BINS = 1500
TIME_STEPS_S = (5.0, 10.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 900.0, 1800.0, 3600.0, 7200.0, 21600.0, 86400.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class RequestFigures:
    """Counts of one run's requests; times from the start of the replay."""

    bin_s: float
    """Length of the bins of `arrived` and `slow`."""
    arrived: Floats
    """Requests by bin; a sample is scaled up."""
    peak_rps: Floats
    """Highest rate of any 5 s window, by bin: what forecasts forecast."""
    minute_attainment: Floats
    """Share answered in time by minute of arrival; NaN for minutes of fewer than 100 requests."""
    latency_counts: Ints
    """Answered requests by latency, see `latency_s`."""
    latency_over_time: Ints
    """The same by bin and coarser latency."""
    rows: int
    met: int
    unanswered: int

    @property
    def attainment(self) -> float:
        """Share answered in time."""
        return self.met / max(1, self.rows)

    def quantile_over_time_s(self, q: float) -> Floats:
        """Latency quantile of the answered requests of each bin; NaN where there are none."""
        cumulative = np.cumsum(self.latency_over_time, axis=1)
        totals = cumulative[:, -1]
        index = (cumulative >= q * totals[:, None]).argmax(axis=1)
        return np.where(totals > 0, latency_s(index * COARSE + COARSE // 2), np.nan)

    def distribution(self) -> tuple[Floats, Floats]:
        """Latencies, and the share of all requests answered within each: unanswered ones never are."""
        held = np.flatnonzero(self.latency_counts)
        return latency_s(held + 1), np.cumsum(self.latency_counts[held]) / max(1, self.rows)


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchFigures:
    """Counts of one run's batches."""

    bin_s: float
    sizes: Ints
    """Batches of workers by size; index 0 is none."""
    lambda_s: Floats
    """Seconds of invocations by bin, from start to end."""
    started: Floats
    """Requests in batches by bin of start: near the load, where requests were not recorded."""


def time_step_s(simulated_s: float) -> float:
    """Length of bins that a run of this length is shown in."""
    return next((step for step in TIME_STEPS_S if simulated_s <= step * MOST_TIME_BINS), simulated_s / MOST_TIME_BINS)


def latency_s(index: Ints) -> Floats:
    """Latency at the lower edge of a fine bin."""
    return np.asarray(LEAST_LATENCY_S * np.exp(index * LATENCY_RESOLUTION), np.float64)


def read_requests(path: Path, *, simulated_s: float, rt_max_s: float, requests: int) -> RequestFigures:
    """Count a run's requests; `requests` is how many there were, of which the file may hold a sample.

    Raises
    ------
    InvalidRequest
        If the file is no `requests.parquet`.
    """
    bin_s = time_step_s(simulated_s)
    bins, minutes = _count(simulated_s, bin_s), _count(simulated_s, MINUTE_S)
    windows = np.zeros(_count(simulated_s, WINDOW_S), np.int64)
    by_minute, met_by_minute = np.zeros(minutes, np.int64), np.zeros(minutes, np.int64)
    latencies = np.zeros(LATENCY_BINS, np.int64)
    columns = LATENCY_BINS // COARSE + 1
    over_time = np.zeros(bins * columns, np.int64)
    rows = 0
    for arrival_s, finished_s in _pieces(path, ("arrival_s", "finished_at_s")):
        taken_s = finished_s - arrival_s
        answered = np.isfinite(taken_s)
        minute = _index(arrival_s, MINUTE_S, minutes)
        rows += arrival_s.size
        windows += np.bincount(_index(arrival_s, WINDOW_S, windows.size), minlength=windows.size)
        by_minute += np.bincount(minute, minlength=minutes)
        met_by_minute += np.bincount(minute[taken_s <= rt_max_s], minlength=minutes)
        fine = np.log(np.clip(taken_s[answered], LEAST_LATENCY_S, LONGEST_LATENCY_S) / LEAST_LATENCY_S) / LATENCY_RESOLUTION
        index = fine.astype(np.int64)
        latencies += np.bincount(index, minlength=LATENCY_BINS)
        over_time += np.bincount(_index(arrival_s[answered], bin_s, bins) * columns + index // COARSE, minlength=over_time.size)
    scale = requests / rows if rows else 1.0
    enough = by_minute >= LEAST_REQUESTS
    starts = np.minimum((np.arange(bins) * bin_s / WINDOW_S).astype(np.int64), windows.size - 1)
    return RequestFigures(
        bin_s=bin_s,
        arrived=np.add.reduceat(windows, starts) * scale,
        peak_rps=np.maximum.reduceat(windows, starts) * scale / WINDOW_S,
        minute_attainment=np.where(enough, met_by_minute / np.maximum(by_minute, 1), np.nan),
        latency_counts=latencies,
        latency_over_time=over_time.reshape(bins, columns),
        rows=rows,
        met=int(met_by_minute.sum()),
        unanswered=rows - int(latencies.sum()),
    )


def read_batches(path: Path, *, simulated_s: float) -> BatchFigures:
    """Count a run's batches.

    Raises
    ------
    InvalidRequest
        If the file is no `batches.parquet`.
    """
    bin_s = time_step_s(simulated_s)
    bins = _count(simulated_s, bin_s)
    sizes = np.zeros(2, np.int64)
    lambda_s, started = np.zeros(bins), np.zeros(bins)
    for tier, start_s, finished_s, size in _pieces(path, ("tier", "started_at_s", "finished_at_s", "size")):
        on_lambda = tier > 0
        counted = np.bincount(size[~on_lambda].astype(np.int64), minlength=sizes.size)
        counted[: sizes.size] += sizes
        sizes = counted
        index = _index(start_s, bin_s, bins)
        started += np.bincount(index, size, minlength=bins)
        lambda_s += np.bincount(index[on_lambda], np.nan_to_num((finished_s - start_s)[on_lambda]), minlength=bins)
    return BatchFigures(bin_s=bin_s, sizes=sizes, lambda_s=lambda_s, started=started)


def _pieces(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[Floats, ...]]:
    """Read columns in pieces; nulls become NaN, and `tier` becomes 1 where it is lambda, else 0."""
    try:
        with pq.ParquetFile(path, pre_buffer=False) as file:
            missing = set(columns) - set(file.schema_arrow.names)
            if missing:
                raise InvalidRequest(f"{path} has no column {', '.join(sorted(missing))}")
            for piece in file.iter_batches(batch_size=ROWS_AT_ONCE, columns=list(columns)):
                yield tuple(_floats(piece.column(name)) for name in columns)
    except (pa.ArrowException, OSError) as error:
        raise InvalidRequest(f"{path} is not readable as Parquet: {str(error).splitlines()[0]}") from error


def _floats(column: pa.Array) -> Floats:
    if pa.types.is_dictionary(column.type) or pa.types.is_string(column.type):
        column = pc.equal(column.cast(pa.string()), "lambda").cast(pa.int8())
    return np.asarray(column.to_numpy(zero_copy_only=False), np.float64)


def _count(simulated_s: float, step_s: float) -> int:
    return max(1, math.ceil(simulated_s / step_s - 1e-9))


def _index(at_s: Floats, step_s: float, bins: int) -> Ints:
    return np.clip(at_s / step_s, 0, bins - 1).astype(np.int64)
