"""The RT_max scheduler: when a batch closes, and what goes into it.

`batch_limits.choose_batch_limits` decides once per profile how large batches may be; `BatchAccumulator` decides
request by request. It is told the time and never waits, so the same object paces the worker, the local HTTP
server and the simulator.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from itertools import count
from math import inf
from typing import Generic, TypeVar

from markserve.core.batch_limits import EPSILON_S, BatchLimits, choose_batch_limits
from markserve.core.profiles import LatencyEstimate
from markserve.core.types import require

__all__ = ["Batch", "BatchAccumulator", "BatchLimits", "choose_batch_limits"]

ItemT = TypeVar("ItemT")

UTILIZATION_BOUND = 1.0
"""Serving n at a time keeps up when arrivals stay below this share of n/T(n). A batch that is too small by chance is
followed by a larger one, so no reserve is needed: under Poisson arrivals 0.8 gave no more goodput than 1.0, and up to
a half more latency."""
ASYNC_PATIENCE_S = 30.0
"""Age from which an async item has a claim to room, instead of what deadlines leave over."""
ASYNC_SHARE = 0.25
"""Share of rows that such claims may take together, so that a flood of async work costs deadlines at most this."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch(Generic[ItemT]):
    """Items to run together, most urgent first."""

    items: tuple[ItemT, ...]
    size: int
    """Rows of all items."""
    close_reason: str


@dataclass(slots=True, eq=False)  # compared by identity: items may not be comparable
class _Entry(Generic[ItemT]):
    finish_by_s: float
    """When execution must have finished; infinite for async items."""
    order: int
    item: ItemT
    size: int
    added_at_s: float

    def __lt__(self, other: _Entry[ItemT]) -> bool:
        return (self.finish_by_s, self.order) < (other.finish_by_s, other.order)


class BatchAccumulator(Generic[ItemT]):
    """Collects requests and closes batches when waiting longer would gain nothing or cost a deadline.

    Every item has an instant by which its execution must have finished, and a batch of n rows takes T(n):

        finish_by = answer_by - reply overhead

    A batch closes at the earliest of

    - **full**: no further item fits into `limits.max_batch_size` rows;
    - **due**: `now = earliest finish_by - T(n) - margin`. This is deferred batching as in Symphony: a batch that
      starts as late as it safely can is as large as it can be. The margin pays for waking up late;
    - **idle**: the runner is free, and either serving n at a time keeps up with arrivals (`rate * T(n) / n` below
      `UTILIZATION_BOUND`), or less than one more arrival is expected before the batch is due. So a request waits
      neither for company that is not needed nor for company that does not come.

    Order is earliest `finish_by` first, and first in, first out among equals; with one objective per model that is
    the order of arrival. If the head's deadline is too near for all that would go, the batch shrinks to what meets
    it, unless batches that small could not keep up: arrivals outpace them, or more waits than the next batch can
    take. Then the head is given up (it spills), as in Nexus' early drop. Shrinking under overload would cut the
    rate, make the next heads later still, and end with batches of one: at twice the sustainable rate of a typical
    profile, Poisson arrivals, goodput is 1.0 of that rate with giving up and 0.3 without.

    Async items (no deadline) fill the room that deadlines leave, oldest first. From `ASYNC_PATIENCE_S` on they claim
    up to `ASYNC_SHARE` of the rows ahead of everybody, so neither kind starves the other.

    Exactly once: an added item leaves in one `Batch`, or through `hopeless`, never both, never twice. Not
    thread-safe: one owner calls it. Adding costs O(log n), taking O(b log n), asking for the due instant O(1).

    Limits: `arrival_rate_rps` counts requests and T counts rows. Where requests have several rows, giving up heads
    takes a row for a request, and so relies on the backlog more than on the rate. And it chooses among what it was
    given: an owner that takes few items at a time off a first-in-first-out queue sees only the oldest. To keep goodput at
    n times the sustainable rate it should hold about n + 1 full batches.

    Attributes
    ----------
    limits, estimate
        May be replaced at any time, as T(b) is refitted.

    References
    ----------
    Symphony (Chen et al., arXiv 2308.07470): deferred batch scheduling. Clockwork (Gujarati et al., OSDI '20): drop
    what cannot make its deadline before computing it. Nexus (Shen et al., SOSP '19): early drop.

    Examples
    --------
    >>> from markserve.core.types import BatchProfile, ProfilePoint
    >>> points = tuple(ProfilePoint(batch_size=b, p50_s=0.01, p98_s=0.01 + 0.01 * b, p99_s=0.1, samples=100) for b in (1, 8))
    >>> estimate = LatencyEstimate(BatchProfile(instance_type="c5.large", points=points))
    >>> limits = choose_batch_limits(estimate=estimate, latency_budget_s=0.18, max_batch_size=8)
    >>> accumulator = BatchAccumulator[str](limits=limits, estimate=estimate, margin_s=0.01)
    >>> accumulator.add("a", size=1, answer_by_s=10.2, reply_overhead_s=0.01, now_s=10.0)
    >>> accumulator.add("b", size=1, answer_by_s=10.2, reply_overhead_s=0.01, now_s=10.0)
    >>> accumulator.take(now_s=10.0, runner_idle=False, arrival_rate_rps=100.0) is None
    True
    >>> round(accumulator.due_at_s(now_s=10.0, runner_idle=False, arrival_rate_rps=100.0), 3)
    10.15
    >>> batch = accumulator.take(now_s=10.0, runner_idle=True, arrival_rate_rps=10.0)
    >>> batch.items, batch.close_reason
    (('a', 'b'), 'idle: 2 at a time keep up with 10.0 rps')
    """

    def __init__(self, *, limits: BatchLimits, estimate: LatencyEstimate, margin_s: float) -> None:
        require(margin_s >= 0, f"margin_s must not be negative, got {margin_s}")
        self.limits = limits
        self.estimate = estimate
        self._margin_s = margin_s
        self._order = count()
        self._timed: list[_Entry[ItemT]] = []  # heap
        self._async: deque[_Entry[ItemT]] = deque()
        self._alone: list[_Entry[ItemT]] = []
        self._given_up: list[_Entry[ItemT]] = []
        self._timed_rows = 0
        self._async_rows = 0
        self._largest_size = 1  # of the timed items, or more
        self._claimable_rows = 0.0

    def __len__(self) -> int:
        """Items held, including those given up and not yet fetched with `hopeless`."""
        return len(self._timed) + len(self._async) + len(self._alone) + len(self._given_up)

    def add(self, item: ItemT, *, size: int, answer_by_s: float | None, reply_overhead_s: float, now_s: float) -> None:
        """Take in an item of `size` rows; `answer_by_s` is None for async ones.

        An item of more rows than a batch may have runs alone when its turn comes.
        """
        entry = self._entry(item, size, answer_by_s, reply_overhead_s, now_s)
        if answer_by_s is None:
            self._async.append(entry)
            self._async_rows += size
        else:
            self._largest_size = max(self._largest_size, size) if self._timed else size
            heappush(self._timed, entry)
            self._timed_rows += size

    def isolate(self, item: ItemT, *, size: int, answer_by_s: float | None, reply_overhead_s: float, now_s: float) -> None:
        """Take in an item that must share its batch with nobody, such as one whose last batch took its worker down."""
        self._alone.append(self._entry(item, size, answer_by_s, reply_overhead_s, now_s))

    def _entry(self, item: ItemT, size: int, answer_by_s: float | None, reply_overhead_s: float, now_s: float) -> _Entry[ItemT]:
        require(size >= 1, f"size must be at least 1 row, got {size}")
        return _Entry(inf if answer_by_s is None else answer_by_s - reply_overhead_s, next(self._order), item, size, now_s)

    def keeps_up(self, arrival_rate_rps: float) -> bool:
        """Whether serving as many at a time as are held now would keep up with arrivals."""
        items = len(self._timed) + len(self._async)
        return items > 0 and arrival_rate_rps * self._latency_s(self._timed_rows + self._async_rows) <= UTILIZATION_BOUND * items

    def due_at_s(self, *, now_s: float, runner_idle: bool, arrival_rate_rps: float) -> float | None:
        """Instant at which `take` closes a batch if nothing else happens, never before `now_s`; None if it would not.

        Sleep until then, or until an item is added or the runner falls idle, and ask again.
        """
        closing = self._closing(now_s, runner_idle, arrival_rate_rps)
        return None if closing is None else closing[0]

    def take(self, *, now_s: float, runner_idle: bool, arrival_rate_rps: float) -> Batch[ItemT] | None:
        """Close and return a batch if one is to be closed now.

        With `runner_idle` false only a full or due batch closes, for callers that keep one batch ready; a caller
        that prefers to decide late asks when its runner is idle only. May give items up: see `hopeless`.
        """
        self._give_up_hopeless(now_s)
        closing = self._closing(now_s, runner_idle, arrival_rate_rps)
        if closing is None or closing[0] > now_s:
            return None
        if runner_idle and (alone := self._next_alone(now_s)) is not None:
            chosen = [self._pop_alone(alone, now_s)]
        else:
            chosen = self._select(now_s, arrival_rate_rps)
        accrued = ASYNC_SHARE * self.limits.max_batch_size
        self._claimable_rows = min(self._claimable_rows + accrued, max(1.0, accrued))
        return _batch(chosen, closing[1])

    def hopeless(self, now_s: float) -> list[ItemT]:
        """Remove and return the items that cannot be answered in time even if run alone at once.

        Includes what `take` gave up. Whoever waits for them spills; computing them would delay others for nothing.
        """
        self._give_up_hopeless(now_s)
        items = [entry.item for entry in self._given_up]
        self._given_up.clear()
        return items

    def drain(self) -> list[Batch[ItemT]]:
        """Close everything as batches within the limits, isolated items first; what was given up stays for `hopeless`."""
        batches = [_batch([entry], "drain") for entry in sorted(self._alone)]
        chosen: list[_Entry[ItemT]] = []
        for entry in [*sorted(self._timed), *self._async]:
            if not _fits(_rows(chosen), entry.size, self.limits.max_batch_size):
                batches.append(_batch(chosen, "drain"))
                chosen = []
            chosen.append(entry)
        if chosen:
            batches.append(_batch(chosen, "drain"))
        self._alone.clear()
        self._timed.clear()
        self._async.clear()
        self._timed_rows = self._async_rows = 0
        return batches

    # --- when a batch closes ----------------------------------------------------------------------------------

    def _closing(self, now_s: float, runner_idle: bool, arrival_rate_rps: float) -> tuple[float, str] | None:
        """When the next batch closes if nothing else happens, and why."""
        if runner_idle and self._next_alone(now_s) is not None:
            return now_s, "alone: isolated from others"
        items, rows, limit = len(self._timed) + len(self._async), self._timed_rows + self._async_rows, self.limits.max_batch_size
        # Async rows do not fill a batch that nobody can run yet: a deadline may still come and need the room.
        if self._timed_rows >= limit or (runner_idle and rows >= limit):
            return now_s, f"full: {rows} rows wait for {limit} places"
        if not self._timed:
            return (now_s, "idle: only async items wait") if runner_idle and self._async else None
        latency_s = self._latency_s(rows)
        due_s = self._timed[0].finish_by_s - latency_s - self._margin_s
        if due_s <= now_s:
            return now_s, f"due: {items} items take {latency_s:.3f} s"
        if not runner_idle:
            return due_s, f"due: {items} items take {latency_s:.3f} s"
        if self.keeps_up(arrival_rate_rps):
            return now_s, f"idle: {items} at a time keep up with {arrival_rate_rps:.1f} rps"
        quiet_s = max(now_s, due_s - 1 / arrival_rate_rps)
        return quiet_s, f"idle: less than one more expected within {due_s - quiet_s:.3f} s"

    def _next_alone(self, now_s: float) -> _Entry[ItemT] | None:
        """Isolated item whose turn it is: more urgent than the rest, or no delay to it, or with a claim by age."""
        if not self._alone:
            return None
        entry = min(self._alone)
        if not self._timed or entry < self._timed[0] or self._has_claim(entry, now_s):
            return entry
        rest_s = self._latency_s(min(self._timed_rows, self.limits.max_batch_size))
        fits_before = now_s + self._latency_s(entry.size) + rest_s + self._margin_s <= self._timed[0].finish_by_s
        return entry if fits_before else None

    # --- what goes into it ------------------------------------------------------------------------------------

    def _select(self, now_s: float, arrival_rate_rps: float) -> list[_Entry[ItemT]]:
        """Take out claims by age, then deadlines, then whatever async work fits without making those late."""
        limit = self.limits.max_batch_size
        claims: list[_Entry[ItemT]] = []
        rows = 0
        while self._async and self._has_claim(self._async[0], now_s) and _fits(rows, self._async[0].size, limit):
            claims.append(self._pop_async())
            rows += claims[-1].size
            self._claimable_rows -= claims[-1].size
        self._shed_heads(now_s, rows, arrival_rate_rps)
        latest_s = self._timed[0].finish_by_s if self._timed else inf
        chosen: list[_Entry[ItemT]] = []
        while self._timed and self._may_join(now_s, rows, self._timed[0].size, latest_s):
            chosen.append(self._pop_timed())
            rows += chosen[-1].size
        chosen += claims
        if self._timed and rows < limit:
            return chosen  # the deadlines left no room, for async items either
        while self._async and self._may_join(now_s, rows, self._async[0].size, latest_s):
            chosen.append(self._pop_async())
            rows += chosen[-1].size
        return chosen

    def _may_join(self, now_s: float, rows: int, size: int, latest_s: float) -> bool:
        in_time = rows == 0 or now_s + self._latency_s(rows + size) <= latest_s + EPSILON_S
        return in_time and _fits(rows, size, self.limits.max_batch_size)

    def _shed_heads(self, now_s: float, claimed_rows: int, arrival_rate_rps: float) -> None:
        """Give up heads that would shrink the batch below what keeps up with arrivals, while others make a larger one."""
        while self._timed:
            waiting = claimed_rows + self._timed_rows
            slack_s = self._timed[0].finish_by_s - now_s + EPSILON_S
            fitting = self._rows_within(slack_s, min(waiting, self.limits.max_batch_size))
            limit = self.limits.max_batch_size
            # A measured rate alone would not do: a worker that is behind receives no faster than it serves.
            keeps_up = arrival_rate_rps * self._latency_s(max(fitting, 1)) <= fitting and waiting - fitting <= limit
            if keeps_up or min(waiting - self._timed[0].size, limit) <= fitting:
                return
            self._given_up.append(self._pop_timed())

    def _rows_within(self, slack_s: float, most: int) -> int:
        """Most rows, up to `most`, whose batch latency is within `slack_s`."""
        if self._latency_s(most) <= slack_s:
            return most
        low, high = 0, most
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self._latency_s(middle) <= slack_s else (low, middle - 1)
        return low

    def _give_up_hopeless(self, now_s: float) -> None:
        # The largest item against the earliest deadline: if even that is in time, all are, and most calls end here.
        if self._timed and not self._in_time(now_s, self._largest_size, self._timed[0].finish_by_s):
            self._given_up += [e for e in sorted(self._timed) if not self._in_time(now_s, e.size, e.finish_by_s)]
            self._timed = [e for e in self._timed if self._in_time(now_s, e.size, e.finish_by_s)]
            heapify(self._timed)
            self._timed_rows = _rows(self._timed)
            self._largest_size = max((e.size for e in self._timed), default=1)
        if self._alone:
            self._given_up += [e for e in self._alone if not self._in_time(now_s, e.size, e.finish_by_s)]
            self._alone = [e for e in self._alone if self._in_time(now_s, e.size, e.finish_by_s)]

    # --- bookkeeping ------------------------------------------------------------------------------------------

    def _latency_s(self, rows: int) -> float:
        return self.estimate.batch_latency_s(rows)

    def _in_time(self, now_s: float, size: int, finish_by_s: float) -> bool:
        return now_s + self._latency_s(size) <= finish_by_s + EPSILON_S

    def _has_claim(self, entry: _Entry[ItemT], now_s: float) -> bool:
        return now_s - entry.added_at_s >= ASYNC_PATIENCE_S and self._claimable_rows >= 1

    def _pop_timed(self) -> _Entry[ItemT]:
        entry = heappop(self._timed)
        self._timed_rows -= entry.size
        return entry

    def _pop_async(self) -> _Entry[ItemT]:
        entry = self._async.popleft()
        self._async_rows -= entry.size
        return entry

    def _pop_alone(self, entry: _Entry[ItemT], now_s: float) -> _Entry[ItemT]:
        if self._has_claim(entry, now_s):
            self._claimable_rows -= entry.size
        self._alone.remove(entry)
        return entry


def _rows(entries: Iterable[_Entry[ItemT]]) -> int:
    return sum(entry.size for entry in entries)


def _fits(rows: int, size: int, limit: int) -> bool:
    return rows == 0 or rows + size <= limit


def _batch(entries: list[_Entry[ItemT]], reason: str) -> Batch[ItemT]:
    return Batch(items=tuple(entry.item for entry in entries), size=_rows(entries), close_reason=reason)
