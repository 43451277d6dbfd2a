from dataclasses import replace

import pytest

from markserve.core.batch_limits import SERVE_RATE_TOLERANCE
from markserve.core.batching import Batch, BatchAccumulator, BatchLimits, choose_batch_limits
from markserve.core.profiles import LatencyEstimate
from markserve.errors import InfeasibleSlo
from tests.builders import a_profile

AFFINE = LatencyEstimate(a_profile({b: 0.010 + 0.010 * b for b in range(1, 17)}))
"""T(b) = 10 ms + 10 ms * b."""


# --- limits -----------------------------------------------------------------------------------------------------


def test_limit_is_the_largest_batch_of_which_two_fit_when_larger_is_faster() -> None:
    limits = choose_batch_limits(estimate=AFFINE, latency_budget_s=0.1, max_batch_size=16)

    assert limits == BatchLimits(
        max_batch_size=4,
        max_queue_delay_s=pytest.approx(0.05),
        service_rate_rps=pytest.approx(80.0),
        batch_latency_s=pytest.approx(0.05),
        reason="b = 4: 2 * T(5) = 0.120 s would exceed the budget of 0.100 s",
    )


def test_limit_is_the_models_when_the_budget_is_ample() -> None:
    limits = choose_batch_limits(estimate=AFFINE, latency_budget_s=10.0, max_batch_size=8)

    assert limits.max_batch_size == 8
    assert limits.reason == "b = 8: the model's limit, as 2 * T(8) = 0.180 s is within the budget of 10.000 s"


def test_limit_is_one_when_batching_gains_nothing() -> None:
    limits = choose_batch_limits(estimate=LatencyEstimate(a_profile({1: 0.02})), latency_budget_s=1.0, max_batch_size=16)

    assert (limits.max_batch_size, limits.service_rate_rps) == (1, 50.0)
    assert limits.reason == "b = 1: larger batches within the budget of 1.000 s gain less than 1% of rate"


def test_limit_is_the_fastest_batch_when_no_rate_may_be_lost() -> None:
    nearly_straight = LatencyEstimate(a_profile({1: 0.003, 32: 0.0180, 64: 0.0358, 96: 0.0560}))

    within_a_percent = choose_batch_limits(estimate=nearly_straight, latency_budget_s=0.19, max_batch_size=96)
    fastest = choose_batch_limits(estimate=nearly_straight, latency_budget_s=0.19, max_batch_size=96, rate_tolerance=SERVE_RATE_TOLERANCE)

    assert within_a_percent.max_batch_size < 33 < fastest.max_batch_size == 64
    assert fastest.reason == "b = 64: larger batches within the budget of 0.190 s gain no rate"


def test_limit_is_the_fastest_batch_when_latency_jumps_at_a_size() -> None:
    stepped = LatencyEstimate(a_profile({1: 0.020, 4: 0.026, 5: 0.050, 8: 0.060}))

    limits = choose_batch_limits(estimate=stepped, latency_budget_s=0.11, max_batch_size=8)

    assert limits.max_batch_size == 4


def test_limit_shrinks_when_the_instance_turned_out_slower() -> None:
    slower = LatencyEstimate(AFFINE.profile, scale=2.0)

    assert choose_batch_limits(estimate=slower, latency_budget_s=0.1, max_batch_size=16).max_batch_size == 1


def test_rate_is_nominal_when_no_request_can_wait_for_another() -> None:
    limits = choose_batch_limits(estimate=AFFINE, latency_budget_s=0.03, max_batch_size=16)

    assert limits.max_batch_size == 1
    assert limits.max_queue_delay_s == pytest.approx(0.01)
    assert limits.service_rate_rps == pytest.approx(50.0)
    assert limits.reason == (
        "b = 1: 2 * T(1) = 0.040 s exceeds the budget of 0.030 s by 0.010 s, so whoever waits for a whole request is late"
    )


def test_infeasible_names_the_latency_and_the_shortfall_when_one_request_is_too_slow() -> None:
    with pytest.raises(
        InfeasibleSlo, match=r"T\(1\) = 0\.020 s leaves nothing of the latency budget of 0\.015 s, which is short by 0\.005 s"
    ):
        choose_batch_limits(estimate=AFFINE, latency_budget_s=0.015, max_batch_size=16)


def test_infeasible_names_the_overheads_when_they_use_up_the_objective() -> None:
    with pytest.raises(InfeasibleSlo, match=r"use up the objective and 0\.020 s more"):
        choose_batch_limits(estimate=AFFINE, latency_budget_s=-0.02, max_batch_size=16)


def test_limits_refuse_when_the_model_takes_no_batch() -> None:
    with pytest.raises(ValueError, match="max_batch_size"):
        choose_batch_limits(estimate=AFFINE, latency_budget_s=0.1, max_batch_size=0)


# --- accumulator ------------------------------------------------------------------------------------------------


def an_accumulator(*, max_batch_size: int = 4, margin_s: float = 0.01, estimate: LatencyEstimate = AFFINE) -> BatchAccumulator[str]:
    limits = BatchLimits(max_batch_size=max_batch_size, max_queue_delay_s=0.05, service_rate_rps=80.0, batch_latency_s=0.05, reason="")
    return BatchAccumulator(limits=limits, estimate=estimate, margin_s=margin_s)


def add(
    accumulator: BatchAccumulator[str], *items: str, size: int = 1, by: float | None = 0.2, reply: float = 0.0, now: float = 0.0
) -> None:
    for item in items:
        accumulator.add(item, size=size, answer_by_s=by, reply_overhead_s=reply, now_s=now)


def take(accumulator: BatchAccumulator[str], now: float = 0.0, *, idle: bool = True, rate: float = 0.0) -> Batch[str] | None:
    return accumulator.take(now_s=now, runner_idle=idle, arrival_rate_rps=rate)


def taken(accumulator: BatchAccumulator[str], now: float = 0.0, *, idle: bool = True, rate: float = 0.0) -> tuple[str, ...]:
    batch = take(accumulator, now, idle=idle, rate=rate)
    return batch.items if batch else ()


def due(accumulator: BatchAccumulator[str], now: float = 0.0, *, idle: bool = True, rate: float = 0.0) -> float | None:
    return accumulator.due_at_s(now_s=now, runner_idle=idle, arrival_rate_rps=rate)


def test_nothing_closes_when_nothing_waits() -> None:
    accumulator = an_accumulator()

    assert take(accumulator) is None
    assert due(accumulator) is None
    assert len(accumulator) == 0


def test_batch_closes_at_once_when_it_is_full_even_if_the_runner_is_busy() -> None:
    accumulator = an_accumulator()
    add(accumulator, "a", "b", "c", "d", "e")

    batch = take(accumulator, idle=False, rate=1000.0)

    assert batch == Batch(items=("a", "b", "c", "d"), size=4, close_reason="full: 5 rows wait for 4 places")
    assert len(accumulator) == 1


def test_batch_waits_until_the_deadline_requires_it_when_the_runner_is_busy() -> None:
    accumulator = an_accumulator()
    add(accumulator, "a", "b", reply=0.02)

    assert due(accumulator, idle=False) == pytest.approx(0.2 - 0.02 - 0.03 - 0.01)  # answer_by - reply - T(2) - margin
    assert take(accumulator, 0.139, idle=False) is None
    assert taken(accumulator, 0.1401, idle=False) == ("a", "b")


def test_batch_is_due_earlier_when_it_grows() -> None:
    accumulator = an_accumulator()
    add(accumulator, "a")
    alone = due(accumulator, idle=False)
    add(accumulator, "b")

    assert alone == pytest.approx(0.17)
    assert due(accumulator, idle=False) == pytest.approx(0.16)


def test_batch_closes_at_once_when_the_runner_is_idle_and_small_batches_keep_up() -> None:
    accumulator = an_accumulator()
    add(accumulator, "a")

    batch = take(accumulator, rate=40.0)  # T(1) is 20 ms: up to 50 rps

    assert batch is not None
    assert batch.close_reason == "idle: 1 at a time keep up with 40.0 rps"


def test_batch_waits_for_company_when_small_batches_do_not_keep_up() -> None:
    accumulator = an_accumulator()
    add(accumulator, "a")

    assert take(accumulator, rate=60.0) is None

    add(accumulator, "b", now=0.02)
    assert taken(accumulator, 0.02, rate=60.0) == ("a", "b")  # T(2) is 30 ms: up to 67 rps


def test_batch_stops_waiting_when_less_than_one_more_is_expected() -> None:
    accumulator = an_accumulator()
    add(accumulator, "a")

    assert due(accumulator, rate=100.0) == pytest.approx(0.17 - 1 / 100.0)
    assert take(accumulator, 0.159, rate=100.0) is None
    batch = take(accumulator, 0.161, rate=100.0)
    assert batch is not None
    assert batch.close_reason.startswith("idle: less than one more expected")


def test_earliest_deadline_goes_first_when_deadlines_differ() -> None:
    accumulator = an_accumulator(max_batch_size=2)
    add(accumulator, "late", by=0.5)
    add(accumulator, "soon", by=0.2)
    add(accumulator, "mid", by=0.3)

    assert taken(accumulator) == ("soon", "mid")


def test_order_of_arrival_holds_when_deadlines_are_equal() -> None:
    accumulator = an_accumulator(max_batch_size=8)
    add(accumulator, *"gfedcba")

    assert taken(accumulator) == tuple("gfedcba")


def test_rows_count_when_requests_have_several() -> None:
    accumulator = an_accumulator()
    add(accumulator, "three", size=3)
    add(accumulator, "two", size=2)

    batch = take(accumulator)

    assert batch is not None
    assert (batch.items, batch.size) == (("three",), 3)
    assert taken(accumulator) == ("two",)


def test_request_runs_alone_when_it_has_more_rows_than_a_batch() -> None:
    accumulator = an_accumulator()
    add(accumulator, "big", size=9, by=1.0)
    add(accumulator, "small", by=2.0)

    assert taken(accumulator) == ("big",)
    assert taken(accumulator) == ("small",)


def test_batch_shrinks_when_the_heads_deadline_is_near_and_small_batches_keep_up() -> None:
    accumulator = an_accumulator()
    add(accumulator, "near", by=0.035)
    add(accumulator, "b", "c", "d", by=0.2)

    assert taken(accumulator, rate=10.0) == ("near", "b")  # T(2) = 30 ms
    assert taken(accumulator, rate=10.0) == ("c", "d")
    assert accumulator.hopeless(0.0) == []


def test_head_is_given_up_when_a_batch_that_saves_it_could_not_keep_up() -> None:
    accumulator = an_accumulator()
    add(accumulator, "near", by=0.035)
    add(accumulator, "b", "c", "d", "e", by=0.2)

    assert taken(accumulator, rate=75.0) == ("b", "c", "d", "e")  # two at a time serve 66 rps, four 80
    assert len(accumulator) == 1
    assert accumulator.hopeless(0.0) == ["near"]
    assert len(accumulator) == 0


def test_head_is_given_up_when_more_waits_than_the_next_batch_takes_whatever_the_rate() -> None:
    accumulator = an_accumulator()
    add(accumulator, "near", by=0.035)
    add(accumulator, *"bcdefg", by=0.2)

    assert taken(accumulator, rate=0.0) == ("b", "c", "d", "e")
    assert accumulator.hopeless(0.0) == ["near"]


def test_head_is_kept_when_giving_it_up_would_not_make_a_larger_batch() -> None:
    accumulator = an_accumulator()
    add(accumulator, "near", "near too", by=0.035)
    add(accumulator, "c", by=0.2)

    assert taken(accumulator, 0.0, idle=True, rate=75.0) == ("near", "near too")


def test_batch_still_goes_when_its_owner_woke_up_late_by_less_than_the_margin() -> None:
    accumulator = an_accumulator(margin_s=0.01)
    add(accumulator, "a", "b")

    assert taken(accumulator, 0.1695, idle=False) == ("a", "b")  # due at 0.16


def test_item_is_hopeless_when_it_cannot_be_answered_even_alone() -> None:
    accumulator = an_accumulator()
    add(accumulator, "a", reply=0.05)
    add(accumulator, "b", by=0.3)

    assert accumulator.hopeless(0.129) == []
    assert accumulator.hopeless(0.131) == ["a"]
    assert taken(accumulator, 0.131) == ("b",)


def test_large_item_is_hopeless_before_a_small_one_when_their_deadlines_are_equal() -> None:
    accumulator = an_accumulator(max_batch_size=8)
    add(accumulator, "small")
    add(accumulator, "large", size=8)

    assert accumulator.hopeless(0.15) == ["large"]


def test_item_at_its_last_instant_is_not_hopeless_when_epoch_seconds_round() -> None:
    now = 1_700_000_000.1
    for step in range(200):
        accumulator = an_accumulator(margin_s=0.0)
        add(accumulator, "a", by=now + 0.2 + step * 0.001237, now=now)
        at = due(accumulator, now, idle=False)
        assert at is not None
        assert taken(accumulator, at, idle=False) == ("a",)


def test_take_gives_hopeless_items_up_when_nobody_asked_first() -> None:
    accumulator = an_accumulator()
    add(accumulator, "a", by=0.01)

    assert take(accumulator) is None
    assert accumulator.hopeless(0.0) == ["a"]


def test_async_item_goes_at_once_when_the_runner_is_idle_and_nothing_else_waits() -> None:
    accumulator = an_accumulator()
    add(accumulator, "async", by=None)

    assert due(accumulator, 5.0, idle=False) is None
    assert due(accumulator, 5.0, rate=1000.0) == 5.0
    assert taken(accumulator, 5.0, rate=1000.0) == ("async",)


def test_async_items_fill_the_room_when_deadlines_leave_some() -> None:
    accumulator = an_accumulator()
    add(accumulator, "x", "y", "z", by=None)
    add(accumulator, "a", "b", by=0.2)

    assert taken(accumulator) == ("a", "b", "x", "y")


def test_async_items_stay_out_when_they_would_make_a_deadline_late() -> None:
    accumulator = an_accumulator()
    add(accumulator, "x", "y", "z", by=None)
    add(accumulator, "a", by=0.025)

    assert taken(accumulator, rate=1.0) == ("a",)


def test_async_items_do_not_close_a_batch_when_the_runner_is_busy() -> None:
    accumulator = an_accumulator()
    add(accumulator, "w", "x", "y", "z", by=None)

    assert take(accumulator, idle=False) is None


def test_async_item_gets_a_share_when_it_has_waited_through_a_saturated_time() -> None:
    accumulator = an_accumulator()
    add(accumulator, "async", by=None)
    served: list[str] = []

    for step in range(20):
        now = 25.0 + step * 0.5
        add(accumulator, *(f"{step}-{i}" for i in range(4)), by=now + 0.2, now=now)
        served += taken(accumulator, now, rate=80.0)
        accumulator.hopeless(now + 0.5)

    assert "async" in served
    assert served.index("async") >= 40  # not before its 30 s were over
    assert len(served) == 80  # 79 with a deadline: one gave way


def test_async_flood_takes_no_more_than_its_share_when_aged() -> None:
    accumulator = an_accumulator(max_batch_size=8)
    add(accumulator, *(f"async{i}" for i in range(400)), by=None)
    timed = 0

    for step in range(20):
        now = 100.0 + step * 0.1
        add(accumulator, *(f"{step}-{i}" for i in range(8)), by=now + 0.2, now=now)
        timed += sum(not item.startswith("async") for item in taken(accumulator, now, rate=80.0))
        accumulator.hopeless(now + 0.2)

    assert timed >= 20 * 6  # of 8 places, 2 are claimed


def test_isolated_item_runs_alone_when_nothing_else_would_be_late() -> None:
    accumulator = an_accumulator()
    accumulator.isolate("suspect", size=1, answer_by_s=None, reply_overhead_s=0.0, now_s=0.0)
    add(accumulator, "a", "b", by=0.2)

    batch = take(accumulator)

    assert batch == Batch(items=("suspect",), size=1, close_reason="alone: isolated from others")
    assert taken(accumulator) == ("a", "b")


def test_isolated_item_waits_when_it_would_make_others_late() -> None:
    accumulator = an_accumulator()
    accumulator.isolate("suspect", size=1, answer_by_s=None, reply_overhead_s=0.0, now_s=0.0)
    add(accumulator, "a", "b", by=0.05)

    assert taken(accumulator) == ("a", "b")
    assert taken(accumulator) == ("suspect",)


def test_isolated_item_goes_first_when_its_deadline_is_the_earliest() -> None:
    accumulator = an_accumulator()
    accumulator.isolate("suspect", size=1, answer_by_s=0.04, reply_overhead_s=0.0, now_s=0.0)
    add(accumulator, "a", by=0.05)

    assert taken(accumulator) == ("suspect",)


def test_isolated_item_is_not_starved_when_others_are_always_pressing() -> None:
    accumulator = an_accumulator()
    accumulator.isolate("suspect", size=1, answer_by_s=None, reply_overhead_s=0.0, now_s=0.0)
    served: list[str] = []

    for step in range(4):
        now = 40.0 + step * 0.05
        add(accumulator, *(f"{step}-{i}" for i in range(4)), by=now + 0.055, now=now)
        served += taken(accumulator, now, rate=80.0)

    assert "suspect" in served


def test_isolated_item_is_dropped_when_it_is_hopeless() -> None:
    accumulator = an_accumulator()
    accumulator.isolate("suspect", size=1, answer_by_s=0.04, reply_overhead_s=0.0, now_s=0.0)

    assert accumulator.hopeless(0.03) == ["suspect"]
    assert take(accumulator, 0.03) is None


def test_isolated_item_waits_when_the_runner_is_busy() -> None:
    accumulator = an_accumulator()
    accumulator.isolate("suspect", size=1, answer_by_s=None, reply_overhead_s=0.0, now_s=0.0)

    assert take(accumulator, idle=False) is None
    assert due(accumulator, idle=False) is None


def test_drain_returns_everything_in_order_when_the_worker_stops() -> None:
    accumulator = an_accumulator()
    add(accumulator, "async", by=None)
    add(accumulator, *"abcde")
    add(accumulator, "big", size=7, by=0.5)
    accumulator.isolate("suspect", size=1, answer_by_s=None, reply_overhead_s=0.0, now_s=0.0)

    batches = accumulator.drain()

    assert [batch.items for batch in batches] == [("suspect",), ("a", "b", "c", "d"), ("e",), ("big",), ("async",)]
    assert {batch.close_reason for batch in batches} == {"drain"}
    assert len(accumulator) == 0
    assert accumulator.drain() == []


def test_new_limits_and_estimate_hold_when_they_are_replaced() -> None:
    accumulator = an_accumulator()
    add(accumulator, "a", "b", "c")

    accumulator.limits = replace(accumulator.limits, max_batch_size=2)
    accumulator.estimate = LatencyEstimate(AFFINE.profile, scale=2.0)

    assert due(accumulator, idle=False) == 0.0
    assert taken(accumulator, idle=False) == ("a", "b")
    assert due(accumulator, idle=False) == pytest.approx(0.2 - 0.04 - 0.01)


def test_accumulator_refuses_when_a_size_or_margin_makes_no_sense() -> None:
    with pytest.raises(ValueError, match="size"):
        add(an_accumulator(), "a", size=0)
    with pytest.raises(ValueError, match="margin_s"):
        an_accumulator(margin_s=-0.1)


def test_items_need_not_be_comparable_when_they_are_isolated() -> None:
    class Incomparable:
        def __eq__(self, other: object) -> bool:
            raise AssertionError("compared")

        __hash__ = None  # type: ignore[assignment]

    accumulator: BatchAccumulator[Incomparable] = BatchAccumulator(limits=an_accumulator().limits, estimate=AFFINE, margin_s=0.0)
    for _ in range(2):
        accumulator.isolate(Incomparable(), size=1, answer_by_s=None, reply_overhead_s=0.0, now_s=0.0)

    assert accumulator.take(now_s=0.0, runner_idle=True, arrival_rate_rps=0.0) is not None
    assert len(accumulator) == 1
