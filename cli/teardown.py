"""What a stack is made of beyond its template, and how to end all of it so that nothing goes on costing money."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import boto3
from botocore.exceptions import ClientError

from cli.traffic import messages_in

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

LIVE_STATES = ["pending", "running", "stopping", "stopped"]
"""States in which an instance, or at least its volume, costs money."""
POLL_S = 2.0
STACK_TIMEOUT_S = 1800.0
INSTANCE_TIMEOUT_S = 600.0
DRAIN_TIMEOUT_S = 60.0
"""Longer than any request lives, and than a message is invisible whose worker died."""
PER_CALL = 10
PER_DELETE = 1000


class NotGone(RuntimeError):
    """Something is still there; the message says what."""


@dataclass(frozen=True, kw_only=True)
class Inventory:
    """What exists of a stack."""

    stack_status: str | None
    """None when there is no such stack."""
    instances: tuple[str, ...]
    work_queues: tuple[str, ...]
    parameters: tuple[str, ...]
    """Overrides of single models; the template's own go with the stack."""
    bucket: str | None
    objects: int
    """Versions and delete markers included."""

    @property
    def is_empty(self) -> bool:
        """Whether nothing is left that could cost money."""
        return not (self.stack_status or self.instances or self.work_queues or self.parameters or self.objects)


def take_inventory(stack_name: str) -> Inventory:
    """Look up everything that carries the stack's name or tag."""
    stack = _stack(stack_name)
    bucket = {output["OutputKey"]: output["OutputValue"] for output in stack.get("Outputs", [])}.get("ArtefactsBucket") if stack else None
    return Inventory(
        stack_status=stack["StackStatus"] if stack else None,
        instances=tuple(_instances(stack_name)),
        work_queues=tuple(_work_queues(stack_name)),
        parameters=tuple(_model_parameters(stack_name)),
        bucket=bucket,
        objects=sum(len(page) for page in _versions(boto3.client("s3"), bucket)) if bucket else 0,
    )


def tear_down(stack_name: str, note: Callable[[str], None], *, sleep: Callable[[float], None] = time.sleep) -> Inventory:
    """End everything, in an order in which nothing comes back, and return what is left.

    The API goes first, and what it has accepted by then is answered before the workers go.

    Raises
    ------
    NotGone
        If instances or the stack do not end in time; a second run goes on where this one stopped.
    """
    before = take_inventory(stack_name)
    if before.stack_status is not None:
        note("turning launches off")
        boto3.client("ssm").put_parameter(Name=f"/{stack_name}/launches-enabled", Value="false", Type="String", Overwrite=True)
        boto3.client("ssm").put_parameter(Name=f"/{stack_name}/min-instances", Value="0", Type="String", Overwrite=True)
        _close_api(stack_name, note)
        _drain_queues(stack_name, note, sleep)
    _end_instances(stack_name, note, sleep)
    if before.bucket:
        _empty_bucket(before.bucket, note)
    if before.stack_status is not None:
        note(f"deleting the stack {stack_name}; this takes minutes")
        boto3.client("cloudformation").delete_stack(StackName=stack_name)
        _await_deletion(stack_name, sleep)
    _end_instances(stack_name, note, sleep)  # what a cycle under way may have bought in between
    for url in _work_queues(stack_name):
        note(f"deleting the work queue {url.rsplit('/', 1)[-1]}")
        boto3.client("sqs").delete_queue(QueueUrl=url)
    # The template's own have gone with the stack, but for one that was written again after that.
    names = [*_model_parameters(stack_name), f"/{stack_name}/launches-enabled", f"/{stack_name}/min-instances"]
    for start in range(0, len(names), PER_CALL):
        boto3.client("ssm").delete_parameters(Names=names[start : start + PER_CALL])
    return take_inventory(stack_name)


def _close_api(stack_name: str, note: Callable[[str], None]) -> None:
    """Delete the stack's API ahead of the stack: requests that come now are refused by API Gateway, none is accepted any more."""
    outputs = {output["OutputKey"]: output["OutputValue"] for output in (_stack(stack_name) or {}).get("Outputs", [])}
    if "ApiId" in outputs:
        note("closing the API")
        client = boto3.client("apigatewayv2")
        with suppress(client.exceptions.NotFoundException):
            client.delete_api(ApiId=outputs["ApiId"])


def _drain_queues(stack_name: str, note: Callable[[str], None], sleep: Callable[[float], None]) -> None:
    """Wait until what was accepted is answered, for as long as there is anybody to answer it."""
    give_up_at_s = time.monotonic() + DRAIN_TIMEOUT_S
    announced = False
    while (waiting := sum(messages_in(url) for url in _work_queues(stack_name))) and any(_instances(stack_name)):
        if not announced:
            note(f"waiting for {waiting} accepted requests to be answered")
            announced = True
        if time.monotonic() > give_up_at_s:
            note(f"{waiting} accepted requests were not answered within {DRAIN_TIMEOUT_S:.0f} s; going on without")
            return
        sleep(POLL_S)


def _stack(stack_name: str) -> Any:
    try:
        stacks = boto3.client("cloudformation").describe_stacks(StackName=stack_name)["Stacks"]
    except ClientError as error:
        # CloudFormation has no code of its own for a stack that is not there.
        if error.response["Error"]["Code"] == "ValidationError":
            return None
        raise
    return next((stack for stack in stacks if stack["StackStatus"] != "DELETE_COMPLETE"), None)


def _instances(stack_name: str) -> Iterator[str]:
    filters: list[Any] = [
        {"Name": "tag:markserve:stack", "Values": [stack_name]},
        {"Name": "instance-state-name", "Values": LIVE_STATES},
    ]
    for page in boto3.client("ec2").get_paginator("describe_instances").paginate(Filters=filters):
        for reservation in page["Reservations"]:
            yield from (instance["InstanceId"] for instance in reservation["Instances"])


def _work_queues(stack_name: str) -> list[str]:
    pages = boto3.client("sqs").get_paginator("list_queues").paginate(QueueNamePrefix=f"{stack_name}-work-")
    # The dead-letter queue of them all is the template's.
    return [url for page in pages for url in page.get("QueueUrls", []) if not url.endswith(f"/{stack_name}-work-dlq")]


def _model_parameters(stack_name: str) -> list[str]:
    pages = boto3.client("ssm").get_paginator("get_parameters_by_path").paginate(Path=f"/{stack_name}/models", Recursive=True)
    return [parameter["Name"] for page in pages for parameter in page["Parameters"]]


def _versions(s3: S3Client, bucket: str) -> Iterator[list[Any]]:
    for page in s3.get_paginator("list_object_versions").paginate(Bucket=bucket):
        found = [*page.get("Versions", []), *page.get("DeleteMarkers", [])]
        yield [{"Key": entry["Key"], "VersionId": entry["VersionId"]} for entry in found]


def _end_instances(stack_name: str, note: Callable[[str], None], sleep: Callable[[float], None]) -> None:
    give_up_at_s = time.monotonic() + INSTANCE_TIMEOUT_S
    announced: set[str] = set()
    while live := list(_instances(stack_name)):
        if new := [instance_id for instance_id in live if instance_id not in announced]:
            note(f"terminating {', '.join(new)}")
            announced.update(new)
            boto3.client("ec2").terminate_instances(InstanceIds=new)
        if time.monotonic() > give_up_at_s:
            raise NotGone(f"still running after {INSTANCE_TIMEOUT_S:.0f} s: {', '.join(live)}")
        sleep(POLL_S)


def _empty_bucket(bucket: str, note: Callable[[str], None]) -> None:
    s3 = boto3.client("s3")
    for page in list(_versions(s3, bucket)):
        for start in range(0, len(page), PER_DELETE):
            chunk = page[start : start + PER_DELETE]
            note(f"deleting {len(chunk)} object versions of {bucket}")
            s3.delete_objects(Bucket=bucket, Delete={"Objects": chunk, "Quiet": True})


def _await_deletion(stack_name: str, sleep: Callable[[float], None]) -> None:
    give_up_at_s = time.monotonic() + STACK_TIMEOUT_S
    while (stack := _stack(stack_name)) is not None:
        if stack["StackStatus"] == "DELETE_FAILED":
            raise NotGone(f"CloudFormation could not delete {stack_name}: {stack.get('StackStatusReason', 'see its events')}")
        if time.monotonic() > give_up_at_s:
            raise NotGone(f"{stack_name} is {stack['StackStatus']} after {STACK_TIMEOUT_S:.0f} s")
        sleep(POLL_S)
