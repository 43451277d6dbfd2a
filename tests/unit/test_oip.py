"""Open Inference Protocol requests and responses, against bodies that tritonclient itself writes and reads."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput

from markserve.errors import InvalidRequest
from markserve.messages import ModelRecord, Tensor, TensorSpec
from markserve.protocol import oip

JSON_INPUT = {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}


def a_record(*, inputs: tuple[TensorSpec, ...] | None = None, outputs: tuple[TensorSpec, ...] | None = None) -> ModelRecord:
    return ModelRecord(
        model="digits",
        version="1",
        inputs=inputs or (TensorSpec(name="x", datatype="FP32", shape=(-1, 2)),),
        outputs=outputs or (TensorSpec(name="y", datatype="FP32", shape=(-1, 3)),),
        artefact_key="models/digits/1",
        artefact_sha256="0" * 64,
        max_batch_size=8,
    )


def a_body(**fields: Any) -> bytes:
    return json.dumps({"inputs": [JSON_INPUT], **fields}).encode()


def a_triton_input(values: np.ndarray, *, datatype: str = "FP32", name: str = "x", binary: bool = True) -> InferInput:
    return InferInput(name, list(values.shape), datatype).set_data_from_numpy(values, binary_data=binary)


def a_triton_body(inputs: list[InferInput], **options: Any) -> tuple[bytes, dict[str, str]]:
    body, json_size = InferenceServerClient.generate_request_body(inputs, **options)
    return body, {} if json_size is None else {oip.HEADER_LENGTH: str(json_size)}


def decode(body: bytes, headers: dict[str, str] | None = None, record: ModelRecord | None = None) -> oip.InferCall:
    return oip.decode_infer(body, headers or {}, record or a_record())


def refusal_of(body: bytes, headers: dict[str, str] | None = None, record: ModelRecord | None = None) -> str:
    with pytest.raises(InvalidRequest) as refusal:
        decode(body, headers, record)
    assert refusal.value.status == 400
    return str(refusal.value)


def test_default_tritonclient_request_gives_its_raw_bytes_and_binary_outputs() -> None:
    values = np.array([[1.5, -2.0], [3.0, 4.0]], np.float32)
    body, headers = a_triton_body([a_triton_input(values)], request_id="mine")

    call = decode(body, headers)

    assert call.inputs == (Tensor(name="x", datatype="FP32", shape=(2, 2), data=values.tobytes()),)
    assert (call.id, call.output_names, call.wants_binary("y")) == ("mine", (), True)


def test_json_tritonclient_request_gives_the_same_tensor() -> None:
    values = np.array([[1.5, -2.0]], np.float32)
    body, headers = a_triton_body([a_triton_input(values, binary=False)], outputs=[InferRequestedOutput("y", binary_data=False)])

    call = decode(body, headers)

    assert headers == {}
    assert call.inputs[0].data == values.tobytes()
    assert (call.output_names, call.wants_binary("y")) == (("y",), False)


def test_string_tensors_of_tritonclient_are_the_same_in_both_forms() -> None:
    record = a_record(inputs=(TensorSpec(name="x", datatype="BYTES", shape=(-1, 2)),))
    words = np.array([["a", "é"]], dtype=np.object_)

    binary = decode(*a_triton_body([a_triton_input(words, datatype="BYTES")]), record)
    text = decode(*a_triton_body([a_triton_input(words, datatype="BYTES", binary=False)]), record)

    assert binary.inputs == text.inputs


def test_inputs_come_in_the_models_order_when_sent_in_another() -> None:
    record = a_record(inputs=(TensorSpec(name="a", datatype="FP32", shape=(-1, 1)), TensorSpec(name="b", datatype="INT64", shape=(-1, 1))))
    first = a_triton_input(np.array([[7]], np.int64), datatype="INT64", name="b")
    second = a_triton_input(np.array([[1.0]], np.float32), name="a")

    call = decode(*a_triton_body([first, second]), record)

    assert [tensor.name for tensor in call.inputs] == ["a", "b"]
    assert np.frombuffer(call.inputs[1].data, np.int64).tolist() == [7]


def test_tritonclient_reads_the_binary_answer() -> None:
    values = np.array([[0.25, 0.5, np.nan]], np.float32)
    call = decode(*a_triton_body([a_triton_input(np.zeros((1, 2), np.float32))], request_id="mine"))

    body, headers = oip.encode_infer(
        call, model="digits", version="1", outputs=[Tensor(name="y", datatype="FP32", shape=(1, 3), data=values.tobytes())]
    )

    result = InferenceServerClient.parse_response_body(body, header_length=int(headers[oip.HEADER_LENGTH]))
    np.testing.assert_array_equal(result.as_numpy("y"), values)
    assert result.get_response()["id"] == "mine"
    assert headers["content-type"] == "application/octet-stream"


def test_tritonclient_reads_the_json_answer() -> None:
    call = decode(a_body())

    body, headers = oip.encode_infer(
        call,
        model="digits",
        version="1",
        outputs=[Tensor(name="y", datatype="FP32", shape=(1, 3), data=np.array([1, 2, 3], np.float32).tobytes())],
    )

    result = InferenceServerClient.parse_response_body(body)
    assert result.as_numpy("y").tolist() == [[1.0, 2.0, 3.0]]
    assert headers == {"content-type": "application/json"}
    assert json.loads(body) == {
        "model_name": "digits",
        "model_version": "1",
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [1, 3], "data": [1.0, 2.0, 3.0]}],
    }


def test_outputs_mix_forms_when_each_asks_for_its_own() -> None:
    record = a_record(outputs=(TensorSpec(name="y", datatype="INT32", shape=(-1,)), TensorSpec(name="z", datatype="INT32", shape=(-1,))))
    call = decode(
        a_body(outputs=[{"name": "y", "parameters": {"binary_data": False}}, {"name": "z"}], parameters={"binary_data_output": True}),
        record=record,
    )
    tensors = [Tensor(name=name, datatype="INT32", shape=(1,), data=np.array([n], np.int32).tobytes()) for n, name in enumerate("yz")]

    body, headers = oip.encode_infer(call, model="digits", version="1", outputs=tensors)

    result = InferenceServerClient.parse_response_body(body, header_length=int(headers[oip.HEADER_LENGTH]))
    assert [result.as_numpy(name).tolist() for name in "yz"] == [[0], [1]]
    assert "parameters" not in result.get_output("y")


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "body: is empty; expected a JSON object with 'inputs'"),
        (b"{", "body: not valid JSON: Input data was truncated"),
        (b"[]", "body: not an inference request: Expected `object`, got `array`"),
        (b"{}", "body: not an inference request: Object missing required field `inputs`"),
        (b'{"inputs": []}', "inputs: missing 'x'"),
        (b'{"inputs": [{"name": "x"}]}', "body: not an inference request: Object missing required field `shape` - at `$.inputs[0]`"),
        (b'{"more":' + b"[" * 100_000, "body: is nested too deeply"),
        (
            b'{"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":[1,NaN]}]}',
            "input 'x': data holds NaN, which JSON does not allow; send it as binary data",
        ),
        (
            b'{"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":[[1,-Infinity]]}]}',
            "input 'x': data holds -Infinity, which JSON does not allow; send it as binary data",
        ),
        (
            b'{"inputs":[{"name":"x","shape":[1,99999999999999999999],"datatype":"FP32","data":[1]}]}',
            "body: not an inference request: Expected `int` <= 2147483647 - at `$.inputs[0].shape[1]`",
        ),
    ],
)
def test_decode_names_field_and_reason_when_the_body_is_malformed(body: bytes, reason: str) -> None:
    assert refusal_of(body) == reason


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"name": "w"}, "input 'w': the model has no such input; it takes 'x'"),
        ({"datatype": "FP64"}, "input 'x': datatype is 'FP64', expected FP32"),
        ({"shape": [1, 3]}, "input 'x': dimension 1 is 3, expected 2 as in [-1, 2]"),
        ({"shape": [9, 2]}, "input 'x': batch dimension is 9, the model takes at most 8"),
        ({"shape": [2, 2]}, "input 'x': holds 2 elements, shape [2, 2] needs 4"),
        ({"data": "no"}, "input 'x': data must be an array"),
        ({"data": None}, "input 'x': data must be an array"),
        ({"parameters": {"binary_data_size": 8}}, "input 'x': has both data and binary_data_size"),
        ({"parameters": {"binary_data_size": -1}}, "input 'x'.parameters.binary_data_size: must be a byte count"),
        ({"parameters": {"shared_memory_region": "r"}}, "input 'x': shared memory is not supported"),
    ],
)
def test_decode_names_field_and_reason_when_an_input_is_wrong(change: dict[str, Any], reason: str) -> None:
    assert refusal_of(json.dumps({"inputs": [{**JSON_INPUT, **change}]}).encode()) == reason


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"inputs": [JSON_INPUT, JSON_INPUT]}, "input 'x': is given more than once"),
        ({"outputs": [{"name": "q"}]}, "output 'q': the model has no such output; it gives 'y'"),
        ({"outputs": [{"name": "y"}, {"name": "y"}]}, "output 'y': is asked for more than once"),
        ({"outputs": [{"name": "y", "parameters": {"classification": 3}}]}, "output 'y': classification is not supported"),
        ({"outputs": [{"name": "y", "parameters": {"binary_data": 1}}]}, "output 'y'.binary_data: must be true or false"),
        ({"parameters": {"sequence_id": 5}}, "parameters.sequence_id: sequences are not supported"),
        ({"parameters": {"binary_data_output": "yes"}}, "parameters.binary_data_output: must be true or false"),
    ],
)
def test_decode_names_field_and_reason_when_the_envelope_is_wrong(fields: dict[str, Any], reason: str) -> None:
    assert refusal_of(a_body(**fields)) == reason


def test_decode_refuses_inputs_of_different_batch_sizes() -> None:
    record = a_record(inputs=(TensorSpec(name="a", datatype="INT8", shape=(-1,)), TensorSpec(name="b", datatype="INT8", shape=(-1,))))
    inputs = [{"name": name, "shape": [size], "datatype": "INT8", "data": [0] * size} for name, size in (("a", 1), ("b", 2))]

    assert refusal_of(json.dumps({"inputs": inputs}).encode(), record=record) == "inputs: batch dimensions differ: 'a' has 1, 'b' has 2"


def test_decode_names_the_missing_input_when_binary_data_names_only_one() -> None:
    record = a_record(inputs=(TensorSpec(name="x", datatype="FP32", shape=(-1, 2)), TensorSpec(name="b", datatype="INT8", shape=(-1,))))

    assert refusal_of(*a_triton_body([a_triton_input(np.zeros((1, 2), np.float32))]), record) == "inputs: missing 'b'"


@pytest.mark.parametrize(
    ("cut", "header", "reason"),
    [
        (-1, None, "input 'x'.parameters.binary_data_size: claims more bytes than the 7 left in the body"),
        (None, "x1", "Inference-Header-Content-Length: 'x1' is not a byte count"),
        (None, "-1", "Inference-Header-Content-Length: '-1' is not a byte count"),
        (None, "99999", "Inference-Header-Content-Length: is 99999, the body has only 145 bytes"),
        (None, "0", "body: is empty; expected a JSON object with 'inputs'"),
    ],
)
def test_decode_names_field_and_reason_when_the_binary_framing_is_wrong(cut: int | None, header: str | None, reason: str) -> None:
    body, headers = a_triton_body([a_triton_input(np.zeros((1, 2), np.float32))])
    if header is not None:
        headers[oip.HEADER_LENGTH] = header

    assert refusal_of(body[:cut], headers) == reason.replace("145", str(len(body)))


def test_decode_refuses_tensor_bytes_that_no_input_claims() -> None:
    body, headers = a_triton_body([a_triton_input(np.zeros((1, 2), np.float32))])

    assert refusal_of(body + b"\0\0\0", headers) == "body: has 3 bytes of tensor data that no input claims"


def test_decode_refuses_a_wrong_byte_count() -> None:
    body, headers = a_triton_body([a_triton_input(np.zeros((2, 2), np.float32))])

    assert refusal_of(body.replace(b"[2,2]", b"[1,2]"), headers) == "input 'x': holds 16 bytes, FP32 of shape [1, 2] needs 8"


def test_messages_stay_short_when_a_name_is_huge() -> None:
    assert len(refusal_of(json.dumps({"inputs": [{**JSON_INPUT, "name": "n" * 100_000}]}).encode())) < 200


def test_metadata_is_what_the_protocol_states() -> None:
    assert oip.model_metadata(a_record(), ["1", "2"]) == {
        "name": "digits",
        "versions": ["1", "2"],
        "platform": "pytorch_torchscript",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": (-1, 2)}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": (-1, 3)}],
    }
    assert oip.server_metadata()["extensions"] == ["binary_tensor_data"]
