"""Requests of unequal length in one pass: padded together to a bucket, and cut back to their own length afterwards.

Only where a model's manifest declares it: what padding does to an answer, the model alone knows. Pure, and shared by the
worker, the spill-over function and `markserve serve`, so a request is computed alike wherever it lands. A request that is
alone is padded as well: passes then have as many lengths as there are buckets, and its answer does not depend on company.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod

from markserve.errors import InferenceFailed, InvalidRequest
from markserve.messages import ModelRecord, Stack, Tensor, TensorSpec
from markserve.protocol.tensors import ELEMENT_BYTES, is_packable, pack_values

Inputs = Sequence[Tensor]
"""A request's inputs in the model's order, all of them."""
Signature = tuple[tuple[str, tuple[int, ...]], ...]
LENGTH_DATATYPES = ("INT32", "INT64", "UINT32", "UINT64")


@dataclass(frozen=True, slots=True)
class Parts:
    """One input of several requests: what it is when its parts are joined."""

    datatype: str
    shape: tuple[int, ...]
    data: list[bytes | memoryview]


def check_padding(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> None:
    """Refuse declarations of padding that mean nothing.

    Raises
    ------
    InvalidRequest
        Naming the tensor and the rule it breaks.
    """
    padded = {spec.name: spec for spec in inputs if spec.pad is not None}
    for spec in inputs:
        _check_input(f"input '{spec.name}'", spec, padded)
    for spec in outputs:
        _check_output(f"output '{spec.name}'", spec, padded)


def completed(found: Mapping[str, Tensor], record: ModelRecord) -> tuple[Tensor, ...]:
    """Return a request's inputs in the model's order, masks and lengths that it leaves out filled in.

    Raises
    ------
    InvalidRequest
        If an input is missing that nobody can fill in, or a mask is not as long as what it masks.
    """
    missing = [spec.name for spec in record.inputs if spec.name not in found and not (spec.is_optional and _source(spec) in found)]
    if missing:
        raise InvalidRequest(f"missing {', '.join(repr(name) for name in missing)}", field="inputs")
    inputs = tuple([found[spec.name] if spec.name in found else _filled_in(spec, record, found) for spec in record.inputs])
    check_lengths(inputs, record)
    return inputs


def check_lengths(inputs: Inputs, record: ModelRecord) -> None:
    """Refuse a mask that is not as long as what it masks, and an input longer than its last bucket."""
    for tensor, spec in zip(inputs, record.inputs, strict=True):
        axis = spec.padded_axis
        if axis is None:
            continue
        if len(tensor.shape) != len(spec.shape):
            raise InvalidRequest(f"has {len(tensor.shape)} dimensions, expected {len(spec.shape)}", field=f"input '{tensor.name}'")
        if spec.mask_of:
            length = _length(inputs, record, spec.mask_of)
            if tensor.shape[axis] != length:
                raise InvalidRequest(f"has length {tensor.shape[axis]}, '{spec.mask_of}' has {length}", field=f"input '{tensor.name}'")
        else:
            _bucket(spec, tensor.shape[axis])


def signature(inputs: Inputs, record: ModelRecord) -> Signature:
    """Return what must be equal among the requests of a pass: all but the rows, and the lengths that padding makes equal."""
    parts = []
    for tensor, spec in zip(inputs, record.inputs, strict=True):
        axis, tail = spec.padded_axis, tensor.shape[1:]
        parts.append((tensor.datatype, tail if axis is None else (*tail[: axis - 1], -1, *tail[axis:])))
    return tuple(parts)


def widths(group: Sequence[Inputs], record: ModelRecord) -> dict[str, int]:
    """Return the length of each padded input in a pass of these requests: the next bucket of the longest one."""
    found = {}
    for position, spec in enumerate(record.inputs):
        if spec.pad is not None and (axis := spec.padded_axis) is not None:
            found[spec.name] = _bucket(spec, max([inputs[position].shape[axis] for inputs in group]))
    return found


def stacked(group: Sequence[Inputs], record: ModelRecord, width_of: Mapping[str, int]) -> list[Parts]:
    """Put the inputs of requests of one signature together; nothing is copied before the parts are joined."""
    stacks = []
    for position, spec in enumerate(record.inputs):
        tensors = [inputs[position] for inputs in group]
        datatype, tail, axis = tensors[0].datatype, tensors[0].shape[1:], spec.padded_axis
        rows = sum([tensor.shape[0] for tensor in tensors])
        if axis is None:
            stacks.append(Parts(datatype, (rows, *tail), [tensor.data for tensor in tensors]))
            continue
        width = width_of[spec.mask_of or spec.name]
        fill = pack_values(spec.name, datatype, [spec.pad.value if spec.pad else 0])
        data: list[bytes | memoryview] = []
        for tensor in tensors:
            data += _lengthened(tensor, axis, width, fill)
        stacks.append(Parts(datatype, (rows, *tail[: axis - 1], width, *tail[axis:]), data))
    return stacks


def cut(output: Stack, spec: TensorSpec, inputs: Inputs, record: ModelRecord, width_of: Mapping[str, int]) -> Stack:
    """Give a request its own length of its rows of an output.

    Raises
    ------
    InferenceFailed
        If the output does not follow its input as declared.
    """
    if spec.follows is None:
        return output
    axis, width = spec.follows.axis, width_of[spec.follows.input]
    if len(output.shape) <= axis or output.shape[axis] != width:
        raise InferenceFailed(
            f"output '{spec.name}' of shape {list(output.shape)} does not follow '{spec.follows.input}', {width} long, in dimension {axis}"
        )
    length = _length(inputs, record, spec.follows.input)
    if length == width:
        return output
    view = memoryview(output.data)
    shape = (*output.shape[:axis], length, *output.shape[axis + 1 :])
    if not view:
        return Stack(output.datatype, shape, b"")
    step = len(view) // prod(output.shape[:axis])
    own = step // width * length
    return Stack(output.datatype, shape, b"".join([view[at : at + own] for at in range(0, len(view), step)]))


def _check_input(field: str, spec: TensorSpec, padded: Mapping[str, TensorSpec]) -> None:
    if spec.follows is not None:
        raise InvalidRequest("`follows` is for outputs", field=field)
    if sum(map(bool, (spec.pad, spec.mask_of, spec.length_of))) > 1:
        raise InvalidRequest("can be padded, a mask or a length, not several of them", field=field)
    if spec.pad is not None:
        _check_pad(field, spec)
    if spec.mask_of:
        _check_source(field, "mask_of", spec.mask_of, padded)
        _check_one_free(field, spec)
    if spec.length_of:
        _check_source(field, "length_of", spec.length_of, padded)
        if spec.datatype not in LENGTH_DATATYPES or spec.shape not in ((-1,), (-1, 1)):
            raise InvalidRequest(f"a length is one of {', '.join(LENGTH_DATATYPES)}, of shape [-1] or [-1, 1]", field=field)


def _check_output(field: str, spec: TensorSpec, padded: Mapping[str, TensorSpec]) -> None:
    if spec.pad is not None or spec.is_optional:
        raise InvalidRequest("`pad`, `mask_of` and `length_of` are for inputs", field=field)
    if spec.follows is None:
        return
    _check_source(field, "follows", spec.follows.input, padded)
    axis = spec.follows.axis
    if not 0 < axis < len(spec.shape) or spec.shape[axis] != -1:
        raise InvalidRequest(f"dimension {axis} of {list(spec.shape)} cannot follow an input: it is not free, or is the batch", field=field)


def _check_pad(field: str, spec: TensorSpec) -> None:
    assert spec.pad is not None  # noqa: S101  # the caller looked
    buckets = spec.pad.buckets
    if not buckets or buckets[0] < 1 or any(a >= b for a, b in pairwise(buckets)):
        raise InvalidRequest(f"buckets {list(buckets)} must be positive and ascending, at least one", field=field)
    _check_one_free(field, spec)
    if spec.datatype == "BOOL" and spec.pad.value not in (0, 1):
        raise InvalidRequest(f"pad value {spec.pad.value!r} is neither true nor false", field=field)
    pack_values(field, spec.datatype, [spec.pad.value])


def _check_one_free(field: str, spec: TensorSpec) -> None:
    if spec.shape[1:].count(-1) != 1:
        raise InvalidRequest(f"padding needs one free dimension beside the batch, shape {list(spec.shape)} has another number", field=field)
    if not is_packable(spec.datatype):
        raise InvalidRequest(f"{spec.datatype} cannot be padded", field=field)


def _check_source(field: str, what: str, name: str, padded: Mapping[str, TensorSpec]) -> None:
    if name not in padded:
        raise InvalidRequest(f"`{what}` names '{name}', which is no padded input; there is {', '.join(padded) or 'none'}", field=field)


def _source(spec: TensorSpec) -> str:
    return spec.mask_of or spec.length_of


def _filled_in(spec: TensorSpec, record: ModelRecord, found: Mapping[str, Tensor]) -> Tensor:
    source = found[_source(spec)]
    rows, length = source.shape[0], _length_of(source, record)
    axis = spec.padded_axis
    shape = (rows, *spec.shape[1:]) if axis is None else (rows, *spec.shape[1:axis], length, *spec.shape[axis + 1 :])
    value = pack_values(spec.name, spec.datatype, [1 if spec.mask_of else length])
    return Tensor(name=spec.name, datatype=spec.datatype, shape=shape, data=value * prod(shape))


def _length(inputs: Inputs, record: ModelRecord, name: str) -> int:
    return next(_length_of(tensor, record) for tensor in inputs if tensor.name == name)


def _length_of(tensor: Tensor, record: ModelRecord) -> int:
    axis = next(spec.padded_axis for spec in record.inputs if spec.name == tensor.name)
    assert axis is not None  # noqa: S101  # only asked of padded inputs, see check_padding
    return tensor.shape[axis]


def _bucket(spec: TensorSpec, length: int) -> int:
    assert spec.pad is not None  # noqa: S101  # as above
    for bucket in spec.pad.buckets:
        if bucket >= length:
            return bucket
    raise InvalidRequest(
        f"dimension {spec.padded_axis} is {length}, the model takes at most {spec.pad.buckets[-1]}", field=f"input '{spec.name}'"
    )


def _lengthened(tensor: Tensor, axis: int, width: int, fill: bytes) -> list[bytes | memoryview]:
    length, data = tensor.shape[axis], memoryview(tensor.data)
    if length == width:
        return [data]
    inner = prod(tensor.shape[axis + 1 :])
    gap = fill * (inner * (width - length))
    step = length * inner * ELEMENT_BYTES[tensor.datatype]
    return [piece for at in range(0, len(data), step) for piece in (data[at : at + step], gap)]
