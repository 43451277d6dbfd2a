"""Draw workloads to pre-train on: the highest 5-second rate of each minute of a service that never existed.

A workload is an expected rate (level, day and week shapes of random form, trend, level shifts, bursts of a Markov-modulated
process, jobs by the clock) times noise (Poisson counts of 5 s windows, over-dispersed for some), with holes. All from one seed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

DAY, WEEK = 1440, 10_080
WINDOWS, WINDOW_S = 12, 5.0
LEVELS_RPS = (0.1, 10_000.0)


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Expected rate of each minute without noise, and what was recorded of it."""

    expected_rps: Floats
    maxima_rps: Floats
    """Highest rate of a 5-second window of each minute; NaN where nothing was recorded."""

    def history(self) -> list[float | None]:
        """Return what a forecaster reads."""
        return [None if rate != rate else float(rate) for rate in self.maxima_rps]


def draw_workload(rng: np.random.Generator, minutes: int) -> Workload:
    """Draw one workload of some length."""
    low, high = np.log(LEVELS_RPS)
    log_rate = np.full(minutes, rng.uniform(low, high))
    log_rate += seasons(rng, minutes) + drift(rng, minutes) + shifts(rng, minutes) + clock_jobs(rng, minutes) + daily_jobs(rng, minutes)
    if rng.random() < 0.65:
        log_rate += bursts(rng, minutes)
    expected = np.exp(np.clip(log_rate, np.log(1e-3), np.log(1e6)))
    if rng.random() < 0.08:
        expected *= rng.random(minutes) > rng.uniform(0.3, 0.95)  # idle most of the time
    if rng.random() < 0.15:
        expected *= ~outages(rng, minutes)
    maxima = window_maxima(rng, expected)
    maxima[holes(rng, minutes)] = np.nan
    return Workload(expected_rps=expected, maxima_rps=maxima)


def seasons(rng: np.random.Generator, minutes: int) -> Floats:
    """Draw the shape of a day and of a week, in logarithms: harmonics, working hours, or none."""
    phase = rng.uniform(0, WEEK)
    time = np.arange(minutes) + phase
    total = np.zeros(minutes)
    if rng.random() < 0.85:
        depth = rng.gamma(2.0, 0.25)
        for harmonic in range(1, rng.integers(2, 7)):
            total += depth / harmonic ** rng.uniform(0.8, 2) * np.cos(2 * np.pi * harmonic * time / DAY + rng.uniform(0, 2 * np.pi))
    if rng.random() < 0.25:
        opening, length = rng.uniform(0, DAY), rng.uniform(0.2, 0.6) * DAY
        ramp = rng.uniform(5, 120)
        inside = np.minimum((time - opening) % DAY, (opening + length - time) % DAY)
        total += rng.uniform(0.3, 2) * np.clip(np.where((time - opening) % DAY < length, inside / ramp, 0), 0, 1)
    if rng.random() < 0.6:
        weekdays = rng.normal(0, rng.choice([0.05, 0.15, 0.4]), 7)
        weekdays[5:] -= rng.choice([0, 0.3, 0.8])
        total += np.interp(time / DAY % 7, np.arange(9) - 0.5, np.take(weekdays, np.arange(-1, 8), mode="wrap"))
    # No two days are alike: each scales the shape a little.
    days = rng.normal(1, rng.choice([0.02, 0.1, 0.25]), minutes // DAY + 3)
    return np.asarray(total * np.interp(time / DAY - time[0] // DAY, np.arange(len(days)), days))


def drift(rng: np.random.Generator, minutes: int) -> Floats:
    """Draw a slow random walk, a faster one that returns to its mean, and a trend."""
    walk = np.cumsum(rng.normal(0, rng.choice([0, 0.001, 0.004, 0.012]), minutes))
    memory = rng.uniform(3, 240)
    kicks = rng.normal(0, rng.choice([0, 0.03, 0.1, 0.2]) * np.sqrt(2 / memory), minutes)
    return walk + decayed(kicks, memory) + rng.normal(0, 0.15) * np.arange(minutes) / DAY


def shifts(rng: np.random.Generator, minutes: int) -> Floats:
    """Draw sudden changes of level: a release, a new customer, one that leaves."""
    total = np.zeros(minutes)
    for _ in range(rng.poisson(rng.choice([0, 0.15, 0.6]) * minutes / DAY)):
        total[rng.integers(minutes) :] += rng.normal(0, 0.5)
    return np.clip(total, -2, 2)


def clock_jobs(rng: np.random.Generator, minutes: int) -> Floats:
    """Draw what schedulers and news at full hours add: surges at fixed minutes of the hour, at some hours, alike from day to day."""
    total = np.zeros(minutes)
    if rng.random() < 0.5:
        origin = rng.integers(DAY)
        time = np.arange(minutes) + origin
        for _ in range(rng.integers(1, 4)):
            period = rng.choice([10, 15, 30, 30, 60, 60, 60, 360])
            offset = rng.integers(period)
            slot, since = (time + offset) // period, (time + offset) % period
            lasts, flat, decay = rng.uniform(1, 15), rng.random() < 0.5, rng.uniform(0.7, 5)
            slots = slot[-1] + 1
            same_each_day = rng.random() < 0.7
            active = rng.random(slots) < rng.choice([0.25, 0.5, 1.0])
            if same_each_day:
                active = active[np.arange(slots) % (DAY // period)] ^ (rng.random(slots) < rng.choice([0, 0.05, 0.2]))
            lengths = lasts * rng.gamma(8, 1 / 8, slots)
            over = np.maximum(since - lengths[slot], 0) if flat else since
            size = rng.choice([0.1, 0.4, 1.2]) * rng.gamma(4, 0.25) * active * rng.gamma(30, 1 / 30, slots)
            total += size[slot] * np.exp(-over / decay)
            total += rng.uniform(0, 0.4) * np.append(size[slot[1:]] * (since[1:] == 0), 0)  # some clocks are ahead
    return total


def daily_jobs(rng: np.random.Generator, minutes: int) -> Floats:
    """Draw what happens at the same minutes of every day, or nearly: batch jobs, matches, shops that open."""
    total = np.zeros(minutes)
    if rng.random() < 0.4:
        days = minutes // DAY + 1
        for _ in range(rng.integers(1, 6)):
            at, lasts = rng.integers(DAY), np.exp(rng.uniform(np.log(4), np.log(180)))
            size = rng.choice([0.3, 0.8, 1.5]) * rng.gamma(8, 1 / 8)
            late = rng.choice([0, 0, 2, 10]) * rng.normal(0, 1, days)
            happens = rng.random(days) < rng.choice([1.0, 1.0, 0.9, 0.6])
            for day in np.flatnonzero(happens):
                start = max(0, int(day * DAY + at + late[day]))
                total[start : start + int(lasts)] += size * rng.normal(1, 0.05)
    return total


def bursts(rng: np.random.Generator, minutes: int) -> Floats:
    """Draw bursts: a Markov chain that switches between calm and high load (MMPP), with abrupt or decaying ends."""
    total = np.zeros(minutes)
    for _ in range(rng.integers(1, 3)):
        gap, length = np.exp(rng.uniform(np.log(15), np.log(2000))), np.exp(rng.uniform(np.log(1.5), np.log(90)))
        fixed = rng.random() < 0.5  # states of the chain, or a size for each burst
        sizes = rng.choice([0.15, 0.4, 0.8, 1.4]) * (np.full(minutes, 1.0) if fixed else rng.gamma(2, 0.5, minutes))
        ebbs = rng.random() < 0.4
        at = rng.exponential(gap)
        for size in sizes:
            if at >= minutes:
                break
            lasts, start = rng.exponential(length) + 1, int(at)
            end = min(minutes, start + int((5 if ebbs else 1) * lasts) + 1)
            total[start:end] += size * (np.exp(-np.arange(end - start) / lasts) if ebbs else 1)
            at += lasts + rng.exponential(gap)
    return np.minimum(total, 3)


def outages(rng: np.random.Generator, minutes: int) -> NDArray[np.bool_]:
    """Draw minutes at which nothing arrives, for minutes or hours at a time."""
    return spans(rng, minutes, rng.poisson(0.4 * minutes / DAY), (2, 600))


def holes(rng: np.random.Generator, minutes: int) -> NDArray[np.bool_]:
    """Draw minutes that were not recorded: some single, some in a row, once in a while most of a day."""
    missing: NDArray[np.bool_] = rng.random(minutes) < rng.choice([0, 0, 0.002, 0.03])
    if rng.random() < 0.4:
        missing |= spans(rng, minutes, rng.poisson(minutes / DAY), (2, 1000))
    return missing


def spans(rng: np.random.Generator, minutes: int, count: int, lengths: tuple[int, int]) -> NDArray[np.bool_]:
    """Draw `count` spans whose lengths are spread evenly in logarithms."""
    inside = np.zeros(minutes, dtype=bool)
    for _ in range(count):
        start = rng.integers(minutes)
        inside[start : start + int(np.exp(rng.uniform(*np.log(lengths))))] = True
    return inside


def window_maxima(rng: np.random.Generator, expected_rps: Floats) -> Floats:
    """Count the arrivals of twelve windows a minute, and return the highest rate among them."""
    rates = expected_rps[:, None] * WINDOW_S
    if rng.random() < 0.6:  # over-dispersed: the rate itself flickers from window to window
        shape = np.exp(rng.uniform(np.log(2), np.log(500)))
        rates = rates * rng.gamma(shape, 1 / shape, (len(expected_rps), WINDOWS))
    counts = rng.poisson(np.broadcast_to(rates, (len(expected_rps), WINDOWS)))
    return np.asarray(counts.max(axis=1) / WINDOW_S, dtype=np.float64)


def decayed(kicks: Floats, memory: float) -> Floats:
    """Sum kicks that each fade over `memory` minutes."""
    kernel = np.exp(-np.arange(int(6 * memory)) / memory)
    size = 1 << (len(kicks) + len(kernel)).bit_length()
    return np.asarray(np.fft.irfft(np.fft.rfft(kicks, size) * np.fft.rfft(kernel, size), size)[: len(kicks)])
