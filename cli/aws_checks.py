"""What must hold in the account, region and stack for markserve to work and to grow to its ceilings. Reads only."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import boto3
from botocore.exceptions import BotoCoreError, ClientError

from cli.checks import Check, check, guarded
from markserve import wiring
from markserve.catalog import load_catalog
from markserve.core.tunables import Tunables
from markserve.errors import MarkserveError

ERRORS = (BotoCoreError, ClientError, MarkserveError)
ON_DEMAND_VCPUS, SPOT_VCPUS = "L-1216C47A", "L-34B43A08"
"""Service quotas of EC2: vCPUs of standard instances (A, C, D, H, I, M, R, T, Z) at once, on demand and on spot."""
GOOD_PLACEMENT = 4
"""Spot placement scores go from 1 to 10; AWS promises nothing for any. Below this a launch often fails."""
TYPES_TO_SCORE = 3
"""With fewer instance types the score is low whatever the capacity, says AWS: it would tell nothing."""
OPERATORS_ACTIONS = (
    "cloudformation:DescribeStacks",
    "dynamodb:Query",
    "logs:FilterLogEvents",
    "sqs:ReceiveMessage",
    "ssm:PutParameter",
    "ssm:GetParameterHistory",
    "states:StartExecution",
)
"""What the operator's commands call."""
AWS_ALONE = ("permissions", "quotas", "Lambda concurrency", "spot placement")
QUEUES = {
    "DeadLetterQueueUrl": "requests were given up: `markserve dlq list`",
    "MetricsDeadLetterQueueUrl": "counts were not applied: docs/operations.md, metrics-dlq-not-empty",
    "EventsDeadLetterQueueUrl": "events were not delivered: docs/operations.md, events-dlq-not-empty",
}


def client(service: str) -> Any:
    """Open a client of any service."""
    return boto3.client(service)  # type: ignore[call-overload]  # its overloads want a literal


def stack_checks(outputs: dict[str, str], *, local: bool = False) -> list[Check]:
    """Check the connected stack and the account it is in; an emulated account has no quotas, permissions or spot capacity."""
    groups: tuple[tuple[str, Callable[[], Iterator[Check]]], ...] = (
        ("account", _account),
        ("permissions", _permissions),
        ("functions", _functions),
        ("parameters", _parameters),
        ("models", _models),
        ("image", _image),
        ("zones", _zones),
        ("quotas", _quotas),
        ("Lambda concurrency", _concurrency),
        ("spot placement", _placement),
        ("queues", lambda: _queues(outputs)),
    )
    return [found for name, run in groups if not (local and name in AWS_ALONE) for found in guarded(name, run, ERRORS)]


def _account() -> Iterator[Check]:
    identity = client("sts").get_caller_identity()
    yield Check(name="account", result="ok", found=f"{identity['Account']} as {identity['Arn']}, {wiring.settings().region}")


def _permissions() -> Iterator[Check]:
    arn = client("sts").get_caller_identity()["Arn"]
    if arn.endswith(":root"):
        yield Check(name="permissions", result="warn", found="the account's root user", next_step="use a role: docs/security.md")
        return
    results = client("iam").simulate_principal_policy(PolicySourceArn=_role_arn(arn), ActionNames=list(OPERATORS_ACTIONS))[
        "EvaluationResults"
    ]
    denied = sorted(one["EvalActionName"] for one in results if one["EvalDecision"] != "allowed")
    yield check(
        "permissions",
        not denied,
        f"not allowed: {', '.join(denied)}" if denied else "all that operators' commands call",
        "docs/security.md",
        otherwise="warn",
    )


def _role_arn(arn: str) -> str:
    """Return the role that a session has taken, which is what IAM can simulate.

    >>> _role_arn("arn:aws:sts::123456789012:assumed-role/operator/ann")
    'arn:aws:iam::123456789012:role/operator'
    """
    if ":assumed-role/" not in arn:
        return arn
    head, role = arn.split(":assumed-role/")
    return f"{head.replace(':sts:', ':iam:')}:role/{role.split('/')[0]}"


def _functions() -> Iterator[Check]:
    from cli.log_lines import FUNCTIONS

    lambda_, stack_name = client("lambda"), wiring.settings().stack_name
    for name in FUNCTIONS:
        try:
            found = lambda_.get_function_configuration(FunctionName=f"{stack_name}-{name}")
        except lambda_.exceptions.ResourceNotFoundException:
            if name != "authorizer":  # it exists with ApiAuth=api-key alone
                yield Check(name=f"function {name}", result="fail", found="missing", next_step="deploy again: docs/deploy.md")
            continue
        state = found.get("State", "Active")
        good = state in ("Active", "Inactive")
        yield check(f"function {name}", good, f"{found.get('PackageType', 'Zip')}, {state}", found.get("StateReason", "deploy again"))


def _parameters() -> Iterator[Check]:
    tunables = wiring.parameters().get()
    yield check("launches", tunables.launches_enabled, "on" if tunables.launches_enabled else "off: nothing is bought",
                "`markserve params set launches-enabled true`, when you mean to pay", otherwise="warn")  # fmt: skip
    ceiling = f"{tunables.max_instances} instances, ${tunables.max_hourly_cost_usd:g}/h"
    yield check(
        "ceilings",
        tunables.max_instances > 0 and tunables.max_hourly_cost_usd > 0,
        ceiling,
        "one is 0: nothing may be bought",
        otherwise="warn",
    )


def _models() -> Iterator[Check]:
    records = wiring.models().list()
    yield check(
        "models",
        bool(records),
        ", ".join(f"{r.model} {r.version}" for r in records) or "none",
        "`markserve models register`",
        otherwise="warn",
    )
    unmeasured = [r.model for r in records if not set(_types()) & set(r.profiles)]
    if unmeasured:
        yield Check(
            name="profiles",
            result="warn",
            found=f"not measured on any type: {', '.join(unmeasured)}",
            next_step="`markserve profile MODEL`",
        )


def _image() -> Iterator[Check]:
    ec2 = client("ec2")
    versions = ec2.describe_launch_template_versions(LaunchTemplateId=wiring.settings().launch_template_id, Versions=["$Latest"])
    image_id = versions["LaunchTemplateVersions"][0]["LaunchTemplateData"].get("ImageId", "")
    if image_id.startswith("resolve:"):
        yield Check(name="worker image", result="ok", found=f"{image_id}, looked up at each launch")
        return
    images = ec2.describe_images(ImageIds=[image_id])["Images"] if image_id else []
    yield check("worker image", bool(images), image_id or "none", "WorkerImageId names no image of this region: docs/deploy.md")


def _zones() -> Iterator[Check]:
    zones = wiring.fleet().zones()
    yield check("zones", len(zones) > 1, ", ".join(zones) or "none", "name a subnet in more zones: one can run dry", otherwise="warn")
    pages = (
        client("ec2")
        .get_paginator("describe_instance_type_offerings")
        .paginate(LocationType="availability-zone", Filters=[{"Name": "instance-type", "Values": _types()}])
    )
    sold = {(one["InstanceType"], one["Location"]) for page in pages for one in page["InstanceTypeOfferings"]}
    missing = sorted(name for name in _types() if not any((name, zone) in sold for zone in zones))
    yield check("instance types", not missing, f"not sold in these zones: {', '.join(missing)}" if missing else ", ".join(_types()),
                "change InstanceTypes or the subnets", otherwise="warn" if len(missing) < len(_types()) else "fail")  # fmt: skip


def _quotas() -> Iterator[Check]:
    tunables = wiring.parameters().get()
    needed = _vcpus_at_ceiling(tunables)
    quotas = client("service-quotas")
    for name, code in (("on-demand vCPUs", ON_DEMAND_VCPUS), ("spot vCPUs", SPOT_VCPUS)):
        allowed = quotas.get_service_quota(ServiceCode="ec2", QuotaCode=code)["Quota"]["Value"]
        found = f"{allowed:g}; {tunables.max_instances} of the largest type are {needed}"
        yield check(name, allowed >= needed, found, f"ask for more (Service Quotas, {code}), or lower max-instances", otherwise="warn")


def _concurrency() -> Iterator[Check]:
    limits = client("lambda").get_account_settings()["AccountLimit"]
    free = limits["UnreservedConcurrentExecutions"]
    wanted = wiring.parameters().get().spillover_max_concurrency
    found = f"{free} unreserved of {limits['ConcurrentExecutions']}; spill-over may take {wanted}"
    yield check("Lambda concurrency", free >= 2 * wanted, found, "ask for more, or lower spillover-max-concurrency", otherwise="warn")


def _vcpus_at_ceiling(tunables: Tunables) -> int:
    by_type = {entry.instance_type: entry.vcpu for entry in load_catalog().entries}
    return math.ceil(tunables.max_instances * max((by_type.get(name, 0) for name in _types()), default=0))


def _placement() -> Iterator[Check]:
    tunables = wiring.parameters().get()
    if not tunables.spot_enabled or not tunables.max_instances:
        return
    if len(set(_types())) < TYPES_TO_SCORE:
        found = f"not scored: AWS rates fewer than {TYPES_TO_SCORE} instance types low, whatever the capacity"
        yield Check(name="spot placement", result="warn", found=found, next_step="add instance types: one pool can run dry")
        return
    scores = client("ec2").get_spot_placement_scores(
        InstanceTypes=_types(), TargetCapacity=tunables.max_instances, SingleAvailabilityZone=True, RegionNames=[wiring.settings().region]
    )["SpotPlacementScores"]
    best = max((one["Score"] for one in scores), default=0)
    yield check("spot placement", best >= GOOD_PLACEMENT, f"{best} of 10 in the best zone", "add instance types or zones", otherwise="warn")


def _queues(outputs: dict[str, str]) -> Iterator[Check]:
    sqs = client("sqs")
    for output, step in QUEUES.items():
        if output not in outputs:
            continue
        attributes = sqs.get_queue_attributes(QueueUrl=outputs[output], AttributeNames=["ApproximateNumberOfMessages"])["Attributes"]
        number = int(attributes["ApproximateNumberOfMessages"])
        yield check(output.removesuffix("Url"), number == 0, f"{number} messages", step, otherwise="warn")


def _types() -> Sequence[str]:
    return [name.strip() for name in wiring.settings().instance_types.split(",") if name.strip()]
