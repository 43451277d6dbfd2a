"""Whatever a caller sends, it gets an error that names the field and the reason, and the system goes on."""

from __future__ import annotations

import gzip
import json
from typing import Any

import numpy as np
import pytest

from local.system import LocalSystem
from tests.system.live import Array, body_of, call, infer

pytestmark = pytest.mark.system

ROW: Array = np.zeros((1, 1, 8, 8), np.float32)
INFER = "/v2/models/digits/infer"
GZIP = {"Content-Encoding": "gzip", "Content-Type": "application/octet-stream"}
"""An HTTP API passes a body as bytes by its Content-Type alone; sent as JSON, compressed data would arrive as broken text."""


def with_binary(size: int, sent: int) -> tuple[bytes, dict[str, str]]:
    """A binary request whose input claims `size` bytes and that carries `sent`."""
    entry = {"name": "image", "datatype": "FP32", "shape": [1, 1, 8, 8], "parameters": {"binary_data_size": size}}
    head = json.dumps({"inputs": [entry]}).encode()
    return head + bytes(sent), {"Inference-Header-Content-Length": str(len(head)), "Content-Type": "application/octet-stream"}


BAD: dict[str, tuple[str, bytes, dict[str, str], int, list[str]]] = {
    "wrong shape": (INFER, body_of(ROW, shape=[1, 8, 8]), {}, 400, ["input 'image'", "[-1, 1, 8, 8]"]),
    "no rows": (INFER, body_of(ROW, shape=[0, 1, 8, 8], data=[]), {}, 400, ["input 'image'"]),
    "too many rows": (INFER, body_of(np.zeros((33, 1, 8, 8), np.float32)), {}, 400, ["input 'image'", "32"]),
    "wrong dtype": (INFER, body_of(ROW, datatype="INT64", data=[0] * 64), {}, 400, ["input 'image'", "datatype", "FP32"]),
    "values of another type": (INFER, body_of(ROW, data=["a"] * 64), {}, 400, ["input 'image'"]),
    "too few values": (INFER, body_of(ROW, data=[0.0] * 63), {}, 400, ["input 'image'", "63", "64"]),
    "too few bytes": (INFER, *with_binary(252, 252), 400, ["input 'image'", "252", "256"]),
    "bytes that are not there": (INFER, *with_binary(256, 200), 400, ["binary_data_size", "200"]),
    "bytes that nobody claims": (INFER, *with_binary(256, 260), 400, ["body", "4 bytes"]),
    "unknown model": ("/v2/models/nonesuch/infer", body_of(ROW), {}, 404, ["nonesuch"]),
    "unknown version": ("/v2/models/digits/versions/99/infer", body_of(ROW), {}, 404, ["99"]),
    "unknown path": ("/v2/model/digits", body_of(ROW), {}, 404, ["/v2/model/digits"]),
    "invalid JSON": (INFER, b'{"inputs": [', {}, 400, ["body", "JSON"]),
    "no JSON at all": (INFER, b"\xff\xfe\x00", {}, 400, ["body"]),
    "empty body": (INFER, b"", {}, 400, ["body", "empty"]),
    "no inputs": (INFER, b"{}", {}, 400, ["inputs"]),
    "input left out": (INFER, b'{"inputs": []}', {}, 400, ["inputs", "'image'"]),
    "input without a shape": (INFER, b'{"inputs": [{"name": "image", "datatype": "FP32", "data": [0]}]}', {}, 400, ["shape"]),
    "input without data": (INFER, b'{"inputs": [{"name": "image", "datatype": "FP32", "shape": [1,1,8,8]}]}', {}, 400, ["'image'", "data"]),
    "input of another name": (INFER, body_of(ROW, name="picture"), {}, 400, ["input 'picture'", "'image'"]),
    "NaN": (INFER, body_of(np.full_like(ROW, np.nan)), {}, 400, ["input 'image'", "NaN"]),
    "infinity": (INFER, body_of(np.full_like(ROW, np.inf)), {}, 400, ["input 'image'", "Infinity"]),
    "body over the limit": (INFER, b" " * (10 * 1024 * 1024 + 1), {}, 413, ["body", "10485760"]),
    "body that expands over the limit": (INFER, gzip.compress(bytes(11 * 1024 * 1024)), GZIP, 413, ["body", "10485760"]),
    "damaged gzip": (INFER, b"no gzip", GZIP, 400, ["body", "gzip"]),
    "unknown encoding": (INFER, b"", {"Content-Encoding": "zstd"}, 400, ["Content-Encoding", "zstd"]),
    "unusable idempotency key": (INFER, body_of(ROW), {"Idempotency-Key": "k" * 256}, 400, ["Idempotency-Key", "255"]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_request_gets_an_error_that_names_field_and_reason(system: LocalSystem, case: str) -> None:
    path, body, headers, status, named = BAD[case]

    reply = call(system.deployment.api_url + path, body, headers)

    assert reply.status == status, reply.body
    assert list(reply.body) == ["error"]
    assert [part for part in named if part not in reply.body["error"]] == [], reply.body["error"]


def test_system_answers_after_every_kind_of_bad_request(system: LocalSystem) -> None:
    replies: list[Any] = []
    for path, body, headers, _, _ in BAD.values():
        call(system.deployment.api_url + path, body, headers)
        if len(replies) < 3:
            replies.append(infer(system, ROW))
    replies.append(infer(system, ROW))

    assert [reply.status for reply in replies] == [200] * 4
