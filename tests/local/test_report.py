"""The report: figures are those of the records, and a run that broke a promise is not called good."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from local.bill import FunctionUsage, make_bill
from local.figures import quantile
from local.load import RequestRecord
from local.report import Evidence, build_report, read_report, write_report
from markserve.core.types import CapacityType, Instance, InstanceState, Offering, Slo, WorkerStats
from markserve.messages import ForecastRecord, LaunchInstances, PlanRecord, WarmSpillover

START_S = 1_000.0
LARGE_SPOT = Offering(instance_type="c5.large", capacity_type=CapacityType.SPOT, zone="us-east-1a", price_usd_per_hour=0.036)


def a_record(index: int, **overrides: Any) -> RequestRecord:
    scheduled_at_s = START_S + index
    values: dict[str, Any] = {
        "index": index,
        "request_id": f"1-{index}",
        "server_request_id": f"s-{index}",
        "phase": "calm",
        "scheduled_at_s": scheduled_at_s,
        "sent_at_s": scheduled_at_s,
        "finished_at_s": scheduled_at_s + 0.25,
        "status": 200,
        "tier": "worker",
        "predicted": 7,
        "truth": 7,
        "timing_s": {"queue": 0.05, "compute": 0.1},
    }
    return RequestRecord(**{**values, **overrides})


def an_instance(**overrides: Any) -> Instance:
    values: dict[str, Any] = {
        "instance_id": "i-1",
        "model": "digits",
        "offering": LARGE_SPOT,
        "state": InstanceState.TERMINATED,
        "requested_at_s": START_S + 10.0,
        "serving_at_s": START_S + 15.0,
        "drain_at_s": START_S + 90.0,
        "terminated_at_s": START_S + 110.0,
        "reason": "unmet demand of 12.0 rps",
        "end_reason": "drained",
        "stats": WorkerStats(completed=30, batches=10),
    }
    return Instance(**{**values, **overrides})


def evidence(records: list[RequestRecord], **overrides: Any) -> Evidence:
    values: dict[str, Any] = {
        "slo": Slo(latency_s=1.0, percentile=0.9),
        "seed": 1,
        "started_at_s": START_S,
        "ended_at_s": START_S + 200.0,
        "records": records,
        "instances": [],
        "interrupted": {},
        "forecasts": [],
        "plans": [],
        "decisions": [],
        "functions": [],
        "spillover_function": "markserve-spillover",
        "units": {},
        "state_transitions": 0,
    }
    return Evidence(**{**values, **overrides})


def test_report_is_good_when_every_request_was_answered_rightly_once_and_in_time() -> None:
    records = [a_record(i, finished_at_s=START_S + i + 0.1 * (i + 1)) for i in range(10)]

    report = build_report(evidence(records))

    assert (report.sent, report.answered, report.lost, report.failed, report.doubled) == (10, 10, 0, 0, 0)
    assert (report.accuracy, report.attainment) == (1.0, 1.0)
    assert (report.p50_s, report.p98_s, report.p99_s) == pytest.approx((0.5, 1.0, 1.0))
    assert report.breakdown_s["queue"] == 0.05
    assert report.shortfalls == ()


@pytest.mark.parametrize(
    ("record", "shortfall"),
    [
        (a_record(9, status=0, predicted=None, tier="", error="TimeoutError: "), "1 of 10 requests got no response"),
        (
            a_record(9, status=503, predicted=None, error="too busy"),
            "1 of 10 requests got an error or a malformed result: 1 with 503; the first: too busy",
        ),
        (
            a_record(9, predicted=None, error="unreadable answer"),
            "1 of 10 requests got an error or a malformed result: 1 with 200; the first: unreadable answer",
        ),
        (a_record(9, server_request_id="s-3"), "1 answers were given twice"),
        (a_record(9, predicted=1), "accuracy 0.900 is below 0.95"),
    ],
)
def test_report_names_the_shortfall_when_one_request_went_wrong(record: RequestRecord, shortfall: str) -> None:
    report = build_report(evidence([*(a_record(i) for i in range(9)), record]))

    assert shortfall in report.shortfalls


def test_objective_is_missed_when_too_many_answers_are_late() -> None:
    records = [a_record(i, finished_at_s=START_S + i + (1.5 if i < 2 else 0.2)) for i in range(10)]

    report = build_report(evidence(records))

    assert report.attainment == 0.8
    assert report.shortfalls == ("only 80.00% of requests were answered within 1 s; the objective is 90.00%",)


def test_unanswered_request_counts_against_the_objective() -> None:
    records = [a_record(i) for i in range(9)] + [a_record(9, status=429, predicted=None, finished_at_s=START_S + 9.01)]

    assert build_report(evidence(records)).attainment == 0.9


def test_nothing_sent_is_not_a_success() -> None:
    report = build_report(evidence([]))

    assert "no request was sent" in report.shortfalls
    assert report.p98_s is None


def test_phases_and_tiers_are_told_apart() -> None:
    records = [a_record(0), a_record(1), a_record(2, phase="burst", tier="lambda"), a_record(3, phase="burst")]

    report = build_report(evidence(records))

    assert [(p.phase, p.sent, p.lambda_share) for p in report.phases] == [("calm", 2, 0.0), ("burst", 2, 0.5)]
    assert report.tier_share == {"lambda": 0.25, "worker": 0.75}


def test_instances_carry_times_reasons_and_cost() -> None:
    running = an_instance(
        instance_id="i-2", state=InstanceState.SERVING, terminated_at_s=None, drain_at_s=None, end_reason=None, stats=WorkerStats()
    )

    report = build_report(evidence([a_record(0)], instances=[an_instance(), running], interrupted={"i-1": START_S + 80.0}))

    ended, alive = report.instances
    assert (ended.requested_s, ended.serving_s, ended.drain_s, ended.terminated_s) == (10.0, 15.0, 90.0, 110.0)
    assert (ended.interrupted, alive.interrupted) == (True, False)
    assert (ended.reason, ended.end_reason, alive.end_reason) == ("unmet demand of 12.0 rps", "drained", "still running")
    assert (ended.cost_usd, alive.cost_usd) == (0.036 * 100 / 3600, 0.036 * 190 / 3600)
    assert (ended.mean_batch_size, alive.mean_batch_size) == (3.0, None)
    assert report.mean_batch_size == 3.0


def test_cycles_name_the_forecaster_in_force_when_planned() -> None:
    forecasts = [
        ForecastRecord(model="digits", origin_at_s=START_S + at_s, step_s=5.0, rates_rps={"0.9": (4.0,)}, forecaster=name, reason="")
        for at_s, name in ((0.0, "persistence"), (10.0, "lstm"))
    ]
    launch = LaunchInstances(action_id="a", model="digits", offering=LARGE_SPOT, count=2, plan_id="p", reason="")
    warm = WarmSpillover(action_id="b", model="digits", environments=3, plan_id="p", reason="")
    plans = [
        PlanRecord(
            plan_id=f"p{version}",
            version=version,
            created_at_s=START_S + at_s,
            trigger="schedule",
            demand_rps={"digits": 8.0},
            capacity_rps={"digits": 10.0},
            hourly_cost_usd=0.1,
            actions=(launch, warm),
            alternatives=(),
            reason="r",
        )
        for version, at_s in ((1, 1.0), (2, 11.0))
    ]

    report = build_report(evidence([a_record(0)], forecasts=forecasts, plans=plans))

    assert [(c.at_s, c.forecaster, c.launches, c.environments) for c in report.cycles] == [(1.0, "persistence", 2, 3), (11.0, "lstm", 2, 3)]


def test_bill_adds_up_and_keeps_compute_and_plumbing_apart() -> None:
    bill = make_bill(
        instances=[an_instance()],
        functions=[
            FunctionUsage(function="markserve-api", memory_mb=512, invocations=1000, duration_s=300.0),
            FunctionUsage(function="markserve-spillover", memory_mb=1024, invocations=100, duration_s=5.0),
        ],
        spillover_function="markserve-spillover",
        units={"http_api": 1000, "sqs": 500},
        state_transitions=40,
        answered=1000,
        until_s=START_S + 200.0,
    )

    assert bill.instances_usd == pytest.approx(0.036 * 100 / 3600)
    assert bill.spillover_usd == pytest.approx(5.0 * 1.66667e-5 + 100 * 0.2e-6)
    assert bill.plumbing_by_kind_usd == pytest.approx(
        {"http_api": 1e-3, "sqs": 2e-4, "lambda": 2e-4, "step_functions": 1e-3, "lambda_duration": 150.0 * 1.66667e-5}
    )
    assert bill.total_usd == pytest.approx(bill.compute_usd + bill.plumbing_usd)
    assert bill.per_million_usd["total"] == pytest.approx(bill.total_usd * 1000)


def test_written_report_reads_back_and_has_a_row_per_request(tmp_path: Path) -> None:
    records = [a_record(0), a_record(1, status=0, predicted=None, timing_s={})]
    report = build_report(evidence(records, instances=[an_instance()]))

    write_report(report, records, tmp_path)

    assert read_report(tmp_path / "report.json") == report
    with (tmp_path / "requests.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["request_id"], row["latency_s"], row["queue_s"]) for row in rows] == [("1-0", "0.25", "0.05"), ("1-1", "0.25", "")]
    with (tmp_path / "instances.csv").open(newline="") as file:
        assert [row["offering"] for row in csv.DictReader(file)] == ["c5.large/spot/us-east-1a"]


def test_quantile_is_an_observed_value() -> None:
    values = [float(i) for i in range(1, 101)]

    assert (quantile(values, 0.5), quantile(values, 0.98), quantile(values, 0.99), quantile(values, 1.0)) == (50.0, 98.0, 99.0, 100.0)
