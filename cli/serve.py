"""`markserve serve`: models behind HTTP, in this process group, without a cloud."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.console import BAD_USAGE, Problem, emit_json, err, explained
from cli.models import tensor_spec
from cli.system import Json

if TYPE_CHECKING:
    from server.manifest import ServedModel

_MEBIBYTE = 1024 * 1024


@explained()
def serve(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL...", help="A file (.pt TorchScript, .pt2 torch.export, .onnx), a folder with one, or a registered name."
        ),
    ],
    rt_max: Annotated[float, typer.Option(min=0.001, max=600.0, help="Latency objective in seconds; batching follows from it.")] = 0.2,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 picks a free one.")] = 8000,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for every one.")] = "127.0.0.1",
    name: Annotated[str, typer.Option(help="Name of the model; default: the file's, without its ending.")] = "",
    inputs: Annotated[
        list[str] | None, typer.Option("--input", help="NAME:DATATYPE:SHAPE, -1 being the batch; for TorchScript without a manifest.")
    ] = None,
    outputs: Annotated[
        list[str] | None, typer.Option("--output", help="NAME:DATATYPE:SHAPE; default: learned by running the model.")
    ] = None,
    max_payload: Annotated[int, typer.Option(min=1, help="Largest request body in MiB; more is 413.")] = 10,
    max_connections: Annotated[int, typer.Option(min=1, help="Connections at once; more get 503.")] = 4096,
    request_timeout: Annotated[float, typer.Option(min=0.1, help="Seconds for a request to arrive, and for a reply to be taken.")] = 10.0,
    idle_timeout: Annotated[float, typer.Option(min=0.1, help="Seconds until a silent connection is closed.")] = 75.0,
    drain_timeout: Annotated[float, typer.Option(min=0.0, help="Seconds for what is held, after SIGTERM.")] = 30.0,
    max_batch_size: Annotated[int, typer.Option(min=0, help="Ceiling on batches; 0 lets the profile decide.")] = 0,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads of a model; 0 lets the profile decide.")] = 0,
    json: Json = False,
) -> None:
    """Serve models over HTTP (Open Inference Protocol v2), batched by the latency objective, without a cloud.

    Beside FILE.pt a FILE.json may say more: {"inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 32]}], "outputs": [...],
    "name": ..., "version": ..., "max_batch_size": ...}. Batch size, waiting and threads are measured, not configured.
    """
    from server.http1 import Limits
    from server.manifest import Manifest
    from server.serve import ServerSettings
    from server.serve import serve as run

    given = Manifest(name=name, inputs=tuple(map(tensor_spec, inputs or ())), outputs=tuple(map(tensor_spec, outputs or ())))
    if len(models) > 1 and (given.inputs or given.outputs or given.name):
        raise Problem("--name, --input and --output describe one model", next_step="write a manifest beside each file", code=BAD_USAGE)
    settings = ServerSettings(
        rt_max_s=rt_max,
        host=host,
        port=port,
        threads=threads,
        max_batch_size=max_batch_size,
        drain_timeout_s=drain_timeout,
        limits=Limits(
            max_payload_bytes=max_payload * _MEBIBYTE,
            max_connections=max_connections,
            request_timeout_s=request_timeout,
            idle_timeout_s=idle_timeout,
        ),
    )
    with tempfile.TemporaryDirectory(prefix="markserve-serve-") as folder:
        served = [_found(model, given, Path(folder)) for model in models]
        names = [one.record.model for one in served]
        if len(set(names)) != len(names):
            raise Problem(f"two models are called {max(names, key=names.count)}", next_step="name them in their manifests", code=BAD_USAGE)

        def announce(url: str, app: object) -> None:
            del app
            if json:
                emit_json({"url": url, "models": names})
                sys.stdout.flush()
            err.print(f"ready at {url}: {', '.join(names)}", highlight=False, soft_wrap=True)

        code = run(served, settings, say=lambda text: err.print(text, highlight=False, markup=False, soft_wrap=True), on_ready=announce)
    raise typer.Exit(code)


def _found(model: str, given: object, folder: Path) -> ServedModel:
    from server.manifest import Manifest, read_model

    assert isinstance(given, Manifest)  # noqa: S101  # imported late, so that --help stays quick
    if Path(model).exists():
        return read_model(Path(model), given=given)
    if "/" in model or Path(model).suffix in (".pt", ".pt2", ".onnx"):
        raise Problem(f"there is no file {model}", next_step="name a file, a folder, or a registered model", code=BAD_USAGE)
    return _registered(model, folder)


def _registered(model: str, folder: Path) -> ServedModel:
    from cli.target import connect_to_stack

    connect_to_stack()
    from markserve import wiring
    from server.manifest import ServedModel

    record = wiring.models().get(model)
    path = folder / Path(record.artefact_key).name
    path.write_bytes(wiring.blobs().get(record.artefact_key))
    return ServedModel(record=record, path=path)
