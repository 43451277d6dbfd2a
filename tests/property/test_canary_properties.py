"""What makes evidence against a canary trustworthy, for all histories: its expectation, computed exactly."""

import math

from hypothesis import given
from hypothesis import strategies as st

from markserve.core.canary import Block, errors_of, judge_canary, log_evidence
from markserve.core.traffic import Served

counts = st.integers(0, 6)


@st.composite
def served(draw: st.DrawFn, most: int = 40) -> Served:
    errors, late, in_time = (draw(st.integers(0, most)) for _ in range(3))
    return Served(ok=late + in_time, errors=errors, within_slo=in_time)


blocks = st.lists(st.builds(Block, live=served(), canary=served()), max_size=8)


def failing(requests: int, errors: int) -> Served:
    return Served(ok=requests - errors, errors=errors, within_slo=requests - errors)


def chance(failures: int, requests: int, share: float) -> float:
    return math.comb(requests, failures) * share**failures * (1 - share) ** (requests - failures)


@given(blocks, counts, counts, st.floats(0.0, 1.0), st.floats(0.0, 1.0))
def test_next_block_of_a_canary_that_is_no_worse_does_not_raise_the_evidence_on_average(
    past: list[Block], live_requests: int, canary_requests: int, live_share: float, fraction: float
) -> None:
    canary_share = live_share * fraction
    before = log_evidence(past, errors_of)

    expected = sum(
        chance(f_l, live_requests, live_share)
        * chance(f_c, canary_requests, canary_share)
        * math.exp(log_evidence([*past, Block(live=failing(live_requests, f_l), canary=failing(canary_requests, f_c))], errors_of) - before)
        for f_l in range(live_requests + 1)
        for f_c in range(canary_requests + 1)
    )

    assert expected <= 1 + 1e-9


@given(st.lists(served(), min_size=1, max_size=8))
def test_canary_with_the_live_versions_own_counts_goes_on(history: list[Served]) -> None:
    same = [Block(live=counted, canary=counted) for counted in history]

    assert not judge_canary(same, sl_min=0.98, false_alarm_rate=0.2, error_margin=0.0).is_worse


@given(blocks, st.floats(1e-6, 0.1))
def test_verdict_at_a_low_rate_of_false_alarms_stands_at_a_higher_one(history: list[Block], rate: float) -> None:
    strict = judge_canary(history, sl_min=0.98, false_alarm_rate=rate, error_margin=0.01)
    lax = judge_canary(history, sl_min=0.98, false_alarm_rate=2 * rate, error_margin=0.01)

    assert strict.reason
    assert lax.is_worse >= strict.is_worse
