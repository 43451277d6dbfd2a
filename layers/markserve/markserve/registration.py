"""Register a model: store its artefact, prove that it runs, give it a queue and an objective, make it live.

Everything that can be refused is refused before anything is written, and the record is written last, so what is
live is complete.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from markserve.artefacts import SUFFIXES
from markserve.core.tunables import parse_tunable
from markserve.errors import InvalidRequest, UnknownModel
from markserve.messages import ModelFormat, ModelRecord, Tensor, TensorSpec
from markserve.padding import check_padding
from markserve.ports import BlobStore, ModelRunner, ModelStore, ParameterWriter, WorkQueueAdmin
from markserve.profiling import sample_request
from markserve.protocol.tensors import ELEMENT_BYTES

MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}")
"""What fits an SQS queue name (80 characters with the stack's prefix), an SSM path and a URL."""
VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,39}")
TRIAL_ROWS = 2
"""Rows of the trial run: a model that cannot take two rows cannot be batched."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSpec:
    """What a user states about a model."""

    model: str
    artefact: bytes
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    format: ModelFormat = "torchscript"
    version: str | None = None
    """Default: the next whole number."""
    max_batch_size: int = 64
    hold: bool = False
    """Whether to store it without traffic, to be promoted later; a model's first version is live all the same."""
    rt_max_s: float | None = None
    """Latency objective of this model; default: the stack's."""


def register_model(
    spec: ModelSpec,
    *,
    models: ModelStore,
    blobs: BlobStore,
    queues: WorkQueueAdmin,
    parameters: ParameterWriter,
    load: Callable[[ModelRecord, bytes], ModelRunner],
    now_s: float,
) -> ModelRecord:
    """Store a model version and make it live, or say why not.

    Registering the same version with the same artefact again repeats the steps and changes nothing, so a
    registration that was cut off is finished by repeating it. Profiles of the version before it are carried over as a
    first estimate; workers refit them, and profiling replaces them.

    Raises
    ------
    InvalidRequest
        If the name, a tensor, the objective or the artefact is unusable, or the version exists with another artefact.
    ConfigurationError
        If the artefact cannot be loaded.
    """
    _check(spec)
    rt_max = _rt_max_text(spec.rt_max_s)
    digest = hashlib.sha256(spec.artefact).hexdigest()
    previous = _live(models, spec.model)
    version = spec.version or _next_version(models, spec.model, previous, digest)
    if version in models.versions(spec.model) and models.get(spec.model, version).artefact_sha256 != digest:
        raise InvalidRequest(f"{version} of model '{spec.model}' is registered with another artefact; choose a new one", field="version")
    if version in models.removed(spec.model):
        # A name means one artefact for good: environments that have it loaded go by the name.
        raise InvalidRequest(f"{version} of model '{spec.model}' was removed; choose a new one", field="version")
    record = ModelRecord(
        model=spec.model,
        version=version,
        inputs=spec.inputs,
        outputs=spec.outputs,
        artefact_key=f"models/{spec.model}/{version}/{digest}{SUFFIXES[spec.format]}",
        artefact_sha256=digest,
        format=spec.format,
        max_batch_size=spec.max_batch_size,
        profiles=previous.profiles if previous else {},
        created_at_s=now_s,
    )
    _try_out(load(record, spec.artefact), record)

    blobs.put(record.artefact_key, spec.artefact)
    if rt_max is not None:
        parameters.put("rt-max-s", rt_max, model=spec.model)
    live = msgspec.structs.replace(record, queue_url=queues.create(spec.model))
    if previous is None:
        models.put(live)
        return live
    models.store(live)
    if not spec.hold and version != previous.version:
        traffic = models.traffic(spec.model)
        changes = {"live": version, "canary": None, "canary_weight": 0.0, "previous": traffic.live, "changed_at_s": now_s}
        models.route(msgspec.structs.replace(traffic, **changes, number=traffic.number + 1))
    return live


def _check(spec: ModelSpec) -> None:
    if not MODEL_NAME.fullmatch(spec.model):
        raise InvalidRequest(f"{spec.model!r} must be 1 to 40 letters, digits, '-' or '_', beginning with a letter or digit", field="model")
    if spec.version is not None and not VERSION.fullmatch(spec.version):
        raise InvalidRequest(f"{spec.version!r} must be 1 to 40 letters, digits, '.', '-' or '_'", field="version")
    if spec.max_batch_size < TRIAL_ROWS:
        raise InvalidRequest(f"must be at least {TRIAL_ROWS}, got {spec.max_batch_size}", field="max_batch_size")
    for kind, tensors in (("input", spec.inputs), ("output", spec.outputs)):
        _check_tensors(kind, tensors)
    check_padding(spec.inputs, spec.outputs)


def _check_tensors(kind: str, tensors: Sequence[TensorSpec]) -> None:
    if not tensors:
        raise InvalidRequest("a model needs at least one", field=f"{kind}s")
    if len({tensor.name for tensor in tensors}) != len(tensors):
        raise InvalidRequest("names must differ", field=f"{kind}s")
    for tensor in tensors:
        field = f"{kind} '{tensor.name}'"
        if tensor.datatype not in ELEMENT_BYTES:
            raise InvalidRequest(f"datatype {tensor.datatype} is not one of {', '.join(ELEMENT_BYTES)}", field=field)
        if not tensor.shape or tensor.shape[0] != -1:
            raise InvalidRequest(f"shape {list(tensor.shape)} must begin with -1, the batch", field=field)
        if any(size != -1 and size < 1 for size in tensor.shape):
            raise InvalidRequest(f"shape {list(tensor.shape)} must hold positive sizes, or -1 for a free one", field=field)


def _rt_max_text(rt_max_s: float | None) -> str | None:
    if rt_max_s is None:
        return None
    text = f"{rt_max_s:g}"
    try:
        parse_tunable("rt-max-s", text)
    except ValueError as error:
        raise InvalidRequest(str(error)) from error
    return text


def _live(models: ModelStore, model: str) -> ModelRecord | None:
    try:
        return models.get(model)
    except UnknownModel:
        return None


def _next_version(models: ModelStore, model: str, live: ModelRecord | None, digest: str) -> str:
    if live is not None and live.artefact_sha256 == digest:
        return live.version
    given = [*models.versions(model), *models.removed(model)]
    return str(1 + max((int(version) for version in given if version.isdecimal()), default=0))


def _try_out(runner: ModelRunner, record: ModelRecord) -> None:
    """Run zeros through the model, at every length that padding may give a pass, and compare what comes out with what was declared."""
    lengths = max([len(spec.pad.buckets) for spec in record.inputs if spec.pad], default=1)
    for bucket in range(lengths):
        request = sample_request(record, rows=TRIAL_ROWS, bucket=bucket)
        (result,) = runner.run([request])
        if isinstance(result, Exception):
            sizes = ", ".join(f"{tensor.name} {list(tensor.shape)}" for tensor in request.inputs)
            message = f"the model fails on {TRIAL_ROWS} rows of zeros: {result}; it was given {sizes}"
            raise InvalidRequest(message, field="artefact") from result
        for spec, tensor in zip(record.outputs, result.outputs, strict=True):
            _check_output(spec, tensor)


def _check_output(spec: TensorSpec, tensor: Tensor) -> None:
    fits = len(tensor.shape) == len(spec.shape) and all(wanted in (-1, size) for size, wanted in zip(tensor.shape, spec.shape, strict=True))
    if tensor.datatype != spec.datatype or not fits:
        raise InvalidRequest(
            f"is declared {spec.datatype} {list(spec.shape)}, the model returns {tensor.datatype} {list(tensor.shape)}",
            field=f"output '{spec.name}'",
        )
