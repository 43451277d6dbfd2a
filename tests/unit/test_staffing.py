import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from markserve.core.batch_limits import choose_batch_limits
from markserve.core.profiles import LatencyEstimate
from markserve.core.staffing import (
    LATE_SHARES,
    erlang_c,
    late_share,
    late_share_worth,
    rate_in_fleet_rps,
    sustainable_rps,
    utilization_bound,
)
from tests.builders import a_profile

ESTIMATE = LatencyEstimate(a_profile({1: 0.02, 8: 0.05, 64: 0.29}))
LIMITS = choose_batch_limits(estimate=ESTIMATE, latency_budget_s=0.16, max_batch_size=64)


def test_one_server_at_a_time_is_the_textbook_wait() -> None:
    # M/D/1 at utilization 0.5: P(wait > 2 T) is 0.0175 (Erlang's series); the exponential tail is close above it.
    late = late_share(servers=1, utilization=0.5, batch_size=1, batch_latency_s=1.0, budget_s=3.0)

    assert late == pytest.approx(0.0175, rel=1.5)
    assert late > 0.0175


def test_many_servers_agree_with_the_exact_recursion_where_the_limit_takes_over() -> None:
    assert erlang_c(49, 45.0) == pytest.approx(erlang_c(48, 45.0 * 48 / 49), rel=0.15)


@given(servers=st.integers(1, 200), batch_size=st.integers(1, 64), waits=st.floats(0.05, 20.0))
def test_more_servers_and_more_time_never_lower_the_utilization(servers: int, batch_size: int, waits: float) -> None:
    bound = utilization_bound(servers, batch_size, waits)

    assert 0 <= bound <= 1
    assert utilization_bound(servers, batch_size, waits * 1.5) >= bound - 1e-3
    assert utilization_bound(2 * servers, batch_size, waits) >= bound - 1e-3
    assert utilization_bound(servers, batch_size, waits, LATE_SHARES[-1]) >= bound


@given(rate_rps=st.floats(0.1, 1e5))
@example(rate_rps=327.0)  # two by the rate that each has in a fleet of three, which is what it takes
def test_an_instance_is_good_for_at_most_its_nominal_rate_and_enough_of_them_for_the_fleets(rate_rps: float) -> None:
    each_rps = rate_in_fleet_rps(ESTIMATE, LIMITS, fleet_rate_rps=rate_rps)

    assert 0 < each_rps <= LIMITS.service_rate_rps
    needed = max(1, -int(-rate_rps // each_rps))
    assert sustainable_rps(ESTIMATE, LIMITS, servers=needed) >= 0.98 * min(rate_rps, needed * each_rps)


def test_late_share_is_the_least_where_spilling_is_dear() -> None:
    assert late_share_worth(0.0) == LATE_SHARES[0]
    assert late_share_worth(0.5) == LATE_SHARES[-1]
