"""Tensors at the edge: JSON values or client bytes in, checked little-endian bytes out, and back.

Nothing is allocated from a shape a client states: sizes are compared with the data that really arrived. Whatever
is wrong with a tensor comes out as `InvalidRequest` naming the tensor and the rule it breaks.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import chain
from math import isfinite, prod
from typing import Any

import msgspec

from markserve.errors import InvalidRequest
from markserve.messages import Tensor, TensorSpec

ELEMENT_BYTES = {
    "BOOL": 1,
    "UINT8": 1,
    "UINT16": 2,
    "UINT32": 4,
    "UINT64": 8,
    "INT8": 1,
    "INT16": 2,
    "INT32": 4,
    "INT64": 8,
    "FP16": 2,
    "BF16": 2,
    "FP32": 4,
    "FP64": 8,
}
"""Fixed-size datatypes; BYTES elements carry their own length."""

_STRUCT_CODES = {
    "BOOL": "?",
    "UINT8": "B",
    "UINT16": "H",
    "UINT32": "I",
    "UINT64": "Q",
    "INT8": "b",
    "INT16": "h",
    "INT32": "i",
    "INT64": "q",
    "FP16": "e",
    "FP32": "f",
    "FP64": "d",
}
_FLOATS = ("FP16", "FP32", "FP64")
_LENGTH_PREFIX = struct.Struct("<I")
_JSON_WHITESPACE = b" \t\r\n"
_MAX_DEPTH = 32
"""Deepest nesting looked into; no model declares more dimensions."""


def is_numeric(datatype: str) -> bool:
    """Whether values of `datatype` can be written as decimal numbers."""
    return datatype in _STRUCT_CODES and datatype != "BOOL"


def is_packable(datatype: str) -> bool:
    """Whether `pack_values` knows the datatype's form, of one size for every value."""
    return datatype in _STRUCT_CODES


def check_shape(field: str, shape: Sequence[int], spec: TensorSpec, *, max_batch_size: int) -> None:
    """Refuse a shape the model does not take.

    Raises
    ------
    InvalidRequest
        If the rank, a fixed dimension, the batch (first) dimension or the sign of a free one is wrong.
    """
    expected = list(spec.shape)
    if len(shape) != len(expected):
        raise InvalidRequest(f"has {len(shape)} dimensions, expected {len(expected)} as in {expected}", field=field)
    for axis, (size, wanted) in enumerate(zip(shape, expected, strict=True)):
        if size < 1:
            raise InvalidRequest(f"dimension {axis} is {size}; every dimension must be at least 1", field=field)
        if wanted not in (-1, size):
            raise InvalidRequest(f"dimension {axis} is {size}, expected {wanted} as in {expected}", field=field)
    if spec.shape and spec.shape[0] == -1 and shape[0] > max_batch_size:
        raise InvalidRequest(f"batch dimension is {shape[0]}, the model takes at most {max_batch_size}", field=field)


def check_data(field: str, datatype: str, shape: Sequence[int], data: bytes) -> None:
    """Refuse bytes that do not hold exactly the elements `shape` promises.

    Raises
    ------
    InvalidRequest
        If the byte count is wrong, a BYTES length prefix points past the end, or a BOOL is neither 0 nor 1.
    """
    count = prod(shape)
    if datatype == "BYTES":
        found = len(split_bytes_elements(field, data))
        if found != count:
            raise InvalidRequest(f"holds {found} BYTES elements, shape {list(shape)} needs {count}", field=field)
        return
    needed = count * ELEMENT_BYTES[datatype]
    if len(data) != needed:
        raise InvalidRequest(f"holds {len(data)} bytes, {datatype} of shape {list(shape)} needs {needed}", field=field)
    if datatype == "BOOL" and data.translate(None, b"\x00\x01"):
        raise InvalidRequest("BOOL bytes must be 0 or 1", field=field)


def split_bytes_elements(field: str, data: bytes) -> list[bytes]:
    """Split a BYTES tensor (each element prefixed by its 4-byte little-endian length) into its elements."""
    elements = []
    offset = 0
    while offset < len(data):
        start = offset + _LENGTH_PREFIX.size
        if start > len(data):
            raise InvalidRequest(f"BYTES length prefix is cut off at byte {offset}", field=field)
        end = start + _LENGTH_PREFIX.unpack_from(data, offset)[0]
        if end > len(data):
            raise InvalidRequest(f"BYTES element at byte {offset} claims {end - start} bytes, {len(data) - start} are left", field=field)
        elements.append(data[start:end])
        offset = end
    return elements


def data_from_json(field: str, datatype: str, shape: Sequence[int], raw: bytes) -> bytes:
    """Convert JSON tensor data, flat or nested as `shape`, to little-endian bytes.

    Raises
    ------
    InvalidRequest
        If nesting, element count, an element's type or an element's range does not fit.
    """
    count = prod(shape)
    # n numbers have n - 1 commas however they are nested: refuse a surplus before it is decoded.
    if datatype != "BYTES" and raw.count(b",") >= count:
        raise InvalidRequest(f"holds {raw.count(b',') + 1} elements, shape {list(shape)} needs {count}", field=field)
    nesting, values = decode_nested(field, datatype, raw)
    if len(nesting) != 1 and nesting != tuple(shape):
        raise InvalidRequest(f"data is nested as {list(nesting)}, shape is {list(shape)}; send it so, or flat", field=field)
    if len(values) != count:
        raise InvalidRequest(f"holds {len(values)} elements, shape {list(shape)} needs {count}", field=field)
    return pack_values(field, datatype, values)


def decode_nested(field: str, datatype: str, raw: bytes) -> tuple[tuple[int, ...], Sequence[Any]]:
    """Decode a JSON array of any regular nesting.

    Returns
    -------
    (lengths by level, flat row-major values)

    Raises
    ------
    InvalidRequest
        If it is not an array, not regular, or holds something else than `datatype`.
    """
    if datatype not in _STRUCT_CODES and datatype != "BYTES":
        raise InvalidRequest(f"{datatype} cannot be sent as JSON; send it as binary data", field=field)
    depth = raw[: len(raw) - len(raw.lstrip(b"[" + _JSON_WHITESPACE))].count(b"[")
    if not 1 <= depth <= _MAX_DEPTH:
        raise InvalidRequest("data must be an array" if depth == 0 else f"data is nested {depth} deep", field=field)
    try:
        values: Sequence[Any] = _decoder(datatype, depth)(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"not valid {datatype} data: {error}", field=field) from error
    nesting = [len(values)]
    for axis in range(1, depth):
        lengths = {len(row) for row in values}
        if len(lengths) > 1:
            raise InvalidRequest(f"data is ragged: rows along dimension {axis} have {min(lengths)} to {max(lengths)} elements", field=field)
        nesting.extend(lengths or {0})
        values = list(chain.from_iterable(values))
    return tuple(nesting), values


def pack_values(field: str, datatype: str, values: Sequence[Any]) -> bytes:
    """Pack values of the datatype's Python type (`str` for BYTES), refusing those out of its range."""
    try:
        if datatype == "BYTES":
            encoded = [value.encode() for value in values]
            return b"".join(chain.from_iterable((_LENGTH_PREFIX.pack(len(item)), item) for item in encoded))
        return struct.pack(f"<{len(values)}{_STRUCT_CODES[datatype]}", *values)
    except (struct.error, OverflowError, UnicodeEncodeError) as error:
        raise InvalidRequest(f"a value does not fit {datatype}: {error}", field=field) from error


def values_of(tensor: Tensor) -> list[Any]:
    """Flat values of a tensor as JSON can carry them.

    Raises
    ------
    InvalidRequest
        If JSON has no form for them: BF16, NaN, Infinity, or BYTES that are not UTF-8.
    """
    field = f"output '{tensor.name}'"
    hint = "ask for binary_data"
    if tensor.datatype == "BYTES":
        try:
            return [element.decode() for element in split_bytes_elements(field, tensor.data)]
        except UnicodeDecodeError as error:
            raise InvalidRequest(f"holds bytes that are not UTF-8, which JSON cannot carry; {hint}", field=field) from error
    if tensor.datatype not in _STRUCT_CODES:
        raise InvalidRequest(f"is {tensor.datatype}, which JSON cannot carry; {hint}", field=field)
    count = len(tensor.data) // ELEMENT_BYTES[tensor.datatype]
    values = list(struct.unpack(f"<{count}{_STRUCT_CODES[tensor.datatype]}", tensor.data))
    if tensor.datatype in _FLOATS and not all(map(isfinite, values)):
        raise InvalidRequest(f"holds NaN or Infinity, which JSON cannot carry; {hint}", field=field)
    return values


def nest(values: Sequence[Any], shape: Sequence[int]) -> list[Any]:
    """Nest flat row-major values as `shape`.

    >>> nest([1, 2, 3, 4], (2, 2))
    [[1, 2], [3, 4]]
    """
    nested = list(values)
    for size in reversed(shape[1:]):
        nested = [nested[i : i + size] for i in range(0, len(nested), size)]
    return nested


@lru_cache(maxsize=128)
def _decoder(datatype: str, depth: int) -> Callable[[bytes], Any]:
    # Typed decoding checks every element in C; a Python loop over a large tensor would cost milliseconds.
    element: Any = {"BOOL": bool, "BYTES": str}.get(datatype, float if datatype in _FLOATS else int)
    for _ in range(depth):
        element = list[element]
    return msgspec.json.Decoder(element).decode
