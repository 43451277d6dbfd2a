"""`markserve models ...` and `markserve profile`: what is served, and how fast it is."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from cli import rollout
from cli.characterize import MeasuredProfile
from cli.console import BAD_USAGE, Problem, emit_json, emit_table, explained, out
from cli.system import Json
from cli.target import connect_to_stack
from markserve.artefacts import FORMATS
from markserve.messages import ModelRecord, ProfilePointRecord, TensorSpec

app = typer.Typer(help="Register models, and choose which versions answer.", no_args_is_help=True)
for _name, _command, _example in (
    ("promote", rollout.promote, "markserve models promote digits 2 --canary 0.1    |    markserve models promote digits 2"),
    ("rollback", rollout.rollback, "markserve models rollback digits"),
    ("delete", rollout.delete, "markserve models delete digits --version 1    |    markserve models delete digits --force"),
):
    app.command(_name, epilog=f"Example: `{_example}`")(_command)

DEFAULT_BATCH_SIZES = "1,2,4,8,16,32"


@app.command("register", epilog="Example: `markserve models register m m.pt --input image:FP32:-1,1,8,8 --output logits:FP32:-1,10`")
@explained()
def register(
    model: Annotated[str, typer.Argument(help="Name of the model.")],
    artefact: Annotated[Path, typer.Argument(help="A TorchScript (.pt), torch.export (.pt2) or ONNX (.onnx) file.")],
    inputs: Annotated[
        list[str] | None, typer.Option("--input", help="NAME:DATATYPE:SHAPE, -1 being the batch; repeat for more. Or a manifest.")
    ] = None,
    outputs: Annotated[list[str] | None, typer.Option("--output", help="NAME:DATATYPE:SHAPE; repeat for more. Or a manifest.")] = None,
    manifest: Annotated[
        Path | None, typer.Option(help="JSON file that declares the tensors, and what may be padded; default: FILE.json beside FILE.pt.")
    ] = None,
    version: Annotated[str | None, typer.Option(help="Default: the next whole number.")] = None,
    hold: Annotated[bool, typer.Option("--hold", help="Give it no requests yet: `models promote` does.")] = False,
    max_batch_size: Annotated[int | None, typer.Option(min=2, max=1024, help="Default: the manifest's, or 64.")] = None,
    rt_max: Annotated[float | None, typer.Option(help="Latency objective of this model in seconds; default: the stack's.")] = None,
    json: Json = False,
) -> None:
    """Store a model, prove that it runs, and make it live (or not yet, with --hold)."""
    if not artefact.is_file():
        raise Problem(f"there is no file {artefact}", next_step="export one with torch.jit.save", code=BAD_USAGE)
    if artefact.suffix not in FORMATS:
        raise Problem(f"{artefact} ends with none of {', '.join(FORMATS)}", next_step="save it as one of these", code=BAD_USAGE)
    from server.manifest import Manifest, read_manifest

    if manifest is not None and not manifest.is_file():
        raise Problem(f"there is no file {manifest}", next_step="write one, or give --input and --output", code=BAD_USAGE)
    if manifest is None and not (inputs and outputs):
        manifest = artefact.with_suffix(".json")
    declared = read_manifest(manifest) if manifest else Manifest()
    specs = [tuple(map(tensor_spec, given or ())) or found for given, found in ((inputs, declared.inputs), (outputs, declared.outputs))]
    if not all(specs):
        raise Problem(
            "inputs and outputs are not declared", next_step=f"give --input and --output, or write {artefact.stem}.json", code=BAD_USAGE
        )
    connect_to_stack()
    from markserve import wiring
    from markserve.registration import ModelSpec, register_model

    record = register_model(
        ModelSpec(
            model=model,
            artefact=artefact.read_bytes(),
            format=FORMATS[artefact.suffix],
            inputs=specs[0],
            outputs=specs[1],
            version=version,
            hold=hold,
            max_batch_size=max_batch_size or declared.max_batch_size or 64,
            rt_max_s=rt_max,
        ),
        models=wiring.models(),
        blobs=wiring.blobs(),
        queues=wiring.work_queue_admin(),
        parameters=wiring.parameter_writer(),
        load=wiring.load_runner,
        now_s=time.time(),
    )
    if json:
        emit_json(record)
        return
    live = wiring.models().traffic(model).live
    out.print(f"{record.model} version {record.version} is {'live' if live == record.version else f'stored, {live} is live'}")
    if live != record.version:
        out.print(f"next: try it on a tenth of the requests with `markserve models promote {model} {record.version} --canary 0.1`")
    if not record.profiles:
        out.print(f"next: measure it with `markserve profile {record.model}`", highlight=False)


def tensor_spec(text: str) -> TensorSpec:
    """Read NAME:DATATYPE:SHAPE.

    >>> spec = tensor_spec("image:FP32:-1,1,8,8")
    >>> spec.name, spec.datatype, spec.shape
    ('image', 'FP32', (-1, 1, 8, 8))
    """
    try:
        name, datatype, shape = text.rsplit(":", 2)
        return TensorSpec(name=name, datatype=datatype, shape=tuple(int(size) for size in shape.split(",")))
    except ValueError:
        raise Problem(f"{text!r} is not NAME:DATATYPE:SHAPE", next_step="such as image:FP32:-1,1,8,8", code=BAD_USAGE) from None


@app.command("list", epilog="Example: `markserve models list --json`")
@explained()
def list_models(json: Json = False) -> None:
    """List the live version of every model."""
    connect_to_stack()
    from markserve import wiring

    records = wiring.models().list()
    if json:
        emit_json(records)
        return
    emit_table(
        "Models",
        ("model", "version", "inputs", "outputs", "profiled on"),
        [(r.model, r.version, _specs_text(r.inputs), _specs_text(r.outputs), ", ".join(sorted(r.profiles)) or "nothing") for r in records],
    )


@app.command("show", epilog="Example: `markserve models show digits`")
@explained()
def show(
    model: Annotated[str, typer.Argument(help="Name of the model.")],
    version: Annotated[str | None, typer.Option(help="Default: the live one.")] = None,
    json: Json = False,
) -> None:
    """Show a model: tensors, artefact, versions, measured latencies."""
    connect_to_stack()
    from markserve import wiring
    from markserve.rollout import served_by_class, served_by_version

    record = wiring.models().get(model, version)
    if json:
        emit_json(record)
        return
    emit_table(
        f"{record.model} version {record.version}",
        ("what", "value"),
        [
            ("inputs", _specs_text(record.inputs)),
            ("outputs", _specs_text(record.outputs)),
            ("artefact", f"{record.artefact_key} (sha256 {record.artefact_sha256})"),
            ("max batch size", record.max_batch_size),
        ],
    )
    served = served_by_version(model, wiring.windows(), now_s=time.time())
    rollout.print_traffic(wiring.models().traffic(model), wiring.models().versions(model), served)
    classes = served_by_class(model, wiring.windows(), now_s=time.time())
    emit_table(
        "Classes of requests",
        ("class", "requests", "in time", "errors"),
        [(n or "-", *rollout.served_cells(s)) for n, s in classes.items()],
    )
    _print_profiles(record)


def _specs_text(specs: tuple[TensorSpec, ...]) -> str:
    return ", ".join(f"{spec.name} {spec.datatype} {list(spec.shape)}{_padding_text(spec)}" for spec in specs)


def _padding_text(spec: TensorSpec) -> str:
    if spec.pad is not None:
        return f" padded with {spec.pad.value} to {', '.join(map(str, spec.pad.buckets))}"
    if spec.follows is not None:
        return f" as long as {spec.follows.input}"
    source = spec.mask_of or spec.length_of
    return f" {'mask' if spec.mask_of else 'length'} of {source}" if source else ""


def _print_profiles(record: ModelRecord) -> None:
    rows = [(kind, *_point_cells(point)) for kind, points in sorted(record.profiles.items()) for point in points]
    emit_table("Batch latency T(b)", ("on", "batch", "p50", "p98", "p99", "samples"), rows)


def _point_cells(point: ProfilePointRecord) -> tuple[str, ...]:
    latencies = (f"{value * 1000:.1f} ms" for value in (point.p50_s, point.p98_s, point.p99_s))
    return (str(point.batch_size), *latencies, str(point.samples))


@explained()
def profile(
    model: Annotated[str, typer.Argument(help="Name of the model.")],
    instance_type: Annotated[
        str | None,
        typer.Option(help="Store as this type's profile; lambda is the spillover function; default: that and each emulated size."),
    ] = None,
    batch_sizes: Annotated[str, typer.Option(help="Comma-separated.")] = DEFAULT_BATCH_SIZES,
    samples: Annotated[int, typer.Option(min=1, max=10_000, help="Runs per batch size; p98 wants 50 or more.")] = 50,
    out_file: Annotated[Path | None, typer.Option("--out", help="Also write all of the model's profiles to this file.")] = None,
    json: Json = False,
) -> None:
    """Measure T(b) of a model and store it: here, at the CPU share of an emulated size, else as fast as this machine is; and on Lambda."""
    try:
        sizes = sorted({int(size) for size in batch_sizes.split(",")})
    except ValueError:
        raise Problem(
            f"--batch-sizes {batch_sizes!r} is not a list of whole numbers", next_step="such as 1,2,4,8", code=BAD_USAGE
        ) from None
    connect_to_stack()
    from local.cpu_share import cpu_shares
    from local.model_setup import LAMBDA_PROFILE, LAMBDA_SAMPLES, profile_on, profile_spillover
    from markserve import wiring
    from markserve.profiling import sample_request

    record = wiring.models().get(model)
    for measured in [instance_type] if instance_type else [*sorted(cpu_shares(os.environ)), LAMBDA_PROFILE]:
        if measured == LAMBDA_PROFILE:
            record = profile_spillover(record, [sample_request(record)], samples=min(samples, LAMBDA_SAMPLES))
        else:
            record = profile_on(record, [sample_request(record)], instance_type=measured, batch_sizes=sizes, samples=samples)
    if out_file is not None:
        _write_profiles(record, out_file, lambda_memory_mb=wiring.settings().spillover_memory_mb)
    if json:
        emit_json(record.profiles)
    else:
        _print_profiles(record)


def _write_profiles(record: ModelRecord, path: Path, *, lambda_memory_mb: int) -> None:
    """Write a profile file, for `markserve characterize` and `markserve simulate`."""
    source = f"markserve profile, {time.strftime('%Y-%m-%d', time.gmtime())}, {platform.processor() or platform.machine()}"
    content = MeasuredProfile(
        model=record.model,
        source=source,
        max_batch_size=record.max_batch_size,
        profiles=dict(record.profiles),
        lambda_memory_mb=lambda_memory_mb,
    )
    try:
        path.write_bytes(msgspec.json.format(msgspec.json.encode(content), indent=2) + b"\n")
    except OSError as error:
        raise Problem(
            f"{path} was not written: {error.strerror}", next_step="name a file in a folder that exists", code=BAD_USAGE
        ) from error
