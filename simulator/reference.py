"""The plain engine: one event at a time, asking the product's own `admit` and `BatchAccumulator`. Slow, and easy to check.

`fast.FastEngine` must decide exactly the same; a test holds it to that.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from markserve.core.batching import BatchAccumulator
from markserve.core.spillover import AdmissionAction, FleetView, admit
from simulator.service import Kind
from simulator.state import COMING, SETTLED, WAITING, Batches, Requests, Terms, Workers
from simulator.views import Views, fleet_at


class ReferenceEngine:
    """Drives the core policies request by request."""

    def __init__(self, kinds: Sequence[Kind], terms: Terms) -> None:
        self._kinds = kinds
        self._terms = terms
        self._views = Views(kinds, terms)
        self._last_answer_by_s = -math.inf

    def advance(
        self, requests: Requests, workers: Workers, *, rate_rps: float, from_s: float, until_s: float, first_batch_id: int
    ) -> Batches:
        """See `state.Engine`."""
        window = _Window(requests, workers, self._kinds, self._terms, self._views, rate_rps, first_batch_id, self._last_answer_by_s)
        for now_s, ends_s in self._views.steps(requests, workers, from_s, until_s):
            while now_s < ends_s:
                window.admit_due(now_s)
                now_s = min(window.next_arrival_s(), window.ask_all(now_s))
            window.expire(ends_s)
        self._last_answer_by_s = window.last_answer_by_s
        return window.batches()


class _Window:
    def __init__(
        self,
        requests: Requests,
        workers: Workers,
        kinds: Sequence[Kind],
        terms: Terms,
        views: Views,
        rate_rps: float,
        first_batch_id: int,
        last_answer_by_s: float,
    ) -> None:
        self._requests, self._workers, self._kinds, self._terms = requests, workers, kinds, terms
        self._views = views
        self._lots = views.lots(requests)
        self._rate_rps = rate_rps
        self._first_batch_id = first_batch_id
        self.last_answer_by_s = last_answer_by_s
        self._queue = deque(int(i) for i in np.flatnonzero(requests.state == WAITING))
        coming = np.flatnonzero(requests.state == COMING)
        self._next = int(coming[0]) if coming.size else requests.size
        self._closed: list[tuple[int, int, float, float]] = []

    # --- arrivals ---------------------------------------------------------------------------------------------------

    def next_arrival_s(self) -> float:
        if self._next == self._requests.size:
            return math.inf
        return float(self._requests.arrival_s[self._next]) + self._terms.transport_s

    def admit_due(self, now_s: float) -> None:
        while self.next_arrival_s() <= now_s:
            self._admit(self._next, now_s)
            self._next += 1

    def _admit(self, index: int, now_s: float) -> None:
        terms, requests, fleet = self._terms, self._requests, self._fleet_view(now_s)
        if terms.sees_queue and fleet.free_in_s(now_s) <= fleet.batch_latency_s:
            # MArk's one proxy sends on what finds less than a batch ahead of it, as if nothing were.
            fleet = replace(fleet, queue_depth=0, in_flight=0)
        decision = admit(
            fleet=fleet,
            slo=terms.slo,
            arrival_at_s=float(requests.arrival_s[index]),
            now_s=now_s,
            spill_latency_s=terms.spill_latency_s,
            reply_overhead_s=terms.reply_overhead_s,
            margin_s=terms.spill_margin_s,
            spill_available=terms.spill_available,
            keeps_reserve=terms.keeps_reserve,
            admitted=self._views.admitted,
            lot=float(self._lots[index]),
        )
        if decision.action is AdmissionAction.ENQUEUE:
            answer_by_s = decision.spill_at_s if decision.spill_at_s is not None else decision.deadline_at_s
            assert answer_by_s is not None  # noqa: S101  # no request here is asynchronous
            self.last_answer_by_s = max(answer_by_s, self.last_answer_by_s)
            requests.answer_by_s[index] = self.last_answer_by_s
            requests.state[index] = WAITING
            self._queue.append(index)
            self._views.entered += 1
            return
        requests.state[index] = SETTLED
        if decision.action is AdmissionAction.SPILL:
            requests.spill_at_s[index] = now_s

    def _fleet_view(self, now_s: float) -> FleetView:
        fleet, seen = fleet_at(self._workers, self._kinds, now_s, queued=len(self._queue)), self._views.seen
        return fleet if seen is None else replace(fleet, queue_depth=seen.queued, in_flight=seen.in_flight, viewed_at_s=seen.at_s)

    def _serving(self, now_s: float) -> list[int]:
        return [w for w in range(self._workers.size) if self._workers.serving_at_s[w] <= now_s]

    # --- batches ----------------------------------------------------------------------------------------------------

    def ask_all(self, now_s: float) -> float:
        """Ask idle workers until none closes a batch; return when to ask again."""
        while self._queue:
            due_s = math.inf
            asked: set[int] = set()
            changed = False
            for worker in self._serving(now_s):
                kind = int(self._workers.kind[worker])
                if self._workers.free_at_s[worker] > now_s or kind in asked or not self._queue:
                    continue
                asked.add(kind)
                before = len(self._queue)
                due_s = min(due_s, self._ask(worker, now_s))
                changed |= len(self._queue) < before
                if self._workers.free_at_s[worker] > now_s:
                    break
            if not changed:
                return min(due_s, self._next_free_s(now_s))
        return math.inf

    def _next_free_s(self, now_s: float) -> float:
        return min((float(free_s) for free_s in self._workers.free_at_s if free_s > now_s), default=math.inf)

    def _ask(self, worker: int, now_s: float) -> float:
        """Let an idle worker look at the queue, and start a batch if it closes one; else when it would."""
        kind = self._kinds[self._workers.kind[worker]]
        total_rps = sum(self._kinds[self._workers.kind[w]].limits.service_rate_rps for w in self._serving(now_s))
        share = kind.limits.service_rate_rps / total_rps
        rate_rps = self._rate_rps * share
        limit = kind.limits.max_batch_size
        seen = [self._queue[i] for i in range(min(len(self._queue), max(limit, math.ceil(len(self._queue) * share))))]
        accumulator = BatchAccumulator[int](limits=kind.limits, estimate=kind.estimate, margin_s=self._terms.worker_margin_s)
        for index in seen:
            accumulator.add(
                index,
                size=1,
                answer_by_s=float(self._requests.answer_by_s[index]),
                reply_overhead_s=self._terms.reply_overhead_s,
                now_s=now_s,
            )
        batch = accumulator.take(now_s=now_s, runner_idle=True, arrival_rate_rps=rate_rps)
        for index in accumulator.hopeless(now_s):
            self._drop(index)
        if batch is not None:
            self._start(worker, kind, batch.items, now_s)
            return math.inf
        due_s = accumulator.due_at_s(now_s=now_s, runner_idle=True, arrival_rate_rps=rate_rps)
        return math.inf if due_s is None else due_s

    def _drop(self, index: int) -> None:
        self._queue.remove(index)
        self._settle(index, math.inf)

    def _start(self, worker: int, kind: Kind, items: Sequence[int], now_s: float) -> None:
        finished_s = now_s + kind.execution_s(len(items), float(self._requests.luck[items[0]]))
        for index in items:
            self._queue.remove(index)
            self._requests.batch_id[index] = self._first_batch_id + len(self._closed)
            self._settle(index, finished_s + float(self._requests.reply_s[index]))
        self._workers.free_at_s[worker] = finished_s
        self._workers.running[worker] = len(items)
        self._closed.append((int(self._workers.instance[worker]), len(items), now_s, finished_s))

    def _settle(self, index: int, answer_s: float) -> None:
        self._requests.state[index] = SETTLED
        self._requests.worker_answer_s[index] = answer_s
        if self._terms.spill_available and answer_s > self._requests.answer_by_s[index]:
            self._requests.spill_at_s[index] = self._requests.answer_by_s[index]

    def expire(self, until_s: float) -> None:
        """Forget what fronts have given up on."""
        while self._queue and self._requests.answer_by_s[self._queue[0]] <= until_s:
            self._settle(self._queue.popleft(), math.inf)

    def batches(self) -> Batches:
        worker, size, started_s, finished_s = zip(*self._closed, strict=True) if self._closed else ((), (), (), ())
        return Batches(np.array(worker, np.int64), np.array(size, np.int64), np.array(started_s, float), np.array(finished_s, float))
