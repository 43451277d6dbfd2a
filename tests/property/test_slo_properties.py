from hypothesis import given
from hypothesis import strategies as st

from markserve.core.slo import SloWindow, assess
from tests.builders import an_slo


@st.composite
def some_windows(draw: st.DrawFn) -> list[SloWindow]:
    counts = draw(st.lists(st.tuples(st.integers(0, 200), st.floats(0, 1)), max_size=80))
    return [SloWindow(at_s=5.0 * i, requests=n, within_slo=round(n * share)) for i, (n, share) in enumerate(counts)]


@given(some_windows(), st.floats(min_value=0.5, max_value=0.999))
def test_attainment_is_a_share_and_a_missed_objective_is_at_risk(windows: list[SloWindow], percentile: float) -> None:
    verdict = assess(windows, slo=an_slo(percentile=percentile), now_s=400.0)

    assert 0 <= verdict.attainment <= 1
    assert verdict.burn_rate >= 0
    if verdict.requests >= 50 and verdict.attainment < percentile:
        assert verdict.at_risk


@given(some_windows(), st.randoms())
def test_assessment_is_the_same_whatever_the_order_of_windows(windows: list[SloWindow], random: object) -> None:
    shuffled = list(windows)
    random.shuffle(shuffled)  # type: ignore[attr-defined]

    assert assess(shuffled, slo=an_slo(), now_s=300.0) == assess(windows, slo=an_slo(), now_s=300.0)


@given(some_windows())
def test_nothing_is_at_risk_when_every_request_was_in_time(windows: list[SloWindow]) -> None:
    perfect = [SloWindow(at_s=w.at_s, requests=w.requests, within_slo=w.requests) for w in windows]

    assert not assess(perfect, slo=an_slo(), now_s=300.0).at_risk


@given(some_windows(), st.integers(0, 79))
def test_a_further_failure_never_makes_things_look_better(windows: list[SloWindow], position: int) -> None:
    if not windows:
        return
    position %= len(windows)
    target = windows[position]
    worse = list(windows)
    worse[position] = SloWindow(at_s=target.at_s, requests=target.requests + 1, within_slo=target.within_slo)

    before, after = (assess(w, slo=an_slo(), now_s=300.0) for w in (windows, worse))

    assert after.attainment <= before.attainment
    if before.requests >= 50 and before.attainment < 0.98:
        assert after.at_risk
