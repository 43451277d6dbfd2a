"""The SLO monitor watches as the product does, and its alarms lead to plans between two cycles."""

from __future__ import annotations

import csv
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from functions.ingest import app as ingest
from markserve.core.slo import SloWindow, assess
from markserve.core.types import Slo
from markserve.lifecycle_context import DRY_POOL_S
from simulator import assumptions
from simulator.monitor import PaperMonitor, ProductMonitor
from simulator.registry import policies
from simulator.simulation import simulate
from tests.simulator.rig import a_profile, a_scenario, points


def test_constants_are_the_products() -> None:
    names = ("SLIDING_STEPS", "SHORT_STEPS", "LEAD_STEPS", "ALERT_INTERVAL_S")
    assert all(getattr(assumptions, name) == getattr(ingest, name) for name in names)
    assert assumptions.DRY_POOL_S == DRY_POOL_S


def outcomes(within: int, *, at_s: float, requests: int = 100) -> SloWindow:
    return SloWindow(at_s=at_s, requests=requests, within_slo=within)


def test_product_monitor_says_what_assess_says_and_then_keeps_quiet_for_its_interval() -> None:
    monitor = ProductMonitor(Slo(latency_s=0.2))
    seen: list[SloWindow] = []
    alarms = []
    for index in range(40):
        window = outcomes(100 if index < 20 else 60, at_s=5.0 * index)
        seen.append(window)
        now_s = window.at_s + 7.0
        verdict = assess(seen, slo=Slo(latency_s=0.2), now_s=now_s, sliding_s=300.0, short_s=30.0, lead_s=60.0)
        reason = monitor.alarm(window, now_s=now_s)
        if reason is not None:
            assert verdict.at_risk
            assert reason == verdict.reason
            alarms.append(now_s)

    assert alarms
    assert alarms[0] < 125.0  # within a few windows of the first bad one
    assert all(b - a >= 30.0 for a, b in pairwise(alarms))


def test_product_monitor_says_nothing_where_nothing_was_reported() -> None:
    monitor = ProductMonitor(Slo(latency_s=0.2))
    assert monitor.alarm(outcomes(0, at_s=0.0), now_s=7.0) is not None
    assert monitor.alarm(SloWindow(at_s=60.0, requests=0, within_slo=0), now_s=67.0) is None


def test_paper_monitor_is_an_exponentially_weighted_rate_with_a_pause() -> None:
    monitor = PaperMonitor()

    assert monitor.alarm(outcomes(85, at_s=0.0), now_s=7.0) is None  # 1 - 0.999^100 = 9.5 %, times 15 %: 1.4 %
    assert monitor.alarm(outcomes(85, at_s=5.0), now_s=12.0) is not None  # 2.7 %
    assert monitor.alarm(outcomes(0, at_s=10.0), now_s=17.0) is None
    assert monitor.alarm(outcomes(0, at_s=305.0), now_s=312.0) is not None


@pytest.mark.parametrize(("policy", "watches"), [("mark", True), ("reactive", True), ("mark-paper", True), ("static", False)])
def test_a_missed_objective_leads_to_a_plan_between_two_cycles(tmp_path: Path, policy: str, watches: bool) -> None:
    profile = a_profile(profiles={"c5.large": points((1, 0.020, 0.024), (8, 0.070, 0.080))})
    rows = [(float(t), 20.0 if t < 185 else 400.0) for t in range(400)]
    scenario = a_scenario(tmp_path, rows=rows, profile=profile)
    [built] = policies([policy], scenario, forecaster_name="best")
    summary = simulate(scenario, built, tmp_path / "out")

    with (tmp_path / "out/control.csv").open() as file:
        steps = list(csv.DictReader(file))
    alarms = [float(step["t_s"]) for step in steps if step["trigger"] == "slo_at_risk"]
    assert summary.slo_alarms == len(alarms)
    assert len(steps) == summary.control_steps
    if not watches:
        assert not alarms
        return
    assert 185 < alarms[0] < 210
    assert alarms[0] % 5 == 2  # two seconds after a window's end
    if policy != "static":
        with (tmp_path / "out/instances.csv").open() as file:
            launched = [float(row["requested_at_s"]) for row in csv.DictReader(file)]
        assert alarms[0] in launched


def test_provisioned_environments_never_start_cold_and_are_billed_for_being_there(tmp_path: Path) -> None:
    rows = [(float(t), 20.0) for t in range(300)]
    scenario = a_scenario(tmp_path, rows=rows, provisioned=20)
    [built] = policies(["all-lambda"], scenario, forecaster_name="best")
    summary = simulate(scenario, built, tmp_path / "out")
    batches = pq.read_table(tmp_path / "out/batches.parquet")

    gb = 1769 / 1024
    ran_s = batches["finished_at_s"].to_numpy() - batches["started_at_s"].to_numpy()
    used_usd = np.ceil(ran_s * 1000 - 1e-6).sum() / 1000 * gb * 9.7222e-6 + ran_s.size * 0.2e-6
    assert summary.cold_starts == 0
    assert summary.cost_usd["provisioned"] == pytest.approx(20 * 300 * gb * 4.1667e-6)
    assert summary.cost_usd["lambda"] == pytest.approx(used_usd)
    assert summary.cost_usd["compute"] == pytest.approx(summary.cost_usd["provisioned"] + used_usd)
    assert summary.slo_attainment > 0.99


def test_without_provisioned_environments_the_first_requests_start_cold(tmp_path: Path) -> None:
    scenario = a_scenario(tmp_path, rows=[(float(t), 20.0) for t in range(300)])
    [built] = policies(["all-lambda"], scenario, forecaster_name="best")
    summary = simulate(scenario, built, tmp_path / "out")

    assert summary.cold_starts > 0
    assert summary.cost_usd["provisioned"] == 0


@pytest.mark.parametrize(("concurrency", "is_enough"), [(2, False), (2000, True)])
def test_invocations_beyond_the_concurrency_are_refused(tmp_path: Path, concurrency: int, is_enough: bool) -> None:
    scenario = a_scenario(tmp_path, rows=[(float(t), 200.0) for t in range(60)], lambda_concurrency=concurrency)
    [built] = policies(["all-lambda"], scenario, forecaster_name="best")
    summary = simulate(scenario, built, tmp_path / "out")

    assert (summary.lambda_refused == 0) is is_enough
    assert summary.answered + summary.lambda_refused == summary.requests


@pytest.mark.parametrize("policy", ["mark", "mark-paper", "static"])
def test_instances_stay_below_the_ceiling_whatever_the_concurrency_of_lambda(tmp_path: Path, policy: str) -> None:
    def most(max_instances: int) -> int:
        scenario = a_scenario(tmp_path, rows=[(float(t), 300.0) for t in range(240)], max_instances=max_instances, lambda_concurrency=5000)
        [built] = policies([policy], scenario, forecaster_name="best")
        simulate(scenario, built, tmp_path / "out")
        with (tmp_path / "out/instances.csv").open() as file:
            rented = [(float(row["requested_at_s"]), float(row["terminated_at_s"] or "inf")) for row in csv.DictReader(file)]
        return max(sum(begins_s <= at_s < ends_s for begins_s, ends_s in rented) for at_s, _ in rented)

    assert most(2) == 2
    assert most(100) > 2
