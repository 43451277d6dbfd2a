"""A recorded load as the series that forecasters read: the highest window rate of each step, nothing where too little is known."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from markserve.errors import InvalidRequest
from simulator.assumptions import STEP_S, WINDOW_S
from simulator.traces import Trace

Floats = NDArray[np.float64]
STEPS_MAX = 366 * 1440
"""A year of minutes; a longer span between two rows is a mistake in the times."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepTrace:
    """Highest window rate of each step, NaN where unknown.

    Attributes
    ----------
    since_s
        Start of the first step in the trace's own times.
    row_s
        What a row of the trace covers; None for single requests. Above the counting window, the rate of a row stands for that of
        its windows, whose peaks it hides.
    """

    rates_rps: Floats
    since_s: float
    row_s: float | None


def read_steps(trace: Trace, *, step_s: float = STEP_S, window_s: float = WINDOW_S) -> StepTrace:
    """Cut a trace into steps, on multiples of the step.

    A window needs rows for half of it to be known, a step half of its windows; what a partly known window lacks is assumed
    to be like the rest of it.

    Raises
    ------
    InvalidRequest
        If a row covers more than a step, or the trace spans more than a year.
    """
    if trace.step_s is not None and trace.step_s > step_s:
        raise InvalidRequest(f"{trace.path}: a row covers {trace.step_s:g} s; forecasting needs {step_s:g} s or less")
    times, counts = _columns(trace)
    since_s = math.floor(times[0] / step_s) * step_s
    width_s = max(window_s, trace.step_s or 0.0)
    per_step = max(1, round(step_s / width_s))
    steps = int((times[-1] - since_s) // step_s) + 1
    if steps > STEPS_MAX:
        raise InvalidRequest(f"{trace.path}: spans {steps} steps of {step_s:g} s, at most {STEPS_MAX} are taken")
    index = np.minimum(((times - since_s) / width_s + 1e-9).astype(np.int64), steps * per_step - 1)
    total = np.bincount(index, weights=counts, minlength=steps * per_step)
    if trace.step_s is None:
        known: Floats = np.ones(len(total))
        known[index[-1] + 1 :] = 0.0
    else:
        known = np.asarray(np.bincount(index, minlength=steps * per_step) * (trace.step_s / width_s), dtype=np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        rates = np.where(known >= 0.5 - 1e-9, total / np.minimum(known, 1.0) / width_s, np.nan).reshape(steps, per_step)
    enough = 2 * (~np.isnan(rates)).sum(axis=1) >= per_step
    return StepTrace(rates_rps=np.where(enough, np.fmax.reduce(rates, axis=1), np.nan), since_s=since_s, row_s=trace.step_s)


def _columns(trace: Trace) -> tuple[Floats, Floats]:
    pairs = [(row.t_s, row.count * trace.factor_at(row.t_s - trace.start_s)) for row in trace.rows()]
    table = np.array(pairs, dtype=np.float64)
    return table[:, 0], table[:, 1]
