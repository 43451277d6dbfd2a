"""Deploys the repository's own template.yaml to the embedded AWS, through CloudFormation.

There is no second template: what `sam package` rewrites for AWS (CodeUri, ContentUri, DefinitionUri, ImageUri) is
rewritten in memory, the rest is deployed as it stands. What the emulators lack is made good afterwards, call by call.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError, WaiterError
from samtranslator.yaml_helper import yaml_parse

from local.embedded_aws import ACCOUNT_ID, REGION, client_env
from local.emulator_gaps import (
    Clients,
    allow_plain_http,
    configure,
    expire_items,
    let_batches_be_sent,
    let_parameters_be_read,
    mirror_launch_template,
    network,
    reserve_concurrency,
)
from local.packaging import content_key, function_zip, layer_zip, worker_bundle

if TYPE_CHECKING:
    from mypy_boto3_cloudformation import CloudFormationClient
    from mypy_boto3_s3 import S3Client

__all__ = ["REPOSITORY", "Clients", "Deployment", "DeploymentError", "deploy", "load_template", "upload_sources", "user_data_environment"]

REPOSITORY = Path(__file__).resolve().parent.parent
CAPABILITIES = ("CAPABILITY_IAM", "CAPABILITY_AUTO_EXPAND")
_LAYER, _FUNCTION, _STATE_MACHINE = "AWS::Serverless::LayerVersion", "AWS::Serverless::Function", "AWS::Serverless::StateMachine"
_ENVIRONMENT_LINE = re.compile(r"^([A-Z][A-Z0-9_]*)=(.*)$", re.MULTILINE)


class DeploymentError(RuntimeError):
    """CloudFormation refused or rolled back; the message lists what failed and why."""


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """A deployed stack: where it is and what its parts are called."""

    stack_name: str
    endpoint_url: str
    """The embedded AWS."""
    ec2_endpoint_url: str
    api_url: str
    """Base URL of the HTTP API: append `/v2/...` or `/endpoints/...`."""
    outputs: Mapping[str, str]
    """The template's outputs; `LaunchTemplateId` is the EC2 emulator's."""
    subnet_ids: tuple[str, ...]
    settings: Mapping[str, str] = field(repr=False)
    """`MARKSERVE_` variables as the lifecycle function has them, which are all there are."""
    user_data: str = field(repr=False)
    """The launch template's, as an instance would run it."""
    roles: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Names of the deployed IAM roles by their logical ids."""

    def worker_env(self) -> dict[str, str]:
        """Environment of a worker process: what user data gives it on EC2, plus the endpoints of the embedded AWS."""
        return {**self.client_env(), **user_data_environment(self.user_data)}

    def client_env(self) -> dict[str, str]:
        """Environment of any other local process: the command line, a load generator, an image host."""
        return client_env(endpoint_url=self.endpoint_url, ec2_endpoint_url=self.ec2_endpoint_url)

    def settings_env(self) -> dict[str, str]:
        """`client_env` plus the settings of the functions, for a process that uses `markserve.wiring` outside Lambda and EC2."""
        return {**self.client_env(), **self.settings}


def deploy(
    *,
    clients: Clients,
    endpoint_url: str,
    ec2_endpoint_url: str,
    stack_name: str = "markserve",
    parameters: Mapping[str, str] | None = None,
    repository: Path = REPOSITORY,
) -> Deployment:
    """Create the stack, or update it to the sources as they are now, and return once it is usable.

    Parameters
    ----------
    parameters
        Overrides of the template's parameters, by their names.

    Raises
    ------
    DeploymentError
        If CloudFormation refuses the template or a resource fails.
    """
    template = load_template(repository / "template.yaml")
    bucket = f"{stack_name}-deployment-{ACCOUNT_ID}"
    clients.s3.create_bucket(Bucket=bucket)
    upload_sources(template, repository=repository, bucket=bucket, s3=clients.s3)
    bundle = worker_bundle(repository)
    bundle_key = content_key("worker/bundle", bundle, ".tar.gz")
    place = network(clients)
    values = {"ApiAuth": "none", **place, "WorkerBundleKey": bundle_key, **(parameters or {})}
    body = _upload(clients.s3, bucket, "template", json.dumps(template).encode(), ".json")
    template_url = f"{endpoint_url}/{body['Bucket']}/{body['Key']}"
    outputs = _apply_stack(clients.cloudformation, stack_name, template_url=template_url, values=values)
    clients.s3.put_object(Bucket=outputs["ArtefactsBucket"], Key=bundle_key, Body=bundle)

    physical_ids = _physical_ids(clients.cloudformation, stack_name)
    expire_items(clients.dynamodb, template, physical_ids)
    allow_plain_http(clients.s3, outputs["ArtefactsBucket"])
    let_parameters_be_read(clients.iam, physical_ids["ReadParametersPolicy"])
    for role in _roles(template, physical_ids).values():
        let_batches_be_sent(clients.iam, role)
    reserve_concurrency(clients.lambda_, outputs["SpilloverFunctionName"], int(values.get("SpilloverReservedConcurrency", "0")))
    launch_template_id, user_data = mirror_launch_template(clients, outputs["LaunchTemplateId"], vpc_id=place["VpcId"])
    outputs["LaunchTemplateId"] = launch_template_id
    variables = configure(clients.lambda_, outputs["LifecycleFunctionName"], {"MARKSERVE_LAUNCH_TEMPLATE_ID": launch_template_id})
    return Deployment(
        stack_name=stack_name,
        endpoint_url=endpoint_url,
        ec2_endpoint_url=ec2_endpoint_url,
        # The path form needs no name resolution, and every client takes a path in its base URL.
        api_url=f"{endpoint_url}/_aws/execute-api/{outputs['ApiId']}",
        outputs=outputs,
        subnet_ids=tuple(place["SubnetIds"].split(",")),
        settings={name: value for name, value in variables.items() if name.startswith("MARKSERVE_")},
        user_data=user_data,
        roles=_roles(template, physical_ids),
    )


def _roles(template: Mapping[str, Any], physical_ids: Mapping[str, str]) -> dict[str, str]:
    """Names of the deployed roles by logical id; one under a condition may not be there."""
    declared = [name for name, resource in template["Resources"].items() if resource["Type"] == "AWS::IAM::Role"]
    return {name: physical_ids[name] for name in declared if name in physical_ids}


def load_template(path: Path) -> dict[str, Any]:
    """Read a template with its short-form functions expanded."""
    template: dict[str, Any] = yaml_parse(path.read_text(encoding="utf-8"))
    return template


def upload_sources(template: dict[str, Any], *, repository: Path, bucket: str, s3: S3Client) -> None:
    """Upload every local path the template names and put the uploaded object in its place, as `sam package` does."""
    for logical_id, resource in template["Resources"].items():
        properties = resource.get("Properties", {})
        kind = resource["Type"]
        if kind == _LAYER:
            data = layer_zip(repository / properties["ContentUri"])
            properties["ContentUri"] = _upload(s3, bucket, f"layer/{logical_id}", data, ".zip")
        elif kind == _FUNCTION and properties.get("PackageType") == "Image":
            # Nobody pulls it: ministack forwards invocations of image functions to their host process.
            properties["ImageUri"] = f"{ACCOUNT_ID}.dkr.ecr.{REGION}.amazonaws.com/{logical_id.lower()}:local"
        elif kind == _FUNCTION:
            data = function_zip(repository / properties["CodeUri"])
            properties["CodeUri"] = _upload(s3, bucket, f"code/{logical_id}", data, ".zip")
        elif kind == _STATE_MACHINE:
            data = (repository / properties["DefinitionUri"]).read_bytes()
            properties["DefinitionUri"] = _upload(s3, bucket, f"states/{logical_id}", data, ".asl.json")


def _upload(s3: S3Client, bucket: str, prefix: str, data: bytes, suffix: str) -> dict[str, str]:
    key = content_key(prefix, data, suffix)
    s3.put_object(Bucket=bucket, Key=key, Body=data)
    return {"Bucket": bucket, "Key": key}


def _apply_stack(cloudformation: CloudFormationClient, stack_name: str, *, template_url: str, values: Mapping[str, str]) -> dict[str, str]:
    request: Any = {
        "StackName": stack_name,
        "TemplateURL": template_url,
        "Parameters": [{"ParameterKey": key, "ParameterValue": value} for key, value in sorted(values.items())],
        "Capabilities": list(CAPABILITIES),
    }
    try:
        if _exists(cloudformation, stack_name):
            cloudformation.update_stack(**request)
            waiter: Any = cloudformation.get_waiter("stack_update_complete")
        else:
            cloudformation.create_stack(**request)
            waiter = cloudformation.get_waiter("stack_create_complete")
        waiter.wait(StackName=stack_name, WaiterConfig={"Delay": 1, "MaxAttempts": 120})
    except ClientError as error:
        if "No updates are to be performed" not in str(error):
            raise DeploymentError(f"{stack_name}: {error}") from error
    except WaiterError as error:
        raise DeploymentError(f"{stack_name}: {'; '.join(_failures(cloudformation, stack_name)) or error}") from error
    stack = cloudformation.describe_stacks(StackName=stack_name)["Stacks"][0]
    return {output["OutputKey"]: output["OutputValue"] for output in stack.get("Outputs", [])}


def _exists(cloudformation: CloudFormationClient, stack_name: str) -> bool:
    try:
        stacks = cloudformation.describe_stacks(StackName=stack_name)["Stacks"]
    except ClientError as error:
        # CloudFormation has no code of its own for a stack that is not there.
        if error.response["Error"]["Code"] == "ValidationError":
            return False
        raise
    return any(stack["StackStatus"] != "DELETE_COMPLETE" for stack in stacks)


def _failures(cloudformation: CloudFormationClient, stack_name: str) -> list[str]:
    events = cloudformation.describe_stack_events(StackName=stack_name)["StackEvents"]
    return [f"{e['LogicalResourceId']}: {e.get('ResourceStatusReason', '?')}" for e in events if e["ResourceStatus"].endswith("_FAILED")]


def _physical_ids(cloudformation: CloudFormationClient, stack_name: str) -> dict[str, str]:
    pages = cloudformation.get_paginator("list_stack_resources").paginate(StackName=stack_name)
    return {s["LogicalResourceId"]: s.get("PhysicalResourceId", "") for page in pages for s in page["StackResourceSummaries"]}


def user_data_environment(user_data: str) -> dict[str, str]:
    r"""Read the `NAME=value` lines that user data writes to the worker's environment file.

    >>> user_data_environment("#!/bin/bash\nMARKSERVE_MODEL=digits\necho X=1\n")
    {'MARKSERVE_MODEL': 'digits'}
    """
    return dict(_ENVIRONMENT_LINE.findall(user_data))
