"""The SageMaker opponent: scaling as AWS documents it, prices as listed, settings found by search."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from markserve.core.sagemaker_prices import sagemaker_price_usd_per_hour
from markserve.errors import InfeasibleSlo
from simulator.sagemaker import SageMakerEngine, SageMakerPolicy, TargetTracking
from simulator.sagemaker_search import best_setting
from simulator.simulation import simulate
from simulator.state import Requests, Workers
from tests.simulator.rig import a_kind, a_profile, a_scenario, points

SHARED = Path(__file__).resolve().parents[3] / "shared/data/prices"


def followed(tracking: TargetTracking, points: list[int | None], *, in_service: int = 2, from_minute: int = 0) -> list[int]:
    return [tracking.follow(point, in_service=in_service, now_s=60.0 * minute) for minute, point in enumerate(points, start=from_minute)]


def test_scales_out_after_three_minutes_above_the_target_to_the_capacity_that_meets_it() -> None:
    tracking = TargetTracking(100.0, desired=2)

    assert followed(tracking, [450, 450, 450]) == [2, 2, 5]


@pytest.mark.parametrize("gap", [180, None])
def test_a_point_that_is_not_above_or_is_missing_starts_the_count_anew(gap: int | None) -> None:
    assert followed(TargetTracking(100.0, desired=2), [450, 450, gap, 450, 450]) == [2] * 5


def test_never_scales_in_below_the_minimum_capacity() -> None:
    assert followed(TargetTracking(100.0, least=7, desired=10), [10] * 60, in_service=10)[-1] == 7


def test_scaling_out_waits_for_what_is_starting_but_not_when_more_is_needed() -> None:
    tracking = TargetTracking(100.0, desired=2)

    assert followed(tracking, [450, 450, 450, 450, 800]) == [2, 2, 5, 5, 8]


def test_scales_in_after_fifteen_minutes_ten_percent_below_and_not_above_that() -> None:
    assert followed(TargetTracking(100.0, desired=10), [890] * 15, in_service=10)[-2:] == [10, 9]
    assert followed(TargetTracking(100.0, desired=10), [910] * 60, in_service=10)[-1] == 10


def test_scale_in_keeps_its_cool_down_and_one_instance() -> None:
    tracking = TargetTracking(100.0, desired=4)

    first = followed(tracking, [150] * 15, in_service=4)
    again = followed(tracking, [10] * 6, in_service=2, from_minute=15)

    assert first[-2:] == [4, 2]
    assert again == [2, 2, 2, 2, 1, 1]  # minutes 15 to 20, and the cool-down of the scale-in at minute 14 ends at 19


@pytest.mark.skipif(not SHARED.is_dir(), reason="the price lists are not here")
def test_every_listed_price_agrees_with_its_ratio() -> None:
    with (SHARED / "sagemaker_syne_tune_us.csv").open() as file:
        launch = [row for row in csv.DictReader(file) if row["instance_type"].split(".")[1] in ("c5", "m5", "m4", "c4", "g4dn", "c5n")]
    with (SHARED / "sagemaker_thirdparty_tables.csv").open() as file:
        current = [row for row in csv.DictReader(file) if row["generation"].startswith("B")]

    assert len(launch) > 20
    for row in launch:
        price, _ = sagemaker_price_usd_per_hour(row["instance_type"].removeprefix("ml."), float(row["ec2_od_2026_07"]), "launch")
        assert price == pytest.approx(float(row["usd_per_h"]), rel=0.005)
    assert len(current) > 10
    for row in current:
        ec2 = float(row["usd_per_h"]) / float(row["ratio_to_ec2"])
        price, _ = sagemaker_price_usd_per_hour(row["instance_type"].removeprefix("ml."), ec2, "current")
        assert price == pytest.approx(float(row["usd_per_h"]), rel=0.005)


def plain_queue(arrivals_s: np.ndarray, servers: int, service_s: np.ndarray, limit: int) -> list[tuple[float, int]]:
    """Starts and sizes of batches of one common queue: a loop over events, as plain as it gets."""
    free_at_s = [0.0] * servers
    waiting = list(arrivals_s)
    started: list[tuple[float, int]] = []
    while waiting:
        server = free_at_s.index(min(free_at_s))
        start_s = max(waiting[0], free_at_s[server])
        size = sum(1 for at_s in waiting[:limit] if at_s <= start_s)
        started.append((start_s, size))
        free_at_s[server] = start_s + float(service_s[size])
        waiting = waiting[size:]
    return started


@pytest.mark.parametrize(("servers", "limit"), [(1, 1), (3, 1), (3, 4)])
def test_engine_serves_as_a_common_queue_does_whatever_the_windows(servers: int, limit: int) -> None:
    rng = np.random.default_rng(5)
    arrivals_s = np.sort(rng.random(400) * 20.0)
    kind = a_kind(service_s=0.13, max_batch_size=limit)
    requests = Requests.arriving(arrivals_s, *(np.zeros(400) for _ in range(4)))
    workers = Workers.none().replaced(np.empty(0, np.bool_), [(w, 0, 0.0) for w in range(servers)], [kind])
    engine, started = SageMakerEngine([kind]), []
    for window in range(30):
        made = engine.advance(requests, workers, rate_rps=0.0, from_s=5.0 * window, until_s=5.0 * (window + 1), first_batch_id=0)
        started += list(zip(made.started_s.tolist(), made.size.tolist(), strict=True))

    expected = plain_queue(arrivals_s + 0.005, servers, kind.p50_s, limit)  # half of the overhead lies before the queue

    assert [size for _, size in started] == [size for _, size in expected]
    np.testing.assert_allclose([at_s for at_s, _ in started], [at_s for at_s, _ in expected], rtol=0, atol=1e-9)


def test_search_finds_the_cheapest_setting_that_meets_the_objective_and_records_it(tmp_path: Path) -> None:
    scenario = a_scenario(tmp_path)
    policy = best_setting(scenario)
    simulate(scenario, policy, tmp_path / "out")

    summary = json.loads((tmp_path / "out/summary.json").read_text())
    tried = summary["search"]["simulated"]
    meeting = [row["cost_usd"] for row in tried if row["slo_attainment"] >= 0.98]
    assert summary["search"]["instance_type"] == policy.offering.instance_type
    assert summary["search"]["meets_objective"]
    assert summary["slo_attainment"] >= 0.98
    assert summary["cost_usd"]["compute"] == pytest.approx(min(meeting))
    assert summary["cost_usd"]["plumbing"] == summary["spill_share"] == 0


def test_search_judges_the_whole_trace_to_its_last_second(tmp_path: Path) -> None:
    scenario = a_scenario(tmp_path, rows=[(float(t), 40.0 if t < 300 else 400.0) for t in range(330)])

    policy = best_setting(scenario)
    summary = simulate(scenario, policy, tmp_path / "out")

    assert policy.search is not None
    assert policy.search["searched_s"] == summary.simulated_s == 330
    [chosen] = {row["slo_attainment"] for row in policy.search["simulated"] if row["cost_usd"] == summary.cost_usd["compute"]}
    assert chosen == summary.slo_attainment


def test_what_is_over_its_capacity_waits_and_is_given_up_after_a_minute(tmp_path: Path) -> None:
    rows = [(float(t), 20.0 if t < 60 else 900.0) for t in range(300)]
    scenario = a_scenario(tmp_path, rows=rows)
    found = best_setting(scenario)
    never_enough = SageMakerPolicy(offering=found.offering, target=3000.0, limits=found.limits()[found.offering.instance_type])
    summary = simulate(scenario, never_enough, tmp_path / "out")
    requests = pq.read_table(tmp_path / "out/requests.parquet")

    latency_s = requests["finished_at_s"].to_numpy(zero_copy_only=False) - requests["arrival_s"].to_numpy()
    assert summary.answered < summary.requests == requests.num_rows
    assert 30 < np.nanmax(latency_s) <= 60
    assert summary.slo_attainment < 0.98


def test_load_that_changes_faster_than_alarms_follow_is_served_best_by_a_fleet_that_stays(tmp_path: Path) -> None:
    scenario = a_scenario(tmp_path, rows=[(float(t), 400.0 if t // 120 % 2 else 20.0) for t in range(960)])
    policy = best_setting(scenario)
    summary = simulate(scenario, policy, tmp_path / "out")

    assert summary.search is not None
    assert summary.search["meets_objective"]
    least = summary.search["min_instances"]
    peak = 400 * policy.limits()[policy.offering.instance_type].batch_latency_s
    assert 0.8 * peak < least < 1.6 * peak
    static_usd = least * policy.offering.price_usd_per_hour * 960 / 3600
    assert summary.cost_usd["compute"] == pytest.approx(static_usd, rel=0.1)


def test_objective_that_no_setting_meets_is_said_to_be_missed(tmp_path: Path) -> None:
    slow = points((1, 0.10, 0.30))  # nothing but its own variation makes it late
    scenario = a_scenario(tmp_path, rows=[(float(t), 20.0) for t in range(300)], profile=a_profile(profiles={"c5.large": slow}))

    with pytest.raises(InfeasibleSlo, match=r"T\(1\) = 0.300 s"):
        best_setting(scenario)
