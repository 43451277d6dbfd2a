"""What the emulators lack of AWS, made good call by call after, or just before, a deployment.

Each function says which gap it closes; tests/local/test_deployer.py has a test for each, so that an upgrade of an
emulator shows what is no longer needed.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import boto3
from botocore.config import Config

from local.embedded_aws import ACCOUNT_ID, REGION

if TYPE_CHECKING:
    from mypy_boto3_cloudformation import CloudFormationClient
    from mypy_boto3_dynamodb import DynamoDBClient
    from mypy_boto3_ec2 import EC2Client
    from mypy_boto3_iam import IAMClient
    from mypy_boto3_lambda import LambdaClient
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_ssm import SSMClient

# The parameter that holds the worker's AMI in AWS; here it holds one of the EC2 emulator's.
IMAGE_PARAMETER = "/markserve-local/worker-image"


@dataclass(frozen=True, kw_only=True)
class Clients:
    """The boto3 clients a deployment needs; all but `ec2` go to ministack."""

    cloudformation: CloudFormationClient
    dynamodb: DynamoDBClient
    ec2: EC2Client
    iam: IAMClient
    lambda_: LambdaClient
    ministack_ec2: EC2Client
    """Where CloudFormation puts launch templates; nothing runs there."""
    s3: S3Client
    ssm: SSMClient

    @classmethod
    def connect(cls, *, endpoint_url: str, ec2_endpoint_url: str) -> Clients:
        """Open clients on the two endpoints of an embedded AWS."""
        session = boto3.Session(aws_access_key_id=ACCOUNT_ID, aws_secret_access_key="local", region_name=REGION)  # noqa: S106
        config = Config(retries={"mode": "standard", "max_attempts": 3})

        def client(name: Any, url: str = endpoint_url) -> Any:
            return session.client(name, endpoint_url=url, config=config)

        return cls(
            cloudformation=client("cloudformation"),
            dynamodb=client("dynamodb"),
            ec2=client("ec2", ec2_endpoint_url),
            iam=client("iam"),
            lambda_=client("lambda"),
            ministack_ec2=client("ec2"),
            s3=client("s3"),
            ssm=client("ssm"),
        )


BATCHES = {
    "sqs:SendMessage": "sqs:SendMessageBatch",
    "sqs:DeleteMessage": "sqs:DeleteMessageBatch",
    "sqs:ChangeMessageVisibility": "sqs:ChangeMessageVisibilityBatch",
}
"""What an action allows, as AWS checks it, by the name that ministack checks."""
STATEMENTS_ALLOWED = {"Effect": "Allow", "Action": "dynamodb:BatchExecuteStatement", "Resource": "*"}
"""AWS checks each statement as PartiQLInsert or PartiQLUpdate on its table; ministack checks the call, and finds no table in it."""


def network(clients: Clients) -> dict[str, str]:
    """Use the EC2 emulator's default VPC, and publish one of its images where the template looks for the AMI."""
    vpc = clients.ec2.describe_vpcs(Filters=[{"Name": "is-default", "Values": ["true"]}])["Vpcs"][0]["VpcId"]
    subnets = clients.ec2.describe_subnets(Filters=[{"Name": "vpc-id", "Values": [vpc]}])["Subnets"]
    image = min(image["ImageId"] for image in clients.ec2.describe_images(Owners=["amazon"])["Images"])
    clients.ssm.put_parameter(Name=IMAGE_PARAMETER, Value=image, Type="String", Overwrite=True)
    zones = {subnet["AvailabilityZone"]: subnet["SubnetId"] for subnet in subnets}
    return {"VpcId": vpc, "SubnetIds": ",".join(zones[zone] for zone in sorted(zones)), "WorkerImageId": IMAGE_PARAMETER}


def expire_items(dynamodb: DynamoDBClient, template: Mapping[str, Any], physical_ids: Mapping[str, str]) -> None:
    """Turn TTL on: ministack's CloudFormation leaves TimeToLiveSpecification out."""
    for logical_id, resource in template["Resources"].items():
        specification = resource.get("Properties", {}).get("TimeToLiveSpecification")
        if specification is None:
            continue
        table = physical_ids[logical_id]
        if dynamodb.describe_time_to_live(TableName=table)["TimeToLiveDescription"].get("TimeToLiveStatus") != "ENABLED":
            dynamodb.update_time_to_live(TableName=table, TimeToLiveSpecification=specification)


def let_parameters_be_read(iam: IAMClient, policy_arn: str) -> None:
    """Widen one statement: AWS checks GetParametersByPath against the path, ministack (when it enforces roles) against `*`."""
    versions = iam.list_policy_versions(PolicyArn=policy_arn)["Versions"]
    if len(versions) > 1:
        return
    current: Any = iam.get_policy_version(PolicyArn=policy_arn, VersionId=versions[0]["VersionId"])["PolicyVersion"]["Document"]
    statements = [{**statement, "Resource": "*"} for statement in current["Statement"]]
    iam.create_policy_version(PolicyArn=policy_arn, PolicyDocument=json.dumps({**current, "Statement": statements}), SetAsDefault=True)


def let_batches_be_sent(iam: IAMClient, role: str) -> None:
    """Add what AWS includes: it checks a batch of deletions as DeleteMessage, ministack (when it enforces roles) by the call's own name."""
    for name in iam.list_role_policies(RoleName=role)["PolicyNames"]:
        document: Any = iam.get_role_policy(RoleName=role, PolicyName=name)["PolicyDocument"]
        statements = [{**statement, "Action": _with_batches(statement["Action"])} for statement in document["Statement"]]
        if any("dynamodb:PartiQLInsert" in statement["Action"] for statement in statements) and STATEMENTS_ALLOWED not in statements:
            statements.append(STATEMENTS_ALLOWED)
        if statements != document["Statement"]:
            iam.put_role_policy(RoleName=role, PolicyName=name, PolicyDocument=json.dumps({**document, "Statement": statements}))


def _with_batches(actions: str | list[str]) -> str | list[str]:
    listed = [actions] if isinstance(actions, str) else actions
    batches = [BATCHES[action] for action in listed if action in BATCHES and BATCHES[action] not in listed]
    return [*listed, *batches] if batches else actions


def allow_plain_http(s3: S3Client, bucket: str) -> None:
    """Lift the bucket's TLS-only policy: the embedded AWS speaks plain HTTP on loopback, which that policy denies to every role."""
    s3.delete_bucket_policy(Bucket=bucket)


def reserve_concurrency(lambda_: LambdaClient, function: str, limit: int) -> None:
    """Apply the limit, 0 being none: ministack's CloudFormation leaves ReservedConcurrentExecutions out."""
    if limit:
        lambda_.put_function_concurrency(FunctionName=function, ReservedConcurrentExecutions=limit)
    else:
        lambda_.delete_function_concurrency(FunctionName=function)


def mirror_launch_template(clients: Clients, template_id: str, *, vpc_id: str) -> tuple[str, str]:
    """Copy the deployed launch template to the EC2 emulator, and return its id there and its user data.

    CloudFormation made it among ministack's records, where no instance can be launched from it. The instance profile
    stays behind: IAM is ministack's, and local workers act with the local account's credentials.
    """
    versions = clients.ministack_ec2.describe_launch_template_versions(LaunchTemplateId=template_id, Versions=["$Latest"])
    version = versions["LaunchTemplateVersions"][0]
    data: Any = dict(version["LaunchTemplateData"])
    data.pop("IamInstanceProfile", None)
    # Described, but no part of a request.
    data.get("MetadataOptions", {}).pop("State", None)
    data["SecurityGroupIds"] = [_security_group(clients.ec2, version["LaunchTemplateName"], vpc_id)]
    name = version["LaunchTemplateName"]
    known = clients.ec2.describe_launch_templates(Filters=[{"Name": "launch-template-name", "Values": [name]}])["LaunchTemplates"]
    if known:
        clients.ec2.create_launch_template_version(LaunchTemplateName=name, LaunchTemplateData=data)
        mirrored = known[0]["LaunchTemplateId"]
    else:
        created = clients.ec2.create_launch_template(LaunchTemplateName=name, LaunchTemplateData=data)
        mirrored = created["LaunchTemplate"]["LaunchTemplateId"]
    return mirrored, base64.b64decode(data["UserData"]).decode()


def _security_group(ec2: EC2Client, name: str, vpc_id: str) -> str:
    groups = ec2.describe_security_groups(Filters=[{"Name": "group-name", "Values": [name]}, {"Name": "vpc-id", "Values": [vpc_id]}])
    if groups["SecurityGroups"]:
        return groups["SecurityGroups"][0]["GroupId"]
    return ec2.create_security_group(GroupName=name, Description="local workers", VpcId=vpc_id)["GroupId"]


def configure(lambda_: LambdaClient, function: str, variables: Mapping[str, str]) -> dict[str, str]:
    """Set environment variables of a deployed function, keep the others, and return them all."""
    current = lambda_.get_function_configuration(FunctionName=function).get("Environment", {}).get("Variables", {})
    wanted = {**current, **variables}
    if wanted != current:
        lambda_.update_function_configuration(FunctionName=function, Environment={"Variables": wanted})
    return wanted
