"""Family 5: queues, tables and objects misbehave."""

from __future__ import annotations

import json
import time
from collections.abc import Generator

import boto3

from chaos.scenario import FLOOR_ONE, scenario
from chaos.stage import Stage
from cli.traffic import messages_in
from local.faults import Fault
from markserve import wiring

POISONS = (b"not JSON at all", json.dumps({"schema_version": 99}).encode(), b"[" * 2000 + b"]" * 2000, b"{}" + b" " * 200_000)
NO_ACK_S = "1"


def _work(stage: Stage) -> str:
    return stage.system.record.queue_url.rsplit("/", 1)[-1]


@scenario("queue-duplicates", family=5, hold_s=10.0, short=True, floor=FLOOR_ONE)
def queue_duplicates(stage: Stage) -> Generator[None, None, None]:
    """Half of the messages to the work queue arrive twice."""
    stage.aws_faults(Fault(action="sqs:SendMessage", effect="duplicate", mentions=_work(stage), share=0.5))
    yield
    stage.aws_faults()


@scenario("queue-delays", family=5, hold_s=10.0, floor=FLOOR_ONE)
def queue_delays(stage: Stage) -> Generator[None, None, None]:
    """Half of the receives from the work queue take 1.5 s longer."""
    stage.aws_faults(Fault(action="sqs:ReceiveMessage", effect="delay", mentions=_work(stage), share=0.5, delay_s=1.5))
    yield
    stage.aws_faults()


@scenario("visibility-expires", family=5, floor=FLOOR_ONE)
def visibility_expires(stage: Stage) -> Generator[None, None, None]:
    """Messages reappear after 1 s while one worker sits on its own for 4 s: others run them too."""
    sqs, url = stage.system.client("sqs"), stage.system.record.queue_url
    before = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["VisibilityTimeout"])["Attributes"]
    sqs.set_queue_attributes(QueueUrl=url, Attributes={"VisibilityTimeout": NO_ACK_S})
    victims = stage.workers()[:1]
    for _ in range(2):
        stage.freeze(victims)
        time.sleep(3.5)
        stage.thaw(victims)
        time.sleep(2.0)
    sqs.set_queue_attributes(QueueUrl=url, Attributes=before)
    yield


@scenario("poison-messages", family=5, hold_s=3.0, floor=FLOOR_ONE)
def poison_messages(stage: Stage) -> Generator[None, None, None]:
    """Rubbish on the work queue: unreadable, of an unknown version, nested 2,000 deep, huge; it becomes dead letters with a reason."""
    sqs, dead = boto3.client("sqs"), wiring.settings().dead_letter_queue_url
    for poison in POISONS:
        sqs.send_message(QueueUrl=stage.system.record.queue_url, MessageBody=poison.decode())
    stage.explained_dead_letters = len(POISONS)
    yield
    stage.wait("all of it is in the dead-letter queue", lambda: messages_in(dead) == len(POISONS), within_s=30.0)


@scenario("results-throttled", family=5, hold_s=10.0, refuses_records=True, unjudged="every answer waits")
def results_throttled(stage: Stage) -> Generator[None, None, None]:
    """DynamoDB refuses half of the calls on the results table."""
    code = "ProvisionedThroughputExceededException"
    stage.aws_faults(Fault(action="dynamodb:*", effect="error", mentions=wiring.settings().results_table, share=0.5, code=code))
    yield
    stage.aws_faults()


@scenario("results-slow", family=5, hold_s=8.0, unjudged="every answer waits")
def results_slow(stage: Stage) -> Generator[None, None, None]:
    """Every call on the results table takes 0.7 s longer."""
    stage.aws_faults(Fault(action="dynamodb:*", effect="delay", mentions=wiring.settings().results_table, delay_s=0.7))
    yield
    stage.aws_faults()


@scenario("artefact-gone", family=5, recover_within_s=150.0, floor=FLOOR_ONE)
def artefact_gone(stage: Stage) -> Generator[None, None, None]:
    """The model's object is deleted as a worker dies: its replacement cannot load; the other one serves on until the object is back."""
    record = wiring.models().get(stage.system.record.model)
    bucket, s3 = wiring.settings().artefacts_bucket, boto3.client("s3")
    s3.delete_object(Bucket=bucket, Key=record.artefact_key)
    since_s = time.time()
    stage.kill(stage.workers()[:1])
    try:
        fleet = stage.system.fleet
        stage.wait(
            "a replacement fails", lambda: [i for i in fleet.instances() if i.exit_code == 1 and i.boot_at_s > since_s], within_s=60.0
        )
        time.sleep(3.0)
    finally:
        wiring.blobs().put(record.artefact_key, stage.system.model.artefact)
    yield


@scenario("aws-restarted", family=5, recover_within_s=120.0, outage="API Gateway itself is down for some seconds", unjudged="API away")
def aws_restarted(stage: Stage) -> Generator[None, None, None]:
    """The embedded AWS, queues, tables, functions and all but EC2, is stopped and started again with its state kept."""
    since_s = time.time()
    stage.system.aws.restart()
    stage.note(f"away for {time.time() - since_s:.0f} s")
    yield
