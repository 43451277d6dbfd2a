"""Every alarm has a runbook, every metric that the template reads is one that the code writes, and documents are current."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from local.allowed_actions import markdown
from local.deployer import load_template
from markserve import telemetry
from markserve.core.tunables import parameter_table

REPOSITORY = Path(__file__).resolve().parents[2]
TEMPLATE = load_template(REPOSITORY / "template.yaml")
ALARMS: dict[str, dict[str, Any]] = {
    name: resource["Properties"] for name, resource in TEMPLATE["Resources"].items() if resource["Type"] == "AWS::CloudWatch::Alarm"
}
WRITTEN = {value for name, value in vars(telemetry).items() if name.isupper() and isinstance(value, str)}


def document(name: str) -> str:
    return (REPOSITORY / "docs" / name).read_text(encoding="utf-8")


def test_every_alarm_has_a_runbook_and_every_runbook_an_alarm() -> None:
    alarms = {properties["AlarmName"]["Fn::Sub"].removeprefix("${AWS::StackName}-") for properties in ALARMS.values()}

    runbooks = set(re.findall(r"^### (\S+)$", document("operations.md"), re.MULTILINE))

    assert runbooks == alarms


@pytest.mark.parametrize("name", ALARMS)
def test_alarm_watches_a_metric_that_exists_notifies_and_says_what_is_wrong(name: str) -> None:
    alarm = ALARMS[name]

    assert alarm["Namespace"].startswith("AWS/") or (alarm["Namespace"] == telemetry.NAMESPACE and alarm["MetricName"] in WRITTEN)
    assert "AlarmActions" in alarm
    assert len(alarm["AlarmDescription"]) > 20


def test_the_things_that_must_wake_somebody_have_an_alarm() -> None:
    metrics = {alarm["MetricName"] for alarm in ALARMS.values()}

    assert metrics >= {
        telemetry.WORST_BURN_RATE,
        telemetry.HOURLY_COST_SHARE,
        telemetry.INSTANCES_SHARE,
        telemetry.FORECASTS_PRODUCED,
        telemetry.INSTANCES_ORPHANED,
        telemetry.INSTANCES_FAILED,
        "ApproximateNumberOfMessagesVisible",
        "ExecutionsSucceeded",
    }


def test_dashboard_reads_metrics_that_exist() -> None:
    body = TEMPLATE["Resources"]["Dashboard"]["Properties"]["DashboardBody"]["Fn::Sub"]
    read = set(re.findall(r'MetricName=\\"(\w+)\\"', body)) | set(re.findall(r'\["markserve", "(\w+)"', body))

    assert len(read) > 8
    assert read - WRITTEN == set()


def test_table_of_allowed_actions_is_current() -> None:
    assert markdown(TEMPLATE) in document("security.md"), "update it with: python -m local.allowed_actions"


def test_table_of_parameters_is_current() -> None:
    assert parameter_table() in document("parameters.md"), "update it with: make tables"
