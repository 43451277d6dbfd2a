"""Open Inference Protocol v2 with binary tensors: arrays to bodies, bodies to arrays."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from markserve_client.errors import BadRequest, ServerFailed

Array = npt.NDArray[Any]
LENGTH = "Inference-Header-Content-Length"
_DTYPES = {
    "BOOL": "?", "UINT8": "u1", "UINT16": "<u2", "UINT32": "<u4", "UINT64": "<u8",
    "INT8": "i1", "INT16": "<i2", "INT32": "<i4", "INT64": "<i8", "FP16": "<f2", "FP32": "<f4", "FP64": "<f8",
}  # fmt: skip
_DATATYPES = {np.dtype(code): name for name, code in _DTYPES.items()}


@dataclass(frozen=True)
class TensorInfo:
    """Declared tensor of a model; -1 is a free dimension."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Model:
    """What the server says of a model."""

    name: str
    versions: tuple[str, ...]
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]


@dataclass(frozen=True)
class Job:
    """A request that was accepted for later."""

    request_id: str
    model: str = ""


@dataclass(frozen=True)
class InferResult:
    """An answer's arrays by name, and how it came about."""

    outputs: Mapping[str, Array]
    model: str
    model_version: str
    request_id: str
    tier: str
    """Where it was computed: worker or lambda."""
    reason: str = ""
    """Why there, in the server's words."""
    attempts: int = 1

    def __getitem__(self, name: str) -> Array:
        """Return one output."""
        return self.outputs[name]


def encode(inputs: Mapping[str, npt.ArrayLike], outputs: Sequence[str] = ()) -> tuple[bytes, dict[str, str]]:
    """Return the body and headers of an infer request.

    Raises `BadRequest` for an array of a type that the protocol has not.
    """
    described, blobs = [], []
    for name, value in inputs.items():
        array = np.asarray(value)
        datatype, data = _raw(name, array)
        described.append({"name": name, "datatype": datatype, "shape": list(array.shape), "parameters": {"binary_data_size": len(data)}})
        blobs.append(data)
    wanted = {"outputs": [{"name": name} for name in outputs]} if outputs else {}
    head = json.dumps({"inputs": described, "parameters": {"binary_data_output": True}, **wanted}).encode()
    return b"".join((head, *blobs)), {"Content-Type": "application/octet-stream", LENGTH: str(len(head))}


def decode(body: bytes, headers: Mapping[str, str], *, attempts: int) -> InferResult:
    """Read an answer. Raises `ServerFailed` for a body that is not one."""
    size = int(headers.get(LENGTH, len(body)))
    try:
        answer = json.loads(body[:size])
        arrays, offset = {}, size
        for entry in answer["outputs"]:
            length = entry.get("parameters", {}).get("binary_data_size")
            arrays[entry["name"]] = _array(entry, body[offset : offset + length] if length is not None else None)
            offset += length or 0
    except (ValueError, KeyError, TypeError, struct.error) as error:
        raise ServerFailed(f"the answer is not an inference answer: {error}") from error
    return InferResult(
        outputs=arrays,
        model=answer.get("model_name", ""),
        model_version=answer.get("model_version", ""),
        request_id=headers.get("x-markserve-request-id", ""),
        tier=headers.get("x-markserve-tier", ""),
        reason=headers.get("x-markserve-reason", ""),
        attempts=attempts,
    )


def model_of(answer: Mapping[str, Any]) -> Model:
    """Read a model's metadata."""

    def tensors(listed: Sequence[Mapping[str, Any]]) -> tuple[TensorInfo, ...]:
        return tuple(TensorInfo(t["name"], t["datatype"], tuple(t["shape"])) for t in listed)

    return Model(answer["name"], tuple(answer.get("versions", ())), tensors(answer["inputs"]), tensors(answer["outputs"]))


def _raw(name: str, array: Array) -> tuple[str, bytes]:
    if array.dtype.kind in "OSU":
        elements = [e.encode() if isinstance(e, str) else bytes(e) for e in array.ravel().tolist()]
        return "BYTES", b"".join(struct.pack("<I", len(e)) + e for e in elements)
    little = array.dtype.newbyteorder("<")
    if little not in _DATATYPES:
        raise BadRequest(f"input '{name}': arrays of {array.dtype} cannot be sent; convert it, to float32 for one")
    return _DATATYPES[little], np.ascontiguousarray(array, little).tobytes()


def _array(entry: Mapping[str, Any], data: bytes | None) -> Array:
    shape, datatype = tuple(entry["shape"]), entry["datatype"]
    if datatype == "BYTES":
        elements = [str(e).encode() for e in np.ravel(entry["data"])] if data is None else _split(data)
        return np.array(elements, dtype=object).reshape(shape)
    dtype = np.dtype(_DTYPES[datatype])
    flat = np.asarray(entry["data"], dtype) if data is None else np.frombuffer(data, dtype).copy()  # a view of the body is read-only
    return flat.reshape(shape)


def _split(data: bytes) -> list[bytes]:
    elements, offset = [], 0
    while offset < len(data):
        (length,) = struct.unpack_from("<I", data, offset)
        elements.append(data[offset + 4 : offset + 4 + length])
        offset += 4 + length
    return elements
