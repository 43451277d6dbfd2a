"""Limits that follow what is measured."""

from __future__ import annotations

import pytest

from markserve.core.profiles import LatencyEstimate
from markserve.core.tunables import Tunables
from markserve.messages import InferenceRequest
from tests.builders import NOW_S, a_profile, a_request
from worker.pacing import Pacing


def pacing(*, rt_max_s: float = 0.2, spill_reserve_s: float = 0.0, **tunables: int) -> Pacing[str]:
    return Pacing(
        estimate=LatencyEstimate(a_profile()),
        tunables=Tunables(rt_max_s=rt_max_s, **tunables),
        max_batch_size=64,
        spill_reserve_s=spill_reserve_s,
    )


def requests(count: int, **overrides: float) -> list[InferenceRequest]:
    return [a_request(**{"arrival_at_s": NOW_S, "deadline_at_s": NOW_S + 0.2, **overrides}) for _ in range(count)]


def test_budget_is_the_objective_less_reserve_and_margin_when_nothing_is_measured() -> None:
    assert pacing(spill_reserve_s=0.05).latency_budget_s == pytest.approx(0.2 - 0.05 - 0.004)


def test_no_reserve_is_kept_when_spill_over_is_off() -> None:
    assert pacing(spill_reserve_s=0.05, spillover_max_concurrency=0).latency_budget_s == pytest.approx(0.196)


def test_budget_shrinks_by_what_requests_bring_along() -> None:
    paced = pacing()

    batch = requests(100, spill_at_s=NOW_S + 0.17, reply_overhead_s=0.01)
    paced.observe_receipt(batch, now_s=NOW_S + 0.02, queue_was_empty=True, is_full=False)

    assert paced.transport_s == pytest.approx(0.02, abs=1e-6)
    assert paced.latency_budget_s == pytest.approx(0.2 - 0.02 - 0.01 - 0.03 - 0.004, abs=1e-6)


def test_waiting_behind_others_is_not_taken_for_transport() -> None:
    paced = pacing()

    paced.observe_receipt(requests(100, spill_at_s=NOW_S + 0.2), now_s=NOW_S + 0.15, queue_was_empty=False, is_full=False)

    assert paced.transport_s == 0.0


def test_batches_shrink_when_they_take_longer_than_profiled() -> None:
    paced = pacing()
    before = paced.limits

    for _ in range(10):
        paced.observe_batch(rows=4, compute_s=0.040)  # twice its profile

    assert paced.accumulator.estimate.scale == pytest.approx(2.0)
    assert paced.limits.max_batch_size < before.max_batch_size
    assert paced.limits.service_rate_rps < before.service_rate_rps


def test_limits_stay_when_the_change_is_noise() -> None:
    paced = pacing()
    before = paced.limits

    for _ in range(200):
        paced.observe_batch(rows=4, compute_s=0.0204)  # 2 % over

    assert paced.limits is before


def test_requests_are_served_one_at_a_time_when_the_objective_cannot_be_met() -> None:
    paced = pacing(rt_max_s=0.0125)

    assert paced.limits.max_batch_size == 1
    assert paced.limits.reason.startswith("one at a time, the objective cannot be met: ")
