"""The repository's own template, deployed to the embedded AWS, with probes in place of the functions' code.

Each of ministack's known limits that the template or the deployer works around has a test here, so that an upgrade
shows what changed.
"""

from __future__ import annotations

import base64
import json
import shutil
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import psutil
import pytest

from local.deployer import REPOSITORY, Deployment, DeploymentError, deploy, user_data_environment
from local.embedded_aws import ACCOUNT_ID, REGION, EmbeddedAws, EmbeddedAwsError, await_health, free_port, start_embedded_aws
from local.emulator_gaps import Clients
from local.image_host import RunningImageHost, start_image_host
from local.packaging import function_zip, layer_zip, worker_bundle
from local.processes import ProcessLedger
from markserve.settings import Settings

pytestmark = pytest.mark.system

STACK = "probe"
EVENTS = Path(__file__).resolve().parents[2] / "events"
# Every probe leaves a trace of what reached it in the artefacts bucket.
TRACE = """
import json, os, sys, boto3
def trace(name, value):
    boto3.client("s3").put_object(Bucket=os.environ["MARKSERVE_ARTEFACTS_BUCKET"], Key=f"trace/{name}", Body=json.dumps(value))
"""
PROBES = {
    "api": TRACE
    + """
import base64, markserve
def handler(event, context):
    print("invoked", file=sys.stderr)
    body = event.get("body", "")
    raw = base64.b64decode(body) if event["isBase64Encoded"] else body.encode()
    answer = {"path": event["rawPath"], "bytes": len(raw), "package": markserve.__file__, "python": sys.executable, "env": dict(os.environ)}
    return {"statusCode": 200, "body": json.dumps(answer)}
""",
    "ingest": TRACE
    + """
def handler(event, context):
    for record in event["Records"]:
        trace("ingest/" + record["body"] + "/" + record["attributes"]["ApproximateReceiveCount"], 1)
    return {"batchItemFailures": [{"itemIdentifier": r["messageId"]} for r in event["Records"] if r["body"] == "unreadable"]}
""",
    "forecast": "def handler(event, context):\n    assert event['trigger'] == 'schedule', 'probe: no forecast'\n    return {'made': 1}\n",
    "plan": """
def handler(event, context):
    return {"actions": [{"action": action, "from": event["trigger"]} for action in ("launch", "explode", "drain")]}
""",
    "lifecycle": TRACE
    + """
def handler(event, context):
    if "detail-type" in event:
        trace("lifecycle/" + event["detail-type"], event["detail"])
    if event.get("action") == "explode":
        raise RuntimeError("probe: cannot")
    return {"done": event.get("action"), "launch_template": os.environ["MARKSERVE_LAUNCH_TEMPLATE_ID"]}
""",
    "spillover": "def handler(event, context):\n    return {'echo': event}\n",
}


@dataclass(kw_only=True)
class Probe:
    """A deployed probe stack."""

    repository: Path
    aws: EmbeddedAws
    clients: Clients
    deployment: Deployment

    def deploy(self, **parameters: str) -> Deployment:
        self.deployment = deploy(
            clients=self.clients,
            endpoint_url=self.aws.endpoint_url,
            ec2_endpoint_url=self.aws.ec2_endpoint_url,
            stack_name=STACK,
            parameters=parameters,
            repository=self.repository,
        )
        return self.deployment

    def client(self, service: str, *, endpoint_url: str | None = None) -> Any:
        return boto3.client(
            service,  # type: ignore[call-overload]
            endpoint_url=endpoint_url or self.aws.endpoint_url,
            region_name=REGION,
            aws_access_key_id=ACCOUNT_ID,
            aws_secret_access_key="local",
        )

    def call(self, path: str, body: bytes | None = None, content_type: str = "application/json") -> Any:
        headers = {"content-type": content_type}
        request = urllib.request.Request(self.deployment.api_url + path, data=body, headers=headers)  # noqa: S310  # loopback
        with urllib.request.urlopen(request, timeout=30) as response:  # noqa: S310  # loopback
            return json.loads(response.read())

    def traces(self, prefix: str) -> list[str]:
        listed = self.clients.s3.list_objects_v2(Bucket=self.deployment.outputs["ArtefactsBucket"], Prefix=f"trace/{prefix}")
        return [item["Key"].removeprefix(f"trace/{prefix}") for item in listed.get("Contents", [])]

    def run_cycle(self, trigger: str) -> tuple[str, dict[str, Any]]:
        states = self.client("stepfunctions")
        arn = states.start_execution(
            stateMachineArn=self.deployment.outputs["ControlStateMachineArn"], input=json.dumps({"trigger": trigger})
        )["executionArn"]
        until(lambda: states.describe_execution(executionArn=arn)["status"] != "RUNNING")
        ended = states.describe_execution(executionArn=arn)
        return ended["status"], json.loads(ended.get("output", "{}"))


def until(condition: Callable[[], Any]) -> None:
    """Wait for the embedded AWS to get somewhere; the test run's own time limit is the failure."""
    while not condition():
        time.sleep(0.05)


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Probe]:
    repository = tmp_path_factory.mktemp("repository")
    shutil.copy(REPOSITORY / "template.yaml", repository)
    for folder in ("layers", "statemachines", "worker"):
        shutil.copytree(REPOSITORY / folder, repository / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name, source in PROBES.items():
        (repository / "functions" / name).mkdir(parents=True)
        (repository / "functions" / name / "app.py").write_text(source)
    shutil.copytree(REPOSITORY / "functions/console", repository / "functions/console", ignore=shutil.ignore_patterns("__pycache__"))

    work_dir = tmp_path_factory.mktemp("work")
    ledger = ProcessLedger(work_dir / "processes.json")
    aws = start_embedded_aws(ledger=ledger, work_dir=work_dir, image_functions={f"{STACK}-forecast": None, f"{STACK}-spillover": None})
    hosts: list[RunningImageHost] = []
    try:
        clients = Clients.connect(endpoint_url=aws.endpoint_url, ec2_endpoint_url=aws.ec2_endpoint_url)
        deployment = deploy(
            clients=clients,
            endpoint_url=aws.endpoint_url,
            ec2_endpoint_url=aws.ec2_endpoint_url,
            stack_name=STACK,
            repository=repository,
        )
        for function in ("forecast", "spillover"):
            port = aws.image_ports[f"{STACK}-{function}"]
            place = {"work_dir": work_dir, "functions": repository / "functions"}
            hosts += [start_image_host(ledger=ledger, deployment=deployment, function=function, port=port, **place)]
        yield Probe(repository=repository, aws=aws, clients=clients, deployment=deployment)
    finally:
        family = psutil.Process().children(recursive=True)
        for host in hosts:
            host.stop()
        aws.stop()
        _, alive = psutil.wait_procs(family, timeout=10)
    assert alive == [], "processes outlived the embedded AWS"


# --- requests ---------------------------------------------------------------------------------------------------------


def test_request_reaches_the_api_function_with_the_packaged_layer_its_settings_and_both_endpoints(probe: Probe) -> None:
    seen = probe.call("/v2/health/live")

    assert seen["path"] == "/v2/health/live"
    assert "layer_0/python/markserve/__init__.py" in seen["package"]
    assert seen["python"] == sys.executable
    assert seen["env"]["MARKSERVE_RESULTS_TABLE"] == f"{STACK}-results"
    assert seen["env"]["MARKSERVE_SUBNET_IDS"] == ",".join(probe.deployment.subnet_ids)
    assert (seen["env"]["AWS_ENDPOINT_URL"], seen["env"]["AWS_ENDPOINT_URL_EC2"]) == (probe.aws.endpoint_url, probe.aws.ec2_endpoint_url)


def test_binary_body_arrives_whole(probe: Probe) -> None:
    body = bytes(range(256)) * 4096

    assert probe.call("/v2/models/m/infer", body, "application/octet-stream")["bytes"] == len(body)


def test_public_clients_take_the_apis_path_as_their_base_url(probe: Probe) -> None:
    from tritonclient.http import InferenceServerClient

    runtime = probe.client("sagemaker-runtime", endpoint_url=probe.deployment.api_url)
    invoked = runtime.invoke_endpoint(EndpointName="digits", Body=b"{}", ContentType="application/json")
    client = InferenceServerClient(probe.deployment.api_url.removeprefix("http://"))

    assert json.loads(invoked["Body"].read())["path"] == "/endpoints/digits/invocations"
    assert client.is_server_live()
    client.close()


def test_console_has_routes_of_its_own_and_its_function_answers_page_files_and_data(probe: Probe) -> None:
    def fetch(path: str) -> tuple[str, bytes]:
        with urllib.request.urlopen(probe.deployment.api_url + path, timeout=30) as response:  # noqa: S310  # loopback
            return response.headers["content-type"], response.read()

    kind, page = fetch("/console")
    assert (kind, b'<script type="module" src="console/app.js">' in page) == ("text/html; charset=utf-8", True)
    assert fetch("/console/app.js")[0] == "text/javascript; charset=utf-8"
    assert fetch("/console/icon.svg")[1].startswith(b"<svg")
    overview = json.loads(fetch("/v2/console/overview?minutes=5")[1])
    assert (overview["stack"], overview["models"]) == (STACK, [])
    names = {parameter["name"] for parameter in json.loads(fetch("/v2/console/parameters")[1])["parameters"]}
    assert {"rt-max-s", "max-instances"} <= names

    body = json.dumps({"value": "1.5"}).encode()
    url = f"{probe.deployment.api_url}/v2/console/parameters/headroom"
    request = urllib.request.Request(url, data=body, method="PUT", headers={"content-type": "application/json"})  # noqa: S310  # loopback
    with urllib.request.urlopen(request, timeout=30) as response:  # noqa: S310  # loopback
        assert json.loads(response.read())["new"] == 1.5
    assert probe.clients.ssm.get_parameter(Name=f"/{STACK}/headroom")["Parameter"]["Value"] == "1.5"
    log = json.loads(fetch("/v2/console/decisions?minutes=5")[1])["decisions"]
    assert any((line["event"], line["detail"].get("new")) == ("parameter_set", 1.5) for line in log)


def test_image_function_runs_in_its_host(probe: Probe) -> None:
    answer = probe.clients.lambda_.invoke(FunctionName=f"{STACK}-spillover", Payload=b'{"n": 1}')

    assert json.loads(answer["Payload"].read()) == {"echo": {"n": 1}}


# --- control path -----------------------------------------------------------------------------------------------------


def test_control_cycle_applies_every_action_though_one_fails(probe: Probe) -> None:
    status, output = probe.run_cycle(json.loads((EVENTS / "control_cycle_input.json").read_text())["trigger"])

    assert status == "SUCCEEDED"
    assert output["forecast"] == {"output": {"made": 1}}
    assert [done.get("done", "failed") for done in output["applied"]] == ["launch", "failed", "drain"]
    assert "probe: cannot" in output["applied"][1]["failure"]["Cause"]


def test_control_cycle_plans_though_the_forecast_fails(probe: Probe) -> None:
    status, output = probe.run_cycle("manual")

    assert status == "SUCCEEDED"
    assert "probe: no forecast" in output["forecast_failure"]["Cause"]
    assert len(output["applied"]) == 3


def test_control_cycle_of_an_event_skips_the_forecast(probe: Probe) -> None:
    _, output = probe.run_cycle("slo_at_risk")

    assert "forecast" not in output
    assert output["plan"]["actions"][0]["from"] == "slo_at_risk"


def test_events_on_the_stacks_bus_reach_the_lifecycle_function_and_the_control_cycle(probe: Probe) -> None:
    states = probe.client("stepfunctions")
    arn = probe.deployment.outputs["ControlStateMachineArn"]
    names = ("InstanceReady", "InstanceDrained", "SloAtRisk", "InstanceInterrupted")
    probe.client("events").put_events(
        Entries=[
            {
                "Source": "markserve",
                "DetailType": name,
                "Detail": json.dumps(
                    json.loads((EVENTS / "slo_at_risk.json").read_text())["detail"] if name == "SloAtRisk" else {"model": name}
                ),
                "EventBusName": f"{STACK}-bus",
            }
            for name in names
        ]
    )

    def started() -> set[str]:
        executions = states.list_executions(stateMachineArn=arn)["executions"]
        inputs = [states.describe_execution(executionArn=execution["executionArn"])["input"] for execution in executions]
        return {json.loads(text)["trigger"] for text in inputs}

    until(lambda: {"slo_at_risk", "interruption"} <= started())
    until(lambda: {"InstanceReady", "InstanceDrained"} <= set(probe.traces("lifecycle/")))


def test_failed_record_of_a_batch_stays_in_the_queue_and_the_others_leave_it(probe: Probe) -> None:
    url = probe.deployment.outputs["MetricsQueueUrl"]
    queue = probe.client("sqs")
    for body in ("first", "unreadable", "last"):
        queue.send_message(QueueUrl=url, MessageBody=body)

    def left() -> tuple[str, str]:
        names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
        attributes = queue.get_queue_attributes(QueueUrl=url, AttributeNames=names)["Attributes"]
        return attributes[names[0]], attributes[names[1]]

    until(lambda: set(probe.traces("ingest/")) == {"first/1", "last/1", "unreadable/1"} and left() == ("0", "1"))


# --- what the emulators lack ------------------------------------------------------------------------------------------


def test_tables_expire_items(probe: Probe) -> None:
    for table in ("models", "windows", "control", "instances", "results"):
        described = probe.clients.dynamodb.describe_time_to_live(TableName=f"{STACK}-{table}")["TimeToLiveDescription"]

        assert described == {"TimeToLiveStatus": "ENABLED", "AttributeName": "expires_at_s"}


def test_instance_launched_from_the_stacks_template_exists_in_the_ec2_emulator(probe: Probe) -> None:
    outputs, subnets = probe.deployment.outputs, probe.deployment.subnet_ids
    template_id = probe.clients.lambda_.get_function_configuration(FunctionName=f"{STACK}-lifecycle")["Environment"]["Variables"][
        "MARKSERVE_LAUNCH_TEMPLATE_ID"
    ]
    launched = probe.clients.ec2.create_fleet(
        Type="instant",
        LaunchTemplateConfigs=[
            {
                "LaunchTemplateSpecification": {"LaunchTemplateId": template_id, "Version": "$Latest"},
                "Overrides": [{"InstanceType": "c5.large", "SubnetId": subnets[0]}],
            }
        ],
        TargetCapacitySpecification={"TotalTargetCapacity": 1, "DefaultTargetCapacityType": "spot"},
        TagSpecifications=[{"ResourceType": "instance", "Tags": [{"Key": "markserve:model", "Value": "digits"}]}],
    )
    instance_id = launched["Instances"][0]["InstanceIds"][0]
    instance = probe.clients.ec2.describe_instances(InstanceIds=[instance_id])["Reservations"][0]["Instances"][0]

    assert template_id == outputs["LaunchTemplateId"]
    assert (instance["State"]["Name"], instance["InstanceLifecycle"], instance["SubnetId"]) == ("running", "spot", subnets[0])
    assert {"Key": "markserve:model", "Value": "digits"} in instance["Tags"]


def test_roles_may_read_parameters_as_ministack_checks_it_when_it_enforces_roles(probe: Probe) -> None:
    policies = probe.clients.iam.list_policies(Scope="Local")["Policies"]
    policy = next(policy for policy in policies if "ReadParametersPolicy" in policy["PolicyName"])
    version = probe.clients.iam.get_policy_version(PolicyArn=policy["Arn"], VersionId=policy["DefaultVersionId"])["PolicyVersion"]
    document: Any = version["Document"]

    assert document["Statement"] == [{"Effect": "Allow", "Action": "ssm:GetParametersByPath", "Resource": "*"}]


def test_workers_may_send_batches_as_ministack_checks_it_when_it_enforces_roles(probe: Probe) -> None:
    role = probe.deployment.roles["WorkerRole"]
    document: Any = probe.clients.iam.get_role_policy(RoleName=role, PolicyName="worker")["PolicyDocument"]
    allowed = {action for statement in document["Statement"] if isinstance(statement["Action"], list) for action in statement["Action"]}

    assert {"sqs:DeleteMessage", "sqs:DeleteMessageBatch", "sqs:ChangeMessageVisibilityBatch"} <= allowed
    assert {"dynamodb:PartiQLInsert", "dynamodb:PartiQLUpdate"} <= allowed
    assert document["Statement"].count({"Effect": "Allow", "Action": "dynamodb:BatchExecuteStatement", "Resource": "*"}) == 1


def test_settings_of_the_functions_are_handed_on(probe: Probe) -> None:
    settings = Settings.from_env(probe.deployment.settings_env())

    assert (settings.stack_name, settings.models_table) == (STACK, f"{STACK}-models")
    assert settings.launch_template_id == probe.deployment.outputs["LaunchTemplateId"]
    assert settings.control_state_machine_arn == probe.deployment.outputs["ControlStateMachineArn"]
    assert settings.spillover_function == probe.deployment.outputs["SpilloverFunctionName"]


def test_worker_environment_is_what_user_data_writes(probe: Probe) -> None:
    environment = probe.deployment.worker_env()

    assert environment["MARKSERVE_ARTEFACTS_BUCKET"] == probe.deployment.outputs["ArtefactsBucket"]
    assert environment["MARKSERVE_DEAD_LETTER_QUEUE_URL"] == probe.deployment.outputs["DeadLetterQueueUrl"]
    assert environment["MARKSERVE_RECEIVE_WAIT_S"] == "5"
    assert environment["AWS_ENDPOINT_URL"] == probe.aws.endpoint_url


def test_service_events_are_refused_unless_they_come_from_the_local_fleet(probe: Probe) -> None:
    entry = {"Source": "aws.ec2", "DetailType": "EC2 Instance Rebalance Recommendation", "Detail": json.dumps({"instance-id": "i-1"})}

    assert probe.client("events").put_events(Entries=[entry])["FailedEntryCount"] == 1


# --- deploying again --------------------------------------------------------------------------------------------------


def test_deploying_unchanged_sources_changes_no_function(probe: Probe) -> None:
    names = [f"{STACK}-{folder}" for folder in PROBES]
    before = [probe.clients.lambda_.get_function_configuration(FunctionName=name)["LastModified"] for name in names]

    probe.deploy()

    assert [probe.clients.lambda_.get_function_configuration(FunctionName=name)["LastModified"] for name in names] == before


def test_deploying_a_changed_source_and_parameter_takes_effect(probe: Probe) -> None:
    source = probe.repository / "functions/api/app.py"
    original = source.read_text()
    source.write_text(original.replace('"path": event["rawPath"]', '"path": "changed"'))

    probe.deploy(WindowS="1", SpilloverReservedConcurrency="3")
    seen = probe.call("/v2")
    reserved = probe.clients.lambda_.get_function_concurrency(FunctionName=f"{STACK}-spillover")["ReservedConcurrentExecutions"]
    source.write_text(original)

    assert (seen["path"], seen["env"]["MARKSERVE_WINDOW_S"], reserved) == ("changed", "1", 3)


def test_unsigned_request_is_refused_when_the_api_wants_iam(probe: Probe) -> None:
    probe.deploy(ApiAuth="iam")
    with pytest.raises(urllib.error.HTTPError) as refused:
        probe.call("/v2")
    refused.value.close()
    with pytest.raises(urllib.error.HTTPError) as data_refused:
        probe.call("/v2/console/overview")
    data_refused.value.close()
    assert data_refused.value.code == 403
    with urllib.request.urlopen(probe.deployment.api_url + "/console", timeout=30) as page:  # noqa: S310  # loopback
        assert page.status == 200
    probe.deploy()

    assert refused.value.code == 403


def test_refused_parameter_is_named(probe: Probe) -> None:
    with pytest.raises(DeploymentError, match="RtMaxS"):
        probe.deploy(RtMaxS="31")


# --- archives and starting --------------------------------------------------------------------------------------------


def test_archives_depend_on_contents_alone(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(REPOSITORY / "layers", copy / "layers", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(REPOSITORY / "worker", copy / "worker", ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "worker" / "__pycache__").mkdir()
    (copy / "worker" / "__pycache__" / "main.cpython-311.pyc").write_bytes(b"stale")

    assert layer_zip(copy / "layers/markserve") == layer_zip(REPOSITORY / "layers/markserve")
    assert worker_bundle(copy) == worker_bundle(REPOSITORY)
    assert function_zip(copy / "worker") == function_zip(REPOSITORY / "worker")


def test_user_data_environment_ignores_commands() -> None:
    assert user_data_environment("set -e\nA_B=1\n  C=2\necho D=3\nE=x=y\n") == {"A_B": "1", "E": "x=y"}


def test_user_data_of_the_template_is_a_script_that_cloud_init_runs(probe: Probe) -> None:
    templates = probe.clients.ec2.describe_launch_template_versions(LaunchTemplateId=probe.deployment.outputs["LaunchTemplateId"])
    data = templates["LaunchTemplateVersions"][-1]["LaunchTemplateData"]["UserData"]

    assert base64.b64decode(data).decode().startswith("#!/bin/bash\n")


def test_port_that_is_taken_is_named(tmp_path: Path, probe: Probe) -> None:
    taken = int(probe.aws.endpoint_url.rsplit(":", 1)[1])

    with pytest.raises(EmbeddedAwsError, match=f"port {taken} is already in use"):
        start_embedded_aws(ledger=ProcessLedger(tmp_path / "processes.json"), work_dir=tmp_path, port=taken)


def test_service_that_ends_while_starting_is_named_with_what_it_logged(tmp_path: Path) -> None:
    log_path = tmp_path / "service.log"
    command = [sys.executable, "-c", "raise SystemExit('no such table')"]
    process = ProcessLedger(tmp_path / "processes.json").spawn("service", command, env={}, log_path=log_path)

    with pytest.raises(EmbeddedAwsError, match=r"(?s)service ended with code 1 while starting.*no such table"):
        await_health(process, name="service", url=f"http://127.0.0.1:{free_port()}/", log_path=log_path)
