"""What is to be served: a file or folder, what its manifest says, and what the command line adds.

A manifest is JSON beside the artefact (`lstm.json` for `lstm.pt`), or `manifest.json` in a model's folder.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from markserve.artefacts import FORMATS
from markserve.errors import InvalidRequest
from markserve.messages import ModelRecord, TensorSpec
from markserve.padding import check_padding
from markserve.protocol.tensors import ELEMENT_BYTES

MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a manifest may say; everything is optional where the artefact itself tells."""

    name: str = ""
    version: str = "1"
    file: str = ""
    """Artefact, relative to the manifest's folder; default: the only one there."""
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    """Default: learned from two trial runs, and named output_0, output_1 and so on."""
    max_batch_size: int = 0
    """Rows the model takes at most; 0: as many as the objective allows."""


class _Tensors(msgspec.Struct, frozen=True):
    inputs: tuple[dict[str, Any], ...] = ()
    outputs: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class ServedModel:
    """A model that is to be served."""

    record: ModelRecord
    path: Path


def read_model(path: Path, *, given: Manifest = Manifest()) -> ServedModel:  # noqa: B008  # frozen
    """Find artefact and manifest, and settle what is served; `given` overrides what the manifest says.

    Raises
    ------
    InvalidRequest
        Naming the file and what is wrong with it.
    """
    artefact, manifest = _find(path)
    merged = Manifest(
        name=given.name or manifest.name or (path if path.is_dir() else artefact).stem,
        version=manifest.version,
        inputs=given.inputs or manifest.inputs,
        outputs=given.outputs or manifest.outputs,
        max_batch_size=given.max_batch_size or manifest.max_batch_size,
    )
    _check(merged, artefact)
    record = ModelRecord(
        model=merged.name,
        version=merged.version,
        inputs=merged.inputs,
        outputs=merged.outputs,
        artefact_key=str(artefact),
        artefact_sha256=hashlib.sha256(artefact.read_bytes()).hexdigest(),
        format=FORMATS[artefact.suffix],
        max_batch_size=merged.max_batch_size,
    )
    return ServedModel(record=record, path=artefact)


def _find(path: Path) -> tuple[Path, Manifest]:
    if path.is_dir():
        manifest = read_manifest(path / "manifest.json")
        found = [path / manifest.file] if manifest.file else sorted(p for p in path.iterdir() if p.suffix in FORMATS)
        if len(found) != 1:
            names = ", ".join(p.name for p in found) or "none"
            raise InvalidRequest(
                f"expected one artefact ({', '.join(FORMATS)}), found {names}; name it as `file` in manifest.json", field=str(path)
            )
        path = found[0]
    else:
        manifest = read_manifest(path.with_suffix(".json"))
    if not path.is_file():
        raise InvalidRequest("no such file or folder", field=str(path))
    if path.suffix not in FORMATS:
        raise InvalidRequest(f"ends with {path.suffix or 'nothing'}, which is none of {', '.join(FORMATS)}", field=str(path))
    return path, manifest


def read_manifest(path: Path) -> Manifest:
    """Read a manifest; one that is not there says nothing.

    Raises
    ------
    InvalidRequest
        If it is no manifest, or says something that has no meaning.
    """
    if not path.is_file():
        return Manifest()
    try:
        content = path.read_bytes()
        manifest = msgspec.json.decode(content, type=Manifest)
        tensors: _Tensors = msgspec.json.decode(content, type=_Tensors)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"not a manifest: {error}", field=str(path)) from error
    known = TensorSpec.__struct_fields__
    # A stored record may be of a later version and say more; a word in a manifest that means nothing is a slip.
    if unknown := sorted({word for tensor in (*tensors.inputs, *tensors.outputs) for word in tensor if word not in known}):
        raise InvalidRequest(f"not a manifest: a tensor has no `{unknown[0]}`, only {', '.join(known)}", field=str(path))
    return manifest


def _check(manifest: Manifest, artefact: Path) -> None:
    if not MODEL_NAME.fullmatch(manifest.name):
        raise InvalidRequest(
            "must be 1 to 100 letters, digits, '.', '-' or '_', beginning with a letter or digit", field=f"name {manifest.name!r}"
        )
    if not manifest.inputs and artefact.suffix == ".pt":
        raise InvalidRequest(
            f"TorchScript does not tell what it takes; give --input NAME:DATATYPE:SHAPE, or write {artefact.with_suffix('.json').name}",
            field=str(artefact),
        )
    for kind, specs in (("input", manifest.inputs), ("output", manifest.outputs)):
        for spec in specs:
            field = f"{kind} '{spec.name}'"
            if spec.datatype not in ELEMENT_BYTES:
                raise InvalidRequest(f"datatype {spec.datatype} is not one of {', '.join(ELEMENT_BYTES)}", field=field)
            if not spec.shape or spec.shape[0] != -1 or any(size != -1 and size < 1 for size in spec.shape):
                raise InvalidRequest(f"shape {list(spec.shape)} must begin with -1, the batch, and hold positive sizes or -1", field=field)
    check_padding(manifest.inputs, manifest.outputs)
