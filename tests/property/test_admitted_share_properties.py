import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from markserve.core.admitted_share import SHARE_MIN, AdmittedShare, revise_share, usable_rate_rps

ONE = frozenset({"i-1"})


@given(
    st.lists(
        st.tuples(st.integers(0, 10**6), st.floats(0.0, 1e5), st.floats(0.0, 1e6), st.sampled_from([ONE, "i-1 i-2"])),
        max_size=30,
    )
)
def test_share_is_one_whatever_is_reported(views: list[tuple[int, float, float, str]]) -> None:
    share = AdmittedShare()
    for entered, at_s, usable_rps, members in views:
        share = revise_share(share, entered=entered, members=members, viewed_at_s=at_s, usable_rps=usable_rps)

        assert SHARE_MIN <= share.share <= 1
        assert share.reason


@given(st.integers(1, 40), st.floats(0.01, 1.0), st.floats(0.0, 2.0), st.sampled_from([0.005, 0.02, 0.1]))
def test_usable_rate_is_within_the_nominal_one_and_grows_with_the_time_to_wait(
    servers: int, latency_s: float, waits: float, late_share_max: float
) -> None:
    nominal_rps = servers / latency_s

    less, more = (
        usable_rate_rps(
            servers=servers,
            service_rate_rps=nominal_rps,
            batch_latency_s=latency_s,
            waiting_s=waiting_s,
            late_share_max=late_share_max,
        )
        for waiting_s in (waits * latency_s, 1.5 * waits * latency_s)
    )

    assert 0 <= less <= more <= nominal_rps


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    offered_rps=st.floats(60.0, 400.0),
    fronts=st.integers(1, 20),
    late_front_joins=st.booleans(),
)
def test_fronts_that_look_at_different_times_admit_together_what_is_usable(
    seed: int, offered_rps: float, fronts: int, late_front_joins: bool
) -> None:
    """Each front sees heartbeats at moments of its own, knows nothing of the others, and may start in the midst of an overload."""
    rng = random.Random(seed)
    usable_rps, tick_s, ticks = 50.0, 0.1, 1200
    shares = [AdmittedShare() for _ in range(fronts)]
    looks = [rng.randrange(10) for _ in range(fronts)]
    entered, admitted_late = 0, 0
    for tick in range(ticks):
        if late_front_joins and tick == ticks // 2:
            shares[0] = AdmittedShare()
        arrived = sum(rng.random() < offered_rps * tick_s / 50 for _ in range(50))
        admitted = sum(not shares[rng.randrange(fronts)].turns_away(rng.random()) for _ in range(arrived))
        entered += admitted
        admitted_late += admitted if tick >= ticks - 400 else 0
        for front, look in enumerate(looks):
            if tick % 10 == look:
                shares[front] = revise_share(
                    shares[front], entered=entered, members=ONE, viewed_at_s=(tick + 1) * tick_s, usable_rps=usable_rps
                )

    assert admitted_late / (400 * tick_s) == pytest.approx(usable_rps, rel=0.25)
