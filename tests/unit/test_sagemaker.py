"""SageMaker runtime bodies and errors; the functions tests drive them through a real boto3 client."""

from __future__ import annotations

import json

import numpy as np
import pytest

from markserve.errors import InvalidRequest
from markserve.messages import ModelRecord, Tensor, TensorSpec
from markserve.protocol import sagemaker

JSON = {"content-type": "application/json"}
CSV = {"content-type": "text/csv; charset=utf-8"}


def a_record(*shape: int, datatype: str = "FP32", outputs: tuple[str, ...] = ("y",), inputs: tuple[str, ...] = ("x",)) -> ModelRecord:
    return ModelRecord(
        model="digits",
        version="3",
        inputs=tuple(TensorSpec(name=name, datatype=datatype, shape=shape or (-1, 2)) for name in inputs),
        outputs=tuple(TensorSpec(name=name, datatype="INT32", shape=(-1,)) for name in outputs),
        artefact_key="models/digits/3",
        artefact_sha256="0" * 64,
        max_batch_size=8,
    )


def refusal_of(body: bytes, headers: dict[str, str], record: ModelRecord) -> str:
    with pytest.raises(InvalidRequest) as refusal:
        sagemaker.decode_invocation(body, headers, record)
    return str(refusal.value)


def test_instances_become_the_first_input() -> None:
    call = sagemaker.decode_invocation(b'{"instances": [[1, 2], [3, 4]]}', JSON, a_record())

    assert call.inputs == (Tensor(name="x", datatype="FP32", shape=(2, 2), data=np.array([1, 2, 3, 4], np.float32).tobytes()),)


def test_flat_instances_take_the_declared_shape_when_only_the_batch_is_free() -> None:
    call = sagemaker.decode_invocation(json.dumps({"instances": [[0] * 6, [1] * 6]}).encode(), JSON, a_record(-1, 1, 2, 3))

    assert call.inputs[0].shape == (2, 1, 2, 3)


def test_csv_rows_become_the_first_input() -> None:
    call = sagemaker.decode_invocation(b"1,2\r\n3, 4\n\n", CSV, a_record(datatype="INT16"))

    assert call.inputs == (Tensor(name="x", datatype="INT16", shape=(2, 2), data=np.array([1, 2, 3, 4], np.int16).tobytes()),)


def test_csv_of_one_column_fits_a_model_that_takes_scalars() -> None:
    assert sagemaker.decode_invocation(b"1\n2\n3", CSV, a_record(-1)).inputs[0].shape == (3,)


def test_an_oip_body_is_answered_in_oip() -> None:
    body = json.dumps({"id": "a", "inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}]}).encode()
    call = sagemaker.decode_invocation(body, JSON, a_record())

    answer, headers = sagemaker.encode_invocation(
        call, model="digits", version="3", outputs=[Tensor(name="y", datatype="INT32", shape=(1,), data=b"\x07\0\0\0")]
    )

    assert json.loads(answer)["outputs"] == [{"name": "y", "datatype": "INT32", "shape": [1], "data": [7]}]
    assert headers["x-amzn-invoked-production-variant"] == "3"


def test_predictions_hold_one_entry_per_row() -> None:
    call = sagemaker.decode_invocation(b'{"instances": [[1, 2], [3, 4]]}', JSON, a_record())
    output = Tensor(name="y", datatype="INT32", shape=(2, 2), data=np.arange(4, dtype=np.int32).tobytes())

    answer, _ = sagemaker.encode_invocation(call, model="digits", version="3", outputs=[output])

    assert json.loads(answer) == {"predictions": [[0, 1], [2, 3]]}


def test_predictions_name_the_outputs_when_there_are_several() -> None:
    call = sagemaker.decode_invocation(b'{"instances": [[1, 2], [3, 4]]}', JSON, a_record(outputs=("y", "z")))
    outputs = [
        Tensor(name=name, datatype="INT32", shape=(2,), data=np.array([n, n + 1], np.int32).tobytes()) for n, name in enumerate("yz")
    ]

    answer, _ = sagemaker.encode_invocation(call, model="digits", version="3", outputs=outputs)

    assert json.loads(answer) == {"predictions": [{"y": 0, "z": 1}, {"y": 1, "z": 2}]}


@pytest.mark.parametrize(
    ("body", "headers", "record", "reason"),
    [
        (b'{"instances": []}', JSON, a_record(), "instances: has 1 dimensions, expected 2 as in [-1, 2]"),
        (b'{"instances": 3}', JSON, a_record(), "instances: data must be an array"),
        (b'{"instances": [[1, 2], [3]]}', JSON, a_record(), "instances: data is ragged: rows along dimension 1 have 1 to 2 elements"),
        (b'{"instances": [[1, NaN]]}', JSON, a_record(), "instances: data holds NaN, which JSON does not allow"),
        (b'{"instances": [[1, 2]], "inputs": []}', JSON, a_record(), "body: has both 'instances' and 'inputs'"),
        (b"{}", JSON, a_record(), "body: not an inference request: Object missing required field `inputs`"),
        (b"1,2", {"content-type": "image/png"}, a_record(), "ContentType: 'image/png' is not supported; use application/json or text/csv"),
        (b"", CSV, a_record(), "body: has no rows"),
        (b"1,2\n3", CSV, a_record(), "row 2: has 1 values, row 1 has 2"),
        (b"1,nan", CSV, a_record(), "row 1: 'nan' is not a finite number in plain notation"),
        (b"1,2.5", CSV, a_record(datatype="INT8"), "row 1: '2.5' is not a whole number"),
        (b"1,300", CSV, a_record(datatype="INT8"), "body: a value does not fit INT8: byte format requires -128 <= number <= 127"),
        (b"1,2", CSV, a_record(datatype="BYTES"), "ContentType: text/csv carries numbers, input 'x' is BYTES"),
        (b"1,2,3", CSV, a_record(), "body: dimension 1 is 3, expected 2 as in [-1, 2]"),
        (
            b'{"instances": [[1, 2]]}',
            JSON,
            a_record(inputs=("x", "w")),
            "body: the model takes 2 inputs ('x', 'w'); send an Open Inference Protocol request",
        ),
    ],
)
def test_decode_names_field_and_reason_when_the_body_is_wrong(
    body: bytes, headers: dict[str, str], record: ModelRecord, reason: str
) -> None:
    assert refusal_of(body, headers, record) == reason


@pytest.mark.parametrize(
    ("status", "expected", "code"),
    [
        (400, 400, "ValidationError"),
        (404, 400, "ValidationError"),
        (413, 413, "ValidationError"),
        (422, 422, "ValidationError"),
        (429, 429, "ThrottlingException"),
        (500, 424, "ModelError"),
        (503, 503, "ServiceUnavailable"),
        (504, 424, "ModelError"),
    ],
)
def test_errors_carry_sagemakers_code_and_status(status: int, expected: int, code: str) -> None:
    sent, body, headers = sagemaker.encode_error(status, "why")

    assert (sent, headers["x-amzn-errortype"], json.loads(body)["Message"]) == (expected, code, "why")
    assert json.loads(body).get("OriginalStatusCode") == (status if code == "ModelError" else None)
