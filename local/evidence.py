"""Collects what a run left behind: the system's own records, and AWS's own counts."""

from __future__ import annotations

import re
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from local.bill import FunctionUsage
from local.embedded_server import USAGE_PATH, Usage
from local.load import RequestRecord
from local.report import Evidence
from local.system import LocalSystem
from markserve import wiring
from markserve.core.types import Slo

if TYPE_CHECKING:
    from mypy_boto3_lambda import LambdaClient
    from mypy_boto3_logs import CloudWatchLogsClient
    from mypy_boto3_stepfunctions import SFNClient

BILLED = re.compile(r"^REPORT .*Billed Duration: (\d+) ms")


@dataclass(frozen=True, kw_only=True)
class Meters:
    """Everything metered up to one moment; the difference of two is a run."""

    units: Mapping[str, float]
    functions: Mapping[str, FunctionUsage]
    executions: frozenset[str]


def read_meters(system: LocalSystem) -> Meters:
    """Read what the embedded AWS has metered since it started."""
    with urllib.request.urlopen(f"{system.aws.endpoint_url}{USAGE_PATH}", timeout=10) as response:  # noqa: S310  # our own loopback URL
        usage = msgspec.json.decode(response.read(), type=Usage)
    return Meters(
        units=usage.units,
        functions=function_usage(system.client("lambda"), system.client("logs"), prefix=f"{system.config.stack_name}-"),
        executions=frozenset(executions(system.client("stepfunctions"), system.ticker.state_machine_arn)),
    )


def function_usage(lambda_: LambdaClient, logs: CloudWatchLogsClient, *, prefix: str) -> dict[str, FunctionUsage]:
    """Invocations and billed time of each function, from the REPORT line that Lambda writes after each invocation.

    Not from Lambda's metrics: the embedded AWS keeps those for direct invocations only.
    """
    usage: dict[str, FunctionUsage] = {}
    for page in lambda_.get_paginator("list_functions").paginate():
        for function in page["Functions"]:
            name = function["FunctionName"]
            if name.startswith(prefix):
                billed_ms = billed_durations_ms(logs, f"/aws/lambda/{name}")
                duration_s = sum(billed_ms) / 1000
                usage[name] = FunctionUsage(
                    function=name, memory_mb=function["MemorySize"], invocations=len(billed_ms), duration_s=duration_s
                )
    return usage


def billed_durations_ms(logs: CloudWatchLogsClient, log_group: str) -> list[int]:
    """Billed duration of each invocation that a log group tells of."""
    pages = logs.get_paginator("filter_log_events").paginate(logGroupName=log_group, filterPattern="REPORT")
    lines = (event["message"] for page in pages for event in page["events"])
    return [int(match[1]) for line in lines if (match := BILLED.search(line))]


def executions(states: SFNClient, state_machine_arn: str) -> list[str]:
    """List executions of the control cycle, whoever started them."""
    pages = states.get_paginator("list_executions").paginate(stateMachineArn=state_machine_arn)
    return [execution["executionArn"] for page in pages for execution in page["executions"]]


def state_transitions(states: SFNClient, execution_arns: Sequence[str]) -> int:
    """States entered, which is what Step Functions bills."""
    entered = 0
    for arn in execution_arns:
        for page in states.get_paginator("get_execution_history").paginate(executionArn=arn):
            entered += sum(event["type"].endswith("StateEntered") for event in page["events"])
    return entered


def gather(
    system: LocalSystem,
    *,
    slo: Slo,
    seed: int,
    started_at_s: float,
    ended_at_s: float,
    records: Sequence[RequestRecord],
    before: Meters,
    interrupted: Mapping[str, float],
) -> Evidence:
    """Collect everything about the load from `started_at_s` to `ended_at_s`."""
    after = read_meters(system)
    new_executions = sorted(after.executions - before.executions)
    control, model = wiring.control(), system.record.model
    since_s, until_s = started_at_s - system.config.cycle_s, ended_at_s
    return Evidence(
        slo=slo,
        seed=seed,
        started_at_s=started_at_s,
        ended_at_s=ended_at_s,
        records=records,
        instances=wiring.instances().list(),
        interrupted=interrupted,
        forecasts=control.forecasts(model, since_s=since_s, until_s=until_s),
        plans=control.plans(since_s=since_s, until_s=until_s),
        decisions=control.decisions(since_s=since_s, until_s=until_s),
        functions=[_since(usage, before.functions.get(name)) for name, usage in after.functions.items()],
        spillover_function=system.deployment.outputs["SpilloverFunctionName"],
        units={kind: units - before.units.get(kind, 0.0) for kind, units in after.units.items()},
        state_transitions=state_transitions(system.client("stepfunctions"), new_executions),
    )


def _since(usage: FunctionUsage, before: FunctionUsage | None) -> FunctionUsage:
    if before is None:
        return usage
    return msgspec.structs.replace(
        usage, invocations=usage.invocations - before.invocations, duration_s=usage.duration_s - before.duration_s
    )
