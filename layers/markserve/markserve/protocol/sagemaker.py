"""SageMaker runtime's InvokeEndpoint, so that a `sagemaker-runtime` client works by changing its endpoint URL.

Bodies: OIP JSON, `{"instances": [...]}` for a model with one input, and text/csv rows of numbers for one numeric
input. Must not know how the request is served.

References
----------
SageMaker runtime API `InvokeEndpoint`; "Common data formats for inference".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, prod
from typing import Any

import msgspec

from markserve.errors import InvalidRequest
from markserve.messages import ModelRecord, Tensor, TensorSpec
from markserve.protocol import oip, tensors

_INVALID = "ValidationError"
_MODEL_ERROR = "ModelError"
_CODES = {429: "ThrottlingException", 503: "ServiceUnavailable"}
"""Error codes by our own status; anything else from 500 up is the model's failure, below it the caller's."""


class _Instances(msgspec.Struct, frozen=True):
    instances: msgspec.Raw = msgspec.Raw(b"")
    inputs: msgspec.Raw = msgspec.Raw(b"")


@dataclass(frozen=True, kw_only=True, slots=True)
class InvokeCall:
    """A checked invocation: its tensors, and the form of the answer."""

    inputs: tuple[Tensor, ...]
    oip_call: oip.InferCall | None = None
    """Set when the body was an OIP request: the answer is then an OIP response."""

    @property
    def output_names(self) -> tuple[str, ...]:
        """Outputs asked for; empty means all."""
        return self.oip_call.output_names if self.oip_call else ()


def decode_invocation(body: bytes, headers: Mapping[str, str], record: ModelRecord) -> InvokeCall:
    """Decode an invocation and check it against the model's declared tensors.

    Raises
    ------
    InvalidRequest
        Naming the field and the rule it breaks.
    """
    content_type = headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if content_type == "text/csv":
        return InvokeCall(inputs=oip.check_inputs((_from_csv(body, _only_input(record), record),), record))
    if content_type not in ("", "application/json", "application/octet-stream"):
        raise InvalidRequest(f"{content_type[:80]!r} is not supported; use application/json or text/csv", field="ContentType")
    if oip.HEADER_LENGTH not in headers:
        instances = _instances(body)
        if instances is not None:
            return InvokeCall(inputs=oip.check_inputs((_from_instances(instances, _only_input(record), record),), record))
    call = oip.decode_infer(body, headers, record)
    return InvokeCall(inputs=call.inputs, oip_call=call)


def encode_invocation(call: InvokeCall, *, model: str, version: str, outputs: Sequence[Tensor]) -> tuple[bytes, dict[str, str]]:
    """Encode an answer as an OIP response, or as one prediction per row.

    Returns
    -------
    (body, headers)
    """
    variant = {"x-amzn-invoked-production-variant": version}
    if call.oip_call is not None:
        body, headers = oip.encode_infer(call.oip_call, model=model, version=version, outputs=outputs)
        return body, {**headers, **variant}
    nested = {tensor.name: tensors.nest(tensors.values_of(tensor), tensor.shape) for tensor in outputs}
    if len(nested) == 1:
        predictions = next(iter(nested.values()))
    else:
        predictions = [dict(zip(nested, row, strict=True)) for row in zip(*nested.values(), strict=True)]
    return msgspec.json.encode({"predictions": predictions}), {"content-type": "application/json", **variant}


def encode_error(status: int, message: str) -> tuple[int, bytes, dict[str, str]]:
    """Encode an error so that boto3 raises a `ClientError` with SageMaker's code for it.

    Returns
    -------
    (status, body, headers)
    """
    content: dict[str, str | int] = {"Message": message}
    if status < 500 and status != 429:
        code = _INVALID
        # SageMaker reports an endpoint it does not know as a validation error.
        status = 400 if status == 404 else status
    else:
        code = _CODES.get(status, _MODEL_ERROR)
    if code == _MODEL_ERROR:
        content |= {"OriginalStatusCode": status, "OriginalMessage": message}
        status = 424
    return status, msgspec.json.encode(content), {"content-type": "application/json", "x-amzn-errortype": code}


def _only_input(record: ModelRecord) -> TensorSpec:
    needed = [spec for spec in record.inputs if not spec.is_optional]
    if len(needed) != 1:
        names = ", ".join(repr(spec.name) for spec in needed)
        raise InvalidRequest(f"the model takes {len(needed)} inputs ({names}); send an Open Inference Protocol request", field="body")
    return needed[0]


def _instances(body: bytes) -> bytes | None:
    """JSON text of `instances`, or None when the body is an OIP request or not JSON (whose decoder says what is wrong)."""
    try:
        found = msgspec.json.decode(body, type=_Instances)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        if b'"instances"' in body and b'"inputs"' not in body:
            raise InvalidRequest(_why_unreadable(body), field="instances") from None
        return None
    if bytes(found.instances) and bytes(found.inputs):
        raise InvalidRequest("has both 'instances' and 'inputs'", field="body")
    return bytes(found.instances) or None


def _why_unreadable(body: bytes) -> str:
    for constant in (b"NaN", b"Infinity"):
        if constant in body:
            return f"data holds {constant.decode()}, which JSON does not allow"
    return "not valid JSON, or nested too deeply"


def _from_instances(raw: bytes, spec: TensorSpec, record: ModelRecord) -> Tensor:
    nesting, values = tensors.decode_nested("instances", spec.datatype, raw)
    shape = _unflattened(nesting, spec)
    tensors.check_shape("instances", shape, spec, max_batch_size=record.max_batch_size)
    return Tensor(name=spec.name, datatype=spec.datatype, shape=shape, data=tensors.pack_values("instances", spec.datatype, values))


def _unflattened(shape: tuple[int, ...], spec: TensorSpec) -> tuple[int, ...]:
    """Shape as declared, when each row came flat and only the batch dimension is free."""
    inner = spec.shape[1:]
    if len(shape) == 2 and len(spec.shape) > 2 and -1 not in inner and shape[1] == prod(inner):
        return (shape[0], *inner)
    return shape


def _from_csv(body: bytes, spec: TensorSpec, record: ModelRecord) -> Tensor:
    if not tensors.is_numeric(spec.datatype):
        raise InvalidRequest(f"text/csv carries numbers, input '{spec.name}' is {spec.datatype}", field="ContentType")
    try:
        lines = [line for line in body.decode().splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"text/csv must be UTF-8: {error}", field="body") from error
    rows = [line.split(",") for line in lines]
    if not rows:
        raise InvalidRequest("has no rows", field="body")
    if uneven := next((index for index, row in enumerate(rows) if len(row) != len(rows[0])), None):
        raise InvalidRequest(f"has {len(rows[uneven])} values, row 1 has {len(rows[0])}", field=f"row {uneven + 1}")
    shape = _unflattened((len(rows), len(rows[0])), spec)
    if len(spec.shape) == 1 and len(rows[0]) == 1:
        shape = (len(rows),)
    tensors.check_shape("body", shape, spec, max_batch_size=record.max_batch_size)
    parse = float if spec.datatype.startswith("FP") else int
    values = [_number(cell, parse, f"row {index + 1}") for index, row in enumerate(rows) for cell in row]
    return Tensor(name=spec.name, datatype=spec.datatype, shape=shape, data=tensors.pack_values("body", spec.datatype, values))


def _number(cell: str, parse: type[float] | type[int], field: str) -> Any:
    try:
        value = parse(cell)
    except ValueError as error:
        raise InvalidRequest(f"{cell.strip()[:32]!r} is not a {'whole ' if parse is int else ''}number", field=field) from error
    if (isinstance(value, float) and not isfinite(value)) or "_" in cell:
        raise InvalidRequest(f"{cell.strip()[:32]!r} is not a finite number in plain notation", field=field)
    return value
