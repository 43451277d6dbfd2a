"""Open Inference Protocol v2 over REST, with the binary tensor data extension.

Decides what a request asks for and whether the model can take it; must not know how it is served.

References
----------
Open Inference Protocol, `specification/protocol/inference_rest.md`; Triton extension `extension_binary_data.md`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import msgspec

from markserve import __version__
from markserve.errors import InvalidRequest
from markserve.messages import ModelRecord, Tensor, TensorSpec
from markserve.padding import completed
from markserve.protocol import tensors

HEADER_LENGTH = "inference-header-content-length"
"""HTTP header (lower case): size of the JSON part when raw tensor bytes follow it."""

_LABEL_CHARACTERS = 80
"""How much of a client's tensor name an error message repeats."""

_UNSUPPORTED_PARAMETERS = ("sequence_id", "sequence_start", "sequence_end")
"""Ignoring these would change what the answer means, so they are refused."""


_Dimension = Annotated[int, msgspec.Meta(le=2**31 - 1)]
"""Bounded, so that no arithmetic or message about a shape can grow with what a client writes."""


class _Input(msgspec.Struct, frozen=True):
    name: str
    shape: list[_Dimension]
    datatype: str
    parameters: dict[str, Any] = {}
    data: msgspec.Raw = msgspec.Raw(b"")

    @property
    def label(self) -> str:
        return f"input '{self.name[:_LABEL_CHARACTERS]}'"


class _Output(msgspec.Struct, frozen=True):
    name: str
    parameters: dict[str, Any] = {}

    @property
    def label(self) -> str:
        return f"output '{self.name[:_LABEL_CHARACTERS]}'"


class _Body(msgspec.Struct, frozen=True):
    inputs: list[_Input]
    id: str = ""
    outputs: list[_Output] = []
    parameters: dict[str, Any] = {}


_BODY = msgspec.json.Decoder(_Body)


@dataclass(frozen=True, kw_only=True, slots=True)
class InferCall:
    """A checked infer request: its tensors, and how the answer is to be written."""

    inputs: tuple[Tensor, ...]
    id: str = ""
    output_names: tuple[str, ...] = ()
    binary_default: bool = False
    binary_by_output: Mapping[str, bool] = field(default_factory=dict)

    def wants_binary(self, output: str) -> bool:
        """Whether an output travels as raw bytes after the JSON part."""
        return self.binary_by_output.get(output, self.binary_default)


def decode_infer(body: bytes, headers: Mapping[str, str], record: ModelRecord) -> InferCall:
    """Decode an infer request and check it against the model's declared tensors.

    Raises
    ------
    InvalidRequest
        Naming the field and the rule it breaks.
    """
    json_size = _json_size(headers.get(HEADER_LENGTH), len(body))
    call = _decode_body(body[:json_size])
    for name in _UNSUPPORTED_PARAMETERS:
        if call.parameters.get(name):
            raise InvalidRequest("sequences are not supported", field=f"parameters.{name}")
    wanted = _outputs(call, record)
    inputs = _inputs(call.inputs, body[json_size:], record)
    return InferCall(
        inputs=inputs,
        id=call.id,
        output_names=tuple(wanted),
        binary_default=_flag("parameters", call.parameters, "binary_data_output", default=False),
        binary_by_output={name: choice for name, choice in wanted.items() if choice is not None},
    )


def encode_infer(call: InferCall, *, model: str, version: str, outputs: Sequence[Tensor]) -> tuple[bytes, dict[str, str]]:
    """Encode an answer's outputs as the request asked.

    Returns
    -------
    (body, headers)
    """
    described: list[dict[str, Any]] = []
    blobs: list[bytes] = []
    for tensor in outputs:
        entry: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape}
        if call.wants_binary(tensor.name):
            entry["parameters"] = {"binary_data_size": len(tensor.data)}
            blobs.append(tensor.data)
        else:
            entry["data"] = tensors.values_of(tensor)
        described.append(entry)
    head = msgspec.json.encode(
        {"model_name": model, "model_version": version, **({"id": call.id} if call.id else {}), "outputs": described}
    )
    if not blobs:
        return head, {"content-type": "application/json"}
    return b"".join((head, *blobs)), {"content-type": "application/octet-stream", HEADER_LENGTH: str(len(head))}


def encode_error(message: str) -> bytes:
    """Encode an OIP error object."""
    return msgspec.json.encode({"error": message})


def server_metadata() -> dict[str, Any]:
    """Answer of `GET /v2`."""
    return {"name": "markserve", "version": __version__, "extensions": ["binary_tensor_data"]}


def model_metadata(record: ModelRecord, versions: Sequence[str]) -> dict[str, Any]:
    """Answer of `GET /v2/models/{model}`."""
    return {
        "name": record.model,
        "versions": list(versions),
        "platform": f"pytorch_{record.format}",
        "inputs": [_described(spec) for spec in record.inputs],
        "outputs": [_described(spec) for spec in record.outputs],
    }


def check_inputs(found: Sequence[Tensor], record: ModelRecord) -> tuple[Tensor, ...]:
    """Refuse inputs that do not agree in their batch dimension or that leave a declared one out.

    Returns them in the model's order, with the masks and lengths that the manifest lets the server fill in.
    """
    inputs = completed({tensor.name: tensor for tensor in found}, record)
    free = [tensor for tensor, spec in zip(inputs, record.inputs, strict=True) if spec.shape and spec.shape[0] == -1]
    if len({tensor.shape[0] for tensor in free}) > 1:
        sizes = ", ".join(f"'{tensor.name}' has {tensor.shape[0]}" for tensor in free)
        raise InvalidRequest(f"batch dimensions differ: {sizes}", field="inputs")
    return inputs


def _json_size(header: str | None, body_size: int) -> int:
    if header is None:
        return body_size
    # int() alone would take '1_0', '+5' and non-Latin digits.
    if not (header.isascii() and header.isdigit() and len(header) <= 12):
        raise InvalidRequest(f"{header[:32]!r} is not a byte count", field="Inference-Header-Content-Length")
    if int(header) > body_size:
        raise InvalidRequest(f"is {int(header)}, the body has only {body_size} bytes", field="Inference-Header-Content-Length")
    return int(header)


def _decode_body(text: bytes) -> _Body:
    if not text.strip():
        raise InvalidRequest("is empty; expected a JSON object with 'inputs'", field="body")
    try:
        return _BODY.decode(text)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"not an inference request: {error}", field="body") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _malformed(text, error) from error
    except RecursionError as error:
        raise InvalidRequest("is nested too deeply", field="body") from error


def _malformed(text: bytes, error: Exception) -> InvalidRequest:
    """Say what is wrong with text that is not JSON; NaN and Infinity, which many encoders write, by their field."""
    constants: list[str] = []

    def note(constant: str) -> str:
        constants.append(constant)
        return constant

    try:
        loose = json.loads(text, parse_constant=note)
        entries = loose.get("inputs") if constants and isinstance(loose, dict) else None
        for entry in entries if isinstance(entries, list) else ():
            if isinstance(entry, dict) and constants[0] in json.dumps(entry.get("data")):
                label = f"input {ascii(entry.get('name'))[:_LABEL_CHARACTERS]}"
                return InvalidRequest(f"data holds {constants[0]}, which JSON does not allow; send it as binary data", field=label)
    except (ValueError, RecursionError):
        pass  # not JSON even loosely: the strict decoder's message stands
    return InvalidRequest(f"not valid JSON: {error}", field="body")


def _inputs(described: Sequence[_Input], blobs: bytes, record: ModelRecord) -> tuple[Tensor, ...]:
    specs = {spec.name: spec for spec in record.inputs}
    found: dict[str, Tensor] = {}
    offset = 0
    for entry in described:
        label = entry.label
        spec = specs.get(entry.name)
        if spec is None:
            raise InvalidRequest(f"the model has no such input; it takes {', '.join(repr(name) for name in specs)}", field=label)
        if entry.name in found:
            raise InvalidRequest("is given more than once", field=label)
        if entry.datatype != spec.datatype:
            raise InvalidRequest(f"datatype is {entry.datatype[:_LABEL_CHARACTERS]!r}, expected {spec.datatype}", field=label)
        tensors.check_shape(label, entry.shape, spec, max_batch_size=record.max_batch_size)
        size = _binary_size(label, entry, left=len(blobs) - offset)
        data = _input_data(label, entry, blobs[offset : offset + size])
        offset += size
        found[entry.name] = Tensor(name=entry.name, datatype=entry.datatype, shape=tuple(entry.shape), data=data)
    if offset != len(blobs):
        raise InvalidRequest(f"has {len(blobs) - offset} bytes of tensor data that no input claims", field="body")
    return check_inputs(tuple(found.values()), record)


def _input_data(label: str, entry: _Input, blob: bytes) -> bytes:
    if "binary_data_size" in entry.parameters:
        tensors.check_data(label, entry.datatype, entry.shape, blob)
        return blob
    data = bytes(entry.data)
    if not data:
        raise InvalidRequest("has neither data nor binary_data_size", field=label)
    return tensors.data_from_json(label, entry.datatype, entry.shape, data)


def _binary_size(label: str, entry: _Input, *, left: int) -> int:
    if "shared_memory_region" in entry.parameters:
        raise InvalidRequest("shared memory is not supported", field=label)
    if "binary_data_size" not in entry.parameters:
        return 0
    size = entry.parameters["binary_data_size"]
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise InvalidRequest("must be a byte count", field=f"{label}.parameters.binary_data_size")
    if bytes(entry.data):
        raise InvalidRequest("has both data and binary_data_size", field=label)
    if size > left:
        raise InvalidRequest(f"claims more bytes than the {left} left in the body", field=f"{label}.parameters.binary_data_size")
    return size


def _outputs(call: _Body, record: ModelRecord) -> dict[str, bool | None]:
    """Map each output asked for to its own choice of binary data, if it made one."""
    declared = [spec.name for spec in record.outputs]
    wanted: dict[str, bool | None] = {}
    for entry in call.outputs:
        label = entry.label
        if entry.name not in declared:
            raise InvalidRequest(f"the model has no such output; it gives {', '.join(map(repr, declared))}", field=label)
        if entry.name in wanted:
            raise InvalidRequest("is asked for more than once", field=label)
        for name in ("classification", "shared_memory_region"):
            if entry.parameters.get(name):
                raise InvalidRequest(f"{name} is not supported", field=label)
        chosen = "binary_data" in entry.parameters
        wanted[entry.name] = _flag(label, entry.parameters, "binary_data", default=False) if chosen else None
    return wanted


def _flag(label: str, parameters: Mapping[str, Any], name: str, *, default: bool) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise InvalidRequest("must be true or false", field=f"{label}.{name}")
    return value


def _described(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": spec.shape}
