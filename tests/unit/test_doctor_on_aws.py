"""What `markserve doctor` makes of AWS's own answers about quotas, concurrency and spot capacity.

The emulator has none of these calls. The answers are in the shape of AWS's API references, and botocore's model of each service holds
requests and answers to it; no account was asked.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import boto3
import pytest
from botocore.stub import Stubber

from cli import aws_checks, log_lines
from cli.checks import Check, guarded
from markserve import wiring
from markserve.adapters.memory import MemoryParameterSource
from markserve.core.tunables import Tunables

NAMES = {
    "L-1216C47A": "Running On-Demand Standard (A, C, D, H, I, M, R, T, Z) instances",
    "L-34B43A08": "All Standard (A, C, D, H, I, M, R, T, Z) Spot Instance Requests",
}


class Account:
    """Clients of an account whose answers are given beforehand."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._clients: dict[str, Any] = {}
        self.stubs: dict[str, Stubber] = {}

    def client(self, service: str) -> Any:
        if service not in self._clients:
            self._clients[service] = boto3.client(service)  # type: ignore[call-overload]
            self.stubs[service] = self._stack.enter_context(Stubber(self._clients[service]))
        return self._clients[service]

    def answers(self, service: str, operation: str, answer: dict[str, Any], asked: dict[str, Any] | None = None) -> None:
        self.client(service)
        self.stubs[service].add_response(operation, answer, asked)

    def refuses(self, service: str, operation: str, code: str, message: str) -> None:
        self.client(service)
        self.stubs[service].add_client_error(operation, code, message, http_status_code=400)

    def has_quota(self, code: str, value: float) -> None:
        quota = {
            "ServiceCode": "ec2",
            "ServiceName": "Amazon Elastic Compute Cloud (Amazon EC2)",
            "QuotaArn": f"arn:aws:servicequotas:us-east-1:123456789012:ec2/{code}",
            "QuotaCode": code,
            "QuotaName": NAMES[code],
            "Value": value,
            "Unit": "None",
            "Adjustable": True,
            "GlobalQuota": False,
            "QuotaAppliedAtLevel": "ACCOUNT",
            "UsageMetric": {
                "MetricNamespace": "AWS/Usage",
                "MetricName": "ResourceCount",
                "MetricDimensions": {"Class": "Standard/OnDemand", "Resource": "vCPU", "Service": "EC2", "Type": "Resource"},
                "MetricStatisticRecommendation": "Maximum",
            },
        }
        self.answers("service-quotas", "get_service_quota", {"Quota": quota}, {"ServiceCode": "ec2", "QuotaCode": code})

    def has_concurrency(self, *, total: int, unreserved: int) -> None:
        limit = {
            "TotalCodeSize": 80530636800,
            "CodeSizeUnzipped": 262144000,
            "CodeSizeZipped": 52428800,
            "ConcurrentExecutions": total,
            "UnreservedConcurrentExecutions": unreserved,
        }
        self.answers(
            "lambda", "get_account_settings", {"AccountLimit": limit, "AccountUsage": {"TotalCodeSize": 12345678, "FunctionCount": 8}}, {}
        )

    def scores(self, *scores: int, types: list[str], target: int) -> None:
        found = [{"Region": "us-east-1", "AvailabilityZoneId": f"use1-az{n}", "Score": score} for n, score in enumerate(scores, start=1)]
        asked = {"InstanceTypes": types, "TargetCapacity": target, "SingleAvailabilityZone": True, "RegionNames": ["us-east-1"]}
        self.answers("ec2", "get_spot_placement_scores", {"SpotPlacementScores": found}, asked)


@pytest.fixture
def account(monkeypatch: pytest.MonkeyPatch) -> Iterator[Account]:
    """Four instances at most, spill-over up to 100; a c5.2xlarge, of 8 vCPUs, is the largest type."""
    monkeypatch.setenv("MARKSERVE_STACK_NAME", "demo")
    monkeypatch.setenv("MARKSERVE_INSTANCE_TYPES", "c5.large, c5.2xlarge, m5.large")
    wiring.settings.cache_clear()
    with ExitStack() as stack:
        made = Account(stack)
        monkeypatch.setattr(aws_checks, "client", made.client)
        tell(monkeypatch, Tunables(max_instances=4))
        yield made
        for stub in made.stubs.values():
            stub.assert_no_pending_responses()
    wiring.settings.cache_clear()


def tell(monkeypatch: pytest.MonkeyPatch, tunables: Tunables) -> None:
    monkeypatch.setattr(wiring, "parameters", lambda: MemoryParameterSource(tunables))


def by_name(checks: Iterator[Check]) -> dict[str, Check]:
    return {found.name: found for found in checks}


def test_quotas_that_hold_the_ceiling_are_fine(account: Account) -> None:
    account.has_quota("L-1216C47A", 32.0)
    account.has_quota("L-34B43A08", 640.0)

    found = by_name(aws_checks._quotas())

    assert [(name, one.result) for name, one in found.items()] == [("on-demand vCPUs", "ok"), ("spot vCPUs", "ok")]
    assert found["on-demand vCPUs"].found == "32; 4 of the largest type are 32"


def test_quota_of_a_new_account_is_below_the_ceiling_and_says_which_to_raise(account: Account) -> None:
    account.has_quota("L-1216C47A", 5.0)
    account.has_quota("L-34B43A08", 31.0)

    found = by_name(aws_checks._quotas())

    assert {one.result for one in found.values()} == {"warn"}
    assert "Service Quotas, L-1216C47A" in found["on-demand vCPUs"].next_step
    assert "Service Quotas, L-34B43A08" in found["spot vCPUs"].next_step


def test_quota_that_may_not_be_read_is_a_warning_and_hides_nothing_else(account: Account) -> None:
    account.refuses("service-quotas", "get_service_quota", "AccessDeniedException", "User is not authorized to perform: servicequotas:Get")
    account.has_concurrency(total=1000, unreserved=900)

    quotas = guarded("quotas", aws_checks._quotas, aws_checks.ERRORS)
    concurrency = guarded("Lambda concurrency", aws_checks._concurrency, aws_checks.ERRORS)

    assert [(one.name, one.result) for one in quotas] == [("quotas", "warn")]
    assert "AccessDeniedException" in quotas[0].found
    assert [(one.name, one.result) for one in concurrency] == [("Lambda concurrency", "ok")]


@pytest.mark.parametrize(("unreserved", "result"), [(1000, "ok"), (200, "ok"), (199, "warn"), (10, "warn")])
def test_lambda_must_have_room_for_spill_over_twice(account: Account, unreserved: int, result: str) -> None:
    account.has_concurrency(total=1000, unreserved=unreserved)

    (found,) = aws_checks._concurrency()

    assert found.result == result
    assert found.found == f"{unreserved} unreserved of 1000; spill-over may take 100"


@pytest.mark.parametrize(("scores", "result", "said"), [((3, 9), "ok", "9 of 10"), ((3, 1), "warn", "3 of 10"), ((), "warn", "0 of 10")])
def test_spot_placement_is_judged_by_the_best_zone(account: Account, scores: tuple[int, ...], result: str, said: str) -> None:
    account.scores(*scores, types=["c5.large", "c5.2xlarge", "m5.large"], target=4)

    (found,) = aws_checks._placement()

    assert (found.result, found.found) == (result, f"{said} in the best zone")


def test_fewer_types_than_aws_scores_are_not_asked_for(account: Account, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MARKSERVE_INSTANCE_TYPES", "c5.large,c5.2xlarge")
    wiring.settings.cache_clear()

    (found,) = aws_checks._placement()

    assert found.result == "warn"
    assert "fewer than 3 instance types" in found.found


@pytest.mark.parametrize("tunables", [Tunables(max_instances=0), Tunables(spot_enabled=False)])
def test_where_no_spot_is_bought_nothing_is_asked(account: Account, monkeypatch: pytest.MonkeyPatch, tunables: Tunables) -> None:
    tell(monkeypatch, tunables)

    assert list(aws_checks._placement()) == []


def test_capacity_beyond_what_aws_scores_for_this_account_is_a_warning(account: Account) -> None:
    account.refuses("ec2", "get_spot_placement_scores", "InvalidParameterValue", "The target capacity exceeds your limit")

    (found,) = guarded("spot placement", aws_checks._placement, aws_checks.ERRORS)

    assert (found.name, found.result) == ("spot placement", "warn")
    assert "exceeds your limit" in found.found


def test_console_of_an_instance_is_read_as_ec2_gives_it(account: Account) -> None:
    encoded = base64.b64encode(b"[  OK  ] Started markserve worker\r\nlogin:\n").decode()
    account.answers("ec2", "get_console_output", {"InstanceId": "i-1", "Output": encoded})
    account.answers("ec2", "get_console_output", {"InstanceId": "i-2"})  # none was taken yet

    lines = log_lines.console_output(account.client("ec2"), "i-1", at_s=7.0)

    assert [(line.at_s, line.source, line.text) for line in lines] == [
        (7.0, "i-1", "[  OK  ] Started markserve worker"),
        (7.0, "i-1", "login:"),
    ]
    assert log_lines.console_output(account.client("ec2"), "i-2", at_s=7.0) == []
