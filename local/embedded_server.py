"""The embedded AWS as one process: ministack, plus what a laptop has no EC2 service or bill for.

Run as `python -m local.embedded_server`; takes ministack's own environment variables (`GATEWAY_PORT`, `BIND_HOST`, ...).
Four additions:

- EC2's own events. `PutEvents` refuses `aws.*` sources, as AWS does; a request that carries `SERVICE_EVENT_HEADER` is
  the local fleet speaking for EC2, and is admitted. Everybody else is still refused.
- `GET /_markserve/usage` returns what was called and the units that AWS would meter, because each has a price. Calls by
  processes with the SDK application id `OBSERVER_APP_ID` are left out: watching a run is no part of its bill.
- `PUT /_markserve/faults` has chosen calls fail, wait or be carried out twice (`local.faults`), for rehearsals.
- Zip functions run under the interpreter that `LAMBDA_PYTHON` names, if it does: ministack takes its own.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import msgspec

from local.faults import FAULTS_PATH, Fault, FaultBoard
from markserve.core.cost import DYNAMODB_READ_BYTES, DYNAMODB_WRITE_BYTES, HTTP_API_CHUNK_BYTES, SQS_CHUNK_BYTES, metered_units

SERVICE_EVENT_HEADER = "x-markserve-service-event"
USAGE_PATH = "/_markserve/usage"
OBSERVER_APP_ID = "markserve-observer"
LAMBDA_PYTHON = "MARKSERVE_LOCAL_LAMBDA_PYTHON"

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]

_SERVICES = {
    "AmazonSQS": "sqs",
    "DynamoDB_20120810": "dynamodb",
    "AWSEvents": "events",
    "AWSStepFunctions": "states",
    "AmazonSSM": "ssm",
}
_DYNAMODB_READS = ("GetItem", "BatchGetItem", "Query", "Scan", "TransactGetItems")
_speaks_for_aws: ContextVar[bool] = ContextVar("_speaks_for_aws", default=False)


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Calls by `service:Action`, and metered units by the names of `core.cost.PLUMBING_PRICES`."""

    calls: dict[str, int]
    units: dict[str, float]


@dataclass(frozen=True, slots=True)
class Call:
    """One AWS call: what it is, and what it is metered as."""

    action: str
    meter: str | None = None
    units: float = 0.0


def classify(method: str, path: str, headers: Mapping[str, str], *, size_bytes: int, items: int = 0) -> Call | None:
    """Tell which AWS call a request makes and what AWS would meter for it; None for what is no AWS call.

    Units follow from the request's size, an upper bound for DynamoDB writes (its envelope counts as well); a read
    counts one unit, as the response is not looked into.

    >>> classify("POST", "/", {"x-amz-target": "AmazonSQS.SendMessage"}, size_bytes=70_000)
    Call(action='sqs:SendMessage', meter='sqs', units=2)
    >>> classify("POST", "/", {"x-amz-target": "DynamoDB_20120810.TransactWriteItems"}, size_bytes=900, items=3)
    Call(action='dynamodb:TransactWriteItems', meter='dynamodb_write', units=6)
    >>> classify("POST", "/_aws/execute-api/a1/$default/v2", {}, size_bytes=300)
    Call(action='execute-api:Request', meter='http_api', units=1)
    """
    target, _, action = headers.get("x-amz-target", "").partition(".")
    if action:
        return _json_call(_SERVICES.get(target, target.lower()), action, headers, size_bytes, items)
    if path.startswith("/2015-03-31/functions/") and path.endswith("/invocations"):
        return Call("lambda:Invoke")  # metered by Lambda's own invocation count, which has the invocations from inside too
    if "execute-api" in path or "execute-api" in headers.get("host", ""):
        return Call("execute-api:Request", "http_api", metered_units(size_bytes, HTTP_API_CHUNK_BYTES))
    if "/s3/aws4_request" in headers.get("authorization", ""):
        return Call(f"s3:{method}", "s3_get" if method in ("GET", "HEAD") else "s3_put", 1)
    return None


def _json_call(service: str, action: str, headers: Mapping[str, str], size_bytes: int, items: int) -> Call:
    name = f"{service}:{action}"
    if service == "sqs":
        return Call(name, "sqs", metered_units(size_bytes, SQS_CHUNK_BYTES))
    if service == "dynamodb" and action in _DYNAMODB_READS:
        return Call(name, "dynamodb_read", metered_units(0, DYNAMODB_READ_BYTES))
    if name == "dynamodb:TransactWriteItems":
        return Call(name, "dynamodb_write", 2 * max(items, metered_units(size_bytes, DYNAMODB_WRITE_BYTES)))
    if name == "dynamodb:BatchExecuteStatement":
        return Call(name, "dynamodb_write", max(items, metered_units(size_bytes, DYNAMODB_WRITE_BYTES)))
    if service == "dynamodb":
        return Call(name, "dynamodb_write", metered_units(size_bytes, DYNAMODB_WRITE_BYTES))
    if name == "events:PutEvents" and SERVICE_EVENT_HEADER not in headers:  # AWS's own events are free
        return Call(name, "eventbridge", 1)
    return Call(name)


@dataclass
class Meter:
    """Counts what passes through."""

    calls: Counter[str] = field(default_factory=Counter)
    units: Counter[str] = field(default_factory=Counter)

    def note(self, call: Call) -> None:
        """Count one call."""
        self.calls[call.action] += 1
        if call.meter is not None:
            self.units[call.meter] += call.units  # type: ignore[assignment]  # a Counter counts halves as well

    def usage(self) -> Usage:
        """Return what passed so far."""
        return Usage(calls=dict(self.calls), units={kind: float(units) for kind, units in self.units.items()})


def extend(ministack_app: AsgiApp, meter: Meter) -> AsgiApp:
    """Wrap ministack's ASGI app with what is added over HTTP."""
    board = FaultBoard()
    ministack_app = with_faults(ministack_app, board)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await ministack_app(scope, receive, send)
            return
        if scope["path"] == USAGE_PATH:
            await _reply_json(send, msgspec.json.encode(meter.usage()))
            return
        if scope["path"] == FAULTS_PATH:
            board.put(await _whole_body(receive))
            await _reply_json(send, b"{}")
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        body = _CountedBody(receive)
        token = _speaks_for_aws.set(SERVICE_EVENT_HEADER in headers)
        try:
            await ministack_app(scope, body.receive, send)
        finally:
            _speaks_for_aws.reset(token)
            call = classify(scope["method"], scope["path"], headers, size_bytes=body.size_bytes, items=body.items)
            if call is not None and f"app/{OBSERVER_APP_ID}" not in headers.get("user-agent", ""):
                meter.note(call)

    return app


def with_faults(inner: AsgiApp, board: FaultBoard) -> AsgiApp:
    """Let the board's faults happen to AWS calls; observers' calls stay whole, so that a fault can be watched."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        headers = {} if board.is_clear else {n.decode("latin-1").lower(): v.decode("latin-1") for n, v in scope["headers"]}
        call = classify(scope["method"], scope["path"], headers, size_bytes=0) if headers else None
        if call is None or f"app/{OBSERVER_APP_ID}" in headers.get("user-agent", ""):
            await inner(scope, receive, send)
            return
        body = await _whole_body(receive)
        fault = board.strike(call.action, scope["path"].encode() + b" " + body)
        if fault is not None and fault.effect == "error":
            await _reply_json(send, _refusal(fault), status=fault.status)
            return
        if fault is not None and fault.effect == "delay":
            await asyncio.sleep(fault.delay_s)
        if fault is not None and fault.effect == "duplicate":
            await inner(scope, _Replayed(body, receive).receive, _drop)
        await inner(scope, _Replayed(body, receive).receive, send)

    return app


def _refusal(fault: Fault) -> bytes:
    return msgspec.json.encode({"__type": fault.code, "message": "a fault on purpose"})


async def _whole_body(receive: Receive) -> bytes:
    chunks: list[bytes] = []
    while True:
        message = await receive()
        chunks.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(chunks)


async def _drop(message: MutableMapping[str, Any]) -> None:
    del message


class _Replayed:
    """Gives a body that was read once more; what follows it (a disconnect) comes from the connection."""

    def __init__(self, body: bytes, receive: Receive) -> None:
        self._body: bytes | None = body
        self._receive = receive

    async def receive(self) -> MutableMapping[str, Any]:
        body, self._body = self._body, None
        if body is None:
            return await self._receive()
        return {"type": "http.request", "body": body, "more_body": False}


class _CountedBody:
    """Passes a request's body on, noting its size and its items: a transaction names a table for each, a batch has statements."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self.size_bytes = 0
        self.items = 0

    async def receive(self) -> MutableMapping[str, Any]:
        message = await self._receive()
        chunk: bytes = message.get("body", b"")
        self.size_bytes += len(chunk)
        self.items += chunk.count(b'"TableName"') + chunk.count(b'"Statement"')
        return message


async def _reply_json(send: Send, body: bytes, *, status: int = 200) -> None:
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def main() -> None:
    """Serve until told to stop."""
    from ministack import app as ministack
    from ministack.core import lambda_runtime
    from ministack.services import eventbridge

    put_events = eventbridge._put_events

    def put_events_for_aws(data: dict[str, Any], allow_aws_source: bool = False) -> Any:
        return put_events(data, allow_aws_source=allow_aws_source or _speaks_for_aws.get())

    eventbridge._put_events = put_events_for_aws
    if LAMBDA_PYTHON in os.environ:
        runtime_binary = lambda_runtime._detect_runtime_binary

        def with_chosen_python(runtime: str) -> tuple[str, str]:
            binary, script = runtime_binary(runtime)
            return (os.environ[LAMBDA_PYTHON] if runtime.startswith("python") else binary), script

        lambda_runtime._detect_runtime_binary = with_chosen_python
    ministack.app = extend(ministack.app, Meter())
    ministack.main()


if __name__ == "__main__":
    main()
