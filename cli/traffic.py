"""How busy a stack is: what a command that ends something must know first."""

from __future__ import annotations

import time
from typing import Any

import boto3

RECENT_S = 60.0


def messages_in(queue_url: str) -> int:
    """Count the messages in a queue, those being processed included."""
    names: Any = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
    attributes: Any = boto3.client("sqs").get_queue_attributes(QueueUrl=queue_url, AttributeNames=names)["Attributes"]
    return sum(int(attributes[name]) for name in names)


def recent_requests(model: str) -> int:
    """Count the requests for a model within the last minute, as far as they were reported, on the connected stack."""
    from markserve import wiring

    now_s = time.time()
    return sum(wiring.windows().arrivals(model, since_s=now_s - RECENT_S, until_s=now_s + 1).values())
