"""Load for a day of control cycles: requests by counting window, from a recorded trace or made up."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from simulator.traces import open_trace

WINDOW_S, MINUTE_S = 5.0, 60.0


def recorded_day(path: Path, *, cycles: int, scale: float = 1.0) -> Mapping[float, int]:
    """Sum a 1 s count trace up to windows, from its start; seconds that the trace lacks stay missing."""
    counts: Counter[float] = Counter()
    trace = open_trace(path, end_s=None)
    for row in trace.rows():
        at_s = row.t_s - trace.start_s
        if at_s >= cycles * MINUTE_S:
            break
        counts[math.floor(at_s / WINDOW_S) * WINDOW_S] += round(row.count * scale)
    return counts


def generated_day(*, cycles: int, scale: float = 1.0, seed: int = 0) -> Mapping[float, int]:
    """Make up a day with a slow swing, noise, and a surge every three hours or so."""
    rng = random.Random(seed)  # noqa: S311 - load, not secrets
    windows: dict[float, int] = {}
    surge_until_s, factor = 0.0, 1.0
    for number in range(int(cycles * MINUTE_S / WINDOW_S)):
        at_s = number * WINDOW_S
        if at_s >= surge_until_s:
            starts = rng.random() < WINDOW_S / 10_800
            surge_until_s, factor = (at_s + 480.0, rng.uniform(1.5, 3.0)) if starts else (0.0, 1.0)
        mean = scale * WINDOW_S * factor * (60 + 40 * math.sin(2 * math.pi * at_s / 86_400))
        windows[at_s] = max(0, round(rng.gauss(mean, math.sqrt(mean))))
    return windows
