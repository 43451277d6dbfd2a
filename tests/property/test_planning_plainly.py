"""Counting equal instances, keeping sums and giving up early change nothing but the time it takes."""

import math
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from markserve.core.capacity import Candidate, Room, SpillTier, SpotRules
from markserve.core.greedy import Choice, fill
from markserve.core.task import Task
from markserve.core.types import CapacityType, Offering
from tests.property import plain_planner

RATES_RPS = (3.0, 7.0, 10.0, 25.0, 60.0)


@st.composite
def tasks(draw: st.DrawFn, spill: st.SearchStrategy[SpillTier | None] | None = None) -> Task:
    level = draw(st.sampled_from([20.0, 100.0, 400.0]))
    rates = draw(st.lists(st.floats(0.0, level), min_size=3, max_size=8))
    held = draw(st.lists(st.integers(1, 3), min_size=len(rates), max_size=len(rates)))
    tiers = st.builds(
        SpillTier,
        usd_per_request=st.sampled_from([1e-6, 3e-6, 1e-5]),
        latency_s=st.just(0.1),
        capacity_rps=st.sampled_from([0.0, 15.0, 1000.0]),
    )
    return Task(
        model="m",
        demand_rps=tuple(rate for rate, steps in zip(rates, held, strict=True) for _ in range(steps)),
        step_s=60.0,
        lead_step=2,
        spill=draw(st.none() | tiers),
        spot=SpotRules(max_share=draw(st.sampled_from([0.5, 1.0])), pools=draw(st.integers(0, 3))),
        min_instances=draw(st.integers(0, 2)),
    )


@st.composite
def offers(draw: st.DrawFn) -> list[Candidate]:
    found = []
    for number in range(draw(st.integers(1, 5))):
        rate_rps = draw(st.sampled_from(RATES_RPS))
        offering = Offering(
            instance_type=f"t{number}",
            capacity_type=draw(st.sampled_from(CapacityType)),
            zone="a",
            price_usd_per_hour=rate_rps * draw(st.sampled_from([0.005, 0.008, 0.01])),
            launch_overhead_s=draw(st.sampled_from([30.0, 60.0, 120.0])),
        )
        found.append(Candidate(offering=offering, capacity_rps=rate_rps, ready_step=int(offering.launch_overhead_s // 60)))
    return found


@st.composite
def fleets(draw: st.DrawFn, of: list[Candidate]) -> list[Candidate]:
    return [
        Candidate(
            offering=one.offering, capacity_rps=one.capacity_rps, ready_step=draw(st.integers(0, 1)), instance_id=f"i-{rank:02}", rank=rank
        )
        for rank, one in enumerate(draw(st.lists(st.sampled_from(of), max_size=12)))
    ]


@given(st.data())
@settings(max_examples=400, deadline=None)
def test_filling_several_at_once_gives_what_one_at_a_time_gives(data: st.DataObject) -> None:
    task, market = data.draw(tasks()), data.draw(offers())
    there = data.draw(fleets(market))
    room = Room(instances=data.draw(st.sampled_from([2, 9, 500])), usd_per_hour=data.draw(st.sampled_from([0.3, 2.0, 100.0])))
    choice = Choice(task, existing=there, offers=market)

    left = fill([choice], room)

    expected = plain_planner.fill(task, there, market, room)
    assert Counter(c.key for c in choice.launches) == Counter(c.key for c in expected if c.is_new)
    assert choice.kept_ids == {c.instance_id for c in expected if not c.is_new}
    assert choice.left_rps == pytest.approx(plain_planner.left_rps(task, expected), abs=1e-6)
    assert left.instances == room.instances - len(choice.launches)
    assert left.usd_per_hour == pytest.approx(room.usd_per_hour - math.fsum(c.offering.price_usd_per_hour for c in choice.launches))


@given(st.data())
@settings(max_examples=400, deadline=None)
def test_rating_counted_groups_gives_what_rating_every_instance_gives(data: st.DataObject) -> None:
    task, market = data.draw(tasks()), data.draw(offers())
    there = data.draw(fleets(market))
    choice = Choice(task, existing=there, offers=market)
    choice.set_chosen([*there, *data.draw(st.lists(st.sampled_from(market), max_size=20))])
    changed = {one.key: (one, data.draw(st.integers(0, 9))) for one in data.draw(st.lists(st.sampled_from(market), max_size=2))}

    after = choice.scorer().score(changed)

    chosen = [c for c in choice.chosen if c.key not in changed] + [c for c, number in changed.values() for _ in range(number)]
    assert after == pytest.approx(plain_planner.score(task, chosen), rel=1e-9, abs=1e-5)


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_rating_with_a_limit_gives_up_only_on_what_is_worse(data: st.DataObject) -> None:
    task, market = data.draw(tasks()), data.draw(offers())
    numbers = [(one, data.draw(st.integers(0, 9))) for one in market]
    unserved, cost_usd = task.score(numbers)
    limit_usd = data.draw(st.floats(0.0, 1.0))

    limited = task.scorer(numbers[:1]).score({one.key: (one, number) for one, number in numbers[1:]}, limit_usd=limit_usd)

    assert limited is None or limited == pytest.approx((unserved, cost_usd))
    assert limited is not None or unserved > 0 or cost_usd > limit_usd
