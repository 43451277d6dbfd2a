"""One summary of a fleet a second, whoever makes it; fronts that read it, and what they do without it."""

from __future__ import annotations

import pytest

from markserve.adapters.memory import MemoryControlStore, MemoryInstanceRegistry, MemoryModelStore
from markserve.core.spillover import FleetView, fleet_view
from markserve.core.types import Instance
from markserve.fleet_summary import summarise_fleets
from markserve.front_view import FLEET_TTL_S, SUMMARY_AGE_MAX_S, FrontView
from tests.builders import MODEL, NOW_S, a_model_record, an_instance

HEARTBEAT_TIMEOUT_S = 15.0


class CountedRegistry(MemoryInstanceRegistry):
    """Counts who reads whole fleets."""

    lists = 0

    def list(self, model: str | None = None, *, up_to_date: bool = True) -> list[Instance]:
        self.lists += 1
        return super().list(model, up_to_date=up_to_date)


class Stack:
    """A fleet of two, environments of the ingest function that summarise it, and a front that reads the summary."""

    def __init__(self) -> None:
        self.now_s = NOW_S
        self.instances = CountedRegistry(an_instance(instance_id="i-1"), an_instance(instance_id="i-2"))
        self.control = MemoryControlStore()
        self.front = self.new_front()

    def new_front(self, *, reads_summaries: bool = True) -> FrontView:
        return FrontView(
            models=MemoryModelStore(a_model_record()),
            instances=self.instances,
            heartbeat_timeout_s=HEARTBEAT_TIMEOUT_S,
            reads_summaries=reads_summaries,
            now_s=lambda: self.now_s,
        )

    def summarise(self, environment: dict[str, float]) -> list[str]:
        return summarise_fleets(
            [MODEL],
            instances=self.instances,
            control=self.control,
            tried_at_s=environment,
            heartbeat_timeout_s=HEARTBEAT_TIMEOUT_S,
            now_s=self.now_s,
        )

    def seen(self) -> FleetView:
        """What reading every worker would show."""
        return fleet_view(MemoryInstanceRegistry.list(self.instances, MODEL), self.now_s, HEARTBEAT_TIMEOUT_S)


def test_one_environment_of_many_reads_the_fleet_each_second() -> None:
    stack, environments = Stack(), [dict[str, float]() for _ in range(20)]

    made = []
    for _ in range(30):
        made.append(sum(len(stack.summarise(environment)) for environment in environments))
        stack.now_s += 0.1

    assert sum(made) == stack.instances.lists == 3
    assert max(made) == 1


def test_an_environment_does_not_ask_at_every_delivery() -> None:
    stack, environment = Stack(), dict[str, float]()
    stack.control.claim(f"fleet-view#{MODEL}", now_s=NOW_S, for_s=0.2)

    assert stack.summarise(environment) == []
    stack.now_s += 0.5
    assert stack.summarise(environment) == []
    stack.now_s += 0.5
    assert stack.summarise(environment) == [MODEL]


def test_fronts_see_in_the_summary_what_they_would_see_in_the_fleet() -> None:
    stack = Stack()
    stack.summarise({})
    read_by_summaries = stack.instances.lists

    views = [stack.new_front().fleet(MODEL) for _ in range(50)]

    assert set(views) == {stack.seen()}
    assert stack.instances.lists == read_by_summaries
    assert stack.new_front(reads_summaries=False).fleet(MODEL) == views[0]


def test_a_front_sees_what_has_changed_with_the_next_summary() -> None:
    stack, environment = Stack(), dict[str, float]()
    stack.summarise(environment)
    before = stack.front.fleet(MODEL)

    stack.now_s += max(FLEET_TTL_S, 1.0)
    stack.instances.put(an_instance(instance_id="i-3"))
    stack.summarise(environment)

    after = stack.front.fleet(MODEL)
    assert (before.serving_instances, after.serving_instances) == (2, 3)
    assert before.members != after.members


@pytest.mark.parametrize("age_s", [None, SUMMARY_AGE_MAX_S + 0.1])
def test_a_front_reads_the_workers_where_nobody_makes_summaries(age_s: float | None) -> None:
    stack = Stack()
    if age_s is not None:
        stack.summarise({})
        stack.instances.put(an_instance(instance_id="i-3"))
        stack.now_s += age_s
    before = stack.instances.lists

    assert stack.front.fleet(MODEL) == stack.seen()
    assert stack.instances.lists == before + 1
