"""What fronts know of the queue, and when: both engines admit by it.

Where no time is set aside for spilling, whether a request is late is decided by whether it is admitted. There the simulator's
fronts see the queue as real ones do, by heartbeats: as it was at the last full second. Elsewhere they see it as it is, as does
MArk's one proxy.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from markserve.core.admitted_share import AdmittedShare, revise_share
from markserve.core.spillover import FleetView, usable_by
from simulator.assumptions import HEARTBEAT_S
from simulator.service import Floats, Kind
from simulator.state import WAITING, Requests, Terms, Workers

LOT_SCALE = 7919.123
"""The digits of an arrival that decide its lot: those below a tenth of a millisecond, which no load shapes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """The queue at the last heartbeat."""

    at_s: float
    queued: int
    in_flight: int


class Views:
    """What all fronts of one model know, from one heartbeat to the next."""

    def __init__(self, kinds: Sequence[Kind], terms: Terms) -> None:
        self._kinds, self._terms = kinds, terms
        self._is_delayed = terms.spill_available and not terms.keeps_reserve and not terms.sees_queue
        self.admitted = AdmittedShare()
        self.seen: Seen | None = None
        """None where fronts see the queue as it is."""
        self.entered = 0
        """Requests admitted so far; the engine counts them."""

    def steps(self, requests: Requests, workers: Workers, from_s: float, until_s: float) -> Iterator[tuple[float, float]]:
        """Cut a window at heartbeats, and look at the fleet at each."""
        if not self._is_delayed:
            yield from_s, until_s
            return
        at_s = from_s
        while at_s < until_s:
            self._look(requests, workers, at_s)
            ends_s = min(until_s, at_s + HEARTBEAT_S)
            yield at_s, ends_s
            at_s = ends_s

    def lots(self, requests: Requests) -> Floats:
        """Lot of every request."""
        return np.asarray(np.modf(requests.arrival_s * LOT_SCALE)[0], np.float64)

    def _look(self, requests: Requests, workers: Workers, now_s: float) -> None:
        fleet = fleet_at(workers, self._kinds, now_s, queued=int(np.count_nonzero(requests.state == WAITING)))
        self.seen = Seen(at_s=now_s, queued=fleet.queue_depth, in_flight=fleet.in_flight)
        if fleet.serving_instances:
            self.admitted = revise_share(
                self.admitted,
                entered=self.entered,
                members=fleet.members,
                viewed_at_s=now_s,
                usable_rps=usable_by(fleet, slo=self._terms.slo, spent_s=self._terms.transport_s + self._terms.reply_overhead_s),
            )


def fleet_at(workers: Workers, kinds: Sequence[Kind], now_s: float, *, queued: int) -> FleetView:
    """Summary of the workers that serve at `now_s`."""
    serving = np.flatnonzero(workers.serving_at_s <= now_s)
    limits = [kinds[k].limits for k in workers.kind[serving].tolist()]
    busy = serving[workers.free_at_s[serving] > now_s]
    return FleetView(
        serving_instances=serving.size,
        service_rate_rps=sum(limit.service_rate_rps for limit in limits),
        batch_latency_s=max((limit.batch_latency_s for limit in limits), default=0.0),
        queue_depth=queued,
        transport_s=0.0,
        in_flight=int(workers.running[busy].sum()),
        members=" ".join(map(str, sorted(workers.instance[serving].tolist()))),
        viewed_at_s=now_s,
    )
