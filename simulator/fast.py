"""The fast engine: the decisions of `reference.ReferenceEngine`, compiled.

The rules are those of `core.batching.BatchAccumulator` and `core.spillover.admit` for items of one row with a deadline, written
out so that numba can compile them; the order of operations is kept, so that results agree to the last bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

import numba
import numpy as np

from markserve.core.batch_limits import EPSILON_S
from markserve.core.batching import UTILIZATION_BOUND
from markserve.core.spillover import QUEUE_LIMIT
from simulator.service import Floats, Kind
from simulator.state import COMING, SETTLED, WAITING, Batches, Requests, Terms, Workers
from simulator.views import Views


def compiled(function: Callable[..., Any]) -> Any:
    """Compile on first use, and keep the result on disk. No fast-math: results must not depend on how sums are reordered."""
    return numba.njit(cache=True)(function)


class FastEngine:
    """Runs whole windows in compiled code."""

    def __init__(self, kinds: Sequence[Kind], terms: Terms) -> None:
        self._terms = terms
        self._views = Views(kinds, terms)
        self._last_answer_by_s = -math.inf
        most = max((kind.limits.max_batch_size for kind in kinds), default=1) + 1
        self._limits = np.array([kind.limits.max_batch_size for kind in kinds], np.int64)
        self._rates = np.array([kind.limits.service_rate_rps for kind in kinds], np.float64)
        self._latency_at_limit = np.array([kind.limits.batch_latency_s for kind in kinds], np.float64)
        self._p98, self._p50, self._sigma = (np.zeros((max(1, len(kinds)), most)) for _ in range(3))
        for row, kind in enumerate(kinds):
            columns = slice(0, kind.limits.max_batch_size + 1)
            self._p98[row, columns], self._p50[row, columns], self._sigma[row, columns] = kind.p98_s, kind.p50_s, kind.sigma

    def advance(
        self, requests: Requests, workers: Workers, *, rate_rps: float, from_s: float, until_s: float, first_batch_id: int
    ) -> Batches:
        """See `state.Engine`."""
        made: list[Batches] = []
        lots = self._views.lots(requests)
        for now_s, ends_s in self._views.steps(requests, workers, from_s, until_s):
            made.append(self._step(requests, workers, lots, rate_rps, now_s, ends_s, first_batch_id))
            first_batch_id += made[-1].size.size
        if len(made) == 1:
            return made[0]
        return Batches(*(np.concatenate([getattr(part, column.name) for part in made]) for column in fields(Batches)))

    def _step(
        self, requests: Requests, workers: Workers, lots: Floats, rate_rps: float, from_s: float, until_s: float, first_batch_id: int
    ) -> Batches:
        terms, views = self._terms, self._views
        open_ = requests.state != SETTLED
        most = int(np.count_nonzero(open_))
        batches = Batches(np.empty(most, np.int64), np.empty(most, np.int64), np.empty(most), np.empty(most))
        queue = np.empty(most, np.int64)
        waiting = np.flatnonzero(requests.state == WAITING)
        queue[: waiting.size] = waiting
        coming = np.flatnonzero(requests.state == COMING)
        number, entered, self._last_answer_by_s = _advance(
            requests.arrival_s,
            requests.luck,
            requests.reply_s,
            requests.state,
            requests.answer_by_s,
            requests.worker_answer_s,
            requests.spill_at_s,
            requests.batch_id,
            queue,
            waiting.size,
            int(coming[0]) if coming.size else requests.size,
            workers.kind,
            workers.serving_at_s,
            workers.free_at_s,
            workers.running,
            self._limits,
            self._rates,
            self._latency_at_limit,
            self._p98,
            self._p50,
            self._sigma,
            batches.worker,
            batches.size,
            batches.started_s,
            batches.finished_s,
            rate_rps,
            from_s,
            until_s,
            first_batch_id,
            self._last_answer_by_s,
            terms.slo.latency_s,
            terms.transport_s,
            terms.reply_overhead_s,
            terms.spill_latency_s,
            terms.spill_margin_s,
            terms.spill_available,
            terms.keeps_reserve,
            terms.sees_queue,
            terms.worker_margin_s,
            lots,
            views.admitted.share,
            views.seen.queued if views.seen else -1,
            views.seen.in_flight if views.seen else -1,
        )
        views.entered += entered
        instance = workers.instance[batches.worker[:number]] if number else batches.worker[:0]
        return Batches(instance, batches.size[:number], batches.started_s[:number], batches.finished_s[:number])


@compiled
def _closes_at_s(rows, limit, latencies, head_by_s, now_s, rate_rps, margin_s):  # type: ignore[no-untyped-def]
    """`BatchAccumulator._closing` with an idle runner."""
    if rows >= limit:
        return now_s
    due_s = head_by_s - latencies[rows] - margin_s
    if due_s <= now_s:
        return now_s
    if rate_rps * latencies[rows] <= UTILIZATION_BOUND * rows:
        return now_s
    return max(now_s, due_s - 1 / rate_rps)


@compiled
def _sheds_head(waiting, limit, latencies, head_by_s, now_s, rate_rps):  # type: ignore[no-untyped-def]
    """`BatchAccumulator._shed_heads`, one head."""
    slack_s = head_by_s - now_s + EPSILON_S
    fitting = min(waiting, limit)
    while fitting > 0 and latencies[fitting] > slack_s:
        fitting -= 1
    keeps_up = rate_rps * latencies[max(fitting, 1)] <= fitting and waiting - fitting <= limit
    return not (keeps_up or min(waiting - 1, limit) <= fitting)


@compiled
def _admitted_until_s(  # type: ignore[no-untyped-def]
    arrival_s,
    is_turned_away,
    viewed_at_s,
    now_s,
    queued,
    in_flight,
    serving,
    total_rps,
    latency_s,
    rt_max_s,
    reply_s,
    spill_s,
    spill_margin_s,
    spill_available,
    keeps_reserve,
    sees_queue,
):
    """`admit`: the instant by which a worker must have answered; -1 spills at once, -2 rejects."""
    deadline_s = arrival_s + rt_max_s
    refusal = -1.0 if spill_available else -2.0
    if queued + in_flight >= QUEUE_LIMIT:
        return -2.0
    if serving == 0 or total_rps <= 0:
        return refusal
    compute_s = latency_s + reply_s
    answer_by_s = deadline_s
    spills_late = spill_available and (not keeps_reserve or rt_max_s - spill_s - spill_margin_s < compute_s)
    if spills_late and is_turned_away:
        return refusal
    if spill_available and not spills_late:
        answer_by_s = deadline_s - spill_s - spill_margin_s
    batch_size = max(1.0, total_rps * latency_s / serving)
    takes = math.floor(queued / batch_size + 1e-9) + 0.5 * min(1.0, in_flight / serving)
    free_in_s = takes * batch_size / total_rps
    if spills_late:
        free_in_s = max(0.0, free_in_s - max(0.0, now_s - viewed_at_s))
    wait_s = max(0.0, free_in_s) + compute_s
    # MArk's one proxy sends on what finds less than a batch ahead of it.
    probe_s = compute_s + free_in_s if spills_late and not sees_queue else compute_s
    if now_s + wait_s - answer_by_s <= 0 or (free_in_s <= latency_s and now_s + probe_s <= answer_by_s):
        return answer_by_s
    return refusal


@compiled
def _advance(  # type: ignore[no-untyped-def]  # noqa: C901  # one loop over events, on arrays only
    arrival_s,
    luck,
    own_reply_s,
    state,
    answer_by_s,
    worker_answer_s,
    spill_at_s,
    batch_id,
    queue,
    tail,
    coming,
    kind_of,
    serving_at_s,
    free_at_s,
    running,
    limits,
    rates,
    latency_at_limit,
    p98,
    p50,
    sigma,
    batch_worker,
    batch_size,
    batch_started_s,
    batch_finished_s,
    rate_rps,
    from_s,
    until_s,
    first_batch_id,
    last_answer_by_s,
    rt_max_s,
    transport_s,
    reply_s,
    spill_s,
    spill_margin_s,
    spill_available,
    keeps_reserve,
    sees_queue,
    margin_s,
    lots,
    admitted_share,
    seen_queued,
    seen_in_flight,
):
    n, workers = arrival_s.size, kind_of.size
    head, closed, entered = 0, 0, 0
    asked = np.zeros(max(1, limits.size), np.bool_)
    serving, total_rps, slowest_s, fleet_changes_s = 0, 0.0, 0.0, from_s
    now_s = from_s
    while now_s < until_s:
        if now_s >= fleet_changes_s:
            serving, total_rps, slowest_s, fleet_changes_s = 0, 0.0, 0.0, np.inf
            for w in range(workers):
                if serving_at_s[w] <= now_s:
                    serving += 1
                    total_rps += rates[kind_of[w]]
                    slowest_s = max(slowest_s, latency_at_limit[kind_of[w]])
                else:
                    fleet_changes_s = min(fleet_changes_s, serving_at_s[w])

        # --- arrivals
        while coming < n and arrival_s[coming] + transport_s <= now_s:
            in_flight = 0
            # Only a front without a view of its own looks at the workers themselves; a look costs a step per worker.
            for w in range(workers if seen_queued < 0 else 0):
                if free_at_s[w] > now_s and serving_at_s[w] <= now_s:
                    in_flight += running[w]
            by_s = _admitted_until_s(
                arrival_s[coming],
                lots[coming] >= admitted_share,
                now_s if seen_queued < 0 else from_s,
                now_s,
                tail - head if seen_queued < 0 else seen_queued,
                in_flight if seen_queued < 0 else seen_in_flight,
                serving,
                total_rps,
                slowest_s,
                rt_max_s,
                reply_s,
                spill_s,
                spill_margin_s,
                spill_available,
                keeps_reserve,
                sees_queue,
            )
            if by_s >= 0:
                last_answer_by_s = max(by_s, last_answer_by_s)
                answer_by_s[coming] = last_answer_by_s
                state[coming] = WAITING
                queue[tail] = coming
                tail += 1
                entered += 1
            else:
                state[coming] = SETTLED
                if by_s == -1.0:
                    spill_at_s[coming] = now_s
            coming += 1

        # --- batches
        next_s = np.inf
        while head < tail:
            next_s = np.inf
            changed = False
            asked[:] = False
            for w in range(workers):
                if serving_at_s[w] > now_s or free_at_s[w] > now_s:
                    next_s = min(next_s, free_at_s[w])
                    continue
                k = kind_of[w]
                if asked[k] or head == tail:
                    continue
                asked[k] = True
                share = rates[k] / total_rps
                own_rps = rate_rps * share
                waiting = tail - head
                waiting = min(waiting, max(limits[k], math.ceil(waiting * share)))
                while waiting > 0 and now_s + p98[k, 1] > answer_by_s[queue[head]] - reply_s + EPSILON_S:
                    i = queue[head]
                    state[i] = SETTLED
                    if spill_available:
                        spill_at_s[i] = answer_by_s[i]
                    head, waiting, changed = head + 1, waiting - 1, True
                if waiting == 0:
                    continue
                closes_s = _closes_at_s(waiting, limits[k], p98[k], answer_by_s[queue[head]] - reply_s, now_s, own_rps, margin_s)
                if closes_s > now_s:
                    next_s = min(next_s, closes_s)
                    continue
                while _sheds_head(waiting, limits[k], p98[k], answer_by_s[queue[head]] - reply_s, now_s, own_rps):
                    i = queue[head]
                    state[i] = SETTLED
                    if spill_available:
                        spill_at_s[i] = answer_by_s[i]
                    head, waiting = head + 1, waiting - 1
                latest_s = answer_by_s[queue[head]] - reply_s
                rows = 1
                while rows < waiting and rows < limits[k] and now_s + p98[k, rows + 1] <= latest_s + EPSILON_S:
                    rows += 1
                finished_s = now_s + p50[k, rows] * math.exp(sigma[k, rows] * luck[queue[head]])
                for position in range(head, head + rows):
                    i = queue[position]
                    state[i] = SETTLED
                    worker_answer_s[i] = finished_s + own_reply_s[i]
                    batch_id[i] = first_batch_id + closed
                    if spill_available and worker_answer_s[i] > answer_by_s[i]:
                        spill_at_s[i] = answer_by_s[i]
                head += rows
                free_at_s[w], running[w], changed = finished_s, rows, True
                batch_worker[closed], batch_size[closed] = w, rows
                batch_started_s[closed], batch_finished_s[closed] = now_s, finished_s
                closed += 1
                break
            if not changed:
                break
            if head == tail:
                next_s = np.inf
        if coming < n:
            next_s = min(next_s, arrival_s[coming] + transport_s)
        now_s = next_s

    while head < tail and answer_by_s[queue[head]] <= until_s:
        i = queue[head]
        state[i] = SETTLED
        if spill_available:
            spill_at_s[i] = answer_by_s[i]
        head += 1
    return closed, entered, last_answer_by_s
