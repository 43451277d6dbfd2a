"""What the ceilings still allow after a choice is complete: the ceilings, less what the choice launches."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from markserve.core.capacity import Room
from markserve.core.greedy import Choice
from markserve.core.notes import PlanNotes
from markserve.core.search import complete
from tests.property.test_pruning import markets, tasks


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_room_that_is_left_is_the_ceilings_less_what_is_launched(data: st.DataObject) -> None:
    """Also where the search exchanges what the minimum had chosen."""
    task = replace(data.draw(tasks()), min_instances=data.draw(st.integers(0, 3)))
    room = Room(instances=data.draw(st.sampled_from([2, 9, 100])), usd_per_hour=data.draw(st.sampled_from([0.5, 1.0, 50.0])))
    choice = Choice(task, existing=(), offers=data.draw(markets()))

    left = complete([choice], room, PlanNotes())

    bought = [(candidate.offering.price_usd_per_hour, number) for candidate, number in choice.launched]
    assert left.instances == room.instances - sum(number for _, number in bought)
    assert left.usd_per_hour == pytest.approx(room.usd_per_hour - sum(price * number for price, number in bought))
