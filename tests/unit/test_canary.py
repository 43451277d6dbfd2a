"""When a canary is called worse than the live version: on what evidence, about what, and said how."""

import math
import random

import pytest

from markserve.core.canary import EPOCH_S, Block, CanaryVerdict, epoch_start_s, errors_of, judge_canary, late_of, log_evidence
from markserve.core.traffic import Served


def served(requests: int, *, errors: int = 0, late: int = 0) -> Served:
    return Served(ok=requests - errors, errors=errors, within_slo=requests - errors - late)


def judge(blocks: list[Block], **changes: float) -> CanaryVerdict:
    return judge_canary(blocks, **{"sl_min": 0.98, "false_alarm_rate": 0.001, "error_margin": 0.01, **changes})


def test_without_requests_of_both_there_is_nothing_to_say() -> None:
    assert judge([]) == CanaryVerdict(is_worse=False, reason="nothing to compare yet")
    assert not judge([Block(live=Served(), canary=served(50, errors=50))] * 10).is_worse
    assert not judge([Block(live=served(50), canary=Served())] * 10).is_worse


def test_few_requests_do_not_decide() -> None:
    assert not judge([Block(live=served(9), canary=served(1, errors=1))]).is_worse
    assert not judge([Block(live=served(9), canary=served(1, errors=1))] * 2).is_worse


def test_canary_that_always_fails_is_found_after_a_handful_of_its_requests() -> None:
    blocks = [Block(live=served(9), canary=served(1, errors=1))] * 20

    first = next(count for count in range(1, 21) if judge(blocks[:count]).is_worse)

    assert 3 <= first <= 8
    assert judge(blocks[:first]).reason.startswith(
        f"100.00% errors against 0.00% in {first} requests against {9 * first} of the live version"
    )
    assert "2000 needed" in judge(blocks[:first]).reason


def test_canary_that_fails_now_and_then_takes_longer() -> None:
    blocks = [Block(live=served(90), canary=served(10, errors=index % 2)) for index in range(60)]

    assert not judge(blocks[:4]).is_worse
    assert judge(blocks).is_worse


def test_a_fault_that_both_share_ends_no_canary() -> None:
    assert not judge([Block(live=served(90, errors=45), canary=served(10, errors=5))] * 200).is_worse


def test_load_that_makes_both_late_ends_no_canary() -> None:
    calm, storm = Block(live=served(90), canary=served(10)), Block(live=served(90, late=63), canary=served(10, late=7))

    assert not judge([calm] * 30 + [storm] * 30 + [calm] * 30).is_worse


def test_a_better_canary_is_not_worse() -> None:
    assert not judge([Block(live=served(90, errors=30), canary=served(10))] * 60).is_worse


def test_difference_below_the_margin_is_let_be_however_certain() -> None:
    blocks = [Block(live=served(100_000), canary=served(100_000, errors=500))] * 20

    assert not judge(blocks, error_margin=0.01).is_worse
    assert judge(blocks, error_margin=0.004).is_worse


def test_late_canary_is_ended_when_it_misses_the_objective_alone() -> None:
    blocks = [Block(live=served(90), canary=served(10, late=3))] * 20

    verdict = judge(blocks)
    assert verdict.is_worse
    assert verdict.reason.startswith("70.00% in time against 100.00%, objective 98.00%")
    assert not judge(blocks, sl_min=0.6).is_worse


def test_lower_rate_of_false_alarms_wants_more_evidence() -> None:
    blocks = [Block(live=served(9), canary=served(1, errors=1))] * 30

    def found_after(rate: float) -> int:
        return next(count for count in range(1, 31) if judge(blocks[:count], false_alarm_rate=rate).is_worse)

    assert found_after(0.1) <= found_after(0.001) < found_after(1e-6)


def test_impossible_rate_of_false_alarms_is_refused() -> None:
    with pytest.raises(ValueError, match="false_alarm_rate must lie in"):
        judge([], false_alarm_rate=0.0)


def test_evidence_starts_anew_each_hour() -> None:
    assert epoch_start_s(50.0, now_s=50.0 + EPOCH_S - 1) == 50.0
    assert epoch_start_s(50.0, now_s=50.0 + EPOCH_S) == 50.0 + EPOCH_S
    assert epoch_start_s(50.0, now_s=0.0) == 50.0  # clocks differ


@pytest.mark.parametrize(("failures_of", "share"), [(errors_of, 0.02), (errors_of, 0.3), (late_of, 0.1)])
def test_equal_versions_reach_a_level_no_more_often_than_stated_though_looked_at_in_every_window(failures_of: object, share: float) -> None:
    chance, rate, canaries = random.Random(7), 0.1, 1000  # reproducible, not secret

    def failing(requests: int, share: float) -> Served:
        failed = sum(chance.random() < share for _ in range(requests))
        return served(requests, errors=failed) if failures_of is errors_of else served(requests, late=failed)

    alarms = 0
    for _ in range(canaries):
        # Windows of changing size and changing trouble, the same for both.
        troubles = [share * chance.choice((0.2, 1.0, 2.0)) for _ in range(40)]
        blocks = [Block(live=failing(chance.randrange(12), trouble), canary=failing(chance.randrange(4), trouble)) for trouble in troubles]
        alarms += any(log_evidence(blocks[: count + 1], failures_of) >= math.log(1 / rate) for count in range(len(blocks)))  # type: ignore[arg-type]

    # Three standard deviations above what is stated.
    assert alarms <= canaries * rate + 3 * math.sqrt(canaries * rate * (1 - rate))
