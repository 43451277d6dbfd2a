from __future__ import annotations

import pytest

from markserve.core.champion import choose_champion, newsvendor_cost


def choose(costs: dict[str, float], incumbent: str = "persistence") -> str:
    return choose_champion(costs, incumbent=incumbent, fallback="recent_maximum", quantile=0.9).champion


def test_fallback_serves_when_nothing_can_be_compared() -> None:
    choice = choose_champion({}, incumbent="", fallback="recent_maximum", quantile=0.9)

    assert (choice.champion, choice.reason) == ("recent_maximum", "recent_maximum serves: too little is known for a back-test")


def test_challenger_serves_only_when_it_is_cheaper_by_more_than_the_margin() -> None:
    assert choose({"persistence": 1.0, "linear": 0.985}) == "persistence"
    assert choose({"persistence": 1.0, "linear": 0.97}) == "linear"


def test_incumbent_that_can_no_longer_forecast_is_replaced() -> None:
    assert choose({"persistence": 1.0, "linear": 0.99}, incumbent="lstm 1") == "linear"


def test_reason_tells_a_champion_that_stays_from_the_cheapest() -> None:
    choice = choose_champion({"a": 1.0, "b": 0.995}, incumbent="a", fallback="a", quantile=0.8)

    assert choice.reason == "a serves, nobody being clearly cheaper, at quantile 0.80: 1.000 of persistence, before b 0.995"
    assert not choice.switched


@pytest.mark.parametrize(("bought", "demand", "cost"), [(10.0, 10.0, 0.0), (12.0, 10.0, 0.2), (10.0, 12.0, 1.8)])
def test_newsvendor_cost_is_the_pinball_loss_at_the_buying_quantile(bought: float, demand: float, cost: float) -> None:
    assert newsvendor_cost(0.9, bought, demand) == pytest.approx(cost)


@pytest.mark.parametrize(
    ("costs", "incumbent", "champion"),
    [
        ({"combination": 1.0, "linear": 0.99}, "", "combination"),
        ({"combination": 1.0, "linear": 0.97}, "", "linear"),
        ({"combination": 1.0, "linear": 0.985, "lstm": 0.99}, "linear", "combination"),
        ({"linear": 1.0, "lstm": 0.99}, "linear", "linear"),
    ],
)
def test_preferred_forecaster_serves_unless_one_is_clearly_cheaper(costs: dict[str, float], incumbent: str, champion: str) -> None:
    choice = choose_champion(costs, incumbent=incumbent, fallback="recent_maximum", quantile=0.9, preferred="combination")

    assert choice.champion == champion
