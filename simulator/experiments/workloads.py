"""Loads that experiments make themselves, for users without the traces: a day like Twitter's, an MMPP, a constant rate."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np

MEAN_RPS = 65.0
"""Mean of a 1 % sample of Twitter's stream, August 2021 (archive.org), which this load resembles."""
DAILY_SWING = 0.45
"""Amplitude of the day over its mean. Assumption."""
WANDER, WANDER_FOR_S = 0.06, 600.0
"""Log-standard deviation and correlation time of the slow noise. Assumption."""
SURGES_PER_DAY, SURGE_FOR_S, SURGE_FACTOR = 12.0, 480.0, 4.3
"""In that sample: 256 surges in 22 days, of a median of 8 minutes and 4.3 times the baseline."""
STEP_S = 1.0
DAY_S = 86400.0
MMPP_RATES_RPS, MMPP_MEAN_S = (50.0, 100.0, 200.0, 400.0), 600.0
"""States of the MMPP, and how long each is held on average. Assumption: MArk does not state its own."""


def write_twitter_like(path: Path, *, duration_s: float, seed: int = 1) -> Path:
    """Write a count trace with a daily swing, slow noise, and surges that rise within a minute and decay."""
    rng = np.random.default_rng([seed, 0x7117])
    at_s = np.arange(0.0, duration_s, STEP_S)
    swing = 1 + DAILY_SWING * np.sin(2 * math.pi * (at_s / DAY_S + rng.random()))
    kept = math.exp(-STEP_S / WANDER_FOR_S)
    luck = rng.standard_normal(at_s.size) * math.sqrt(1 - kept**2)
    wander = np.empty_like(at_s)
    level = float(rng.standard_normal())
    for index, step in enumerate(luck):
        level = kept * level + float(step)
        wander[index] = level
    rate_rps = MEAN_RPS * swing * np.exp(WANDER * wander)
    start_s = float(rng.exponential(DAY_S / SURGES_PER_DAY))
    while start_s < duration_s:
        height = (SURGE_FACTOR - 1) * float(rng.lognormal(0.0, 0.4))
        length_s = SURGE_FOR_S * float(rng.lognormal(0.0, 0.4))
        since_s = np.maximum(at_s - start_s, 0.0)
        rate_rps *= 1 + height * np.minimum(since_s / 60.0, 1.0) * np.exp(-since_s * math.log(2) / length_s)
        start_s += float(rng.exponential(DAY_S / SURGES_PER_DAY))
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("t_s", "count"))
        writer.writerows((f"{t:g}", f"{rate * STEP_S:.3f}") for t, rate in zip(at_s, rate_rps, strict=True))
    return path


def mmpp(duration_s: float) -> str:
    """Return the MMPP workload as `--trace` takes it."""
    return f"mmpp:{','.join(f'{rate:g}' for rate in MMPP_RATES_RPS)}:{MMPP_MEAN_S:g}:{duration_s:g}"


def constant(rate_rps: float, duration_s: float) -> str:
    """Return a Poisson process of constant rate as `--trace` takes it: an MMPP whose states are alike."""
    return f"mmpp:{rate_rps:g},{rate_rps:g}:{duration_s:g}:{duration_s:g}"
