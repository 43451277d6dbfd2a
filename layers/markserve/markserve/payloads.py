"""Large tensors travel by reference: what does not fit a queue message or a table item goes to the blob store.

Every producer and consumer of `InferenceRequest` and `Answer` uses these four functions, so the stored form is
known here only.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from markserve.errors import InvalidRequest
from markserve.messages import Answer, InferenceRequest, Tensor
from markserve.ports import BlobStore

INLINE_INPUT_BYTES = 512 * 1024
"""Raw bytes that stay inline: base64 makes 683 KiB of them, well inside SQS's 1 MiB with its attributes."""

INLINE_OUTPUT_BYTES = 225 * 1024
"""Raw bytes that stay inline: base64 makes 300 KiB of them; a DynamoDB item ends at 400 KB."""


def offload_inputs(request: InferenceRequest, blobs: BlobStore) -> InferenceRequest:
    """Move inputs that are too large for a queue message to the blob store."""
    if _size(request.inputs) <= INLINE_INPUT_BYTES:
        return request
    key = f"payloads/{request.request_id}/inputs"
    blobs.put(key, msgspec.msgpack.encode(request.inputs))
    return msgspec.structs.replace(request, inputs=(), inputs_ref=key)


def fetch_inputs(request: InferenceRequest, blobs: BlobStore) -> InferenceRequest:
    """Bring inputs back inline; raises `InvalidRequest` when the blob is gone or is not tensors."""
    if request.inputs_ref is None:
        return request
    return msgspec.structs.replace(request, inputs=_load(request.inputs_ref, blobs), inputs_ref=None)


def offload_outputs(answer: Answer, blobs: BlobStore) -> Answer:
    """Move outputs that are too large for a table item to the blob store."""
    if _size(answer.outputs) <= INLINE_OUTPUT_BYTES:
        return answer
    # Two may compute the same request; each writes its own object, and the results table decides which one counts.
    key = f"payloads/{answer.request_id}/outputs-{answer.tier}-{answer.instance_id or 'none'}"
    blobs.put(key, msgspec.msgpack.encode(answer.outputs))
    return msgspec.structs.replace(answer, outputs=(), outputs_ref=key)


def fetch_outputs(answer: Answer, blobs: BlobStore) -> Answer:
    """Bring outputs back inline; raises `InvalidRequest` when the blob is gone or is not tensors."""
    if answer.outputs_ref is None:
        return answer
    return msgspec.structs.replace(answer, outputs=_load(answer.outputs_ref, blobs), outputs_ref=None)


def _size(tensors: Sequence[Tensor]) -> int:
    return sum(len(tensor.data) for tensor in tensors)


def _load(key: str, blobs: BlobStore) -> tuple[Tensor, ...]:
    try:
        return msgspec.msgpack.decode(blobs.get(key), type=tuple[Tensor, ...])
    except msgspec.MsgspecError as error:
        raise InvalidRequest(f"object {key} does not hold tensors: {error}") from error
