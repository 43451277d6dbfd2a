"""What batching guarantees whatever happens: nothing lost, nothing late by its own doing, limits respected."""

from collections.abc import Iterable
from itertools import pairwise
from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from markserve.core.batch_limits import EPSILON_S
from markserve.core.batching import Batch, BatchAccumulator, BatchLimits, choose_batch_limits
from markserve.core.profiles import LatencyEstimate
from markserve.errors import InfeasibleSlo
from tests.builders import a_profile


@st.composite
def estimates(draw: st.DrawFn) -> LatencyEstimate:
    sizes = sorted(draw(st.sets(st.integers(2, 64), max_size=6)) | {1})
    latencies = draw(st.lists(st.floats(min_value=0.001, max_value=0.2), min_size=len(sizes), max_size=len(sizes)))
    return LatencyEstimate(a_profile(dict(zip(sizes, latencies, strict=True))), scale=draw(st.floats(min_value=0.5, max_value=2.0)))


def limits_or_none(estimate: LatencyEstimate, budget_s: float, max_batch_size: int) -> BatchLimits | None:
    try:
        return choose_batch_limits(estimate=estimate, latency_budget_s=budget_s, max_batch_size=max_batch_size)
    except InfeasibleSlo:
        return None


@given(estimates(), st.floats(min_value=0.001, max_value=2.0), st.integers(1, 64))
def test_limits_meet_the_budget(estimate: LatencyEstimate, budget_s: float, max_batch_size: int) -> None:
    limits = limits_or_none(estimate, budget_s, max_batch_size)

    if limits is None:
        assert estimate.batch_latency_s(1) >= budget_s
        return
    assert 1 <= limits.max_batch_size <= max_batch_size
    assert limits.max_queue_delay_s > 0
    assert limits.max_queue_delay_s + limits.batch_latency_s == pytest.approx(budget_s)
    assert limits.service_rate_rps > 0
    assert limits.max_batch_size == 1 or 2 * limits.batch_latency_s <= budget_s + 1e-5


@given(estimates(), st.floats(min_value=0.001, max_value=1.0), st.floats(min_value=0.0, max_value=1.0), st.integers(1, 64))
def test_a_looser_objective_never_gives_a_smaller_batch_or_a_lower_rate(
    estimate: LatencyEstimate, budget_s: float, looser_s: float, max_batch_size: int
) -> None:
    tight = limits_or_none(estimate, budget_s, max_batch_size)
    loose = limits_or_none(estimate, budget_s + looser_s, max_batch_size)

    if tight is not None:
        assert loose is not None
        assert loose.max_batch_size >= tight.max_batch_size
        assert loose.service_rate_rps >= tight.service_rate_rps * 0.9899


@given(estimates())
def test_batch_latency_never_falls(estimate: LatencyEstimate) -> None:
    latencies = [estimate.batch_latency_s(b) for b in range(1, 100)]

    assert all(a <= b + 1e-12 for a, b in pairwise(latencies))


def replay(
    arrivals_s: list[float], *, limits: BatchLimits, estimate: LatencyEstimate, budget_s: float, rate_rps: float
) -> tuple[list[float], int]:
    """Latency of every answered request, and the number given up; every batch takes exactly T(b)."""
    accumulator: BatchAccumulator[float] = BatchAccumulator(limits=limits, estimate=estimate, margin_s=0.0)
    waiting = list(reversed(arrivals_s))
    now_s = free_at_s = 0.0
    latencies: list[float] = []
    dropped = 0
    while waiting or len(accumulator):
        while waiting and waiting[-1] <= now_s:
            at_s = waiting.pop()
            accumulator.add(at_s, size=1, answer_by_s=at_s + budget_s, reply_overhead_s=0.0, now_s=now_s)
        dropped += len(accumulator.hopeless(now_s))
        idle = now_s >= free_at_s
        batch = accumulator.take(now_s=now_s, runner_idle=True, arrival_rate_rps=rate_rps) if idle else None
        if batch:
            free_at_s = now_s + estimate.batch_latency_s(batch.size)
            latencies += [free_at_s - at_s for at_s in batch.items]
            continue
        due_s = accumulator.due_at_s(now_s=now_s, runner_idle=True, arrival_rate_rps=rate_rps) if idle else free_at_s
        following = [instant for instant in (waiting[-1] if waiting else None, due_s) if instant is not None and instant > now_s]
        if not following and not len(accumulator):
            break
        now_s = min(following, default=now_s)
    return latencies, dropped


@settings(deadline=None, max_examples=60)
@given(
    st.floats(min_value=0.001, max_value=0.05),
    st.floats(min_value=0.0005, max_value=0.02),
    st.floats(min_value=2.1, max_value=20.0),
    st.floats(min_value=0.05, max_value=0.99),
)
def test_every_request_is_in_time_when_arrivals_are_even_and_within_the_service_rate(
    fixed_s: float, per_row_s: float, budget_ratio: float, utilization: float
) -> None:
    estimate = LatencyEstimate(a_profile({b: fixed_s + per_row_s * b for b in (1, 32)}))
    budget_s = budget_ratio * estimate.batch_latency_s(1)
    limits = choose_batch_limits(estimate=estimate, latency_budget_s=budget_s, max_batch_size=32)
    rate_rps = utilization * limits.service_rate_rps

    latencies, dropped = replay([i / rate_rps for i in range(300)], limits=limits, estimate=estimate, budget_s=budget_s, rate_rps=rate_rps)

    assert dropped == 0
    assert len(latencies) == 300
    assert max(latencies) <= budget_s + 1e-5


@settings(deadline=None, max_examples=40)
@given(
    st.floats(min_value=0.002, max_value=0.05),
    st.floats(min_value=0.0005, max_value=0.005),
    st.floats(min_value=1.2, max_value=5.0),
    st.sampled_from([0.0, 0.5, 1.0, 2.0]),
)
def test_goodput_does_not_collapse_when_arrivals_exceed_the_service_rate_however_wrong_the_measured_rate(
    fixed_s: float, per_row_s: float, overload: float, rate_error: float
) -> None:
    estimate = LatencyEstimate(a_profile({b: fixed_s + per_row_s * b for b in (1, 16)}))
    budget_s = 3 * estimate.batch_latency_s(16)
    limits = choose_batch_limits(estimate=estimate, latency_budget_s=budget_s, max_batch_size=16)
    rate_rps = overload * limits.service_rate_rps
    arrivals = [i / rate_rps for i in range(2000)]

    latencies, dropped = replay(arrivals, limits=limits, estimate=estimate, budget_s=budget_s, rate_rps=rate_rps * rate_error)

    assert len(latencies) + dropped == 2000
    assert max(latencies) <= budget_s + 1e-5
    assert len(latencies) >= 0.9 * limits.service_rate_rps * arrivals[-1]


class AccumulatorMachine(RuleBasedStateMachine):
    """Any sequence of calls: every item leaves exactly once, in batches that respect the limits."""

    def __init__(self) -> None:
        super().__init__()
        estimate = LatencyEstimate(a_profile({1: 0.02, 8: 0.06}))
        limits = choose_batch_limits(estimate=estimate, latency_budget_s=0.2, max_batch_size=8)
        self.accumulator: BatchAccumulator[int] = BatchAccumulator(limits=limits, estimate=estimate, margin_s=0.005)
        self.now_s = 1_700_000_000.0
        self.sizes: dict[int, int] = {}
        self.finish_by_s: dict[int, float] = {}
        self.isolated: set[int] = set()
        self.left: list[int] = []

    @rule(elapsed_s=st.floats(min_value=0.0, max_value=0.3) | st.just(31.0))
    def time_passes(self, elapsed_s: float) -> None:
        self.now_s += elapsed_s

    @rule(
        size=st.integers(1, 12),
        slack_s=st.none() | st.floats(min_value=-0.1, max_value=1.0),
        alone=st.booleans(),
    )
    def item_is_added(self, size: int, slack_s: float | None, alone: bool) -> None:
        item = len(self.sizes)
        self.sizes[item] = size
        answer_by_s = None if slack_s is None else self.now_s + slack_s
        self.finish_by_s[item] = inf if answer_by_s is None else answer_by_s - 0.01
        if alone:
            self.isolated.add(item)
        into = self.accumulator.isolate if alone else self.accumulator.add
        into(item, size=size, answer_by_s=answer_by_s, reply_overhead_s=0.01, now_s=self.now_s)

    @rule(count=st.integers(1, 12))
    def burst_is_added(self, count: int) -> None:
        for _ in range(count):
            self.item_is_added(1, 0.2, False)

    @rule(slack_s=st.floats(min_value=0.03, max_value=0.1), count=st.integers(1, 12), rate=st.floats(min_value=0.0, max_value=500.0))
    def batch_is_taken_behind_a_head_that_is_nearly_late(self, slack_s: float, count: int, rate: float) -> None:
        self.item_is_added(1, slack_s, False)
        self.burst_is_added(count)
        self.batch_is_taken(True, rate)

    @rule(idle=st.booleans(), rate=st.floats(min_value=0.0, max_value=500.0))
    def batch_is_taken(self, idle: bool, rate: float) -> None:
        self.hopeless_items_are_fetched()
        self.take(idle=idle, rate=rate)

    @rule(idle=st.booleans(), rate=st.floats(min_value=0.0, max_value=500.0))
    def due_instant_is_kept(self, idle: bool, rate: float) -> None:
        self.hopeless_items_are_fetched()
        due_s = self.accumulator.due_at_s(now_s=self.now_s, runner_idle=idle, arrival_rate_rps=rate)
        if due_s is None:
            assert self.take(idle=idle, rate=rate) is None
            return
        assert due_s >= self.now_s
        self.now_s = due_s
        assert self.take(idle=idle, rate=rate) is not None

    @rule()
    def hopeless_items_are_fetched(self) -> None:
        given_up = self.accumulator.hopeless(self.now_s)
        assert [item for item in given_up if self.has_time_left(item)] == []
        self.left += given_up
        assert self.accumulator.hopeless(self.now_s) == []

    @rule()
    def everything_is_drained(self) -> None:
        self.hopeless_items_are_fetched()
        for batch in self.accumulator.drain():
            self.check(batch)
        assert len(self.accumulator) == 0

    def take(self, *, idle: bool, rate: float) -> Batch[int] | None:
        """Take a batch from a store that holds nothing hopeless: all of the batch is in time, and what it gives up it has to."""
        waiting = sum(self.sizes[item] for item in self.held() if self.is_in_time(item))
        batch = self.accumulator.take(now_s=self.now_s, runner_idle=idle, arrival_rate_rps=rate)
        if batch is not None:
            self.check(batch)
            finish_s = self.now_s + self.accumulator.estimate.batch_latency_s(batch.size)
            assert all(finish_s <= self.finish_by_s[item] + 1e-5 for item in batch.items)
        given_up = self.accumulator.hopeless(self.now_s)
        self.left += given_up
        self.check_given_up(filter(self.has_time_left, given_up), batch, waiting=waiting, rate=rate)
        return batch

    def check_given_up(self, heads: Iterable[int], batch: Batch[int] | None, *, waiting: int, rate: float) -> None:
        """Hold `take` to its only reason for giving up what could be run alone: batches as small as that allows would not keep up."""
        limit = self.accumulator.limits.max_batch_size
        for item in sorted(heads, key=lambda item: (self.finish_by_s[item], item)):
            assert batch is not None
            rows = waiting + sum(self.sizes[other] for other in batch.items if self.finish_by_s[other] == inf)
            fitting = self.rows_within(self.finish_by_s[item] - self.now_s + EPSILON_S)
            too_slow = rate * self.accumulator.estimate.batch_latency_s(max(fitting, 1)) > fitting
            assert too_slow or rows - fitting > limit
            assert min(rows - self.sizes[item], limit) > fitting, "nobody gains by it"
            waiting -= self.sizes[item]

    def held(self) -> set[int]:
        """Items with a deadline that share batches and have not left."""
        return {item for item, finish_by_s in self.finish_by_s.items() if finish_by_s < inf} - set(self.left) - self.isolated

    def is_in_time(self, item: int) -> bool:
        return self.now_s + self.accumulator.estimate.batch_latency_s(self.sizes[item]) <= self.finish_by_s[item] + EPSILON_S

    def has_time_left(self, item: int) -> bool:
        """Whether it would be in time if it ran alone, at once, and not by a hair."""
        return self.now_s + self.accumulator.estimate.batch_latency_s(self.sizes[item]) <= self.finish_by_s[item] - EPSILON_S

    def rows_within(self, slack_s: float) -> int:
        """Most rows of a batch that is done within `slack_s`."""
        sizes = range(1, self.accumulator.limits.max_batch_size + 1)
        return max((rows for rows in sizes if self.accumulator.estimate.batch_latency_s(rows) <= slack_s), default=0)

    def check(self, batch: Batch[int]) -> None:
        assert batch.items
        assert batch.close_reason
        assert batch.size == sum(self.sizes[item] for item in batch.items)
        assert batch.size <= self.accumulator.limits.max_batch_size or len(batch.items) == 1
        assert not self.isolated & set(batch.items) or len(batch.items) == 1
        self.left += batch.items

    @invariant()
    def every_item_is_here_or_left_once(self) -> None:
        assert len(self.left) == len(set(self.left))
        assert len(self.accumulator) + len(self.left) == len(self.sizes)

    def teardown(self) -> None:
        self.everything_is_drained()
        assert sorted(self.left) == sorted(self.sizes)


TestAccumulatorMachine = AccumulatorMachine.TestCase
TestAccumulatorMachine.settings = settings(deadline=None, max_examples=100, stateful_step_count=40)
