"""`WorkQueueAdmin` on SQS: makes the work queue of a newly registered model."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from botocore.exceptions import BotoCoreError, ClientError

from markserve.errors import DependencyUnavailable

if TYPE_CHECKING:
    from mypy_boto3_sqs import SQSClient

VISIBILITY_TIMEOUT_S = 30
"""A worker that dies holds its messages back this long; every batch is to be done well before."""
MAX_RECEIVE_COUNT = 5
"""The worker itself sets a message aside on its third receipt; this catches what no worker lives to see."""
MAX_MESSAGE_BYTES = 1024 * 1024
RETENTION_S = 86_400
"""Synchronous requests expire in seconds; asynchronous ones may wait for a fleet that is down for a night."""


class SqsWorkQueueAdmin:
    """Creates `<stack>-work-<model>` queues that redrive to the stack's dead-letter queue."""

    def __init__(self, client: SQSClient, stack_name: str, *, dead_letter_queue_url: str) -> None:
        self._client = client
        self._stack_name = stack_name
        self._dead_letter_queue_url = dead_letter_queue_url

    def create(self, model: str) -> str:
        try:
            attributes = self._client.get_queue_attributes(QueueUrl=self._dead_letter_queue_url, AttributeNames=["QueueArn"])["Attributes"]
            redrive = {"deadLetterTargetArn": attributes["QueueArn"], "maxReceiveCount": MAX_RECEIVE_COUNT}
            # Creating a queue again with the same attributes returns the one that exists.
            return self._client.create_queue(
                QueueName=f"{self._stack_name}-work-{model}",
                Attributes={
                    "VisibilityTimeout": str(VISIBILITY_TIMEOUT_S),
                    "MaximumMessageSize": str(MAX_MESSAGE_BYTES),
                    "MessageRetentionPeriod": str(RETENTION_S),
                    "RedrivePolicy": json.dumps(redrive),
                    "SqsManagedSseEnabled": "true",
                },
                tags={"markserve:stack": self._stack_name, "markserve:model": model},
            )["QueueUrl"]
        except (ClientError, BotoCoreError) as error:
            raise DependencyUnavailable(f"the work queue of {model} was not created: {error}") from error
