"""The template with its options on, deployed to an embedded AWS of its own: what each service says that it was told.

`tests/architecture/test_template_options.py` has every property; here CloudFormation decides the conditions. Not asked here: tables
and the bucket, whose keys ministack's CloudFormation drops.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import boto3
import pytest

from local.deployer import Deployment, deploy
from local.embedded_aws import ACCOUNT_ID, REGION, start_embedded_aws
from local.emulator_gaps import Clients
from local.processes import ProcessLedger
from markserve.adapters.sqs_admin import SqsWorkQueueAdmin

pytestmark = pytest.mark.system

STACK = "options"
KEY = f"arn:aws:kms:{REGION}:{ACCOUNT_ID}:key/11111111-2222-3333-4444-555555555555"
ROUTE_TABLES = ["rtb-11111111", "rtb-22222222"]
FUNCTIONS = ("authorizer", "api", "console", "ingest", "plan", "lifecycle", "forecast", "spillover")


class Stack:
    """A deployed stack, and clients that ask about it."""

    def __init__(self, deployment: Deployment, clients: Clients) -> None:
        self.deployment = deployment
        self.clients = clients

    def client(self, service: str) -> Any:
        return boto3.client(
            service,  # type: ignore[call-overload]
            endpoint_url=self.deployment.endpoint_url,
            region_name=REGION,
            aws_access_key_id=ACCOUNT_ID,
            aws_secret_access_key="local",
        )


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    work_dir = tmp_path_factory.mktemp("options")
    images = {f"{STACK}-forecast": None, f"{STACK}-spillover": None}
    aws = start_embedded_aws(ledger=ProcessLedger(work_dir / "processes.json"), work_dir=work_dir, image_functions=images)
    try:
        clients = Clients.connect(endpoint_url=aws.endpoint_url, ec2_endpoint_url=aws.ec2_endpoint_url)
        parameters = {
            "Tracing": "true",
            "KmsKeyArn": KEY,
            "VpcEndpoints": "true",
            "RouteTableIds": ",".join(ROUTE_TABLES),
            "ApiAuth": "api-key",
            "Shards": "32",
        }
        deployment = deploy(
            clients=clients,
            endpoint_url=aws.endpoint_url,
            ec2_endpoint_url=aws.ec2_endpoint_url,
            stack_name=STACK,
            parameters=parameters,
        )
        yield Stack(deployment, clients)
    finally:
        aws.stop()


def test_functions_trace_and_know_the_shards(stack: Stack) -> None:
    for name in FUNCTIONS:
        configuration = stack.clients.lambda_.get_function_configuration(FunctionName=f"{STACK}-{name}")

        assert configuration["TracingConfig"] == {"Mode": "Active"}
        assert configuration["Environment"]["Variables"]["MARKSERVE_SHARDS"] == "32"
    [mapping] = stack.clients.lambda_.list_event_source_mappings(FunctionName=f"{STACK}-ingest")["EventSourceMappings"]
    assert (mapping["BatchSize"], mapping["ScalingConfig"]["MaximumConcurrency"]) == (40, 50)


def test_queues_have_the_key(stack: Stack) -> None:
    sqs, outputs = stack.client("sqs"), stack.deployment.outputs
    work = SqsWorkQueueAdmin(sqs, STACK, dead_letter_queue_url=outputs["DeadLetterQueueUrl"]).create("digits")
    for url in (outputs["MetricsQueueUrl"], outputs["MetricsDeadLetterQueueUrl"], outputs["DeadLetterQueueUrl"], work):
        assert sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["All"])["Attributes"]["KmsMasterKeyId"] == KEY


def test_roles_may_use_the_key_and_send_traces(stack: Stack) -> None:
    roles = {name: role for name, role in stack.deployment.roles.items() if not name.startswith(("Control", "Characterize"))}
    assert len(roles) == len(FUNCTIONS) + 1

    for role in roles.values():
        attached = stack.clients.iam.list_attached_role_policies(RoleName=role)["AttachedPolicies"]
        actions: set[str] = set()
        for policy in attached:
            version = stack.clients.iam.get_policy(PolicyArn=policy["PolicyArn"])["Policy"]["DefaultVersionId"]
            document: Any = stack.clients.iam.get_policy_version(PolicyArn=policy["PolicyArn"], VersionId=version)["PolicyVersion"][
                "Document"
            ]
            for statement in document["Statement"]:
                actions.update([statement["Action"]] if isinstance(statement["Action"], str) else statement["Action"])
        assert {"kms:Decrypt", "kms:Encrypt", "kms:GenerateDataKey", "xray:PutTraceSegments"} <= actions


def test_endpoints_are_in_the_network_of_the_workers(stack: Stack) -> None:
    described = stack.clients.ministack_ec2.describe_vpc_endpoints()["VpcEndpoints"]
    by_service = {endpoint["ServiceName"].rsplit(".", 1)[1]: endpoint for endpoint in described}

    assert set(by_service) == {"s3", "dynamodb", "sqs"}
    assert len({endpoint["VpcId"] for endpoint in described}) == 1
    for service in ("s3", "dynamodb"):
        assert (by_service[service]["VpcEndpointType"], by_service[service]["RouteTableIds"]) == ("Gateway", ROUTE_TABLES)
    assert (by_service["sqs"]["VpcEndpointType"], by_service["sqs"]["SubnetIds"]) == ("Interface", list(stack.deployment.subnet_ids))
