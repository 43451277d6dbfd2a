"""Which adapter runs an artefact: by the format its record states."""

from __future__ import annotations

from markserve.core.types import Tier
from markserve.messages import ModelRecord
from markserve.ports import StackRunner


def load_runner(record: ModelRecord, artefact: bytes, *, tier: Tier = Tier.WORKER, threads: int = 1) -> StackRunner:
    """Load a model from bytes at hand, which need not be registered yet.

    Raises
    ------
    ConfigurationError
        If the bytes are not the registered ones, not of their format, or the format's runtime is not installed.
    """
    if record.format == "onnx":
        from markserve.adapters.onnx_runner import OnnxRunner

        return OnnxRunner.load(record, artefact, threads, tier=tier)
    if record.format == "torch_export":
        from markserve.adapters.torch_export import TorchExportRunner

        return TorchExportRunner.load(record, artefact, threads, tier=tier)
    from markserve.adapters.torch_runner import TorchScriptRunner

    return TorchScriptRunner.load(record, artefact, threads, tier=tier)
