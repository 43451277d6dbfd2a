"""`markserve infer|load`: ask a model, or put it under load."""

from __future__ import annotations

import asyncio
import json as json_codec
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from cli.console import BAD_USAGE, FAILED, Problem, emit_json, emit_table, err, explained, out
from cli.model_input import existing, is_picture, load_array, read_picture, read_value
from cli.system import Json
from cli.target import api_url, running_system
from local.supervisor import work_dir

if TYPE_CHECKING:
    from local.arrivals import Arrival
    from local.load import LoadTarget, RequestRecord, Sample

TIMEOUT_S = 30.0
Endpoint = Annotated[str | None, typer.Option(help="Base URL of the API; default: MARKSERVE_API_URL, else the local system.")]


@explained()
def infer(
    model: Annotated[str, typer.Argument(help="Name of the model.")],
    source: Annotated[
        str, typer.Argument(help="A .npy, JSON, PNG or JPEG file, or - for JSON on stdin: a V2 request, or the input alone.")
    ] = "-",
    version: Annotated[str | None, typer.Option(help="Version of the model; default: the live one.")] = None,
    white: Annotated[float | None, typer.Option(help="Of a picture: a white pixel's value; default: 1 for floats, else 255.")] = None,
    endpoint: Endpoint = None,
    json: Json = False,
) -> None:
    """Ask a model once and print its answer."""
    base = api_url(endpoint)
    path = f"/v2/models/{model}" + (f"/versions/{version}" if version else "")
    if is_picture(source):
        picture = existing(source)
        metadata, _ = _call(base + path)
        given = _as_request(read_picture(picture, _only_input(metadata), white=white), metadata)
    else:
        given = read_value(source)
        if not (isinstance(given, dict) and "inputs" in given):
            given = _as_request(given, _call(base + path)[0])
    answer, headers = _call(f"{base}{path}/infer", given)
    how = {name.removeprefix("x-markserve-").replace("-", "_"): text for name, text in headers.items() if name.startswith("x-markserve-")}
    if json:
        # The protocol's own place for what a server adds.
        emit_json({**answer, "parameters": {**answer.get("parameters", {}), **how}} if how else answer)
        return
    for output in answer["outputs"]:
        rows = output["shape"][0] if output["shape"] else 1
        width = len(output["data"]) // max(1, rows)
        data = output["data"]
        emit_table(
            f"{output['name']} {output['datatype']} {output['shape']}",
            ("row", "values"),
            [(row, " ".join(_value_text(value) for value in data[row * width : (row + 1) * width])) for row in range(rows)],
        )

    if "request_id" in how:
        why = f"answered by {how.get('tier', 'nobody')}; why: `markserve explain --request {how['request_id']}`"
        err.print(why, markup=False, highlight=False, soft_wrap=True)


def _figure_text(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {share:.1%}" for name, share in value.items()) or "-"
    return "-" if value is None else _value_text(value)


def _value_text(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _as_request(data: Any, metadata: dict[str, Any]) -> dict[str, Any]:
    """Wrap the bare value of a model's only input as a V2 request."""
    spec = _only_input(metadata)
    shape, inner = [], data
    while isinstance(inner, list):
        shape.append(len(inner))
        inner = inner[0] if inner else None
    if len(shape) == len(spec["shape"]) - 1:  # one row without the batch dimension
        shape, data = [1, *shape], [data]
    return {"inputs": [{"name": spec["name"], "datatype": spec["datatype"], "shape": shape, "data": data}]}


def _only_input(metadata: dict[str, Any]) -> dict[str, Any]:
    if len(metadata["inputs"]) != 1:
        names = ", ".join(tensor["name"] for tensor in metadata["inputs"])
        raise Problem(f"the model has several inputs ({names})", next_step='give a V2 request: {"inputs": [...]}', code=BAD_USAGE)
    (spec,) = metadata["inputs"]
    return dict(spec)


def _call(url: str, body: dict[str, Any] | None = None) -> tuple[dict[str, Any], dict[str, str]]:
    """Ask the API, for its answer and the headers; raises `Problem` with the API's own reason."""
    data = None if body is None else json_codec.dumps(body).encode()
    request = urllib.request.Request(url, data=data, headers={"Content-Type": "application/json"})  # noqa: S310  # api_url checked the scheme
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:  # noqa: S310
            answer: dict[str, Any] = json_codec.loads(response.read())
            return answer, {name.lower(): text for name, text in response.headers.items()}
    except urllib.error.HTTPError as error:
        with error:
            text = error.read().decode("utf-8", errors="replace")
        code = BAD_USAGE if 400 <= error.code < 500 and error.code != 429 else FAILED
        raise Problem(
            f"{error.code}: {_error_text(text)}", next_step=f"see what the model takes: {url.removesuffix('/infer')}", code=code
        ) from error
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        raise Problem(f"{url} does not answer: {error}", next_step="`markserve status` shows whether the system runs") from error


def _error_text(text: str) -> str:
    try:
        parsed = json_codec.loads(text)
    except json_codec.JSONDecodeError:
        return text[:200]
    return str(parsed.get("error") or parsed.get("message") or text[:200])


@explained()
def load(
    model: Annotated[str, typer.Argument(help="Name of the model.")],
    rate: Annotated[float, typer.Option(min=0.01, max=1000.0, help="Mean requests per second, Poisson.")] = 5.0,
    seconds: Annotated[float, typer.Option(min=1.0, max=86400.0, help="Length of the load.")] = 30.0,
    trace: Annotated[Path | None, typer.Option(help="Replay a CSV `t_s,count` (plain or .gz) instead of a constant rate.")] = None,
    scale: Annotated[float, typer.Option(min=0.0001, max=1000.0, help="Factor on the trace's counts.")] = 1.0,
    inputs: Annotated[Path | None, typer.Option(help="A .npy file of input rows, drawn at random; default: held-out digits.")] = None,
    rt_max: Annotated[float, typer.Option(min=0.01, max=29.0, help="Latency to count attainment against.")] = 1.5,
    seed: Annotated[int, typer.Option(help="Seed of the arrivals.")] = 1,
    endpoint: Endpoint = None,
    allow_remote: Annotated[bool, typer.Option(help="Allow a target outside this machine. It may cost you money.")] = False,
    json: Json = False,
) -> None:
    """Send open-loop load and report latency and attainment; exit 1 if a request was not answered."""
    from local.load import LoadProgress, LoadTarget, replay, require_loopback

    base = api_url(endpoint)
    if not allow_remote:
        try:
            require_loopback(base)
        except ValueError as error:
            raise Problem(str(error), next_step="add --allow-remote", code=BAD_USAGE) from error
    metadata, _ = _call(f"{base}/v2/models/{model}")
    arrivals = _arrivals(rate=rate, seconds=seconds, trace=trace, scale=scale, seed=seed)
    if not arrivals:
        raise Problem("the load has no requests", next_step="raise --rate, --seconds or --scale", code=BAD_USAGE)
    target = LoadTarget(
        endpoint=base,
        model=model,
        input_name=metadata["inputs"][0]["name"],
        output_name=metadata["outputs"][0]["name"],
        samples=_samples(model, inputs),
    )
    records = asyncio.run(replay(arrivals, target, seed=seed, progress=LoadProgress()))
    _print_load(records, target=target, rt_max_s=rt_max, as_json=json)


def _arrivals(*, rate: float, seconds: float, trace: Path | None, scale: float, seed: int) -> list[Arrival]:
    from local.arrivals import Phase, poisson_arrivals, read_trace, trace_arrivals

    if trace is None:
        return poisson_arrivals([Phase(name="load", duration_s=seconds, rate_rps=rate)], seed=seed)
    try:
        rows, step_s = read_trace(trace)
    except (OSError, ValueError) as error:
        raise Problem(str(error), next_step="give a CSV with the columns t_s and count", code=BAD_USAGE) from error
    return trace_arrivals([row for row in rows if row[0] < seconds], step_s=step_s, seed=seed, scale=scale)


def _samples(model: str, inputs: Path | None) -> list[Sample]:
    import numpy as np

    from local.load import Sample

    if inputs is not None:
        return [Sample(tensor=np.ascontiguousarray(row[None])) for row in load_array(inputs)]
    if model != running_system().model:
        raise Problem(f"there are no sample inputs for {model}", next_step="give rows with --inputs rows.npy", code=BAD_USAGE)
    with np.load(work_dir() / "held_out.npz", allow_pickle=False) as held_out:
        pairs = zip(held_out["images"], held_out["labels"], strict=True)
        return [Sample(tensor=np.ascontiguousarray(image[None]), label=int(label)) for image, label in pairs]


def _print_load(records: list[RequestRecord], *, target: LoadTarget, rt_max_s: float, as_json: bool) -> None:
    from local.figures import load_figures

    figures = load_figures(records, rt_max_s=rt_max_s)
    if as_json:
        emit_json(figures)
    else:
        rows = [(name, _figure_text(value)) for name, value in msgspec.structs.asdict(figures).items()]
        emit_table(f"Load on {target.model}", ("figure", "value"), rows)
    unanswered = [record for record in records if not record.is_answered]
    if unanswered:
        out.print(f"first failure: {unanswered[0].status} {unanswered[0].error}", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(FAILED)
