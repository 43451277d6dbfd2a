"""Model runner with ONNX Runtime, an optional dependency: `pip install markserve[onnx]`."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any

import msgspec

from markserve.artefacts import check_digest
from markserve.core.types import Tier
from markserve.errors import ConfigurationError, InferenceFailed, InvalidRequest
from markserve.messages import Answer, InferenceRequest, ModelRecord, Stack, TensorSpec
from markserve.stacking import run_requests

logger = logging.getLogger(__name__)

DTYPES = {
    "BOOL": "bool",
    "UINT8": "uint8",
    "UINT16": "uint16",
    "UINT32": "uint32",
    "UINT64": "uint64",
    "INT8": "int8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "FP16": "float16",
    "FP32": "float32",
    "FP64": "float64",
}
"""Open Inference Protocol datatypes and numpy's names for them."""
DATATYPES = {name: datatype for datatype, name in DTYPES.items()}
_ONNX_NAMES = {"float": "FP32", "double": "FP64"}

CUDA, TENSORRT, CPU = "CUDAExecutionProvider", "TensorrtExecutionProvider", "CPUExecutionProvider"


class OnnxRunner:
    """`StackRunner` over an ONNX Runtime session.

    Not thread-safe: one thread runs it. External data files are not read: the artefact is one file, whose digest counts.
    """

    def __init__(self, artefact: bytes, record: ModelRecord, *, threads: int, tier: Tier) -> None:
        self._artefact = artefact
        self._tier = tier
        self._session = _session(artefact, record, threads)
        self._threads = threads
        if not record.inputs:
            record = msgspec.structs.replace(record, inputs=tuple(_spec(node) for node in self._session.get_inputs()))
        if not record.outputs:
            record = msgspec.structs.replace(record, outputs=tuple(_spec(node) for node in self._session.get_outputs()))
        self.record = record
        known = [node.name for node in self._session.get_inputs()]
        if sorted(spec.name for spec in record.inputs) != sorted(known):
            raise ConfigurationError(f"{record.artefact_key} takes {', '.join(known)}; declared are other inputs")

    @classmethod
    def load(cls, record: ModelRecord, artefact: bytes, threads: int = 1, *, tier: Tier = Tier.WORKER) -> OnnxRunner:
        """Load a registered artefact; a record without tensors gets those that the file states.

        Raises
        ------
        ConfigurationError
            If the bytes are not the registered ones, not an ONNX model, or ONNX Runtime is not installed.
        """
        check_digest(record, artefact)
        return cls(artefact, record, threads=threads, tier=tier)

    def use_threads(self, threads: int) -> None:
        if threads != self._threads:  # a session's threads are fixed when it is made
            self._session, self._threads = _session(self._artefact, self.record, threads), threads

    def run(self, batch: Sequence[InferenceRequest]) -> list[Answer | Exception]:
        return run_requests(self.compute, batch, self.record, tier=self._tier)

    def compute(self, inputs: Sequence[Stack]) -> list[Stack]:
        import numpy as np

        feeds = {}
        for spec, stack in zip(self.record.inputs, inputs, strict=True):
            if stack.datatype not in DTYPES:
                raise InvalidRequest(f"datatype {stack.datatype} cannot be given to an ONNX model", field=f"input '{spec.name}'")
            feeds[spec.name] = np.frombuffer(stack.data, dtype=DTYPES[stack.datatype]).reshape(stack.shape)
        names = [spec.name for spec in self.record.outputs]
        rows = inputs[0].shape[0]
        try:
            arrays = self._session.run(names, feeds)
        except Exception as error:  # ONNX Runtime's errors share no base class
            logger.warning("%s: the model raised on %d rows", self.record.model, rows, exc_info=error)
            raise InferenceFailed(f"the model raised {_brief(error)}") from error
        return [_stack(name, array, rows) for name, array in zip(names, arrays, strict=True)]


def choose_providers(available: Sequence[str], device: str) -> list[str]:
    """Choose what may run a model's nodes, in order of preference: the first provider takes all that it can.

    CUDA comes before TensorRT, which would compile the model for minutes at each start, while a load waits for the worker. The CPU comes
    last, for nodes that have no other kernel. What is there besides, such as a remote service, is not used.

    Parameters
    ----------
    device
        `cuda` or `cpu`.

    Examples
    --------
    >>> choose_providers([TENSORRT, CUDA, CPU], "cuda")
    ['CUDAExecutionProvider', 'TensorrtExecutionProvider', 'CPUExecutionProvider']
    >>> choose_providers([TENSORRT, CUDA, CPU], "cpu")
    ['CPUExecutionProvider']
    """
    wanted = (CUDA, TENSORRT, CPU) if device == "cuda" else (CPU,)
    return [provider for provider in wanted if provider in available]


def _session(artefact: bytes, record: ModelRecord, threads: int) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise ConfigurationError("ONNX models need ONNX Runtime: pip install 'markserve[onnx]'") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Spinning would take the core from the front between two batches.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    available = onnxruntime.get_available_providers()
    providers = choose_providers(available, "cuda" if {CUDA, TENSORRT} & set(available) else "cpu")
    try:
        session = onnxruntime.InferenceSession(artefact, options, providers=providers)
    except Exception as error:  # see above
        raise ConfigurationError(f"{record.artefact_key} is not an ONNX model: {_brief(error)}") from error
    if providers[0] not in session.get_providers():
        # A GPU build without a GPU, or without its libraries, falls back silently.
        logger.warning("%s: %s cannot be used here, the model runs on %s", record.model, providers[0], session.get_providers())
    return session


def _spec(node: Any) -> TensorSpec:
    kind = node.type.removeprefix("tensor(").removesuffix(")")
    datatype = _ONNX_NAMES.get(kind) or DATATYPES.get(kind)
    if datatype is None:
        raise ConfigurationError(f"tensor '{node.name}' is {node.type}, which cannot be served")
    return TensorSpec(name=node.name, datatype=datatype, shape=tuple(size if isinstance(size, int) else -1 for size in node.shape))


def _stack(name: str, array: Any, rows: int) -> Stack:
    datatype = DATATYPES.get(getattr(getattr(array, "dtype", None), "name", ""))
    if datatype is None or not array.shape or array.shape[0] != rows:
        raise InferenceFailed(f"output '{name}' is not a tensor of {rows} rows, as the inputs have")
    data = memoryview(array.tobytes())
    return Stack(datatype, tuple(array.shape), data) if math.prod(array.shape) else Stack(datatype, tuple(array.shape), b"")


def _brief(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1][:200] if lines else ''}"
