"""The rate that staffing promises for a fleet is one at which simulated random arrivals make the objective."""

import numpy as np
import pytest

from markserve.core.batch_limits import BatchLimits, choose_batch_limits
from markserve.core.profiles import LatencyEstimate
from markserve.core.staffing import LATE_SHARES, sustainable_rps
from markserve.core.types import BatchProfile, Slo
from simulator.fast import FastEngine
from simulator.service import make_kind
from simulator.state import SETTLED, Requests, Workers
from tests.builders import a_profile
from tests.simulator.rig import terms

BUDGET_S = 0.156
FAST_ONE = a_profile({1: 0.02})
SLOW_ONE = a_profile({1: 0.078})
SMALL_BATCHES = a_profile({1: 0.04, 8: 0.11})
LARGE_BATCHES = a_profile({1: 0.015, 128: 0.08})


def late_share_at(rate_rps: float, *, profile: BatchProfile, limits: BatchLimits, servers: int, requests: int = 40_000) -> float:
    """Share of Poisson arrivals that are answered late or turned away, once the queue has settled."""
    kind = make_kind(profile, limits)
    engine = FastEngine(
        [kind],
        terms(
            slo=Slo(latency_s=BUDGET_S),
            transport_s=0.0,
            reply_overhead_s=0.0,
            spill_latency_s=0.0,
            spill_margin_s=0.0,
            spill_available=False,
            worker_margin_s=0.0,
        ),
    )
    workers = Workers.none().replaced(np.ones(0, np.bool_), [(number, 0, 0.0) for number in range(servers)], [kind])
    rng = np.random.default_rng(7)
    arrivals_s = np.cumsum(rng.exponential(1 / rate_rps, requests))
    pending = Requests.arriving(arrivals_s, *(np.zeros(requests) for _ in range(4)))
    now_s = 0.0
    while now_s < arrivals_s[-1] + 5.0:
        engine.advance(pending, workers, rate_rps=rate_rps, from_s=now_s, until_s=now_s + 5.0, first_batch_id=0)
        now_s += 5.0
    assert (pending.state == SETTLED).all()
    settled = slice(requests // 10, None)
    return float(np.mean(pending.worker_answer_s[settled] - arrivals_s[settled] > BUDGET_S + 1e-9))


@pytest.mark.parametrize("servers", [1, 3, 10])
@pytest.mark.parametrize(
    "profile", [FAST_ONE, SLOW_ONE, SMALL_BATCHES, LARGE_BATCHES], ids=["fast", "slow", "small batches", "large batches"]
)
def test_promised_rate_is_served_in_time(profile: BatchProfile, servers: int) -> None:
    estimate = LatencyEstimate(profile)
    limits = choose_batch_limits(estimate=estimate, latency_budget_s=BUDGET_S, max_batch_size=128)
    rate_rps = sustainable_rps(estimate, limits, servers=servers)

    late = late_share_at(rate_rps, profile=profile, limits=limits, servers=servers)

    # An approximation: it may be off by a factor of two where few requests can wait at all.
    assert late <= 2 * LATE_SHARES[0]


def test_a_fleet_loaded_beyond_the_promise_is_late() -> None:
    estimate = LatencyEstimate(FAST_ONE)
    limits = choose_batch_limits(estimate=estimate, latency_budget_s=BUDGET_S, max_batch_size=1)
    rate_rps = 1.25 * sustainable_rps(estimate, limits, servers=10)

    assert late_share_at(rate_rps, profile=FAST_ONE, limits=limits, servers=10) > 4 * LATE_SHARES[0]
