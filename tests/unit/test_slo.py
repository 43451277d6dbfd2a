import pytest

from markserve.core.slo import SloWindow, assess
from tests.builders import an_slo

NOW_S = 600.0


def windows(*, requests: int = 50, failures: dict[int, int] | None = None) -> list[SloWindow]:
    """60 windows of 5 s up to now; `failures` by age in windows, 0 being the newest."""
    failed = failures or {}
    return [SloWindow(at_s=NOW_S - 5.0 * age, requests=requests, within_slo=requests - failed.get(age, 0)) for age in range(60)]


def test_attainment_is_full_and_nothing_at_risk_when_there_were_no_requests() -> None:
    verdict = assess([], slo=an_slo(), now_s=NOW_S)

    assert (verdict.attainment, verdict.burn_rate, verdict.requests, verdict.at_risk) == (1.0, 0.0, 0, False)
    assert verdict.reason == "100.00% of 0 requests within 0.2 s in 300 s: too few requests to judge, 50 needed"


def test_objective_is_safe_when_failures_stay_within_what_is_allowed() -> None:
    verdict = assess(windows(failures=dict.fromkeys(range(0, 60, 2), 1)), slo=an_slo(), now_s=NOW_S)

    assert verdict.attainment == pytest.approx(0.99)
    assert verdict.burn_rate == pytest.approx(0.5)
    assert verdict.long_burn_rate == pytest.approx(0.5)
    assert not verdict.at_risk


def test_objective_is_at_risk_when_it_is_missed_over_the_sliding_window() -> None:
    verdict = assess(windows(failures=dict.fromkeys(range(20, 40), 4)), slo=an_slo(), now_s=NOW_S)

    assert verdict.at_risk
    assert verdict.attainment == pytest.approx(1 - 80 / 3000)
    assert verdict.burn_rate == 0.0
    assert verdict.reason == "97.33% of 3000 requests within 0.2 s in 300 s: below the objective of 98.00%"


def test_objective_is_at_risk_when_the_short_window_burns_towards_a_miss() -> None:
    verdict = assess(windows(failures={0: 12, 1: 12}), slo=an_slo(), now_s=NOW_S)

    assert verdict.at_risk
    assert verdict.attainment == pytest.approx(0.992)
    assert verdict.burn_rate == pytest.approx(4.0)
    # In a minute 2 * 24 failures join the 24, and 12 quiet windows leave: 72 of 3000.
    assert verdict.reason.endswith("burning 4.0 times too fast, heading for 97.60% within 60 s")


def test_objective_is_safe_when_a_short_burst_of_failures_cannot_use_up_the_budget() -> None:
    verdict = assess(windows(failures={0: 7}), slo=an_slo(), now_s=NOW_S)

    assert verdict.burn_rate > 1
    assert not verdict.at_risk


def test_objective_is_safe_when_two_failures_at_a_low_rate_may_be_chance() -> None:
    verdict = assess(windows(requests=1, failures={0: 1, 1: 1}), slo=an_slo(percentile=0.9), now_s=NOW_S)

    assert verdict.burn_rate > 1
    assert not verdict.at_risk


def test_objective_is_not_judged_when_requests_are_too_few() -> None:
    verdict = assess([SloWindow(at_s=NOW_S, requests=4, within_slo=0)], slo=an_slo(), now_s=NOW_S)

    assert verdict.attainment == 0.0
    assert not verdict.at_risk


def test_objective_is_at_risk_when_a_young_deployment_fails_from_the_start() -> None:
    verdict = assess([SloWindow(at_s=NOW_S, requests=20, within_slo=5)], slo=an_slo(), now_s=NOW_S)

    assert verdict.at_risk


def test_windows_are_ignored_when_they_lie_outside_the_sliding_window() -> None:
    outside = [SloWindow(at_s=NOW_S - 300.0, requests=1000, within_slo=0), SloWindow(at_s=NOW_S + 1.0, requests=1000, within_slo=0)]

    verdict = assess([*windows(), *outside], slo=an_slo(), now_s=NOW_S)

    assert verdict.requests == 3000
    assert verdict.attainment == 1.0


def test_window_cannot_be_built_when_more_were_within_than_arrived() -> None:
    with pytest.raises(ValueError, match="within_slo"):
        SloWindow(at_s=0.0, requests=1, within_slo=2)


@pytest.mark.parametrize("overrides", [{"short_s": 300.0}, {"short_s": 0.0}, {"lead_s": 300.0}, {"lead_s": 0.0}])
def test_assessment_refuses_when_windows_do_not_nest(overrides: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must lie in"):
        assess([], slo=an_slo(), now_s=NOW_S, **overrides)  # type: ignore[arg-type]
