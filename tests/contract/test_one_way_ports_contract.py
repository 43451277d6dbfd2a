"""Ports that only send: what arrives at the other end."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from markserve.adapters.eventbridge import EventBridgePublisher
from markserve.adapters.memory import MemoryEventPublisher, MemoryMetricsSink
from markserve.adapters.sqs import SqsMetricsSink
from markserve.messages import InstanceReady, MetricsBatch, SloAtRisk, decode, encode
from tests.builders import NOW_S, a_metrics_batch
from tests.contract.conftest import BACKENDS

READY = InstanceReady(model="digits", instance_id="i-1", at_s=NOW_S)
AT_RISK = SloAtRisk(model="digits", at_s=NOW_S, attainment=0.9, objective=0.98, requests=100, reason="below the objective")


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def read_queue(client: Any, url: str) -> list[str]:
    return [message["Body"] for message in client.receive_message(QueueUrl=url, MaxNumberOfMessages=10).get("Messages", [])]


def test_metrics_sink_delivers_a_batch(backend: str, request: pytest.FixtureRequest) -> None:
    batch = a_metrics_batch(tick_at_s=NOW_S)

    if backend == "memory":
        sink = MemoryMetricsSink()
        sink.send(batch)
        delivered = sink.batches
    else:
        client = request.getfixturevalue("aws")("sqs")
        url = client.create_queue(QueueName="metrics")["QueueUrl"]
        SqsMetricsSink(client, url).send(batch)
        delivered = [decode(body, MetricsBatch) for body in read_queue(client, url)]

    assert delivered == [batch]


def test_event_publisher_names_an_event_after_its_class(backend: str, request: pytest.FixtureRequest) -> None:
    if backend == "memory":
        publisher = MemoryEventPublisher()
        publisher.publish(READY)
        publisher.publish(AT_RISK)
        published = [(type(event).__name__, json.loads(encode(event))) for event in publisher.events]
    else:
        published = published_on_the_bus(request.getfixturevalue("aws"), READY, AT_RISK)

    assert published == [("InstanceReady", json.loads(encode(READY))), ("SloAtRisk", json.loads(encode(AT_RISK)))]


def published_on_the_bus(aws: Callable[[str], Any], *events: Any) -> list[tuple[str, Any]]:
    sqs, bus = aws("sqs"), aws("events")
    url = sqs.create_queue(QueueName="events")["QueueUrl"]
    arn = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    bus.create_event_bus(Name="markserve-bus")
    bus.put_rule(Name="all", EventBusName="markserve-bus", EventPattern=json.dumps({"source": ["markserve"]}))
    bus.put_targets(Rule="all", EventBusName="markserve-bus", Targets=[{"Id": "queue", "Arn": arn}])
    publisher = EventBridgePublisher(bus, "markserve-bus")
    for event in events:
        publisher.publish(event)
    received = [json.loads(body) for body in read_queue(sqs, url)]
    return [(event["detail-type"], event["detail"]) for event in received]
