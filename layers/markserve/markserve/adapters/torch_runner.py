"""Model runner with torch: TorchScript artefacts, several requests per forward pass.

The artefact's digest is checked before torch sees a byte of it, and TorchScript's own reader loads it: no pickle.
Which requests share a batch is decided elsewhere; here a batch is computed, and one bad request fails alone.
"""

from __future__ import annotations

import hashlib
import io
import logging
import math
import warnings
from collections.abc import Mapping, Sequence

import torch

from markserve.core.types import Tier
from markserve.errors import ConfigurationError, InferenceFailed, InvalidRequest
from markserve.messages import Answer, InferenceRequest, ModelRecord, Tensor, TensorSpec

logger = logging.getLogger(__name__)

DTYPES: dict[str, torch.dtype] = {
    "BOOL": torch.bool,
    "UINT8": torch.uint8,
    "UINT16": torch.uint16,
    "UINT32": torch.uint32,
    "UINT64": torch.uint64,
    "INT8": torch.int8,
    "INT16": torch.int16,
    "INT32": torch.int32,
    "INT64": torch.int64,
    "FP16": torch.float16,
    "BF16": torch.bfloat16,
    "FP32": torch.float32,
    "FP64": torch.float64,
}
"""Open Inference Protocol datatypes with a torch counterpart: all but BYTES."""

DATATYPES = {dtype: name for name, dtype in DTYPES.items()}

# What a model may raise on an input it does not like. A `raise` inside TorchScript comes out as torch.jit.Error, no RuntimeError.
MODEL_ERRORS = (torch.jit.Error, RuntimeError, ArithmeticError, AssertionError, LookupError, NotImplementedError, TypeError, ValueError)

_Signature = tuple[tuple[str, tuple[int, ...]], ...]


class TorchScriptRunner:
    """`ModelRunner` over a loaded TorchScript module.

    Not thread-safe: one thread runs it. Answers carry outputs only; who called knows when, where and for whom.
    """

    def __init__(self, module: torch.jit.ScriptModule, record: ModelRecord, *, device: str, tier: Tier) -> None:
        self._module = module
        self._record = record
        self._device = device
        self._tier = tier

    @classmethod
    def load(
        cls, record: ModelRecord, artefact: bytes, threads: int = 1, *, device: str | None = None, tier: Tier = Tier.WORKER
    ) -> TorchScriptRunner:
        """Load a registered artefact; `device` defaults to the GPU where there is one.

        Raises
        ------
        ConfigurationError
            If the bytes are not the ones that were registered, or not TorchScript.
        """
        digest = hashlib.sha256(artefact).hexdigest()
        if digest != record.artefact_sha256:
            registered = f"{record.model} version {record.version} was registered with {record.artefact_sha256}"
            raise ConfigurationError(f"{record.artefact_key}: sha256 is {digest}, {registered}")
        torch.set_num_threads(threads)
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        try:
            with warnings.catch_warnings():
                # Deprecated in favour of torch.export, whose archives hold pickles; TorchScript is the safe format that runs anywhere.
                warnings.filterwarnings("ignore", category=DeprecationWarning)
                module = torch.jit.load(io.BytesIO(artefact), map_location=device)
        except (RuntimeError, ValueError) as error:
            raise ConfigurationError(f"{record.artefact_key} is not a TorchScript archive: {_brief(error)}") from error
        return cls(module.eval(), record, device=device, tier=tier)

    def run(self, batch: Sequence[InferenceRequest]) -> list[Answer | Exception]:
        """Compute every request, those of equal input shapes in one forward pass."""
        results: list[Answer | Exception | None] = [None] * len(batch)
        groups: dict[_Signature, list[int]] = {}
        for index, request in enumerate(batch):
            try:
                groups.setdefault(self._signature(request), []).append(index)
            except InvalidRequest as error:
                results[index] = error
        for indices in groups.values():
            for index, result in zip(indices, self._run_group([batch[i] for i in indices]), strict=True):
                results[index] = result
        return [result for result in results if result is not None]

    def _run_group(self, group: Sequence[InferenceRequest]) -> Sequence[Answer | Exception]:
        try:
            return self._forward(group)
        except InvalidRequest as error:
            if len(group) == 1:
                return [error]
        except MODEL_ERRORS as error:
            if len(group) == 1:
                logger.warning("%s: the model raised", group[0].request_id, exc_info=error)
                return [InferenceFailed(f"the model raised {_brief(error)}")]
        # One input can spoil a whole pass, and only running each alone tells which.
        return [result for request in group for result in self._run_group([request])]

    def _forward(self, group: Sequence[InferenceRequest]) -> list[Answer | Exception]:
        rows = [_input(request, self._record.inputs[0]).shape[0] for request in group]
        inputs = [self._stack([_input(request, spec) for request in group], sum(rows)) for spec in self._record.inputs]
        with torch.inference_mode():
            outputs = self._named(self._module(*inputs), sum(rows))
        answers: list[Answer | Exception] = []
        offset = 0
        for request, count in zip(group, rows, strict=True):
            tensors = tuple(_to_message(name, outputs[name][offset : offset + count]) for name in _wanted(request, outputs))
            answers.append(Answer(request_id=request.request_id, tier=self._tier, outputs=tensors, batch_size=sum(rows)))
            offset += count
        return answers

    def _signature(self, request: InferenceRequest) -> _Signature:
        """Check that every declared input is there with the bytes its shape needs; return what must be equal within a pass."""
        tensors = [_input(request, spec) for spec in self._record.inputs]
        for tensor in tensors:
            dtype = DTYPES.get(tensor.datatype)
            if dtype is None:
                raise InvalidRequest(f"datatype {tensor.datatype} cannot be given to a TorchScript model", field=f"input '{tensor.name}'")
            expected = math.prod(tensor.shape) * dtype.itemsize
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

    def _stack(self, parts: Sequence[Tensor], rows: int) -> torch.Tensor:
        # The bytes go straight to their place in the batch: the one copy that concatenating needs anyway.
        buffer = torch.empty(sum(len(part.data) for part in parts), dtype=torch.uint8)
        target = memoryview(buffer.numpy())
        offset = 0
        for part in parts:
            target[offset : offset + len(part.data)] = part.data
            offset += len(part.data)
        return buffer.view(DTYPES[parts[0].datatype]).reshape(rows, *parts[0].shape[1:]).to(self._device)

    def _named(self, produced: object, rows: int) -> dict[str, torch.Tensor]:
        """Pair what the module returned with the declared outputs."""
        names = [spec.name for spec in self._record.outputs]
        if isinstance(produced, Mapping):
            by_name = {name: produced.get(name) for name in names}
        else:
            values = list(produced) if isinstance(produced, tuple | list) else [produced]
            if len(values) != len(names):
                raise ValueError(f"{len(values)} outputs where {len(names)} are declared")
            by_name = dict(zip(names, values, strict=True))
        outputs: dict[str, torch.Tensor] = {}
        for name, value in by_name.items():
            if not isinstance(value, torch.Tensor) or value.dim() == 0 or value.shape[0] != rows or value.dtype not in DATATYPES:
                found = f"{value.dtype} of shape {list(value.shape)}" if isinstance(value, torch.Tensor) else type(value).__name__
                raise ValueError(f"output '{name}' is {found}; expected a tensor of {rows} rows, as the inputs have")
            outputs[name] = value.cpu()
        return outputs


def _input(request: InferenceRequest, spec: TensorSpec) -> Tensor:
    for tensor in request.inputs:
        if tensor.name == spec.name:
            return tensor
    raise InvalidRequest("is missing", field=f"input '{spec.name}'")


def _wanted(request: InferenceRequest, outputs: Mapping[str, torch.Tensor]) -> Sequence[str]:
    for name in request.output_names:
        if name not in outputs:
            raise InvalidRequest(f"no such output; the model has {', '.join(outputs)}", field=f"output '{name}'")
    return request.output_names or tuple(outputs)


def _to_message(name: str, rows: torch.Tensor) -> Tensor:
    data = rows.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return Tensor(name=name, datatype=DATATYPES[rows.dtype], shape=tuple(rows.shape), data=data)


def _brief(error: Exception) -> str:
    # TorchScript errors hold the model's source and a stack; their last line says what was wrong.
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    last = lines[-1] if lines else ""
    return last[:200] if last.startswith(type(error).__name__) else f"{type(error).__name__}: {last[:200]}"
