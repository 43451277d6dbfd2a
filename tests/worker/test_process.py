"""The worker as a process, on an emulated AWS: real wiring, a real model, and an exit code that tells how it ended."""

from __future__ import annotations

import hashlib
import http.client
import io
import os
import signal
import struct
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import boto3
import pytest
import torch
from moto.server import ThreadedMotoServer
from torch import nn

from local.imds import InstanceMetadata
from markserve.adapters.dynamodb_instances import DynamoInstanceRegistry
from markserve.adapters.dynamodb_models import DynamoModelStore
from markserve.adapters.dynamodb_results import DynamoResultStore
from markserve.adapters.s3 import S3BlobStore
from markserve.adapters.sqs import SqsWorkQueue
from markserve.core.lifecycle import NOTICE_RESERVE_S
from markserve.core.types import InstanceState
from markserve.messages import Answer, TensorSpec
from tests.builders import a_model_record, a_request, a_tensor, an_instance
from tests.contract.conftest import create_table

ROOT = Path(__file__).parents[2]
INSTANCE_ID = "i-0001"
PATIENCE_S = 60.0


class Doubler(nn.Module):  # type: ignore[misc]  # torch is untyped here
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2


class Stack:
    """What the template makes and registration leaves, as far as a worker needs it; and one worker process."""

    def __init__(self, endpoint: str, log: Path) -> None:
        self._endpoint = endpoint
        self._log = log
        dynamodb, sqs, s3, events = (self._client(name) for name in ("dynamodb", "sqs", "s3", "events"))
        for table in ("models", "instances"):
            create_table(dynamodb, table)
        create_table(dynamodb, "results", keys=("request_id",))
        s3.create_bucket(Bucket="artefacts")
        events.create_event_bus(Name="bus")
        queue_url = sqs.create_queue(QueueName="work")["QueueUrl"]
        self._dead_letter_url = sqs.create_queue(QueueName="dead")["QueueUrl"]
        self.queue = SqsWorkQueue(sqs, queue_url, dead_letter_queue_url=self._dead_letter_url)
        self.results = DynamoResultStore(dynamodb, "results")
        self.instances = DynamoInstanceRegistry(dynamodb, "instances")
        self.instances.put(an_instance(instance_id=INSTANCE_ID, state=InstanceState.REQUESTED))
        self.metadata = InstanceMetadata({"instance-id": INSTANCE_ID})
        artefact = _artefact()
        record = a_model_record(
            inputs=(TensorSpec(name="x", datatype="FP32", shape=(-1, 2)),),
            outputs=(TensorSpec(name="y", datatype="FP32", shape=(-1, 2)),),
            artefact_sha256=hashlib.sha256(artefact).hexdigest(),
            queue_url=queue_url,
        )
        S3BlobStore(s3, "artefacts").put(record.artefact_key, artefact)
        DynamoModelStore(dynamodb, "models").put(record)

    def start(self, **overrides: str) -> subprocess.Popen[bytes]:
        """Start `python -m worker.main` as user data would."""
        environ = {
            **os.environ,
            "AWS_ENDPOINT_URL": self._endpoint,
            "AWS_EC2_METADATA_SERVICE_ENDPOINT": self.metadata.base_url,
            "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "layers/markserve"))),
            "MARKSERVE_STACK_NAME": "demo",
            "MARKSERVE_MODELS_TABLE": "models",
            "MARKSERVE_INSTANCES_TABLE": "instances",
            "MARKSERVE_RESULTS_TABLE": "results",
            "MARKSERVE_EVENT_BUS_NAME": "bus",
            "MARKSERVE_ARTEFACTS_BUCKET": "artefacts",
            "MARKSERVE_DEAD_LETTER_QUEUE_URL": self._dead_letter_url,
            "MARKSERVE_MODEL": "digits",
            "MARKSERVE_INSTANCE_ID": INSTANCE_ID,
            "MARKSERVE_INSTANCE_TYPE": "c5.large",
            "MARKSERVE_RECEIVE_WAIT_S": "1",
            "MARKSERVE_HEARTBEAT_S": "0.2",
            **overrides,
        }
        with self._log.open("wb") as log:
            return subprocess.Popen([sys.executable, "-m", "worker.main"], cwd=ROOT, env=environ, stdout=log, stderr=subprocess.STDOUT)

    def state(self) -> InstanceState:
        (instance,) = self.instances.list()
        return instance.state

    def answer(self, request_id: str) -> Answer | None:
        stored = self.results.get(request_id)
        return stored.answer if stored else None

    def log(self) -> str:
        return self._log.read_text()

    def _client(self, service: str) -> Any:
        return boto3.client(service, endpoint_url=self._endpoint)  # type: ignore[call-overload]


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    connection = http.client.HTTPConnection(host, port)
    connection.request("POST", "/moto-api/reset")  # the emulator keeps its state as long as this process lives
    connection.getresponse().close()
    connection.close()
    made = Stack(f"http://{host}:{port}", tmp_path / "worker.log")
    yield made
    made.metadata.stop()
    server.stop()


def _artefact() -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.script(Doubler()), buffer)
    return buffer.getvalue()


def _eventually(condition: Callable[[], object], stack: Stack) -> None:
    give_up_at_s = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > give_up_at_s:
            pytest.fail(f"not within {PATIENCE_S:g} s; the worker's log:\n{stack.log()}")
        time.sleep(0.05)


def test_worker_serves_from_the_queue_and_leaves_in_order_on_a_spot_notice(stack: Stack) -> None:
    process = stack.start()
    try:
        _eventually(lambda: stack.state() is InstanceState.SERVING, stack)
        for number in range(5):
            request = a_request(request_id=f"r{number}", inputs=(a_tensor("x", (number, 1.0)),), deadline_at_s=None, spill_at_s=None)
            stack.queue.send(request)
            # One at a time: several answers at once go in PartiQL, which this emulator does not read (the embedded AWS does).
            _eventually(partial(stack.answer, request.request_id), stack)

        stack.metadata.announce_interruption(time.time() + NOTICE_RESERVE_S)

        assert process.wait(PATIENCE_S) == 0, stack.log()
    finally:
        process.kill()
        process.wait()
    answers = [stack.answer(f"r{number}") for number in range(5)]
    assert [struct.unpack("<2f", answer.outputs[0].data) for answer in answers if answer] == [(2.0 * n, 2.0) for n in range(5)]
    (instance,) = stack.instances.list()
    assert instance.state is InstanceState.DRAINING
    assert (instance.stats.completed, instance.stats.in_flight) == (5, 0)
    assert stack.queue.depth() == 0


def test_worker_leaves_in_order_when_told_to_stop(stack: Stack) -> None:
    process = stack.start()
    try:
        _eventually(lambda: stack.state() is InstanceState.SERVING, stack)

        process.send_signal(signal.SIGTERM)

        assert process.wait(PATIENCE_S) == 0, stack.log()
    finally:
        process.kill()
        process.wait()
    assert stack.state() is InstanceState.DRAINING


def test_worker_fails_loudly_when_its_model_is_unknown(stack: Stack) -> None:
    process = stack.start(MARKSERVE_MODEL="no-such-model")
    try:
        assert process.wait(PATIENCE_S) == 1
    finally:
        process.kill()
        process.wait()
    assert "no-such-model" in stack.log()
