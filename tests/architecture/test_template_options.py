"""What template.yaml becomes with its options on: transformed by SAM's own translator, conditions decided, each property as AWS gets it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from samtranslator.translator.transform import transform

from local.deployer import load_template
from local.zip_template import without_images

TEMPLATE = Path(__file__).resolve().parents[2] / "template.yaml"
KEY = "arn:aws:kms:us-east-1:123456789012:key/11111111-2222-3333-4444-555555555555"
VPC, SUBNETS, ROUTE_TABLES = "vpc-1", ["subnet-1", "subnet-2"], ["rtb-1", "rtb-2"]
PLACE = {"VpcId": VPC, "SubnetIds": ",".join(SUBNETS)}
ALL_ON = {
    "Tracing": "true",
    "KmsKeyArn": KEY,
    "VpcEndpoints": "true",
    "RouteTableIds": ",".join(ROUTE_TABLES),
    "ApiAuth": "api-key",
    "Shards": "32",
}
NO_VALUE = {"Ref": "AWS::NoValue"}
Resources = dict[str, dict[str, Any]]


class NoManagedPolicies:
    """No role of the template uses a policy of AWS's or one of SAM's templates."""

    def load(self) -> dict[str, str]:
        return {}


@dataclass(frozen=True)
class Decided:
    """A template's expressions with parameters put in and conditions decided; other functions as they stand."""

    values: Mapping[str, Any]
    conditions: Mapping[str, Any]

    def holds(self, name: str) -> bool:
        return bool(self.decide(self.conditions[name]))

    def decide(self, value: Any) -> Any:
        if isinstance(value, list):
            return [decided for each in value if (decided := self.decide(each)) != NO_VALUE]
        if not isinstance(value, Mapping):
            return value
        match next(iter(value.items()), None):
            case ("Ref", name) if name in self.values:
                return self.values[name]
            case ("Fn::If", [name, then, otherwise]):
                return self.decide(then if self.holds(name) else otherwise)
            case ("Fn::Equals", [one, other]):
                return str(self.decide(one)) == str(self.decide(other))
            case ("Fn::Not", [condition]):
                return not self.decide(condition)
        return {name: decided for name, each in value.items() if (decided := self.decide(each)) != NO_VALUE}


def as_deployed(**options: str) -> Resources:
    """Resources of the stack as CloudFormation would create them."""
    template = without_images(load_template(TEMPLATE))
    for resource in template["Resources"].values():  # what `sam package` does
        properties = resource.get("Properties", {})
        for name in {"CodeUri", "ContentUri", "DefinitionUri"} & set(properties):
            properties[name] = "s3://bucket/key"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        translated = transform(template, {}, NoManagedPolicies())
    given = {**PLACE, **options}
    values = {name: _value(spec, given.get(name, spec.get("Default"))) for name, spec in translated["Parameters"].items()}
    decided = Decided(values, translated["Conditions"])
    return {
        name: decided.decide({key: part for key, part in resource.items() if key != "Condition"})
        for name, resource in translated["Resources"].items()
        if "Condition" not in resource or decided.holds(resource["Condition"])
    }


def _value(spec: Mapping[str, Any], text: Any) -> Any:
    is_list = spec["Type"] == "CommaDelimitedList" or spec["Type"].startswith("List<")
    return str(text).split(",") if is_list else text


@pytest.fixture(scope="module")
def on() -> Resources:
    return as_deployed(**ALL_ON)


@pytest.fixture(scope="module")
def off() -> Resources:
    return as_deployed()


def of_type(resources: Resources, kind: str) -> Resources:
    found = {name: resource["Properties"] for name, resource in resources.items() if resource["Type"] == kind}
    assert found, f"no {kind}: the test would prove nothing"
    return found


def process_roles(resources: Resources) -> Resources:
    """Roles of functions and of the worker; not those of EventBridge's, the scheduler's and the state machines' own."""
    roles = {function["Role"]["Fn::GetAtt"][0] for function in of_type(resources, "AWS::Lambda::Function").values()}
    return {name: of_type(resources, "AWS::IAM::Role")[name] for name in {*roles, "WorkerRole"}}


def test_every_reference_is_to_something_that_is_deployed(on: Resources, off: Resources) -> None:
    for resources in (on, off):
        referred = {name for resource in resources.values() for name in _references(resource)}

        assert {name for name in referred if not name.startswith("AWS::")} <= set(resources)


def _references(value: Any) -> list[str]:
    if isinstance(value, list):
        return [name for each in value for name in _references(each)]
    if not isinstance(value, Mapping):
        return []
    own = [value["Ref"]] if "Ref" in value else [value["Fn::GetAtt"][0]] if isinstance(value.get("Fn::GetAtt"), list) else []
    return own + [name for each in value.values() for name in _references(each)]


# --- endpoints ------------------------------------------------------------------------------------------------------


def test_endpoints_are_in_the_given_network(on: Resources) -> None:
    endpoints = of_type(on, "AWS::EC2::VPCEndpoint")
    by_service = {endpoint["ServiceName"]["Fn::Sub"].rsplit(".", 1)[1]: endpoint for endpoint in endpoints.values()}

    assert set(by_service) == {"s3", "dynamodb", "sqs"}
    assert {endpoint["VpcId"] for endpoint in endpoints.values()} == {VPC}
    for service in ("s3", "dynamodb"):
        assert (by_service[service]["VpcEndpointType"], by_service[service]["RouteTableIds"]) == ("Gateway", ROUTE_TABLES)
        assert "SubnetIds" not in by_service[service]
    assert (by_service["sqs"]["VpcEndpointType"], by_service["sqs"]["SubnetIds"]) == ("Interface", SUBNETS)
    assert by_service["sqs"]["PrivateDnsEnabled"] is True


def test_workers_and_nobody_else_reach_the_endpoint_with_an_address(on: Resources) -> None:
    [attached] = on["SqsEndpoint"]["Properties"]["SecurityGroupIds"]
    group = on[attached["Fn::GetAtt"][0]]["Properties"]
    [ingress] = group["SecurityGroupIngress"]

    assert group["VpcId"] == VPC
    assert ingress["SourceSecurityGroupId"] == {"Fn::GetAtt": ["WorkerSecurityGroup", "GroupId"]}
    assert (ingress["IpProtocol"], ingress["FromPort"], ingress["ToPort"]) == ("tcp", 443, 443)
    assert on["WorkerSecurityGroup"]["Properties"]["VpcId"] == VPC


def test_there_are_no_endpoints_unless_they_are_asked_for(off: Resources) -> None:
    assert [name for name, resource in off.items() if "Endpoint" in name or resource["Type"] == "AWS::EC2::VPCEndpoint"] == []


# --- a key of one's own ---------------------------------------------------------------------------------------------


def test_tables_objects_and_queues_of_requests_are_encrypted_with_the_given_key(on: Resources) -> None:
    for table in of_type(on, "AWS::DynamoDB::Table").values():
        assert table["SSESpecification"] == {"SSEEnabled": True, "SSEType": "KMS", "KMSMasterKeyId": KEY}
    for bucket in of_type(on, "AWS::S3::Bucket").values():
        assert bucket["BucketEncryption"]["ServerSideEncryptionConfiguration"] == [
            {"ServerSideEncryptionByDefault": {"SSEAlgorithm": "aws:kms", "KMSMasterKeyID": KEY}, "BucketKeyEnabled": True}
        ]
    queues = of_type(on, "AWS::SQS::Queue")
    own = queues.pop("EventsDeadLetterQueue")
    assert {(queue["KmsMasterKeyId"], queue.get("SqsManagedSseEnabled")) for queue in queues.values()} == {(KEY, None)}
    assert own["SqsManagedSseEnabled"] is True
    assert "KmsMasterKeyId" not in own


def test_every_process_may_use_the_key_through_the_services_that_keep_its_data_and_in_no_other_way(on: Resources) -> None:
    [statement] = on["UseKeyPolicy"]["Properties"]["PolicyDocument"]["Statement"]
    services = {value["Fn::Sub"].split(".")[0] for value in statement["Condition"]["StringEquals"]["kms:ViaService"]}

    assert statement["Resource"] == KEY
    assert {"kms:Decrypt", "kms:Encrypt", "kms:GenerateDataKey"} <= set(statement["Action"])
    assert services == {"dynamodb", "s3", "sqs"}
    for role in process_roles(on).values():
        assert {"Ref": "UseKeyPolicy"} in role["ManagedPolicyArns"]


def test_keys_of_aws_are_used_unless_another_is_given(off: Resources) -> None:
    assert "UseKeyPolicy" not in off
    assert {str(table["SSESpecification"]) for table in of_type(off, "AWS::DynamoDB::Table").values()} == {"{'SSEEnabled': True}"}
    for bucket in of_type(off, "AWS::S3::Bucket").values():
        assert bucket["BucketEncryption"]["ServerSideEncryptionConfiguration"] == [
            {"ServerSideEncryptionByDefault": {"SSEAlgorithm": "AES256"}}
        ]
    for queue in of_type(off, "AWS::SQS::Queue").values():
        assert queue["SqsManagedSseEnabled"] is True
        assert "KmsMasterKeyId" not in queue


# --- traces ---------------------------------------------------------------------------------------------------------


def test_functions_and_workers_trace_and_may_send_what_they_trace(on: Resources) -> None:
    for function in of_type(on, "AWS::Lambda::Function").values():
        assert function["TracingConfig"] == {"Mode": "Active"}
        assert function["Environment"]["Variables"]["MARKSERVE_TRACING"] == "true"
    [statement] = on["WriteTracesPolicy"]["Properties"]["PolicyDocument"]["Statement"]
    assert set(statement["Action"]) == {"xray:PutTraceSegments", "xray:PutTelemetryRecords"}
    for role in process_roles(on).values():
        assert {"Ref": "WriteTracesPolicy"} in role["ManagedPolicyArns"]


def test_nothing_traces_unless_it_is_asked_for(off: Resources) -> None:
    assert "WriteTracesPolicy" not in off
    for function in of_type(off, "AWS::Lambda::Function").values():
        assert function["TracingConfig"] == {"Mode": "PassThrough"}


# --- shards ---------------------------------------------------------------------------------------------------------


def test_more_shards_are_written_to_by_more_at_once_and_known_to_whoever_writes(on: Resources, off: Resources) -> None:
    def ingestion(resources: Resources) -> tuple[int, int]:
        [mapping] = of_type(resources, "AWS::Lambda::EventSourceMapping").values()
        return mapping["BatchSize"], mapping["ScalingConfig"]["MaximumConcurrency"]

    assert (ingestion(off), ingestion(on)) == ((10, 5), (40, 50))
    for resources, shards in ((off, 1), (on, "32")):
        for function in of_type(resources, "AWS::Lambda::Function").values():
            assert function["Environment"]["Variables"]["MARKSERVE_SHARDS"] == shards


def test_ingestion_may_write_summaries_of_fleets_and_no_worker_record_and_neither_without_shards(on: Resources, off: Resources) -> None:
    def on_instances(resources: Resources) -> list[dict[str, Any]]:
        [policy] = resources["IngestRole"]["Properties"]["Policies"]
        return [one for one in policy["PolicyDocument"]["Statement"] if one["Resource"] == {"Fn::GetAtt": ["InstancesTable", "Arn"]}]

    assert on_instances(off) == []
    read, write = on_instances(on)
    assert (read["Action"], write["Action"]) == ("dynamodb:Query", "dynamodb:PutItem")
    assert write["Condition"] == {"ForAllValues:StringLike": {"dynamodb:LeadingKeys": ["view#*"]}}
