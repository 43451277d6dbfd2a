"""A model whose instances never come to serve is left alone for a while, longer each time."""

from typing import Any

import pytest

from markserve.core.quarantine import FIRST_PAUSE_S, LONGEST_PAUSE_S, quarantine
from markserve.core.types import Instance, InstanceState
from tests.builders import an_instance


def a_failure(number: int, **overrides: Any) -> Instance:
    at_s = 100.0 * number
    values = {
        "instance_id": f"i-{number}",
        "state": InstanceState.FAILED,
        "requested_at_s": at_s,
        "serving_at_s": None,
        "terminated_at_s": at_s + 10,
        "end_reason": "it crashed",
    }
    return an_instance(**{**values, **overrides})


def failures(count: int) -> list[Instance]:
    return [a_failure(number) for number in range(1, count + 1)]


def test_two_failures_are_bad_luck() -> None:
    assert quarantine(failures(2), version_at_s=0.0, now_s=215.0) is None


def test_three_failures_in_a_row_pause_launches_and_say_why() -> None:
    found = quarantine(failures(3), version_at_s=0.0, now_s=311.0)

    assert found is not None
    assert (found.failures, found.until_s) == (3, 310.0 + FIRST_PAUSE_S)
    assert "last 3 launches" in found.reason
    assert "it crashed" in found.reason


def test_pause_ends_by_itself_for_another_attempt() -> None:
    assert quarantine(failures(3), version_at_s=0.0, now_s=310.0 + FIRST_PAUSE_S) is None


@pytest.mark.parametrize(("count", "pause_s"), [(4, 2 * FIRST_PAUSE_S), (5, 4 * FIRST_PAUSE_S), (30, LONGEST_PAUSE_S)])
def test_each_further_failure_doubles_the_pause_up_to_an_hour(count: int, pause_s: float) -> None:
    found = quarantine(failures(count), version_at_s=0.0, now_s=100.0 * count + 11)

    assert found is not None
    assert found.until_s == 100.0 * count + 10 + pause_s


def test_one_that_served_clears_those_before_it() -> None:
    served = a_failure(3, serving_at_s=305.0)

    assert quarantine([*failures(2), served, a_failure(4), a_failure(5)], version_at_s=0.0, now_s=511.0) is None


def test_one_under_way_or_given_back_unused_changes_nothing() -> None:
    others = [a_failure(4, state=InstanceState.WARMING), a_failure(5, state=InstanceState.TERMINATED)]

    found = quarantine([*failures(3), *others], version_at_s=0.0, now_s=311.0)

    assert found is not None
    assert found.failures == 3


def test_new_version_has_a_clean_record() -> None:
    assert quarantine(failures(3), version_at_s=250.0, now_s=311.0) is None
