"""The demo's objective follows the machine's speed."""

from __future__ import annotations

from itertools import count

import pytest

from local.machine_speed import REPEATS, TUNED_ON_S, demo_objective_s, slowness


def test_slowness_is_that_of_the_best_try() -> None:
    instants = iter([0.0, 9 * TUNED_ON_S, 10.0, 10.0 + 2 * TUNED_ON_S, *(20.0 + 5.0 * number for number in range(2 * REPEATS - 4))])

    assert slowness(lambda: next(instants)) == pytest.approx(2.0)


def test_slowness_grows_with_what_the_clock_says() -> None:
    ticks = count()

    assert slowness(lambda: next(ticks) * 3 * TUNED_ON_S) == pytest.approx(3.0)


@pytest.mark.parametrize(("times_slower", "objective_s"), [(0.4, 2.0), (1.0, 2.0), (2.0, 4.0), (50.0, 4.0)])
def test_objective_is_two_seconds_or_what_a_slow_machine_needs(times_slower: float, objective_s: float) -> None:
    assert demo_objective_s(times_slower) == objective_s
