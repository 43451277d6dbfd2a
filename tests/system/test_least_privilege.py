"""The end-to-end path under the roles of template.yaml, each process held to its own, and what happens without one action.

The embedded AWS enforces policies for everything but EC2 (its emulator knows none): EC2's actions are evaluated by IAM's
policy simulator instead of by doing them.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import boto3
import numpy as np
import pytest

from cli.console import Problem
from cli.measuring import measure_on
from local.allowed_actions import allowed_actions, table_of
from local.connection import connect
from local.deployer import REPOSITORY, load_template
from local.system import LocalSystem, SystemConfig
from markserve import wiring
from markserve.core.types import Instance, InstanceState
from markserve.errors import StaleWrite
from tests.system.live import CLIENTS, Reply, call, eventually, expected_logits, infer, infer_all, serving

pytestmark = pytest.mark.system

TEMPLATE = load_template(REPOSITORY / "template.yaml")
ALLOWED = allowed_actions(TEMPLATE)
ALLOWED.pop("AuthorizerRole")  # there only with ApiAuth=api-key


@pytest.fixture(scope="module")
def enforced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalSystem]:
    config = SystemConfig(
        work_dir=tmp_path_factory.mktemp("enforced"),
        rt_max_s=2.5,
        max_instances=4,
        cycle_s=3.0,
        window_s=1.5,
        launch_delay_s=0.5,
        warm_api_environments=CLIENTS,
        parameters={"min-instances": "1", "spot-max-share": "0", "scale-in-cycles": "60"},
        enforce_iam=True,
    )
    environment = dict(os.environ)
    try:
        with LocalSystem(config=config, note=print) as system:
            yield system
    finally:
        os.environ.clear()
        os.environ.update(environment)


@pytest.fixture
def system(enforced: LocalSystem, _fake_environment: None) -> LocalSystem:
    connect(enforced.deployment.settings_env())
    return enforced


def without(iam: Any, role: str, action: str) -> dict[str, Any]:
    """Take one action out of a role's inline policies; return what they were."""
    before = {name: iam.get_role_policy(RoleName=role, PolicyName=name)["PolicyDocument"] for name in policies(iam, role)}
    for name, document in before.items():
        reduced = []
        for statement in document["Statement"]:
            actions = statement["Action"] if isinstance(statement["Action"], list) else [statement["Action"]]
            left = [one for one in actions if one != action]
            if left:
                reduced.append({**statement, "Action": left})
        iam.put_role_policy(RoleName=role, PolicyName=name, PolicyDocument=json.dumps({**document, "Statement": reduced}))
    return before


def policies(iam: Any, role: str) -> list[str]:
    names: list[str] = iam.list_role_policies(RoleName=role)["PolicyNames"]
    return names


def restore(iam: Any, role: str, before: dict[str, Any]) -> None:
    for name, document in before.items():
        iam.put_role_policy(RoleName=role, PolicyName=name, PolicyDocument=json.dumps(document))


def test_requests_are_served_by_worker_and_lambda_and_the_cycle_turns_under_least_privilege(system: LocalSystem) -> None:
    eventually("a worker serves", serving, within_s=120.0)
    image = system.model.images[:1]

    by_worker = eventually("a worker answers", lambda: (r := infer(system, image)).status == 200 and r.tier == "worker" and r)
    np.testing.assert_allclose(by_worker.logits(), expected_logits(system, image), rtol=1e-4, atol=1e-5)
    eventually("a batch is answered", lambda: max(_batch_size(reply) for reply in infer_all(system, [image] * 8)) > 1)
    infer_all(system, [image] * 20)  # an environment reports an outcome with its next request
    eventually("outcomes are ingested", lambda: infer(system, image) and wiring.windows().outcomes("digits", since_s=0.0, until_s=4e9))
    eventually("a forecast is stored", lambda: wiring.control().latest_forecast("digits"))
    eventually("a plan is stored", wiring.control().latest_plan)
    trained = boto3.client("lambda").invoke(FunctionName=system.deployment.outputs["ForecastFunctionName"], Payload=b'{"action": "train"}')
    assert "FunctionError" not in trained, trained["Payload"].read()
    states = boto3.client("stepfunctions")
    machine = system.deployment.outputs["ControlStateMachineArn"]
    eventually("a cycle succeeds", lambda: states.list_executions(stateMachineArn=machine, statusFilter="SUCCEEDED")["executions"])

    def answer_without_workers() -> Reply:
        _drain_all()
        return infer(system, image)

    by_lambda = eventually("Lambda answers", lambda: (r := answer_without_workers()).status == 200 and r.tier == "lambda" and r)
    np.testing.assert_allclose(by_lambda.logits(), expected_logits(system, image), rtol=1e-4, atol=1e-5)


def _batch_size(reply: Reply) -> int:
    return int(reply.headers.get("x-markserve-batch-size") or 0)


def _drain_all() -> None:
    """Drain what serves by now: the control cycle replaces it within seconds."""
    for instance in serving():
        with suppress(StaleWrite):  # it drains already
            wiring.instances().transition(
                instance.instance_id,
                expected=[InstanceState.SERVING],
                state=InstanceState.DRAINING,
                at_s=instance.requested_at_s + 1,
                reason="test: no worker, so that Lambda has to answer",
            )


def paid_for() -> list[Instance]:
    ended = (InstanceState.TERMINATED, InstanceState.FAILED)
    return [instance for instance in wiring.instances().list() if instance.state not in ended]


@pytest.mark.parametrize(("action", "headers"), [("dynamodb:PutItem", True), ("lambda:InvokeFunction", False)])
def test_removing_one_needed_action_breaks_the_path_and_restoring_it_heals_it(system: LocalSystem, action: str, headers: bool) -> None:
    """Without instances the front has to spill, and an idempotency key has to be recorded."""
    iam, role = boto3.client("iam"), system.deployment.roles["ApiRole"]
    for name, text in (("min-instances", "0"), ("launches-enabled", "false"), ("max-instances", "0")):
        wiring.parameter_writer().put(name, text)

    def status() -> int:
        keys = {"Idempotency-Key": str(uuid.uuid4())} if headers else {}
        return infer(system, system.model.images[:1], keys).status

    eventually("no instance is left, since none is allowed", lambda: not paid_for())
    eventually("the path is whole", lambda: status() == 200)
    before = without(iam, role, action)
    try:
        eventually("the path is broken", lambda: status() >= 500)
    finally:
        restore(iam, role, before)
    eventually("the path is whole again", lambda: status() == 200)


def test_a_cycle_fails_without_one_action_of_the_plan_function_and_succeeds_with_it(system: LocalSystem) -> None:
    iam, role = boto3.client("iam"), system.deployment.roles["PlanRole"]

    def cycle() -> str:
        arn = system.ticker.trigger("manual")
        states = boto3.client("stepfunctions")
        eventually("the cycle ends", lambda: states.describe_execution(executionArn=arn)["status"] != "RUNNING")
        return states.describe_execution(executionArn=arn)["status"]

    assert cycle() == "SUCCEEDED"
    before = without(iam, role, "dynamodb:PutItem")
    try:
        assert cycle() == "FAILED"
    finally:
        restore(iam, role, before)
    assert cycle() == "SUCCEEDED"


def test_console_reads_everything_and_sets_parameters_under_its_own_role(system: LocalSystem) -> None:
    for view in ("overview", "decisions", "parameters"):
        assert call(f"{system.deployment.api_url}/v2/console/{view}").status == 200
    changed = call(f"{system.deployment.api_url}/v2/console/parameters/headroom", b'{"value": "1.1"}', method="PUT")

    assert (changed.status, changed.body["new"]) == (200, 1.1)
    assert call(f"{system.deployment.api_url}/v2/console/parameters/headroom", b'{"value": "1"}', method="PUT").body["old"] == 1.1


def test_no_process_may_do_what_only_others_do(system: LocalSystem) -> None:
    """Ask IAM's simulator for every action that any process has, on each resource the owner has it on."""
    iam = boto3.client("iam")
    everything = {pair for pairs in table_of(ALLOWED).values() for pair in pairs}
    wrong = []
    for logical_id, own in table_of(ALLOWED).items():
        arn = f"arn:aws:iam::000000000000:role/{system.deployment.roles[logical_id]}"
        for action in sorted({action for action, _ in everything} - {action for action, _ in own}):
            (result,) = iam.simulate_principal_policy(PolicySourceArn=arn, ActionNames=[action], ResourceArns=["*"])["EvaluationResults"]
            if result["EvalDecision"] == "allowed":
                wrong.append((logical_id, action))
    assert wrong == []


def test_a_process_that_uses_anothers_call_is_refused(system: LocalSystem) -> None:
    """Not simulated: the worker's credentials, used for what only the api, plan and lifecycle functions may do."""
    from local.roles import role_environment

    arn = f"arn:aws:iam::000000000000:role/{system.deployment.roles['WorkerRole']}"
    variables = role_environment(boto3.client("sts"), arn)
    session = boto3.Session(
        aws_access_key_id=variables["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=variables["AWS_SECRET_ACCESS_KEY"],
        aws_session_token=variables["AWS_SESSION_TOKEN"],
        region_name="us-east-1",
    )
    outputs = system.deployment.outputs
    attempts = {
        "reads plans": lambda: session.client("dynamodb").query(
            TableName=outputs["ControlTable"],
            KeyConditionExpression="pk = :p",
            ExpressionAttributeValues={":p": {"S": "plan"}},
        ),
        "writes models": lambda: session.client("dynamodb").put_item(
            TableName=outputs["ModelsTable"], Item={"pk": {"S": "x"}, "sk": {"S": "x"}}
        ),
        "invokes Lambda": lambda: session.client("lambda").invoke(FunctionName=outputs["SpilloverFunctionName"], Payload=b"{}"),
        "changes parameters": lambda: session.client("ssm").put_parameter(
            Name="/markserve/headroom", Value="2", Type="String", Overwrite=True
        ),
        "starts cycles": lambda: session.client("stepfunctions").start_execution(stateMachineArn=outputs["ControlStateMachineArn"]),
    }
    from botocore.exceptions import ClientError

    for what, attempt in attempts.items():
        with pytest.raises(ClientError) as refused:
            attempt()
        assert "AccessDenied" in refused.value.response["Error"]["Code"], what


@pytest.mark.long
def test_a_model_is_measured_on_an_instance_of_its_own_which_is_given_back(system: LocalSystem) -> None:
    before = wiring.models().get("digits").profiles["c5.xlarge"]

    for name, text in (("launches-enabled", "true"), ("max-instances", "4")):
        wiring.parameter_writer().put(name, text)  # others have turned launches off; the function may not know yet

    def measured_all() -> bool:
        try:
            return measure_on("digits", ["c5.xlarge"]) == []
        except Problem:
            return False

    eventually("launches are allowed, and it is measured", measured_all, within_s=150.0)

    measured = wiring.models().get("digits").profiles["c5.xlarge"]
    assert measured != before
    assert [point.batch_size for point in measured] == [1, 2, 4, 8, 16, 32]
    mine = [seen for seen in wiring.fleet().describe() if seen.purpose]
    assert mine
    assert all(seen.cloud_state in ("shutting-down", "terminated") for seen in mine)
