"""A few faults of `markserve chaos`, on the shared system; the rest takes 20 minutes and is `make chaos`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from chaos.runner import Runner
from chaos.scenario import load_scenarios
from local.system import LocalSystem
from markserve import wiring

pytestmark = pytest.mark.system

SHORT = [scenario.name for scenario in load_scenarios().values() if scenario.short]


@pytest.fixture(scope="module")
def runner(running: LocalSystem) -> Iterator[Runner]:
    yield Runner(system=running, note=print)
    running.reconnect()
    for name, text in {**running.config.parameters, "max-hourly-cost-usd": f"{running.config.max_hourly_cost_usd:g}"}.items():
        wiring.parameter_writer().put(name, text)


def test_subset_is_not_empty() -> None:
    assert len(SHORT) >= 3


@pytest.mark.long
@pytest.mark.parametrize("name", SHORT)
def test_nothing_is_lost_doubled_or_wrong_under(name: str, system: LocalSystem, runner: Runner) -> None:
    # A machine that does something else is late without any fault: floors are for `make chaos` to judge.
    outcome = runner.play(replace(load_scenarios()[name], floor=None))

    assert outcome.breaches == ()
    assert (outcome.lost, outcome.doubled, outcome.wrong) == (0, 0, 0)
    assert outcome.answered > 10
