"""The control path's handlers as Lambda calls them: wired by their environment, on AWS as moto emulates it, with recorded events."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from aws_lambda_powertools.utilities.typing import LambdaContext
from moto import mock_aws

from functions.ingest import app as ingest
from functions.lifecycle import app as lifecycle
from functions.plan import app as plan
from local.system import CONTROL_WARM_UP
from markserve import wiring
from markserve.core.types import InstanceState
from markserve.errors import StaleWrite
from markserve.telemetry import CAPACITY, DEMAND
from tests.builders import MODEL, a_model_record, a_plan_record, an_instance
from tests.contract.conftest import create_table

EVENTS = Path(__file__).parents[2] / "events"
RECORDED_ID = "i-0a1b2c3d4e5f60718"
IMAGE_ID = "ami-12c6146b"
"""One of those that moto knows; asking it for its list takes a second."""
TABLES = ("models", "windows", "control", "instances")


class Context(LambdaContext):
    """What Powertools reads of a Lambda context."""

    def __init__(self) -> None:
        self._function_name = "markserve-test"
        self._memory_limit_in_mb = 256
        self._invoked_function_arn = "arn:aws:lambda:us-east-1:123456789012:function:markserve-test"
        self._aws_request_id = "4f1f0c3a-0000-4000-8000-000000000001"


@pytest.fixture(autouse=True)
def _stack(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An empty stack with launches allowed, and nothing kept from another process."""
    forget()
    with mock_aws():
        ec2, sqs, dynamodb = boto3.client("ec2"), boto3.client("sqs"), boto3.client("dynamodb")
        template = ec2.create_launch_template(LaunchTemplateName="workers", LaunchTemplateData={"ImageId": IMAGE_ID})["LaunchTemplate"]
        settings = {
            "STACK_NAME": "markserve",
            **{f"{name.upper()}_TABLE": create_table(dynamodb, f"markserve-{name}") for name in TABLES},
            "METRICS_QUEUE_URL": sqs.create_queue(QueueName="markserve-metrics")["QueueUrl"],
            "EVENT_BUS_NAME": boto3.client("events").create_event_bus(Name="markserve-bus") and "markserve-bus",
            "SPILLOVER_FUNCTION": "markserve-spillover",
            "LAUNCH_TEMPLATE_ID": template["LaunchTemplateId"],
            "SUBNET_IDS": ",".join(subnet["SubnetId"] for subnet in ec2.describe_subnets()["Subnets"]),
            "INSTANCE_TYPES": "c5.large",
        }
        for name, value in settings.items():
            monkeypatch.setenv(f"MARKSERVE_{name}", value)
        for name, value in {"launches-enabled": "true", "min-instances": "1", "max-instances": "10"}.items():
            boto3.client("ssm").put_parameter(Name=f"/markserve/{name}", Value=value, Type="String")
        yield
    forget()


def forget() -> None:
    for member in vars(wiring).values():
        if hasattr(member, "cache_clear"):
            member.cache_clear()


def event(name: str) -> Any:
    return json.loads((EVENTS / f"{name}.json").read_text())


def states() -> dict[str, InstanceState]:
    return {instance.instance_id: instance.state for instance in wiring.instances().list()}


def test_planned_launch_becomes_an_instance() -> None:
    wiring.models().put(a_model_record())

    planned = plan.handler(event("plan_request"), Context())
    (launch,) = [action for action in planned["actions"] if action["action"] == "launch_instances"]

    assert wiring.control().latest_plan().plan_id == planned["plan_id"]  # type: ignore[union-attr]
    assert lifecycle.handler(launch, Context())["outcome"] == "instances_launched"
    assert set(states().values()) == {InstanceState.REQUESTED}
    assert [seen.instance_id for seen in wiring.fleet().describe()] == list(states())


def test_plan_publishes_demand_and_capacity_of_each_model(capsys: pytest.CaptureFixture[str]) -> None:
    wiring.models().put(a_model_record())

    plan.handler(event("plan_request"), Context())

    logged = [json.loads(line) for line in capsys.readouterr().out.splitlines() if '"_aws"' in line]
    assert {name for line in logged if line.get("model") == MODEL for name in (DEMAND, CAPACITY) if name in line} == {DEMAND, CAPACITY}


def test_events_that_warm_the_local_functions_change_nothing() -> None:
    wiring.instances().put(an_instance(instance_id=RECORDED_ID))

    ingest.handler(CONTROL_WARM_UP["IngestFunctionName"][0], Context())
    ignored = lifecycle.handler(CONTROL_WARM_UP["LifecycleFunctionName"][0], Context())

    assert ignored["outcome"] == "event_ignored"
    assert states() == {RECORDED_ID: InstanceState.SERVING}
    assert list(wiring.control().decisions(since_s=0.0, until_s=4e9)) == []


@pytest.fixture
def overtaken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have another plan stored between reading the latest and storing the next, once."""
    read = type(wiring.control()).latest_plan
    others = [a_plan_record(version=1)]

    def read_and_be_overtaken(store: Any) -> Any:
        seen = read(store)
        while others:
            store.put_plan(others.pop())
        return seen

    monkeypatch.setattr(type(wiring.control()), "latest_plan", read_and_be_overtaken)


@pytest.mark.usefixtures("overtaken")
def test_overtaken_plan_of_the_clock_leaves_it_at_the_other() -> None:
    assert plan.handler({"trigger": "schedule"}, Context()) == {"plan_id": None, "actions": []}


@pytest.mark.usefixtures("overtaken")
@pytest.mark.parametrize("trigger", ["interruption", "slo_at_risk", "manual"])
def test_overtaken_plan_that_was_asked_for_fails_and_is_made_when_it_is_tried_again(trigger: str) -> None:
    with pytest.raises(StaleWrite):
        plan.handler({"trigger": trigger}, Context())

    plan.handler({"trigger": trigger}, Context())
    latest = wiring.control().latest_plan()
    assert latest is not None
    assert (latest.version, latest.trigger) == (2, trigger)


@pytest.mark.parametrize(
    ("name", "outcome", "state"),
    [
        ("lifecycle_drain", "instance_draining", InstanceState.DRAINING),
        ("lifecycle_instance_ready", "instance_serving", InstanceState.SERVING),
        ("lifecycle_instance_drained", "instance_terminated", InstanceState.TERMINATED),
        ("lifecycle_rebalance", "rebalance_recommended", InstanceState.SERVING),
        ("lifecycle_spot_interruption", "instance_interrupted", InstanceState.DRAINING),
    ],
)
def test_recorded_event_moves_the_instance_it_is_about(name: str, outcome: str, state: InstanceState) -> None:
    wiring.instances().put(an_instance(instance_id=RECORDED_ID))

    assert lifecycle.handler(event(name), Context())["outcome"] == outcome
    assert states() == {RECORDED_ID: state}


def test_recorded_launch_buys_what_it_says() -> None:
    launched = lifecycle.handler(event("lifecycle_launch"), Context())

    assert launched["outcome"] == "instances_launched", launched
    assert len(states()) == launched["count"] == event("lifecycle_launch")["count"]


def test_recorded_state_change_of_an_unknown_instance_is_ignored() -> None:
    assert lifecycle.handler(event("lifecycle_state_change"), Context())["outcome"] == "event_ignored"
