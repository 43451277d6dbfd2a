"""Whatever bytes arrive, the parsers either accept what the model takes or raise `InvalidRequest`."""

from __future__ import annotations

import json
from math import prod
from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tritonclient.http import InferenceServerClient, InferInput

from markserve.errors import InvalidRequest
from markserve.messages import ModelRecord, Tensor, TensorSpec
from markserve.protocol import oip, sagemaker
from markserve.protocol.tensors import ELEMENT_BYTES

UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""These check what comes out, not how fast a shared machine is."""

RECORD = ModelRecord(
    model="m",
    version="1",
    inputs=(TensorSpec(name="x", datatype="FP32", shape=(-1, 2)), TensorSpec(name="s", datatype="BYTES", shape=(-1, -1))),
    outputs=(TensorSpec(name="y", datatype="FP32", shape=(-1,)),),
    artefact_key="k",
    artefact_sha256="0" * 64,
    max_batch_size=4,
)
ONE_INPUT = ModelRecord(
    model="m", version="1", inputs=RECORD.inputs[:1], outputs=RECORD.outputs, artefact_key="k", artefact_sha256="0" * 64, max_batch_size=4
)

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4)
JSON_VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3), max_leaves=8
)


def mostly(*usual: Any) -> st.SearchStrategy[Any]:
    """Draw a value that the protocol allows, or anything at all."""
    return st.one_of(*[st.just(value) for value in usual], JSON_VALUES)


PARAMETERS = st.fixed_dictionaries(
    {}, optional={"binary_data_size": mostly(0, 8, 16), "binary_data": mostly(True, False), "classification": mostly(1)}
)
INPUTS = st.fixed_dictionaries(
    {},
    optional={
        "name": mostly("x", "s"),
        "shape": mostly([1, 2], [2, 2], [1, 1]),
        "datatype": mostly("FP32", "BYTES"),
        "data": mostly([1, 2], [[1.5, 2]], ["a"], [float("nan"), 1]),
        "parameters": PARAMETERS | JSON_VALUES,
    },
)
BODIES = st.fixed_dictionaries(
    {},
    optional={
        "inputs": st.lists(INPUTS | JSON_VALUES, max_size=3) | JSON_VALUES,
        "outputs": st.lists(st.fixed_dictionaries({"name": mostly("y")}, optional={"parameters": PARAMETERS}), max_size=2) | JSON_VALUES,
        "instances": mostly([[1, 2]], [1, 2]),
        "parameters": st.fixed_dictionaries({}, optional={"binary_data_output": mostly(True)}) | JSON_VALUES,
        "id": mostly("a"),
    },
)
HEADERS = st.fixed_dictionaries(
    {},
    optional={
        oip.HEADER_LENGTH: st.integers(-1, 200).map(str) | st.text(max_size=6),
        "content-type": st.sampled_from(["application/json", "text/csv", "image/png", ""]),
    },
)


def assert_fits(inputs: tuple[Tensor, ...], record: ModelRecord) -> None:
    assert [tensor.name for tensor in inputs] == [spec.name for spec in record.inputs]
    for tensor, spec in zip(inputs, record.inputs, strict=True):
        assert len(tensor.shape) == len(spec.shape)
        assert 1 <= tensor.shape[0] <= record.max_batch_size
        if tensor.datatype != "BYTES":
            assert len(tensor.data) == prod(tensor.shape) * ELEMENT_BYTES[tensor.datatype]


def parse_everything(body: bytes, headers: dict[str, str]) -> None:
    refusals: list[str] = []
    for record in (RECORD, ONE_INPUT):
        for decoder in (oip.decode_infer, sagemaker.decode_invocation):
            try:
                call = decoder(body, headers, record)
            except InvalidRequest as refusal:
                refusals.append(str(refusal))
            else:
                assert_fits(call.inputs, record)
    assert all(len(refusal) < 500 for refusal in refusals)


@UNHURRIED
@given(BODIES, st.binary(max_size=24), HEADERS, st.booleans())
def test_parsers_raise_only_invalid_request_for_structured_bodies(
    fields: dict[str, Any], blob: bytes, headers: dict[str, str], framed: bool
) -> None:
    head = json.dumps(fields).encode()
    parse_everything(head + blob, {**headers, oip.HEADER_LENGTH: str(len(head))} if framed else headers)


@UNHURRIED
@given(st.binary(max_size=200), HEADERS)
def test_parsers_raise_only_invalid_request_for_any_bytes(body: bytes, headers: dict[str, str]) -> None:
    parse_everything(body, headers)


@UNHURRIED
@given(st.text("0123456789,.\n-+e_ nai", max_size=60))
def test_csv_raises_only_invalid_request(text: str) -> None:
    parse_everything(text.encode(), {"content-type": "text/csv"})


@UNHURRIED
@given(st.integers(0, 400), st.integers(0, 255))
def test_a_flipped_byte_in_a_tritonclient_request_raises_only_invalid_request(position: int, value: int) -> None:
    tensor = InferInput("x", [2, 2], "FP32").set_data_from_numpy(np.ones((2, 2), np.float32))
    words = InferInput("s", [2, 1], "BYTES").set_data_from_numpy(np.array([["a"], ["b"]], np.object_))
    body, json_size = InferenceServerClient.generate_request_body([tensor, words])
    changed = bytearray(body)
    changed[position % len(changed)] = value

    parse_everything(bytes(changed), {oip.HEADER_LENGTH: str(json_size)})
