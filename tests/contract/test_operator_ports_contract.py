"""What operators' tools write: work queues of new models, and parameters, as the running system will find them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from botocore.config import Config

from markserve.adapters.memory import MemoryParameterSource, MemoryParameterWriter
from markserve.adapters.sqs_admin import SqsWorkQueueAdmin
from markserve.adapters.ssm import SsmParameterSource
from markserve.adapters.ssm_writer import SsmParameterWriter
from markserve.errors import DependencyUnavailable
from tests.contract.conftest import session

Aws = Callable[[str], Any]
KEY = "arn:aws:kms:us-east-1:123456789012:key/11111111-2222-3333-4444-555555555555"


def an_admin(client: Any) -> SqsWorkQueueAdmin:
    dead_letters = client.create_queue(QueueName="markserve-work-dlq")["QueueUrl"]
    return SqsWorkQueueAdmin(client, "markserve", dead_letter_queue_url=dead_letters)


def test_work_queue_redrives_to_the_dead_letter_queue_when_created(aws: Aws) -> None:
    client = aws("sqs")

    url = an_admin(client).create("digits")

    attributes = client.get_queue_attributes(QueueUrl=url, AttributeNames=["All"])["Attributes"]
    assert url.endswith("/markserve-work-digits")
    assert attributes["VisibilityTimeout"] == "30"
    assert attributes["MaximumMessageSize"] == "1048576"
    redrive = json.loads(attributes["RedrivePolicy"])
    assert redrive["deadLetterTargetArn"].endswith(":markserve-work-dlq")
    assert int(redrive["maxReceiveCount"]) == 5


def test_work_queue_is_the_same_when_created_again(aws: Aws) -> None:
    admin = an_admin(aws("sqs"))

    assert admin.create("digits") == admin.create("digits")


@pytest.mark.parametrize("existed", [False, True])
def test_work_queue_is_encrypted_with_the_key_of_the_dead_letter_queue(aws: Aws, existed: bool) -> None:
    client = aws("sqs")
    admin = an_admin(client)
    before = admin.create("digits") if existed else None
    dead_letters = client.get_queue_url(QueueName="markserve-work-dlq")["QueueUrl"]
    client.set_queue_attributes(QueueUrl=dead_letters, Attributes={"KmsMasterKeyId": KEY})

    url = admin.create("digits")

    attributes = client.get_queue_attributes(QueueUrl=url, AttributeNames=["All"])["Attributes"]
    assert before in (None, url)
    assert (attributes["KmsMasterKeyId"], attributes["SqsManagedSseEnabled"]) == (KEY, "false")


def test_work_queue_is_encrypted_with_a_key_of_sqs_when_there_is_no_other(aws: Aws) -> None:
    client = aws("sqs")

    attributes = client.get_queue_attributes(QueueUrl=an_admin(client).create("digits"), AttributeNames=["All"])["Attributes"]

    assert attributes["SqsManagedSseEnabled"] == "true"


def test_work_queue_creation_fails_clearly_when_there_is_no_dead_letter_queue(aws: Aws) -> None:
    admin = SqsWorkQueueAdmin(aws("sqs"), "markserve", dead_letter_queue_url="https://sqs.us-east-1.amazonaws.com/123456789012/none")

    with pytest.raises(DependencyUnavailable, match="the work queue of digits was not created"):
        admin.create("digits")


def test_written_parameters_are_what_the_source_reads(aws: Aws) -> None:
    writer = SsmParameterWriter(aws("ssm"), "markserve")
    source = SsmParameterSource(aws("ssm"), "markserve", refresh_s=0.0, now=lambda: 0.0, log=lambda _: None)

    writer.put("rt-max-s", "0.5")
    writer.put("rt-max-s", "0.6")
    writer.put("rt-max-s", "1.5", model="digits")

    assert (source.get().rt_max_s, source.get("digits").rt_max_s) == (0.6, 1.5)


def test_written_parameters_are_what_the_source_in_memory_reads() -> None:
    source = MemoryParameterSource()
    writer = MemoryParameterWriter(source)

    writer.put("rt-max-s", "0.5")
    writer.put("rt-max-s", "0.6")
    writer.put("rt-max-s", "1.5", model="digits")

    assert (source.get().rt_max_s, source.get("digits").rt_max_s) == (0.6, 1.5)


def test_writing_fails_clearly_when_ssm_does_not_answer() -> None:
    nobody = session().client("ssm", endpoint_url="http://127.0.0.1:9", config=Config(retries={"total_max_attempts": 1}))

    with pytest.raises(DependencyUnavailable, match="/markserve/rt-max-s was not set"):
        SsmParameterWriter(nobody, "markserve").put("rt-max-s", "0.5")
