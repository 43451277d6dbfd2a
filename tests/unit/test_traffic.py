"""Which version answers: the same for the same key, in the share that was asked for, and never one that would have to be loaded."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from markserve.core.slo_class import SloClass, class_objective
from markserve.core.traffic import Served, choose_version, total
from markserve.core.tunables import Tunables

KEYS = [f"request-{n}" for n in range(4000)]


def canary_keys(weight: float, *, canary: str = "2", model: str = "digits") -> set[str]:
    chosen = {k: choose_version(model=model, live="1", canary=canary, weight=weight, key=k).version for k in KEYS}
    assert set(chosen.values()) <= {"1", canary}
    return {key for key, version in chosen.items() if version == canary}


@pytest.mark.parametrize("weight", [0.01, 0.1, 0.5, 0.9])
def test_canary_gets_its_share_of_keys(weight: float) -> None:
    share = len(canary_keys(weight)) / len(KEYS)

    # Four standard deviations of a fair draw; the keys are fixed, so this holds always or never.
    assert share == pytest.approx(weight, abs=4 * (weight * (1 - weight) / len(KEYS)) ** 0.5)


@given(st.floats(0, 1), st.floats(0, 1), st.text(max_size=20))
def test_raised_weight_keeps_who_had_the_canary(one: float, other: float, key: str) -> None:
    low, high = sorted((one, other))
    at_low = choose_version(model="m", live="1", canary="2", weight=low, key=key).version
    at_high = choose_version(model="m", live="1", canary="2", weight=high, key=key).version

    assert (at_low, at_high) != ("2", "1")
    assert at_low == choose_version(model="m", live="1", canary="2", weight=low, key=key).version


def test_other_canaries_and_models_get_other_keys() -> None:
    mine = canary_keys(0.1)

    for others in (canary_keys(0.1, canary="3"), canary_keys(0.1, model="text")):
        # Independent draws share a tenth; the same hash would share them all.
        assert len(mine & others) < 0.2 * len(mine)


def test_live_version_answers_everything_without_a_canary_or_weight() -> None:
    assert choose_version(model="m", live="1", canary=None, weight=0.0, key="k").reason == ""
    assert canary_keys(0.0) == set()
    assert canary_keys(1.0) == set(KEYS)


def test_live_version_answers_until_workers_have_loaded_the_canary() -> None:
    choice = choose_version(model="m", live="1", canary="2", weight=1.0, key="k", is_canary_ready=False)

    assert (choice.version, choice.reason) == ("1", "live version, not every worker has loaded the canary 2 yet")


def test_shares_are_unknown_without_requests() -> None:
    assert (total([]).attainment, total([]).error_rate) == (None, None)
    assert Served(ok=3, errors=1, within_slo=2).attainment == 0.5


@pytest.mark.parametrize(("slo_class", "deadline_s"), [(SloClass.INTERACTIVE, 0.5), (SloClass.STANDARD, 1.5), (SloClass.BATCH, None)])
def test_class_decides_the_deadline(slo_class: SloClass, deadline_s: float | None) -> None:
    objective = class_objective(slo_class, Tunables(rt_max_s=0.5, sl_min=0.9, standard_deadline_factor=3.0))

    assert (objective.latency_s if objective else None) == deadline_s
    assert objective is None or objective.percentile == 0.9
