"""Model runner with torch: several requests per forward pass. Here TorchScript artefacts; `torch_export` loads the other kind.

The artefact's digest is checked before torch sees a byte of it, and TorchScript's own reader loads it: no pickle.
Which requests share a batch is decided elsewhere; here a batch is computed, and one bad request fails alone.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence

import torch

from markserve.artefacts import check_digest
from markserve.core.types import Tier
from markserve.errors import ConfigurationError, InferenceFailed, InvalidRequest
from markserve.messages import Answer, InferenceRequest, ModelRecord, Stack
from markserve.stacking import run_requests

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


class TorchRunner:
    """`StackRunner` over a callable of tensors.

    Not thread-safe: one thread runs it. Answers carry outputs only; who called knows when, where and for whom.
    """

    def __init__(self, module: Callable[..., object], record: ModelRecord, *, device: str, tier: Tier) -> None:
        self._module = module
        self._device = device
        self._tier = tier
        self.record = record

    def run(self, batch: Sequence[InferenceRequest]) -> list[Answer | Exception]:
        return run_requests(self.compute, batch, self.record, tier=self._tier)

    def use_threads(self, threads: int) -> None:
        torch.set_num_threads(threads)

    def compute(self, inputs: Sequence[Stack]) -> list[Stack]:
        rows = inputs[0].shape[0]
        try:
            tensors = [self._tensor(stack, spec.name) for stack, spec in zip(inputs, self.record.inputs, strict=True)]
            with torch.inference_mode():
                return self._named(self._module(*tensors), rows)
        except MODEL_ERRORS as error:
            logger.warning("%s: the model raised on %d rows", self.record.model, rows, exc_info=error)
            raise InferenceFailed(f"the model raised {error_text(error)}") from error

    def _tensor(self, stack: Stack, name: str) -> torch.Tensor:
        dtype = DTYPES.get(stack.datatype)
        if dtype is None:
            raise InvalidRequest(f"datatype {stack.datatype} cannot be given to a torch model", field=f"input '{name}'")
        # No copy: the tensor lives in the buffer that the requests were joined into.
        tensor = torch.frombuffer(stack.data, dtype=dtype).reshape(stack.shape)
        if self._device == "cpu":
            return tensor
        # From page-locked memory the copy runs while the host goes on; the stream keeps it before the pass that needs it.
        return tensor.pin_memory().to(self._device, non_blocking=True)

    def _named(self, produced: object, rows: int) -> list[Stack]:
        """Pair what the module returned with the declared outputs."""
        names = [spec.name for spec in self.record.outputs] or _undeclared(produced)
        if isinstance(produced, Mapping):
            values = [produced.get(name) for name in names]
        else:
            values = list(produced) if isinstance(produced, tuple | list) else [produced]
            if len(values) != len(names):
                raise ValueError(f"{len(values)} outputs where {len(names)} are declared")
        return [_stack(name, value, rows) for name, value in zip(names, values, strict=True)]


class TorchScriptRunner(TorchRunner):
    """`StackRunner` over a loaded TorchScript module."""

    @classmethod
    def load(
        cls, record: ModelRecord, artefact: bytes, threads: int = 1, *, device: str | None = None, tier: Tier = Tier.WORKER
    ) -> TorchScriptRunner:
        """Load a registered artefact; `device` defaults to the GPU where there is one.

        Raises
        ------
        ConfigurationError
            If the bytes are not the ones that were registered, not TorchScript, or traced for another device.
        """
        check_digest(record, artefact)
        torch.set_num_threads(threads)
        device = device or default_device()
        try:
            with warnings.catch_warnings():
                # Deprecated in favour of torch.export, whose archives hold pickles; TorchScript is the safe format that runs anywhere.
                warnings.filterwarnings("ignore", category=DeprecationWarning)
                module = torch.jit.load(io.BytesIO(artefact), map_location=device)
        except (RuntimeError, ValueError) as error:
            raise ConfigurationError(f"{record.artefact_key} is not a TorchScript archive: {error_text(error)}") from error
        _refuse_other_device(module, device, record.artefact_key)
        return cls(module.eval(), record, device=device, tier=tier)


def _refuse_other_device(module: torch.jit.ScriptModule, device: str, key: str) -> None:
    """Raise for a graph that creates or moves tensors on a device by name: tracing writes down the one it was done on.

    Loading moves weights and nothing else, so such a module would fail at its first request, about tensors on two devices.
    """
    graph = module.inlined_graph  # made anew at each look, and its nodes do not outlive it
    named = [
        node.output().toIValue()
        for node in graph.findAllNodes("prim::Constant", recurse=True)
        if node.output().type().kind() == "DeviceObjType"
    ]
    others = sorted({str(one) for one in named if one.type != torch.device(device).type})
    if others:
        raise ConfigurationError(
            f"{key} was traced for {', '.join(others)} and names that device in its graph, so it cannot run on {device}; save it with"
            " torch.export.save(torch.export.export(model, inputs), 'model.pt2'), whose programs can be moved, or trace it on a"
            f" {torch.device(device).type} device"
        )


def default_device() -> str:
    """Choose the GPU where there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def _undeclared(produced: object) -> list[str]:
    """Names for the outputs of a model that declares none, as when it is tried out to learn them."""
    if isinstance(produced, Mapping):
        return [str(name) for name in produced]
    return [f"output_{index}" for index in range(len(produced))] if isinstance(produced, tuple | list) else ["output_0"]


def _stack(name: str, value: object, rows: int) -> Stack:
    if not isinstance(value, torch.Tensor) or value.dim() == 0 or value.shape[0] != rows or value.dtype not in DATATYPES:
        found = f"{value.dtype} of shape {list(value.shape)}" if isinstance(value, torch.Tensor) else type(value).__name__
        raise ValueError(f"output '{name}' is {found}; expected a tensor of {rows} rows, as the inputs have")
    data = value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
    return Stack(DATATYPES[value.dtype], tuple(value.shape), data)


def error_text(error: Exception) -> str:
    """Say in a line what torch took a page for."""
    # TorchScript errors hold the model's source and a stack; their last line says what was wrong.
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    last = lines[-1] if lines else ""
    return last[:200] if last.startswith(type(error).__name__) else f"{type(error).__name__}: {last[:200]}"
