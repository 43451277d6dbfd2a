"""Whatever is sent: no 500, no hang, no crash. Schemathesis follows the published document; hypothesis knows the binary extension."""

from __future__ import annotations

import http.client
import json
import socket
import struct
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.server.rig import Doubler, Running, save, serving

FUZZ = settings(
    max_examples=60,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate],
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    model = save(Doubler(), tmp_path_factory.mktemp("models") / "doubler.pt")
    with serving(model, options=["--rt-max", "5", "--max-payload", "1"]) as running:
        yield running
        assert running.process.poll() is None, f"the server died: {running.log[-5:]}"
        assert running.infer([[1, 2, 3, 4]])[0] == 200


def test_published_document_holds_for_whatever_follows_it(server: Running) -> None:
    schema = schemathesis.openapi.from_url(f"http://{server.host}:{server.port}/openapi.json")
    operations = [found.ok() for found in schema.get_all_operations()]
    assert len(operations) == 9  # all but the document itself

    for operation in operations:

        @FUZZ
        @given(case=operation.as_strategy())
        def conforms(case: schemathesis.Case) -> None:
            response = case.call(timeout=10)
            case.validate_response(response, checks=_conformance())
            assert response.status_code != 500  # documented, but for a model that raises: this one does not

        conforms()


def _conformance() -> list[Any]:
    from schemathesis.specs.openapi import checks

    return [checks.status_code_conformance, checks.content_type_conformance, checks.response_schema_conformance]


@FUZZ
@given(
    shape=st.lists(st.integers(-2, 2**33), max_size=4) | st.just([1, 4]),
    size=st.none() | st.integers(-1, 64) | st.just(16) | st.text(max_size=3),
    blob=st.binary(max_size=64) | st.just(struct.pack("<4f", 1, 2, 3, 4)),
    claimed=st.none() | st.integers(-3, 400).map(str) | st.text("0123456789-+_ .e", max_size=16),
    wants_binary=st.booleans(),
)
def test_binary_extension_is_answered_or_refused(
    server: Running, shape: list[int], size: int | str | None, blob: bytes, claimed: str | None, wants_binary: bool
) -> None:
    parameters = {} if size is None else {"binary_data_size": size}
    head = json.dumps(
        {
            "inputs": [{"name": "x", "datatype": "FP32", "shape": shape, "parameters": parameters}],
            "parameters": {"binary_data_output": wants_binary},
        }
    ).encode()
    headers = {"Inference-Header-Content-Length": str(len(head)) if claimed is None else claimed}

    status, _, _ = server.ask("POST", "/v2/models/doubler/infer", head + blob, **headers)

    assert status in (200, 400)


@FUZZ
@given(st.binary(max_size=300), st.sampled_from([b"", b"POST /v2/models/doubler/infer HTTP/1.1\r\n", b"GET /v2 HTTP/1.1\r\nhost: x\r\n"]))
def test_bytes_that_are_no_http_end_their_connection_and_nothing_else(server: Running, noise: bytes, start: bytes) -> None:
    with socket.create_connection((server.host, server.port), timeout=10) as client:
        client.sendall(start + noise)
        client.shutdown(socket.SHUT_WR)
        received = b""
        while chunk := client.recv(65536):
            received += chunk

    assert b" 500 " not in received.split(b"\r\n", 1)[0]
    connection = http.client.HTTPConnection(server.host, server.port, timeout=10)
    connection.request("GET", "/v2/health/live")
    assert connection.getresponse().status == 200
    connection.close()
