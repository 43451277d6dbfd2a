"""Tensors at the edge: JSON and client bytes become checked little-endian bytes."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from markserve.errors import InvalidRequest
from markserve.messages import Tensor, TensorSpec
from markserve.protocol import tensors


def a_spec(*shape: int, datatype: str = "FP32") -> TensorSpec:
    return TensorSpec(name="x", datatype=datatype, shape=shape)


def test_data_from_json_gives_little_endian_bytes_when_data_is_flat() -> None:
    assert tensors.data_from_json("x", "INT16", (1, 3), b"[1, -2, 300]") == struct.pack("<3h", 1, -2, 300)


def test_data_from_json_gives_the_same_bytes_when_data_is_nested() -> None:
    flat = tensors.data_from_json("x", "FP32", (2, 2), b"[1.5,2,3,4]")

    assert tensors.data_from_json("x", "FP32", (2, 2), b" [ [1.5, 2], [3, 4] ] ") == flat


@pytest.mark.parametrize(
    ("datatype", "dtype", "text"),
    [
        ("BOOL", np.bool_, b"[true,false]"),
        ("UINT8", np.uint8, b"[0,255]"),
        ("UINT16", np.uint16, b"[0,65535]"),
        ("UINT32", np.uint32, b"[0,4294967295]"),
        ("UINT64", np.uint64, b"[0,18446744073709551615]"),
        ("INT8", np.int8, b"[-128,127]"),
        ("INT16", np.int16, b"[-32768,32767]"),
        ("INT32", np.int32, b"[-2147483648,2147483647]"),
        ("INT64", np.int64, b"[-9223372036854775808,9223372036854775807]"),
        ("FP16", np.float16, b"[0.5,-65504.0]"),
        ("FP32", np.float32, b"[0.5,-3.25]"),
        ("FP64", np.float64, b"[0.1,-1e300]"),
    ],
)
def test_every_datatype_round_trips_through_json(datatype: str, dtype: type, text: bytes) -> None:
    data = tensors.data_from_json("x", datatype, (2,), text)
    tensor = Tensor(name="x", datatype=datatype, shape=(2,), data=data)

    assert np.frombuffer(data, dtype).tolist() == tensors.values_of(tensor)
    assert tensors.data_from_json("x", datatype, (2,), str(tensors.values_of(tensor)).lower().encode()) == data


def test_bytes_elements_are_length_prefixed_when_sent_as_json() -> None:
    data = tensors.data_from_json("x", "BYTES", (2,), '["a","né"]'.encode())

    assert data == b"\x01\x00\x00\x00a" + b"\x03\x00\x00\x00n\xc3\xa9"
    assert tensors.values_of(Tensor(name="x", datatype="BYTES", shape=(2,), data=data)) == ["a", "né"]


@pytest.mark.parametrize(
    ("datatype", "shape", "text", "reason"),
    [
        ("FP32", (2,), b"[1]", "x: holds 1 elements, shape [2] needs 2"),
        ("FP32", (2,), b"[1,2,3]", "x: holds 3 elements, shape [2] needs 2"),
        ("FP32", (2, 2), b"[[1,2,3],[4]]", "x: data is ragged: rows along dimension 1 have 1 to 3 elements"),
        ("FP32", (2, 2), b"[[1,2,3,4]]", "x: data is nested as [1, 4], shape is [2, 2]; send it so, or flat"),
        ("FP32", (2,), b'"12"', "x: data must be an array"),
        ("FP32", (1,), b"[null]", "x: not valid FP32 data: Expected `float`, got `null` - at `$[0]`"),
        ("INT8", (1,), b"[1.5]", "x: not valid INT8 data: Expected `int`, got `float` - at `$[0]`"),
        ("INT8", (1,), b"[128]", "x: a value does not fit INT8: byte format requires -128 <= number <= 127"),
        ("FP16", (1,), b"[70000]", "x: a value does not fit FP16: float too large to pack with e format"),
        ("BOOL", (1,), b"[1]", "x: not valid BOOL data: Expected `bool`, got `int` - at `$[0]`"),
        ("BF16", (1,), b"[1]", "x: BF16 cannot be sent as JSON; send it as binary data"),
        ("FP32", (1,), b"[" * 40 + b"1" + b"]" * 40, "x: data is nested 40 deep"),
    ],
)
def test_data_from_json_names_field_and_reason_when_data_is_wrong(datatype: str, shape: tuple[int, ...], text: bytes, reason: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        tensors.data_from_json("x", datatype, shape, text)

    assert str(refusal.value) == reason


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        ((1,), "x: has 1 dimensions, expected 2 as in [-1, 4]"),
        ((0, 4), "x: dimension 0 is 0; every dimension must be at least 1"),
        ((-1, 4), "x: dimension 0 is -1; every dimension must be at least 1"),
        ((1, 5), "x: dimension 1 is 5, expected 4 as in [-1, 4]"),
        ((9, 4), "x: batch dimension is 9, the model takes at most 8"),
    ],
)
def test_check_shape_names_the_broken_rule(shape: tuple[int, ...], reason: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        tensors.check_shape("x", shape, a_spec(-1, 4), max_batch_size=8)

    assert str(refusal.value) == reason


def test_check_shape_accepts_any_size_when_an_inner_dimension_is_free() -> None:
    tensors.check_shape("x", (8, 1000), a_spec(-1, -1), max_batch_size=8)


@pytest.mark.parametrize(
    ("datatype", "data", "reason"),
    [
        ("FP32", b"\0" * 7, "x: holds 7 bytes, FP32 of shape [2] needs 8"),
        ("BOOL", b"\x00\x02", "x: BOOL bytes must be 0 or 1"),
        ("BYTES", b"\x01\x00\x00\x00a", "x: holds 1 BYTES elements, shape [2] needs 2"),
        ("BYTES", b"\x01\x00", "x: BYTES length prefix is cut off at byte 0"),
        ("BYTES", b"\xff\xff\xff\xffa", "x: BYTES element at byte 0 claims 4294967295 bytes, 1 are left"),
    ],
)
def test_check_data_names_the_broken_rule(datatype: str, data: bytes, reason: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        tensors.check_data("x", datatype, (2,), data)

    assert str(refusal.value) == reason


@pytest.mark.parametrize(
    ("datatype", "data", "reason"),
    [
        ("FP32", struct.pack("<f", float("nan")), "output 'x': holds NaN or Infinity, which JSON cannot carry; ask for binary_data"),
        ("BF16", b"\0\0", "output 'x': is BF16, which JSON cannot carry; ask for binary_data"),
        ("BYTES", b"\x01\0\0\0\xff", "output 'x': holds bytes that are not UTF-8, which JSON cannot carry; ask for binary_data"),
    ],
)
def test_values_of_refuses_what_json_cannot_carry(datatype: str, data: bytes, reason: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        tensors.values_of(Tensor(name="x", datatype=datatype, shape=(1,), data=data))

    assert str(refusal.value) == reason


def test_nest_follows_the_shape() -> None:
    assert tensors.nest(range(8), (2, 2, 2)) == [[[0, 1], [2, 3]], [[4, 5], [6, 7]]]
