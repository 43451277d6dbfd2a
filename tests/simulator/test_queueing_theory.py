"""Queues of the fast engine against theory: batch limit 1, no spill-over, so long a deadline that nobody is turned away.

Each case runs independent replications of a stationary queue. The mean wait over replications has a Student-t confidence
interval; the test asks that the 99.9 % interval holds the theoretical value and is narrow enough to mean something
(half-width below 5 % of it). Seeds are fixed, so a pass is a pass for ever.
"""

from __future__ import annotations

import math
from statistics import fmean, stdev

import numpy as np
import pytest
from scipy import stats

from markserve.core.types import Slo
from simulator.fast import FastEngine
from simulator.state import Requests, Terms, Workers
from tests.simulator.rig import a_kind

CONFIDENCE = 0.999
REPLICATIONS = 24
ARRIVALS = 150_000
WARM_UP = 10_000
"""Requests at the start that do not count: the queue starts empty."""
SERVICE_S = 1.0

PATIENT = Terms(
    slo=Slo(latency_s=1e9),
    transport_s=0.0,
    reply_overhead_s=0.0,
    spill_latency_s=0.0,
    spill_margin_s=0.0,
    spill_available=False,
    worker_margin_s=0.0,
)


def mean_wait_s(*, utilization: float, servers: int, exponential: bool, seed: int) -> float:
    rng = np.random.default_rng(seed)
    rate_rps = utilization * servers / SERVICE_S
    arrivals_s = np.cumsum(rng.exponential(1 / rate_rps, ARRIVALS))
    # Execution is median * exp(sigma * luck): with sigma 1 and the logarithm of an exponential for luck, exponential.
    luck = np.log(rng.exponential(1.0, ARRIVALS)) if exponential else np.zeros(ARRIVALS)
    kind = a_kind(service_s=SERVICE_S, sigma=1.0 if exponential else 0.0)
    requests = Requests.arriving(arrivals_s, luck, *(np.zeros(ARRIVALS) for _ in range(3)))
    workers = Workers.none().replaced(np.empty(0, np.bool_), [(w, 0, 0.0) for w in range(servers)], [kind])

    batches = FastEngine([kind], PATIENT).advance(requests, workers, rate_rps=rate_rps, from_s=0.0, until_s=math.inf, first_batch_id=0)

    assert (batches.size == 1).all()
    assert batches.size.size == ARRIVALS
    return float((batches.started_s - arrivals_s)[WARM_UP:].mean())


def mm1_wait_s(utilization: float) -> float:
    return utilization / (1 - utilization) * SERVICE_S


def md1_wait_s(utilization: float) -> float:
    """Pollaczek-Khinchine with no variance."""
    return utilization / (2 * (1 - utilization)) * SERVICE_S


def mdc_wait_s(utilization: float, servers: int) -> float:
    """Crommelin (1932): the exact mean wait of M/D/c.

    W = sum over i >= 1 of exp(-i a) * [sum over j >= ic of (ia)^j / j!  -  (c/a) * sum over j >= ic + 1 of (ia)^j / j!],
    with a = rate * D the offered load, in units of D.
    """
    load = utilization * servers
    total, i = 0.0, 1
    while True:
        at_least = stats.poisson.sf(i * servers - 1, i * load)
        above = stats.poisson.sf(i * servers, i * load)
        term = at_least - servers / load * above
        total += term
        if abs(term) < 1e-14 and i > 10:
            return total * SERVICE_S
        i += 1


def test_crommelins_formula_is_pollaczek_khinchine_for_one_server() -> None:
    assert mdc_wait_s(0.7, 1) == pytest.approx(md1_wait_s(0.7), rel=1e-9)


@pytest.mark.parametrize(
    ("name", "utilization", "servers", "exponential", "theory_s"),
    [
        ("M/M/1", 0.5, 1, True, mm1_wait_s(0.5)),
        ("M/M/1", 0.7, 1, True, mm1_wait_s(0.7)),
        ("M/D/1", 0.5, 1, False, md1_wait_s(0.5)),
        ("M/D/1", 0.8, 1, False, md1_wait_s(0.8)),
        ("M/D/c", 0.8, 4, False, mdc_wait_s(0.8, 4)),
        ("M/D/c", 0.9, 16, False, mdc_wait_s(0.9, 16)),
    ],
)
def test_mean_wait_agrees_with_theory(name: str, utilization: float, servers: int, exponential: bool, theory_s: float) -> None:
    waits = [mean_wait_s(utilization=utilization, servers=servers, exponential=exponential, seed=100 + r) for r in range(REPLICATIONS)]

    half_width_s = float(stats.t.ppf((1 + CONFIDENCE) / 2, REPLICATIONS - 1)) * stdev(waits) / math.sqrt(REPLICATIONS)
    assert abs(fmean(waits) - theory_s) <= half_width_s, (
        f"{name} at {utilization}: {fmean(waits):.4f} +- {half_width_s:.4f}, theory {theory_s:.4f}"
    )
    assert half_width_s < 0.05 * theory_s
