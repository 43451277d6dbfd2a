"""The spillover function: environments, cold starts, and what its invocations cost."""

from __future__ import annotations

import math

import numpy as np

from markserve.core.cost import lambda_cost_usd
from simulator.assumptions import (
    COLD_START,
    ENVIRONMENT_IDLE_S,
    PING_S,
    PROVISIONED_DURATION_GB_S_USD,
    PROVISIONED_GB_S_USD,
)
from simulator.fast import compiled
from simulator.service import Floats, Kind
from simulator.state import SETTLED, Batches, Requests

BILLING_TOLERANCE_MS = 1e-6
"""As in `core.cost.lambda_cost_usd`: rounding must not cost a millisecond."""


class SpillTier:
    """Environments of one model's spillover function.

    An invocation takes the first free warm environment, so that the last ones fall idle and are reclaimed; if none is
    free it starts a new one, cold. Beyond `concurrency` it is refused. Provisioned environments come first, never
    start cold, and are billed by `provisioned_usd` as long as they are there.
    """

    def __init__(self, kind: Kind, *, memory_mb: int, rng: np.random.Generator, concurrency: int, provisioned: int = 0) -> None:
        self._kind = kind
        self._memory_mb = memory_mb
        self._rng = rng
        self._provisioned = provisioned
        self._free_at_s = np.full(concurrency, -math.inf)
        self._alive_until_s = np.full(concurrency, -math.inf)
        self._free_at_s[:provisioned] = -1.0
        self._alive_until_s[:provisioned] = math.inf
        self.billed_ms = 0.0
        self.provisioned_ms = 0.0
        self.invocations = 0
        self.cold_starts = 0
        self.refused = 0
        self.on_provisioned = 0
        self.pings = 0

    @property
    def cost_usd(self) -> float:
        """Bill of use so far: every invocation's started milliseconds and the requests, pings included."""
        per_ms = (lambda_cost_usd(duration_s=1.0, memory_mb=self._memory_mb) - self._request_usd) / 1000
        provisioned_per_ms = PROVISIONED_DURATION_GB_S_USD * self._memory_mb / 1024 / 1000
        used_usd = self.billed_ms * per_ms + self.provisioned_ms * provisioned_per_ms
        return used_usd + (self.invocations + self.pings) * self._request_usd

    def provisioned_usd(self, for_s: float) -> float:
        """Bill of the provisioned environments being there."""
        return self._provisioned * for_s * self._memory_mb / 1024 * PROVISIONED_GB_S_USD

    @property
    def _request_usd(self) -> float:
        return lambda_cost_usd(duration_s=0.0, memory_mb=self._memory_mb)

    def keep_warm(self, environments: int, *, now_s: float) -> None:
        """Ping as many environments, which starts those that are not there."""
        for slot in range(min(environments, self._free_at_s.size)):
            if self._free_at_s[slot] > now_s or slot < self._provisioned:
                continue
            cold_s = 0.0 if self._alive_until_s[slot] >= now_s else COLD_START.at(self._rng.standard_normal())
            self.cold_starts += cold_s > 0
            self._free_at_s[slot] = now_s + cold_s + PING_S
            self._alive_until_s[slot] = self._free_at_s[slot] + ENVIRONMENT_IDLE_S
            self.pings += 1
            self.billed_ms += math.ceil((cold_s + PING_S) * 1000 - BILLING_TOLERANCE_MS)

    def invoke_due(self, requests: Requests, *, until_s: float, first_batch_id: int) -> Batches:
        """Invoke, in order of time, for requests that are spilled before `until_s`; return the invocations as batches of one."""
        due = np.flatnonzero((requests.state == SETTLED) & (requests.spill_at_s < until_s) & np.isnan(requests.lambda_answer_s))
        if due.size == 0:
            return Batches()
        due = due[np.argsort(requests.spill_at_s[due], kind="stable")]
        execution_s = self._kind.p50_s[1] * np.exp(self._kind.sigma[1] * requests.spill_luck[due])
        started_s, finished_s = np.empty(due.size), np.empty(due.size)
        slots = np.empty(due.size, np.int64)
        cold = _invoke(
            requests.spill_at_s[due],
            execution_s,
            requests.spill_overhead_s[due],
            COLD_START.median_s * np.exp(COLD_START.sigma * self._rng.standard_normal(due.size)),
            self._free_at_s,
            self._alive_until_s,
            started_s,
            finished_s,
            slots,
            ENVIRONMENT_IDLE_S,
        )
        requests.lambda_answer_s[due] = finished_s
        served = due[np.isfinite(finished_s)]
        requests.lambda_batch_id[served] = first_batch_id + np.arange(served.size)
        self.refused += due.size - served.size
        self.invocations += served.size
        self.cold_starts += int(cold)
        ran = np.isfinite(finished_s)
        started_s, finished_s, is_provisioned = started_s[ran], finished_s[ran], slots[ran] < self._provisioned
        self.billed_ms += billed_ms(started_s[~is_provisioned], finished_s[~is_provisioned])
        self.provisioned_ms += billed_ms(started_s[is_provisioned], finished_s[is_provisioned])
        self.on_provisioned += int(np.count_nonzero(is_provisioned))
        return Batches(np.full(served.size, -1, np.int64), np.ones(served.size, np.int64), started_s, finished_s)


def billed_ms(started_s: Floats, finished_s: Floats) -> float:
    """Sum up the started milliseconds of all invocations together."""
    return float(np.ceil((finished_s - started_s) * 1000 - BILLING_TOLERANCE_MS).sum())


@compiled
def _invoke(  # type: ignore[no-untyped-def]
    at_s, execution_s, overhead_s, cold_start_s, free_at_s, alive_until_s, started_s, finished_s, slots, idle_s
):
    cold_starts = 0
    for i in range(at_s.size):
        started_s[i] = at_s[i] + overhead_s[i]
        warm, cold = -1, -1
        for slot in range(free_at_s.size):
            if free_at_s[slot] <= at_s[i]:
                if alive_until_s[slot] >= at_s[i]:
                    warm = slot
                    break
                if cold < 0:
                    cold = slot
                if free_at_s[slot] == -np.inf:
                    break  # nor were those after it ever used
        slot = warm if warm >= 0 else cold
        slots[i] = slot
        if slot < 0:
            finished_s[i] = np.inf
            continue
        start_s = 0.0 if warm >= 0 else cold_start_s[i]
        cold_starts += warm < 0
        finished_s[i] = started_s[i] + start_s + execution_s[i]
        free_at_s[slot] = finished_s[i]
        alive_until_s[slot] = max(alive_until_s[slot], finished_s[i] + idle_s)
    return cold_starts
