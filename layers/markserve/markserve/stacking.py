"""From requests to forward passes and back: which requests share a pass, and what happens when one spoils it.

Knows no model technology: runners bring `compute`, which takes stacked inputs and gives stacked outputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from markserve.core.types import Tier
from markserve.errors import InferenceFailed, InvalidRequest
from markserve.messages import Answer, InferenceRequest, ModelRecord, Stack, Tensor, TensorSpec
from markserve.padding import Inputs, Signature, check_lengths, cut, signature, stacked, widths
from markserve.protocol.tensors import ELEMENT_BYTES

Compute = Callable[[Sequence[Stack]], Sequence[Stack]]
"""Stacked inputs in the model's order to stacked outputs in the declared order.

Raises `InvalidRequest` for inputs the model cannot take, `InferenceFailed` when it raised.
"""

Failure = InvalidRequest | InferenceFailed


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
            passed.append(list(compute([stack.rows(offset, count) for stack in inputs])))
        except (InvalidRequest, InferenceFailed) as error:
            failures[index] = error
        offset += count
    return [_joined([outputs[position] for outputs in passed]) for position in range(len(passed[0]) if passed else 0)], failures


def run_requests(compute: Compute, batch: Sequence[InferenceRequest], record: ModelRecord, *, tier: Tier) -> list[Answer | Exception]:
    """Compute every request, those of equal input shapes (as padded, where declared) in one pass: `ModelRunner.run` for any `compute`."""
    results: list[Answer | Exception | None] = [None] * len(batch)
    groups: dict[Signature, list[tuple[int, Inputs]]] = {}
    for index, request in enumerate(batch):
        try:
            inputs = _checked(request, record)
        except InvalidRequest as error:
            results[index] = error
        else:
            groups.setdefault(signature(inputs, record), []).append((index, inputs))
    for members in groups.values():
        requests = [batch[index] for index, _ in members]
        answers = _run_group(compute, requests, [inputs for _, inputs in members], record, tier)
        for (index, _), result in zip(members, answers, strict=True):
            results[index] = result
    return [result for result in results if result is not None]


def _run_group(
    compute: Compute, requests: Sequence[InferenceRequest], group: Sequence[Inputs], record: ModelRecord, tier: Tier
) -> list[Answer | Exception]:
    rows = [inputs[0].shape[0] for inputs in group]
    width_of = widths(group, record)
    # One copy puts every request's bytes at their place in the batch; writable, as torch wants its buffers.
    stacks = [Stack(parts.datatype, parts.shape, bytearray().join(parts.data)) for parts in stacked(group, record, width_of)]
    outputs, failures = compute_group(compute, rows, stacks)
    answers: list[Answer | Exception] = []
    offset = 0
    for index, (request, inputs, count) in enumerate(zip(requests, group, rows, strict=True)):
        if index in failures:
            answers.append(failures[index])
            continue
        try:
            own = {
                spec.name: cut(stack.rows(offset, count), spec, inputs, record, width_of)
                for spec, stack in zip(record.outputs, outputs, strict=True)
            }
        except InferenceFailed as error:
            answers.append(error)
        else:
            answers.append(_answer(request, own, tier, sum(rows)))
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


def _checked(request: InferenceRequest, record: ModelRecord) -> Inputs:
    """Return the inputs in the model's order: every declared one is there, with the bytes its shape needs."""
    tensors = tuple([_input(request, spec) for spec in record.inputs])
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
    check_lengths(tensors, record)
    return tensors


def _input(request: InferenceRequest, spec: TensorSpec) -> Tensor:
    for tensor in request.inputs:
        if tensor.name == spec.name:
            return tensor
    raise InvalidRequest("is missing", field=f"input '{spec.name}'")


def _joined(parts: Sequence[Stack]) -> Stack:
    rows = sum(part.shape[0] for part in parts)
    return Stack(parts[0].datatype, (rows, *parts[0].shape[1:]), b"".join([part.data for part in parts]))
