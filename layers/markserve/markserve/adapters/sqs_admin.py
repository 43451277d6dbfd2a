"""`WorkQueueAdmin` on SQS: makes the work queue of a newly registered model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

from botocore.exceptions import BotoCoreError, ClientError

from markserve.errors import DependencyUnavailable

if TYPE_CHECKING:
    from mypy_boto3_sqs import SQSClient
    from mypy_boto3_sqs.literals import QueueAttributeNameType

VISIBILITY_TIMEOUT_S = 30
"""A worker that dies holds its messages back this long; every batch is to be done well before."""
MAX_RECEIVE_COUNT = 5
"""The worker itself sets a message aside on its third receipt; this catches what no worker lives to see."""
MAX_MESSAGE_BYTES = 1024 * 1024
RETENTION_S = 86_400
"""Synchronous requests expire in seconds; asynchronous ones may wait for a fleet that is down for a night."""


class SqsWorkQueueAdmin:
    """Creates `<stack>-work-<model>` queues that redrive to the stack's dead-letter queue, and are encrypted with the key that it has."""

    def __init__(self, client: SQSClient, stack_name: str, *, dead_letter_queue_url: str) -> None:
        self._client = client
        self._stack_name = stack_name
        self._dead_letter_queue_url = dead_letter_queue_url

    def create(self, model: str) -> str:
        try:
            attributes = self._client.get_queue_attributes(QueueUrl=self._dead_letter_queue_url, AttributeNames=["All"])["Attributes"]
            key = attributes.get("KmsMasterKeyId")
            encryption: Mapping[QueueAttributeNameType, str] = (
                {"KmsMasterKeyId": key, "SqsManagedSseEnabled": "false"} if key else {"SqsManagedSseEnabled": "true"}
            )
            redrive = {"deadLetterTargetArn": attributes["QueueArn"], "maxReceiveCount": MAX_RECEIVE_COUNT}
            return self._create(
                f"{self._stack_name}-work-{model}",
                {
                    "VisibilityTimeout": str(VISIBILITY_TIMEOUT_S),
                    "MaximumMessageSize": str(MAX_MESSAGE_BYTES),
                    "MessageRetentionPeriod": str(RETENTION_S),
                    "RedrivePolicy": json.dumps(redrive),
                    **encryption,
                },
                tags={"markserve:stack": self._stack_name, "markserve:model": model},
            )
        except (ClientError, BotoCoreError) as error:
            raise DependencyUnavailable(f"the work queue of {model} was not created: {error}") from error

    def _create(self, name: str, attributes: Mapping[QueueAttributeNameType, str], *, tags: Mapping[str, str]) -> str:
        """Create a queue, or give the one that exists these attributes: the stack may have got another key since."""
        try:
            # With the attributes that it has, this returns the one that exists.
            return self._client.create_queue(QueueName=name, Attributes=attributes, tags=tags)["QueueUrl"]
        except ClientError as error:
            # The name of the error depends on the protocol that is spoken.
            if not str(error.response.get("Error", {}).get("Code")).endswith(("QueueAlreadyExists", "QueueNameExists")):
                raise
            url = self._client.get_queue_url(QueueName=name)["QueueUrl"]
            self._client.set_queue_attributes(QueueUrl=url, Attributes=attributes)
            return url
