"""What the embedded AWS adds to ministack: the bill's units, and EC2's voice."""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from typing import Any

import msgspec
import pytest

from local.embedded_server import OBSERVER_APP_ID, SERVICE_EVENT_HEADER, USAGE_PATH, Call, Meter, Usage, classify, extend


async def swallow(scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
    """Read the whole request and answer nothing of interest, as far as metering goes."""
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"emulated"})


def ask(app: Any, path: str = "/", *, headers: dict[str, str] | None = None, chunks: tuple[bytes, ...] = (b"{}",)) -> bytes:
    """Send one POST through an ASGI app and return the body of its response."""
    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "headers": [(name.encode(), value.encode()) for name, value in (headers or {}).items()],
    }
    pending = [{"type": "http.request", "body": chunk, "more_body": i < len(chunks) - 1} for i, chunk in enumerate(chunks)]
    sent: list[MutableMapping[str, Any]] = []

    async def receive() -> MutableMapping[str, Any]:
        return pending.pop(0)

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    return b"".join(message.get("body", b"") for message in sent)


def target(action: str, **more: str) -> dict[str, str]:
    return {"x-amz-target": action, **more}


@pytest.mark.parametrize(
    ("headers", "size_bytes", "call"),
    [
        (target("AmazonSQS.SendMessage"), 65_536, Call("sqs:SendMessage", "sqs", 1)),
        (target("AmazonSQS.SendMessage"), 65_537, Call("sqs:SendMessage", "sqs", 2)),
        (target("DynamoDB_20120810.GetItem"), 90, Call("dynamodb:GetItem", "dynamodb_read", 1)),
        (target("DynamoDB_20120810.UpdateItem"), 1_025, Call("dynamodb:UpdateItem", "dynamodb_write", 2)),
        (target("AWSEvents.PutEvents"), 300, Call("events:PutEvents", "eventbridge", 1)),
        (target("AWSEvents.PutEvents", **{SERVICE_EVENT_HEADER: "ec2"}), 300, Call("events:PutEvents")),
        (target("AmazonSSM.GetParametersByPath"), 80, Call("ssm:GetParametersByPath")),
        ({"authorization": "AWS4-HMAC-SHA256 Credential=1/20260101/us-east-1/s3/aws4_request"}, 10, Call("s3:POST", "s3_put", 1)),
    ],
)
def test_call_is_metered_as_aws_would(headers: dict[str, str], size_bytes: int, call: Call) -> None:
    assert classify("POST", "/", headers, size_bytes=size_bytes) == call


def test_health_check_is_no_call() -> None:
    assert classify("GET", "/_ministack/health", {}, size_bytes=0) is None


def test_transaction_is_metered_twice_per_item() -> None:
    meter = Meter()
    app = extend(swallow, meter)

    ask(app, headers=target("DynamoDB_20120810.TransactWriteItems"), chunks=(b'[{"TableName": "a"}, ', b'{"TableName": "b"}]'))

    assert meter.usage().units == {"dynamodb_write": 4.0}


def test_usage_is_told_without_counting_the_question() -> None:
    app = extend(swallow, Meter())
    assert ask(app, headers=target("AmazonSQS.ReceiveMessage")) == b"emulated"
    ask(app, "/_aws/execute-api/a1/$default/v2", chunks=(b"x" * 600_000,))

    usage = msgspec.json.decode(ask(app, USAGE_PATH), type=Usage)

    assert usage == Usage(calls={"sqs:ReceiveMessage": 1, "execute-api:Request": 1}, units={"sqs": 1.0, "http_api": 2.0})


def test_observer_is_not_billed() -> None:
    meter = Meter()

    ask(extend(swallow, meter), headers=target("AmazonSQS.ReceiveMessage", **{"user-agent": f"Boto3/1.4 app/{OBSERVER_APP_ID}"}))

    assert meter.usage().calls == {}
