"""Pruning dominated offerings changes no plan, where the share of spot does not bind."""

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from markserve.core.capacity import Candidate, Room
from markserve.core.greedy import Choice, fill
from markserve.core.notes import PlanNotes
from markserve.core.pruning import undominated
from markserve.core.search import complete
from markserve.core.types import CapacityType, Offering
from tests.property.test_planning_plainly import tasks


@st.composite
def markets(draw: st.DrawFn) -> list[Candidate]:
    """Many offerings of few sizes and prices, so that most are beaten and many tie."""
    offerings = draw(
        st.lists(
            st.builds(
                Offering,
                instance_type=st.sampled_from("uvwxyz"),
                capacity_type=st.sampled_from(CapacityType),
                zone=st.sampled_from("abc"),
                price_usd_per_hour=st.sampled_from([0.03, 0.05, 0.08, 0.1, 0.2]),
                launch_overhead_s=st.sampled_from([30.0, 50.0, 90.0]),
            ),
            min_size=3,
            max_size=25,
            unique_by=lambda offering: offering.key,
        )
    )
    return [
        Candidate(offering=o, capacity_rps=draw(st.sampled_from([5.0, 10.0, 20.0])), ready_step=int(o.launch_overhead_s // 60))
        for o in offerings
    ]


def kept(market: list[Candidate]) -> list[Candidate]:
    return [market[index] for index in undominated([(c.offering, c.capacity_rps, c.ready_step) for c in market])]


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_pruning_changes_no_plan_when_spot_may_be_all_of_it(data: st.DataObject) -> None:
    market, drawn = data.draw(markets()), data.draw(tasks())
    pools = sum(c.is_spot for c in market)
    task = replace(drawn, spot=replace(drawn.spot, max_share=1.0, pools=pools))
    room = Room(instances=data.draw(st.sampled_from([2, 9, 100])), usd_per_hour=data.draw(st.sampled_from([0.2, 1.0, 50.0])))

    filled, complete_plans = [], []
    for offers in (market, kept(market)):
        choice = Choice(task, existing=(), offers=offers)
        fill([choice], room)
        filled.append(dict(choice.numbers))
        choice = Choice(task, existing=(), offers=offers)
        complete([choice], room, PlanNotes())
        complete_plans.append(dict(choice.numbers))

    assert filled[0] == filled[1]
    assert complete_plans[0] == complete_plans[1]


@given(markets())
@settings(max_examples=200, deadline=None)
def test_pruning_twice_drops_nothing_more(market: list[Candidate]) -> None:
    once = kept(market)

    assert kept(once) == once
