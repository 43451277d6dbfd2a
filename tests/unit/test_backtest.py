from __future__ import annotations

import pytest

from markserve.core.backtest import (
    QUANTILES,
    Rates,
    backtest_origins,
    judge_challenger,
    pinball_by_step_rps,
    pinball_loss_rps,
)


def flat(rate_rps: float, steps: int = 1) -> Rates:
    return dict.fromkeys(QUANTILES, (rate_rps,) * steps)


def test_pinball_charges_the_shortfall_by_the_quantile_when_the_outcome_is_higher() -> None:
    assert pinball_loss_rps({1: flat(2.0)}, [0.0, 5.0]) == pytest.approx(3.0 * sum(QUANTILES) / len(QUANTILES))


def test_pinball_charges_the_excess_by_the_rest_when_the_outcome_is_lower() -> None:
    assert pinball_loss_rps({1: flat(2.0)}, [0.0, 1.0]) == pytest.approx(1.0 * sum(1 - q for q in QUANTILES) / len(QUANTILES))


def test_pinball_skips_steps_when_their_outcome_is_missing_or_still_to_come() -> None:
    by_step = pinball_by_step_rps({1: flat(2.0, steps=3)}, [0.0, None, 2.0])

    assert by_step == (None, 0.0, None)
    assert pinball_loss_rps({3: flat(2.0)}, [0.0, None, 2.0]) is None


def test_pinball_is_none_when_nothing_was_forecast() -> None:
    assert pinball_loss_rps({}, [1.0]) is None


def test_origins_include_the_newest_when_thinned_out() -> None:
    origins = backtest_origins(100, 1000, limit=60)

    assert len(origins) == 60
    assert origins[-1] == 999
    assert origins[0] >= 100


def test_challenger_loses_when_it_wins_by_less_than_the_margin() -> None:
    verdict = judge_challenger("lstm", {"lstm": 0.985, "persistence": 1.0, "damped_trend": 2.0})

    assert not verdict.wins
    assert verdict.reason == "lstm does not beat persistence: loss 0.985 rps against 1 rps, needs 2% less"


def test_challenger_loses_when_it_ties_without_a_margin() -> None:
    assert not judge_challenger("lstm", {"lstm": 0.0, "persistence": 0.0}, margin=0.0).wins


@pytest.mark.parametrize("losses", [{}, {"lstm": 1.0}, {"persistence": 1.0}])
def test_challenger_loses_when_there_is_nothing_to_compare(losses: dict[str, float]) -> None:
    assert judge_challenger("lstm", losses).reason == "lstm cannot be compared: no known outcome in the back-test"
