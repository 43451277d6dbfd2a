"""The demo, shortened: everything real and connected, judged on what a busy machine cannot spoil."""

from __future__ import annotations

import io
import json
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from local.demo import DemoSettings, run_demo
from local.report import Report
from tests.processes import command_line

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> DemoSettings:
    # Slack on purpose: whether 2 s can be kept is for the demo to show, not for a test on a shared machine.
    return DemoSettings(rt_max_s=6.0, sl_min=0.5, rate_rps=3.0, seconds=50.0, notice_s=6.0, work_dir=tmp_path_factory.mktemp("demo"))


@pytest.fixture(scope="module")
def progress() -> io.StringIO:
    return io.StringIO()


@pytest.fixture(scope="module")
def report(settings: DemoSettings, progress: io.StringIO) -> Report:
    return run_demo(settings, Console(file=progress, width=200))


def test_every_request_is_answered_rightly_and_once(report: Report) -> None:
    assert report.sent > 50
    assert (report.answered, report.lost, report.failed, report.doubled) == (report.sent, 0, 0, 0)
    assert report.accuracy >= 0.95
    assert report.shortfalls == ()


def test_controller_forecasts_plans_and_launches_workers_that_serve(report: Report) -> None:
    assert any(cycle.forecaster not in ("", "none") for cycle in report.cycles)
    assert any(cycle.launches for cycle in report.cycles)
    serving = [line for line in report.instances if line.serving_s is not None]
    assert serving
    assert report.tier_share["worker"] > 0
    assert sum(line.completed for line in serving) > 0
    assert all(line.reason for line in report.instances)


def test_bill_has_compute_and_plumbing(report: Report) -> None:
    bill = report.bill

    assert bill.instances_usd > 0
    assert {"http_api", "sqs", "dynamodb_read", "dynamodb_write", "lambda", "lambda_duration", "step_functions"} <= set(
        bill.plumbing_by_kind_usd
    )
    assert bill.plumbing_by_kind_usd["http_api"] == pytest.approx((report.sent + report.retries) * 1e-6)
    assert bill.total_usd == pytest.approx(bill.compute_usd + bill.plumbing_usd)


def test_time_of_a_request_is_broken_down(report: Report) -> None:
    assert set(report.breakdown_s) == {"front", "queue", "batch", "compute", "reply"}


def test_progress_is_told_line_by_line_without_a_terminal(report: Report, progress: io.StringIO) -> None:
    text = progress.getvalue()

    assert "deploying template.yaml through CloudFormation" in text
    assert "quiet" in text
    assert f"sent {report.sent}" not in text.splitlines()[0]


def test_report_is_written_for_audit(report: Report, settings: DemoSettings) -> None:
    written = json.loads((settings.work_dir / "report.json").read_text())

    assert written["sent"] == report.sent
    assert len((settings.work_dir / "requests.csv").read_text().splitlines()) == report.sent + 1
    assert len((settings.work_dir / "instances.csv").read_text().splitlines()) == len(report.instances) + 1


def test_nothing_is_left_running(report: Report, settings: DemoSettings) -> None:
    assert json.loads(Path(settings.work_dir / "processes.json").read_text()) == []
    assert not [child for child in psutil.Process().children(recursive=True) if "local." in command_line(child)]
