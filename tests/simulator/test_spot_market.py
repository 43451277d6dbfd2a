"""Spot: prices by history, bills by the hour's price, interruptions by trace, hazard or order."""

from __future__ import annotations

import csv
import json
from collections import Counter, defaultdict
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow.parquet as pq
import pytest

from markserve.catalog import load_catalog
from markserve.core.catalog import INTERRUPTED_PER_MONTH, interruption_rate_per_hour
from markserve.core.lifecycle import NOTICE_RESERVE_S
from markserve.core.types import CapacityType
from markserve.errors import InvalidRequest
from simulator.assumptions import POOL_EVENT_SPREAD_S, SPOT_NOTICE_S
from simulator.fast import FastEngine
from simulator.interruptions import Ordered, Recorded, hazard_events, read_recorded
from simulator.market import SpotMarket, spot_market
from simulator.prices import Segment, Steps, read_history, segments
from simulator.reference import ReferenceEngine
from simulator.registry import policies
from simulator.simulation import Scenario, simulate
from simulator.summary import Summary
from tests.simulator.rig import a_profile, a_scenario, a_spot_scenario, points

SHARED = Path(__file__).resolve().parents[3] / "shared/data/spot"
STEADY = [(float(t), 150.0) for t in range(900)]


def replay(scenario: Scenario, policy: str, folder: Path, **options: Any) -> Summary:
    [built] = policies([policy], scenario, forecaster_name="best")
    return simulate(scenario, built, folder, **options)


def table(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


# --- prices ---------------------------------------------------------------------------------------------------------


def test_the_price_at_the_start_of_each_hour_of_an_instance_holds_for_that_hour() -> None:
    steps = Steps((0.0, 1000.0, 8000.0), (0.10, 0.20, 0.05))

    paid = segments(steps, from_s=500.0, billed_s=9000.0)

    assert paid == [Segment(500.0, 4100.0, 0.10), Segment(4100.0, 9500.0, 0.20)]  # the hour from 7,700 still began at 0.20
    assert sum(s.cost_usd for s in paid) == pytest.approx(0.10 + 0.20 * 1.5)
    assert (steps.at(-5.0), steps.at(1000.0), steps.least(7000.0), steps.least(9000.0)) == (0.10, 0.20, 0.10, 0.05)


def test_history_is_read_along_the_trace(tmp_path: Path) -> None:
    path = tmp_path / "prices.csv"
    path.write_text(
        "ts_utc,az,instance_type,spot_usd_per_h\n2021-03-02T00:00:00Z,z-a,c5.large,0.03\n2021-03-02T01:00:00Z,z-b,c5.large,0.04\n"
        "2021-03-02T02:00:00Z,z-a,c5.large,0.05\n2021-03-02T00:30:00Z,z-a,other,9\n"
    )

    early = read_history(path, ["c5.large"], start_s=100.0, first_s=100.0)
    late = read_history(path, ["c5.large"], start_s=3700.0, first_s=100.0)
    dated = read_history(path, ["c5.large"], start_s=1614649800.0, first_s=1614649800.0)  # 01:50

    pool = ("c5.large", "z-a")
    assert set(early) == {pool, ("c5.large", "z-b")}
    assert (early[pool].at(3599.0), early[pool].at(3600.0)) == (0.03, 0.05)  # second 0 is 01:00, when both are known
    assert late[pool].at(0.0) == 0.05
    assert (dated[pool].at(599.0), dated[pool].at(600.0)) == (0.03, 0.05)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n", "needs columns ts_utc"),
        ("ts_utc,az,instance_type,spot_usd_per_h\nnow,z,c5.large,1\n", "line 2: no price change"),
        ("ts_utc,az,instance_type,spot_usd_per_h\n2021-03-02T00:00:00Z,z,c5.large,nan\n", "line 2: a price must be positive"),
        ("ts_utc,az,instance_type,spot_usd_per_h\n2021-03-02T00:00:00Z,z,m9.large,1\n", "no price of any profiled type"),
    ],
)
def test_bad_history_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "prices.csv"
    path.write_text(text)
    with pytest.raises(InvalidRequest, match=message):
        read_history(path, ["c5.large"], start_s=0.0, first_s=0.0)


def test_changing_prices_are_billed_and_every_segment_is_on_file(tmp_path: Path) -> None:
    rows = [(float(t), 150.0) for t in range(0, 9000, 60)]
    scenario = a_scenario(tmp_path, rows=[(t, count * 60) for t, count in rows])
    history = {(name, "z-a"): Steps((0.0, 3000.0), (usd, 2 * usd)) for name, usd in (("c5.large", 0.02), ("c5.xlarge", 0.05))}
    base = spot_market(scenario.profile, load_catalog(), (), scenario.trace, launch_delay_s=60.0)
    pools = tuple(replace(pool, zone="z-a") for pool in base.pools if pool.zone == "us-east-1a")
    scenario = Scenario(
        trace=scenario.trace,
        profile=scenario.profile,
        offerings=scenario.offerings,
        slo=scenario.slo,
        market=SpotMarket(pools=pools, histories=history),
    )

    summary = replay(scenario, "mark", tmp_path / "out")

    bills = {row["instance_id"]: row for row in table(tmp_path / "out/instances.csv")}
    paid = table(tmp_path / "out/prices.csv")
    by_instance: dict[str, float] = defaultdict(float)
    for row in paid:
        cost_usd = (float(row["to_s"]) - float(row["from_s"])) * float(row["price_usd_per_hour"]) / 3600
        assert cost_usd == pytest.approx(float(row["cost_usd"]))
        by_instance[row["instance_id"]] += cost_usd
    doubled = [name for name, number in Counter(row["instance_id"] for row in paid).items() if number == 2]
    assert any(bills[name]["capacity_type"] == "spot" for name in doubled)
    for name, row in bills.items():
        assert by_instance[name] == pytest.approx(float(row["cost_usd"]))
        assert float(row["price_usd_per_hour"]) * int(row["billed_s"]) / 3600 == pytest.approx(float(row["cost_usd"]))
    assert sum(by_instance.values()) == pytest.approx(summary.cost_usd["instances"])
    assert summary.cost_usd["compute"] >= summary.lower_bound_usd > 0
    assert "on spot" in summary.lower_bound


# --- interruptions --------------------------------------------------------------------------------------------------


def test_hazard_events_interrupt_as_often_as_the_band_says() -> None:
    rate = interruption_rate_per_hour(">20%")
    events = list(islice(hazard_events(rate, np.random.default_rng(3)), 4000))

    hours = events[-1][0] / 3600
    per_hour = sum(share for _, share in events) / hours
    assert per_hour == pytest.approx(rate, rel=0.06)
    assert all(0 < share <= 1 for _, share in events)
    assert next(hazard_events(0.0, np.random.default_rng(3)), None) is None
    assert max(INTERRUPTED_PER_MONTH.values()) == 0.25
    assert 1 - np.exp(-180 / POOL_EVENT_SPREAD_S) == pytest.approx(0.92)


def test_recorded_drops_repeat_and_are_shifted() -> None:
    recorded = Recorded("r", (0.0, 100.0, 200.0), (4.0, 1.0, 4.0), 300.0)

    assert list(islice(recorded.drops(0.0), 2)) == [(100.0, 0.75), (400.0, 0.75)]
    assert list(islice(recorded.drops(150.0), 1)) == [(250.0, 0.75)]
    assert (recorded.at(150.0), recorded.at(450.0), recorded.at(299.0)) == (1.0, 1.0, 4.0)


def test_node_events_become_counts(tmp_path: Path) -> None:
    path = tmp_path / "nodes.csv"
    path.write_text("trace,t_s,event,node\na,5,add,1\na,5,add,2\na,65,remove,1\nb,0,add,1\n")

    first, second = read_recorded(path)

    assert (first.at_s, first.available) == ((0.0, 60.0), (2.0, 1.0))
    assert list(islice(first.drops(0.0), 1)) == [(60.0, 0.5)]
    assert next(second.drops(0.0), None) is None


@pytest.mark.skipif(not SHARED.is_dir(), reason="the recorded traces are not here")
@pytest.mark.parametrize(("name", "least"), [("skypilot_spot_traces.json", 10), ("bamboo_node_events.csv", 2)])
def test_recorded_interruptions_are_read(name: str, least: int) -> None:
    found = read_recorded(SHARED / name)

    assert len(found) >= least
    drops = [event for one in found for event in islice(one.drops(0.0), 5)]
    assert drops
    assert all(at_s >= 0 and 0 < share <= 1 for at_s, share in drops)
    assert all(a < b for one in found for a, b in pairwise(one.at_s))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.json", "[]", "no availability series"),
        ("x.json", "{", "x.json"),
        ("x.csv", "trace,t_s\n", "needs columns trace,t_s,event,node"),
        ("x.csv", "trace,t_s,event,node\na,0,gone,1\n", "line 2: no node event"),
        ("x.csv", "trace,t_s,event,node\na,-1,add,1\n", "line 2: t_s must be finite"),
        ("x.csv", "trace,t_s,event,node\n", "empty, there is no row"),
    ],
)
def test_bad_interruptions_are_refused(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InvalidRequest, match=message):
        read_recorded(tmp_path / name)


def test_interrupted_instances_serve_on_and_are_replaced_at_once_from_another_pool(tmp_path: Path) -> None:
    scenario = a_spot_scenario(tmp_path, rows=STEADY, interrupts=(Ordered(400.5, 1.0),))
    summary = replay(scenario, "mark", tmp_path / "out")

    bills = table(tmp_path / "out/instances.csv")
    taken = [row for row in bills if row["end_reason"] == "interrupted"]
    pools = {(row["instance_type"], row["zone"]) for row in taken}
    assert summary.interruptions == len(taken) > 0
    assert len(pools) == 1
    for row in taken:
        assert row["capacity_type"] == "spot"
        assert float(row["drain_at_s"]) == 400.5
        assert 400.5 + SPOT_NOTICE_S - NOTICE_RESERVE_S - 1.0 <= float(row["terminated_at_s"]) < 400.5 + SPOT_NOTICE_S
    served = pq.read_table(tmp_path / "out/batches.parquet").to_pylist()
    late = [b["started_at_s"] for b in served if b["instance_id"] in {row["instance_id"] for row in taken}]
    assert max(late) > 400.5 + SPOT_NOTICE_S - NOTICE_RESERVE_S - 5.0
    [urgent] = [row for row in table(tmp_path / "out/control.csv") if row["trigger"] == "interruption"]
    assert float(urgent["t_s"]) == 400.5
    replaced = [row for row in bills if 400.5 <= float(row["requested_at_s"]) < 400.5 + 180]
    assert any(float(row["requested_at_s"]) == 400.5 for row in replaced)
    assert not pools & {(row["instance_type"], row["zone"]) for row in replaced if row["capacity_type"] == "spot"}
    assert summary.slo_attainment > 0.98


@pytest.mark.parametrize("policy", ["mark-on-demand", "mark-paper-on-demand", "reactive", "static", "clairvoyant"])
def test_policies_on_demand_never_buy_spot(tmp_path: Path, policy: str) -> None:
    summary = replay(a_spot_scenario(tmp_path, interrupts=(Ordered(100.0, 1.0),)), policy, tmp_path / "out")

    assert {row["capacity_type"] for row in table(tmp_path / "out/instances.csv")} == {"on_demand"}
    assert summary.interruptions == 0


@pytest.mark.parametrize("can_spill", [True, False])
def test_a_batch_dies_with_an_instance_that_goes_without_notice(tmp_path: Path, can_spill: bool) -> None:
    profile = a_profile()
    if not can_spill:
        profile = msgspec.structs.replace(profile, profiles={name: p for name, p in profile.profiles.items() if name != "lambda"})
    orders = tuple(Ordered(at_s, 1.0, has_notice=False) for at_s in (200.03, 400.11, 600.02))
    scenario = a_spot_scenario(tmp_path, rows=STEADY, profile=profile, interrupts=orders)

    fast, plain = (replay(scenario, "mark", tmp_path / engine.__name__, engine=engine) for engine in (FastEngine, ReferenceEngine))

    assert msgspec.structs.replace(fast, wall_s=0) == msgspec.structs.replace(plain, wall_s=0)
    folder = tmp_path / "FastEngine"
    for name in ("requests.parquet", "batches.parquet"):
        assert pq.read_table(folder / name).equals(pq.read_table(tmp_path / "ReferenceEngine" / name))
    assert fast.interruptions >= 3
    planned_at = [r["t_s"] for r in table(folder / "control.csv") if r["trigger"] == "interruption"]
    assert planned_at == ["200.03", "400.11", "600.02"]
    bills = table(folder / "instances.csv")
    ended = {float(row["terminated_at_s"]): (row["instance_type"], row["zone"]) for row in bills if "without notice" in row["end_reason"]}
    for at_s, pool in ended.items():  # the pool is avoided, as after a notice
        soon = [row for row in bills if at_s <= float(row["requested_at_s"]) < at_s + 180.0 and row["capacity_type"] == "spot"]
        assert pool not in {(row["instance_type"], row["zone"]) for row in soon}
    gone = {row["instance_id"] for row in bills if row["end_reason"] == "interrupted without notice"}
    batches = pq.read_table(folder / "batches.parquet")
    lost = {
        (batch, name)
        for batch, name, end in zip(*(batches[c].to_pylist() for c in ("batch_id", "instance_id", "finished_at_s")), strict=True)
        if end is None
    }
    assert gone
    assert lost
    assert {name for _, name in lost} <= gone
    requests = pq.read_table(folder / "requests.parquet")
    assert not {batch for batch, _ in lost} & set(requests["batch_id"].to_pylist())
    assert (fast.answered == fast.requests) == can_spill


def test_a_dry_pool_gives_nothing_and_is_avoided(tmp_path: Path) -> None:
    base = a_spot_scenario(tmp_path)
    assert base.market is not None
    empty = Recorded("empty", (0.0,), (0.0,), 1e9)
    scenario = Scenario(
        trace=base.trace,
        profile=base.profile,
        offerings=base.offerings,
        slo=base.slo,
        launch_delay_s=60.0,
        market=SpotMarket(pools=base.market.pools, recorded=(empty,)),
    )

    replay(scenario, "mark", tmp_path / "out")

    assert {row["capacity_type"] for row in table(tmp_path / "out/instances.csv")} == {"on_demand"}


def test_standbys_start_on_an_interruption_and_stop_when_the_replacement_serves(tmp_path: Path) -> None:
    profile = a_profile(
        profiles={**a_profile().profiles, "t3.large": points((1, 0.030, 0.040), (8, 0.100, 0.140))},
    )
    scenario = a_spot_scenario(tmp_path, rows=STEADY, profile=profile, interrupts=(Ordered(400.5, 1.0),))
    replay(scenario, "mark-paper", tmp_path / "out")

    bills = table(tmp_path / "out/instances.csv")
    standbys = [row for row in bills if "standby stopped" in row["end_reason"]]
    assert standbys
    for row in standbys:
        assert (row["instance_type"], row["capacity_type"]) == ("t3.large", "on_demand")
        assert float(row["requested_at_s"]) == 400.5
        assert 30 < float(row["serving_at_s"]) - 400.5 < 65
        assert any(400.5 < float(r["serving_at_s"] or 0) <= float(row["drain_at_s"]) for r in bills if r["instance_type"] != "t3.large")
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert summary["cost_usd"]["standby_disks"] > 0


def test_market_of_the_catalog_has_typical_prices_in_three_zones(tmp_path: Path) -> None:
    scenario = a_spot_scenario(tmp_path)
    assert scenario.market is not None
    entry = next(e for e in load_catalog().entries if e.instance_type == "c5.large")

    pools = [pool for pool in scenario.market.offerings(0.0) if pool.instance_type == "c5.large"]

    assert len({pool.zone for pool in pools}) == 3
    assert all(pool.capacity_type is CapacityType.SPOT for pool in pools)
    assert all(pool.price_usd_per_hour == pytest.approx(entry.price_usd_per_hour * (1 - entry.spot_saving)) for pool in pools)
