"""What both engines work on: requests in a buffer, workers in order of preference, the terms of service.

Simplifications that both share, against the real system:

- One queue per model, first in, first out, which idle workers take from at once (no polling, no prefetch). Real workers
  receive into queues of their own; SQS spreads messages at random. A worker that is asked for a batch sees the first
  `max(batch limit, its share of the queue)` requests, the share being that of its service rate.
- A request is admitted the median transport after its arrival, so that order of arrival is order of admission. What its
  transport and reply take more or less than that lies in its reply (`Requests.reply_s`).
- Admission sees the fleet as it is, not as it was at the last heartbeat; except the queue where no time is set aside for
  spilling (`simulator.views`).
- A worker's arrival rate is its share of the last counting window's rate.
- T(b) is the profile's: nothing is refitted, as executions follow the profile.
- The instant at which the front gives up waiting never moves back from one request to the next, so that order of
  arrival is order of urgency; it would otherwise move for a few requests when the slowest type of the fleet changes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from markserve.core.types import Slo
from simulator.service import Floats, Ints, Kind

COMING, WAITING, SETTLED = 0, 1, 2
"""Life of a request in the buffer: not admitted yet, in the queue, no more to be decided by the queue."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Terms:
    """What is the same for every request of a run."""

    slo: Slo
    transport_s: float
    reply_overhead_s: float
    """What admission and pacing count on; a request's own is `Requests.reply_s`."""
    spill_latency_s: float
    """p99 of an invocation as the front assumes it."""
    spill_margin_s: float
    spill_available: bool
    worker_margin_s: float
    keeps_reserve: bool = True
    sees_queue: bool = False
    """Whether the front sees the queue as it is also where no reserve is kept."""


@dataclass(slots=True)
class Requests:
    """Requests that are not finished with, in order of arrival; columns of equal length."""

    arrival_s: Floats
    luck: Floats
    """Standard normal: of the batch that this request is the head of."""
    spill_luck: Floats
    """Standard normal: of its invocation of the spillover function."""
    reply_s: Floats
    """From the end of its batch to its answer."""
    spill_overhead_s: Floats
    """Of its invocation beyond the computation."""
    state: NDArray[np.int8]
    answer_by_s: Floats
    worker_answer_s: Floats
    """When the front has the worker's answer; infinite when no worker computes it."""
    spill_at_s: Floats
    """When the front invokes the spillover function; infinite when it does not."""
    batch_id: Ints
    """Of the worker's batch; -1 when none."""
    lambda_answer_s: Floats
    """NaN while not invoked."""
    lambda_batch_id: Ints

    @classmethod
    def arriving(cls, arrival_s: Floats, luck: Floats, spill_luck: Floats, reply_s: Floats, spill_overhead_s: Floats) -> Requests:
        """Make requests about which nothing is decided."""
        n = arrival_s.size
        return cls(
            arrival_s=arrival_s,
            luck=luck,
            spill_luck=spill_luck,
            reply_s=reply_s,
            spill_overhead_s=spill_overhead_s,
            state=np.full(n, COMING, np.int8),
            answer_by_s=np.full(n, math.inf),
            worker_answer_s=np.full(n, math.inf),
            spill_at_s=np.full(n, math.inf),
            batch_id=np.full(n, -1, np.int64),
            lambda_answer_s=np.full(n, math.nan),
            lambda_batch_id=np.full(n, -1, np.int64),
        )

    @property
    def size(self) -> int:
        """Number of requests."""
        return int(self.arrival_s.size)

    def __getitem__(self, part: slice) -> Requests:
        return Requests(*(getattr(self, name)[part] for name in self.__slots__))

    def joined(self, later: Requests) -> Requests:
        """Return these and later ones."""
        return Requests(*(np.concatenate((getattr(self, name), getattr(later, name))) for name in self.__slots__))


@dataclass(slots=True)
class Workers:
    """Workers that take from the queue, in order of preference; columns of equal length."""

    instance: Ints
    """Index of the instance in the fleet's record."""
    kind: Ints
    serving_at_s: Floats
    free_at_s: Floats
    """When it is done with its batch, or starts to serve."""
    running: Ints
    """Size of the batch that runs until `free_at_s`."""

    @classmethod
    def none(cls) -> Workers:
        """No workers."""
        return cls(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0), np.empty(0), np.empty(0, np.int64))

    @property
    def size(self) -> int:
        """Number of workers."""
        return int(self.instance.size)

    def replaced(self, keep: NDArray[np.bool_], added: Sequence[tuple[int, int, float]], kinds: Sequence[Kind]) -> Workers:
        """Return those to keep and new ones (instance, kind, serving_at_s), fastest kind first, then oldest instance."""
        instance = np.concatenate((self.instance[keep], np.array([a[0] for a in added], np.int64)))
        kind = np.concatenate((self.kind[keep], np.array([a[1] for a in added], np.int64)))
        serving = np.concatenate((self.serving_at_s[keep], np.array([a[2] for a in added], np.float64)))
        free = np.concatenate((self.free_at_s[keep], np.array([a[2] for a in added], np.float64)))
        running = np.concatenate((self.running[keep], np.zeros(len(added), np.int64)))
        rates = np.array([k.limits.service_rate_rps for k in kinds])[kind] if kind.size else np.empty(0)
        order = np.lexsort((instance, -rates))
        return Workers(instance[order], kind[order], serving[order], free[order], running[order])


@dataclass(slots=True)
class Batches:
    """Batches as they were closed; columns of equal length."""

    worker: Ints = field(default_factory=lambda: np.empty(0, np.int64))
    """Index of the instance."""
    size: Ints = field(default_factory=lambda: np.empty(0, np.int64))
    started_s: Floats = field(default_factory=lambda: np.empty(0))
    finished_s: Floats = field(default_factory=lambda: np.empty(0))


class Engine(Protocol):
    """Queueing, batching and admission between two instants."""

    def advance(
        self, requests: Requests, workers: Workers, *, rate_rps: float, from_s: float, until_s: float, first_batch_id: int
    ) -> Batches:
        """Decide everything that is due in [from_s, until_s), in place; return the batches closed.

        The fleet view changes only with `workers`; `rate_rps` holds throughout. At `until_s` the queue forgets
        requests that their front has given up on.
        """
        ...
