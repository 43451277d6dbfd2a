"""Model artefacts: which formats there are, and whether bytes are the registered ones."""

from __future__ import annotations

import hashlib

from markserve.errors import ConfigurationError
from markserve.messages import ModelFormat, ModelRecord

FORMATS: dict[str, ModelFormat] = {".pt": "torchscript", ".pt2": "torch_export", ".onnx": "onnx"}
"""File name endings and the formats they stand for."""
SUFFIXES = {form: suffix for suffix, form in FORMATS.items()}


def check_digest(record: ModelRecord, artefact: bytes) -> None:
    """Refuse bytes that are not the registered ones, before any runtime sees them.

    Raises
    ------
    ConfigurationError
        If the digest differs.
    """
    digest = hashlib.sha256(artefact).hexdigest()
    if digest != record.artefact_sha256:
        registered = f"{record.model} version {record.version} was registered with {record.artefact_sha256}"
        raise ConfigurationError(f"{record.artefact_key}: sha256 is {digest}, {registered}")
