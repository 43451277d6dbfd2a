"""From requests to forward passes and back: which requests share a pass, and what happens when one spoils it.

Knows no model technology: runners bring `compute`, which takes stacked inputs and gives stacked outputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from markserve.core.types import Tier
from markserve.errors import InferenceFailed, InvalidRequest
from markserve.messages import Answer, InferenceRequest, ModelRecord, Stack, Tensor, TensorSpec
from markserve.protocol.tensors import ELEMENT_BYTES

Compute = Callable[[Sequence[Stack]], Sequence[Stack]]
"""Stacked inputs in the model's order to stacked outputs in the declared order.

Raises `InvalidRequest` for inputs the model cannot take, `InferenceFailed` when it raised.
"""

Failure = InvalidRequest | InferenceFailed
_Signature = tuple[tuple[str, tuple[int, ...]], ...]


def compute_group(compute: Compute, rows: Sequence[int], inputs: Sequence[Stack]) -> tuple[list[Stack], dict[int, Failure]]:
    """Compute stacked requests in one pass, or each alone when the pass fails: only that tells whose input spoiled it.

    Parameters
    ----------
    rows
        Rows of each request.

    Returns
    -------
    (outputs of the requests that did not fail, failures by index)
    """
    try:
        return list(compute(inputs)), {}
    except (InvalidRequest, InferenceFailed) as error:
        if len(rows) == 1:
            return [], {0: error}
    passed: list[list[Stack]] = []
    failures: dict[int, Failure] = {}
    offset = 0
    for index, count in enumerate(rows):
        try:
            passed.append(list(compute([_rows_of(stack, offset, count) for stack in inputs])))
        except (InvalidRequest, InferenceFailed) as error:
            failures[index] = error
        offset += count
    return [_joined([outputs[position] for outputs in passed]) for position in range(len(passed[0]) if passed else 0)], failures


def run_requests(compute: Compute, batch: Sequence[InferenceRequest], record: ModelRecord, *, tier: Tier) -> list[Answer | Exception]:
    """Compute every request, those of equal input shapes in one pass: `ModelRunner.run` for any `compute`."""
    results: list[Answer | Exception | None] = [None] * len(batch)
    groups: dict[_Signature, list[int]] = {}
    for index, request in enumerate(batch):
        try:
            groups.setdefault(_signature(request, record), []).append(index)
        except InvalidRequest as error:
            results[index] = error
    for indices in groups.values():
        group = [batch[i] for i in indices]
        for index, result in zip(indices, _run_group(compute, group, record, tier), strict=True):
            results[index] = result
    return [result for result in results if result is not None]


def _run_group(compute: Compute, group: Sequence[InferenceRequest], record: ModelRecord, tier: Tier) -> list[Answer | Exception]:
    rows = [_input(request, record.inputs[0]).shape[0] for request in group]
    inputs = [_stacked([_input(request, spec) for request in group]) for spec in record.inputs]
    outputs, failures = compute_group(compute, rows, inputs)
    answers: list[Answer | Exception] = []
    offset = 0
    for index, (request, count) in enumerate(zip(group, rows, strict=True)):
        if index in failures:
            answers.append(failures[index])
            continue
        parts = {spec.name: _rows_of(stack, offset, count) for spec, stack in zip(record.outputs, outputs, strict=True)}
        answers.append(_answer(request, parts, tier, sum(rows)))
        offset += count
    return answers


def _answer(request: InferenceRequest, parts: dict[str, Stack], tier: Tier, batch_size: int) -> Answer | InvalidRequest:
    for name in request.output_names:
        if name not in parts:
            return InvalidRequest(f"no such output; the model has {', '.join(parts)}", field=f"output '{name}'")
    tensors = tuple(
        Tensor(name=name, datatype=parts[name].datatype, shape=parts[name].shape, data=bytes(parts[name].data))
        for name in request.output_names or parts
    )
    return Answer(request_id=request.request_id, tier=tier, outputs=tensors, batch_size=batch_size)


def _signature(request: InferenceRequest, record: ModelRecord) -> _Signature:
    """Check that every declared input is there with the bytes its shape needs; return what must be equal within a pass."""
    tensors = [_input(request, spec) for spec in record.inputs]
    for tensor in tensors:
        if tensor.datatype not in ELEMENT_BYTES:
            raise InvalidRequest(f"datatype {tensor.datatype} cannot be given to this model", field=f"input '{tensor.name}'")
        expected = math.prod(tensor.shape) * ELEMENT_BYTES[tensor.datatype]
        if len(tensor.data) != expected or not tensor.shape or min(tensor.shape) < 1:
            raise InvalidRequest(
                f"holds {len(tensor.data)} bytes, {tensor.datatype} of shape {list(tensor.shape)} needs {expected}",
                field=f"input '{tensor.name}'",
            )
        if tensor.shape[0] != tensors[0].shape[0]:
            raise InvalidRequest(
                f"has {tensor.shape[0]} rows, input '{tensors[0].name}' has {tensors[0].shape[0]}", field=f"input '{tensor.name}'"
            )
    return tuple((tensor.datatype, tensor.shape[1:]) for tensor in tensors)


def _input(request: InferenceRequest, spec: TensorSpec) -> Tensor:
    for tensor in request.inputs:
        if tensor.name == spec.name:
            return tensor
    raise InvalidRequest("is missing", field=f"input '{spec.name}'")


def _stacked(parts: Sequence[Tensor]) -> Stack:
    rows = sum(part.shape[0] for part in parts)
    # One copy puts every request's bytes at their place in the batch; writable, as torch wants its buffers.
    return Stack(parts[0].datatype, (rows, *parts[0].shape[1:]), bytearray().join([part.data for part in parts]))


def _rows_of(stack: Stack, offset: int, count: int) -> Stack:
    size = stack.row_bytes
    return Stack(stack.datatype, (count, *stack.shape[1:]), memoryview(stack.data)[offset * size : (offset + count) * size])


def _joined(parts: Sequence[Stack]) -> Stack:
    rows = sum(part.shape[0] for part in parts)
    return Stack(parts[0].datatype, (rows, *parts[0].shape[1:]), b"".join([part.data for part in parts]))
