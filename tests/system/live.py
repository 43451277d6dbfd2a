"""What the system tests say often: send a request, wait for something, read what the stack holds."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from local.digits import request_for
from local.system import LocalSystem
from markserve import wiring
from markserve.core.types import Instance, InstanceState
from markserve.messages import Answer

TIMEOUT_S = 60.0
POLL_S = 0.1
CLIENTS = 8
"""No more at once than the fixture has warm environments: a cold start takes a second of a core."""

ValueT = TypeVar("ValueT")
Array = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Reply:
    """One HTTP answer."""

    status: int
    headers: Mapping[str, str]
    body: Any

    @property
    def request_id(self) -> str:
        return self.headers["x-markserve-request-id"]

    @property
    def tier(self) -> str:
        return self.headers["x-markserve-tier"]

    def logits(self) -> Array:
        (output,) = self.body["outputs"]
        return np.asarray(output["data"], np.float32).reshape(output["shape"])


def call(url: str, body: bytes | None = None, headers: Mapping[str, str] | None = None, *, method: str | None = None) -> Reply:
    """Send one request; an HTTP error is an answer like any other."""
    content = {"Content-Type": "application/json", **(headers or {})}
    request = urllib.request.Request(url, data=body, headers=content, method=method)  # noqa: S310  # loopback
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:  # noqa: S310  # loopback
            return _reply(response.status, response)
    except urllib.error.HTTPError as error:
        with error:
            return _reply(error.code, error)


def _reply(status: int, response: Any) -> Reply:
    headers = {name.lower(): value for name, value in response.headers.items()}
    return Reply(status=status, headers=headers, body=json.loads(response.read()))


def body_of(rows: Array, **changes: Any) -> bytes:
    """Write an infer request for `rows`; `changes` replace parts of its input."""
    entry = {"name": "image", "datatype": "FP32", "shape": list(rows.shape), "data": rows.ravel().tolist(), **changes}
    return json.dumps({"inputs": [entry]}).encode()


def infer(system: LocalSystem, rows: Array, headers: Mapping[str, str] | None = None, *, model: str = "digits") -> Reply:
    return call(f"{system.deployment.api_url}/v2/models/{model}/infer", body_of(rows), headers)


def infer_all(system: LocalSystem, images: Sequence[Array]) -> list[Reply]:
    """Ask for each image, several at a time; answers in the order of the images."""
    with ThreadPoolExecutor(max_workers=CLIENTS) as clients:
        return list(clients.map(lambda image: infer(system, image), images))


def expected_logits(system: LocalSystem, rows: Array) -> Array:
    """Run the model directly, without anything of the serving path."""
    runner = wiring.load_runner(system.record, system.model.artefact)
    (answer,) = runner.run([request_for(rows, request_id="direct", model="digits", version=system.record.version)])
    assert isinstance(answer, Answer)
    (output,) = answer.outputs
    return np.frombuffer(output.data, "<f4").reshape(output.shape)


def eventually(what: str, look: Callable[[], ValueT | None], *, within_s: float = TIMEOUT_S) -> ValueT:
    """Look until there is something; fails after `within_s`."""
    give_up_at_s = time.monotonic() + within_s
    while time.monotonic() < give_up_at_s:
        found = look()
        if found:
            return found
        time.sleep(POLL_S)
    raise AssertionError(f"not within {within_s:g} s: {what}")


def serving(model: str = "digits") -> list[Instance]:
    return [instance for instance in wiring.instances().list(model) if instance.state is InstanceState.SERVING]


def messages_in(queue_url: str) -> int:
    """Messages that wait or are being processed."""
    import boto3

    names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
    attributes = boto3.client("sqs").get_queue_attributes(QueueUrl=queue_url, AttributeNames=names)["Attributes"]  # type: ignore[arg-type]
    return sum(int(attributes[name]) for name in names)
