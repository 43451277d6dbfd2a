"""Who watches the objective between control steps: the product's burn-rate rule, or the failure rate of MArk's prototype."""

from __future__ import annotations

import math
from collections import deque
from typing import Protocol

from markserve.core.slo import SloWindow, assess
from markserve.core.types import Slo
from simulator.assumptions import (
    ALERT_INTERVAL_S,
    LEAD_STEPS,
    PAPER_FAILURE_LIMIT,
    PAPER_FAILURE_WEIGHT,
    PAPER_PAUSE_S,
    SHORT_STEPS,
    SLIDING_STEPS,
    STEP_S,
    WINDOW_S,
)


class Monitor(Protocol):
    """Sees the outcomes of each window's requests and says when capacity is short."""

    def alarm(self, outcomes: SloWindow, *, now_s: float) -> str | None:
        """Take in what became known since the last call; return why the objective is at risk, or None."""
        ...


class ProductMonitor:
    """`core.slo.assess`, called and limited as `functions/ingest` does."""

    def __init__(self, slo: Slo) -> None:
        self._slo = slo
        self._windows: deque[SloWindow] = deque()
        self._quiet_until_s = -math.inf

    def alarm(self, outcomes: SloWindow, *, now_s: float) -> str | None:
        """See `Monitor`."""
        sliding_s = SLIDING_STEPS * STEP_S
        self._windows.append(outcomes)
        while self._windows[0].at_s <= now_s - sliding_s:
            self._windows.popleft()
        if outcomes.requests == 0:
            return None
        verdict = assess(
            self._windows,
            slo=self._slo,
            now_s=now_s,
            sliding_s=sliding_s,
            short_s=max(SHORT_STEPS * STEP_S, 2 * WINDOW_S),
            lead_s=LEAD_STEPS * STEP_S,
        )
        if not verdict.at_risk or now_s < self._quiet_until_s:
            return None
        self._quiet_until_s = now_s + min(ALERT_INTERVAL_S, STEP_S)
        return verdict.reason


class PaperMonitor:
    """An exponentially weighted failure rate, a fixed limit, and a pause after each alarm."""

    def __init__(self) -> None:
        self._rate = 0.0
        self._quiet_until_s = -math.inf

    def alarm(self, outcomes: SloWindow, *, now_s: float) -> str | None:
        """See `Monitor`. Requests of a window count as if its failures were spread evenly."""
        if outcomes.requests:
            kept = (1 - PAPER_FAILURE_WEIGHT) ** outcomes.requests
            self._rate = kept * self._rate + (1 - kept) * (1 - outcomes.within_slo / outcomes.requests)
        if self._rate <= PAPER_FAILURE_LIMIT or now_s < self._quiet_until_s:
            return None
        self._quiet_until_s = now_s + PAPER_PAUSE_S
        return f"{self._rate:.2%} of requests fail, more than {PAPER_FAILURE_LIMIT:.0%}"
