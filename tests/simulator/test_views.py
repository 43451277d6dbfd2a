"""What fronts know in the simulator, and what they make of it where nothing is set aside for spilling."""

from __future__ import annotations

import numpy as np
import pytest

from markserve.core.admitted_share import usable_rate_rps
from markserve.core.types import Slo
from simulator.fast import FastEngine
from simulator.state import Requests, Workers
from simulator.views import Views
from tests.simulator.rig import a_kind, terms

SERVERS, SERVICE_S, OFFERED_RPS, LASTS_S, SETTLED_S = 8, 0.2, 80.0, 200.0, 20.0
TERMS = terms(slo=Slo(latency_s=0.3), spill_latency_s=0.19, keeps_reserve=False)


def overloaded() -> Requests:
    """Twice what the servers could compute if they were never idle."""
    rng = np.random.default_rng(7)
    arrivals_s = np.sort(rng.random(rng.poisson(OFFERED_RPS * LASTS_S))) * LASTS_S
    luck = rng.standard_normal((2, arrivals_s.size))
    requests = Requests.arriving(arrivals_s, *luck, reply_s=np.full(arrivals_s.size, 0.01), spill_overhead_s=luck[0])
    kinds = [a_kind(service_s=SERVICE_S)]
    workers = Workers.none().replaced(np.empty(0, np.bool_), [(number, 0, 0.0) for number in range(SERVERS)], kinds)
    engine = FastEngine(kinds, TERMS)
    for window in range(round(LASTS_S / 5)):
        engine.advance(requests, workers, rate_rps=OFFERED_RPS, from_s=5.0 * window, until_s=5.0 * window + 5.0, first_batch_id=0)
    return requests[int(np.searchsorted(arrivals_s, SETTLED_S)) : int(np.searchsorted(arrivals_s, LASTS_S - 1))]


def test_overloaded_fleet_is_used_and_what_it_cannot_serve_is_spilled_in_time() -> None:
    requests = overloaded()

    spilled_after_s = (requests.spill_at_s - requests.arrival_s)[np.isfinite(requests.spill_at_s)]
    late = np.count_nonzero(spilled_after_s > TERMS.transport_s + 1e-9) / requests.size
    on_workers = np.count_nonzero(~np.isfinite(requests.spill_at_s)) / (LASTS_S - 1 - SETTLED_S)
    usable_rps = usable_rate_rps(
        servers=SERVERS,
        service_rate_rps=SERVERS / SERVICE_S,
        batch_latency_s=SERVICE_S,
        waiting_s=0.3 - 0.02 - 0.02 - SERVICE_S,
        late_share_max=0.02,
    )
    assert late < 0.02
    assert on_workers == pytest.approx(usable_rps, rel=0.1)


@pytest.mark.parametrize(
    ("overrides", "steps"),
    [
        ({"keeps_reserve": False}, [(0.5, 1.5), (1.5, 2.25)]),
        ({"keeps_reserve": True}, [(0.5, 2.25)]),
        ({"keeps_reserve": False, "sees_queue": True}, [(0.5, 2.25)]),
        ({"keeps_reserve": False, "spill_available": False}, [(0.5, 2.25)]),
    ],
)
def test_fleet_is_looked_at_by_heartbeats_where_a_late_spill_cannot_be_helped(
    overrides: dict[str, bool], steps: list[tuple[float, float]]
) -> None:
    nothing = Requests.arriving(*(np.empty(0) for _ in range(5)))

    assert list(Views([], terms(**overrides)).steps(nothing, Workers.none(), 0.5, 2.25)) == steps
