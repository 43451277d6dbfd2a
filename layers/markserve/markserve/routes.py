"""The front's HTTP surface: which path means what, in which protocol errors are written, what the headers say."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from importlib.resources import files
from typing import Any

import msgspec

from markserve.attempt import RETRY_AFTER_S
from markserve.core.slo_class import SloClass
from markserve.core.types import Tier
from markserve.errors import InvalidRequest, MarkserveError, Overloaded, PayloadTooLarge, Transient
from markserve.front import Call, Chosen, Front, Pending, Served
from markserve.messages import Answer, Tensor
from markserve.protocol import oip, sagemaker
from markserve.protocol.http import HttpRequest, HttpResponse
from markserve.settings import trace_header

MAX_RESPONSE_BYTES = 4_300_000
"""Lambda returns at most 6 MB, and base64 makes a third more of a binary body."""
NAME_MAX_CHARACTERS = 200
"""No name of ours is longer; a longer one must not become a database key."""

SLO_HEADER = "x-markserve-slo"
VERSION_HEADER = "x-markserve-model-version"
VARIANT_HEADER = "x-amzn-sagemaker-target-variant"

Encode = Callable[[Sequence[Tensor]], tuple[bytes, dict[str, str]]]
View = Callable[..., HttpResponse]


def respond(request: HttpRequest, front: Front) -> HttpResponse:
    """Answer one request; everything this system raises on purpose becomes an error in the caller's protocol."""
    try:
        if request.over_quota:
            raise Overloaded(request.over_quota, retry_after_s=max(1.0, request.retry_after_s))
        return _dispatch(request, front)
    except (InvalidRequest, Overloaded) as error:
        retry_after_s = error.retry_after_s if isinstance(error, Overloaded) else None
        return _failed(request, error.status, str(error), retry_after_s=retry_after_s)
    except Transient as error:
        response = _failed(request, 503, "a service this depends on does not answer; try again", retry_after_s=RETRY_AFTER_S)
        return replace(response, facts={"reason": str(error)})
    except MarkserveError as error:
        return replace(internal_error(request), facts={"reason": f"{type(error).__name__}: {error}"})


def internal_error(request: HttpRequest) -> HttpResponse:
    """Answer for a failure that is nobody's business outside."""
    return _failed(request, 500, "internal error")


def _dispatch(request: HttpRequest, front: Front) -> HttpResponse:
    allowed: list[str] = []
    for method, pattern, view in ROUTES:
        params = _match(pattern, request.segments)
        if params is None:
            continue
        if method == request.method:
            return view(front, request, **params)
        allowed.append(method)
    if allowed:
        response = _failed(request, 405, f"{request.method[:16]} is not allowed here; use {', '.join(allowed)}")
        return replace(response, headers={**response.headers, "allow": ", ".join(allowed)})
    return _failed(request, 404, f"no such path: {request.path[:200]}")


def _match(pattern: str, segments: Sequence[str]) -> dict[str, str] | None:
    parts = pattern.split("/")
    if len(parts) != len(segments):
        return None
    params: dict[str, str] = {}
    for part, segment in zip(parts, segments, strict=True):
        if part.startswith("{") and len(segment) <= NAME_MAX_CHARACTERS:
            params[part[1:-1]] = segment
        elif part != segment:
            return None
    return params


# --- views ------------------------------------------------------------------------------------------------


def _server_metadata(front: Front, request: HttpRequest) -> HttpResponse:  # noqa: ARG001  # every view takes both
    return _json(200, oip.server_metadata())


@lru_cache(maxsize=1)
def openapi_document() -> bytes:
    """Return the OpenAPI document of this API."""
    return (files("markserve") / "data/openapi.json").read_bytes()


def _openapi(front: Front, request: HttpRequest) -> HttpResponse:  # noqa: ARG001
    return HttpResponse(status=200, body=openapi_document(), headers={"content-type": "application/json"})


def _live(front: Front, request: HttpRequest) -> HttpResponse:  # noqa: ARG001
    return _json(200, {"live": True})


def _ready(front: Front, request: HttpRequest) -> HttpResponse:
    if front.has_models():
        return _json(200, {"ready": True})
    return _failed(request, 503, "no model is registered")


def _model_metadata(front: Front, request: HttpRequest, model: str, version: str | None = None) -> HttpResponse:  # noqa: ARG001
    return _json(200, oip.model_metadata(front.view.record(model, version), front.versions(model)))


def _model_ready(front: Front, request: HttpRequest, model: str, version: str | None = None) -> HttpResponse:
    if front.is_model_ready(front.view.record(model, version)):
        return _json(200, {"name": model, "ready": True})
    return _failed(request, 503, f"model {model!r}: no worker serves and spill-over is off", retry_after_s=RETRY_AFTER_S)


def _infer(front: Front, request: HttpRequest, model: str, version: str | None = None) -> HttpResponse:
    chosen = _chosen(front, request, model, version)
    body = request.body()
    call = oip.decode_infer(body, request.headers, chosen.record)
    result = front.infer(_call(request, chosen, body, call.inputs, call.output_names))
    if isinstance(result, Pending):
        return _accepted(result.request_id, model)
    encode = partial(oip.encode_infer, call, model=model, version=result.model_version)
    return _served(request, result, model, lambda outputs: encode(outputs=outputs))


def _invoke(front: Front, request: HttpRequest, model: str) -> HttpResponse:
    if _slo_class(request) is SloClass.BATCH:
        raise InvalidRequest(f"batch is answered later, which this path cannot; use /v2/models/{model}/infer", field=SLO_HEADER)
    chosen = _chosen(front, request, model, request.headers.get(VARIANT_HEADER))
    body = request.body()
    call = sagemaker.decode_invocation(body, request.headers, chosen.record)
    result = front.infer(replace(_call(request, chosen, body, call.inputs, call.output_names), asynchronous=False))
    if isinstance(result, Pending):
        raise InvalidRequest("was used with an asynchronous request", field="Idempotency-Key")
    encode = partial(sagemaker.encode_invocation, call, model=model, version=result.model_version)
    return _served(request, result, model, lambda outputs: encode(outputs=outputs))


def _result(front: Front, request: HttpRequest, request_id: str) -> HttpResponse:
    stored, answer = front.result(request_id, client=request.client)
    if answer is None:
        return _accepted(request_id, stored.model)
    if answer.error is not None:
        return _failed(request, answer.error.status, answer.error.message, headers=_how(answer))
    # How the outputs were to be written is not kept: the one who fetches says so.
    binary = "application/octet-stream" in request.headers.get("accept", "")
    call = oip.InferCall(inputs=(), id=request_id, binary_default=binary)
    body, headers = oip.encode_infer(call, model=stored.model, version=stored.model_version, outputs=answer.outputs)
    return HttpResponse(status=200, body=body, headers={**headers, **_how(answer)})


ROUTES: tuple[tuple[str, str, View], ...] = (
    ("GET", "openapi.json", _openapi),
    ("GET", "v2", _server_metadata),
    ("GET", "v2/health/live", _live),
    ("GET", "v2/health/ready", _ready),
    ("GET", "v2/models/{model}", _model_metadata),
    ("GET", "v2/models/{model}/ready", _model_ready),
    ("POST", "v2/models/{model}/infer", _infer),
    ("GET", "v2/models/{model}/versions/{version}", _model_metadata),
    ("GET", "v2/models/{model}/versions/{version}/ready", _model_ready),
    ("POST", "v2/models/{model}/versions/{version}/infer", _infer),
    ("GET", "v2/requests/{request_id}", _result),
    ("POST", "endpoints/{model}/invocations", _invoke),
)


# --- parts of requests and responses ------------------------------------------------------------------------


def _chosen(front: Front, request: HttpRequest, model: str, version: str | None) -> Chosen:
    _slo_class(request)  # refused before anything is read or decoded
    return front.choose(model, version, client=request.client, idempotency_key=request.headers.get("idempotency-key"))


def _slo_class(request: HttpRequest) -> SloClass:
    text = request.headers.get(SLO_HEADER, SloClass.INTERACTIVE).strip().lower()
    try:
        return SloClass(text)
    except ValueError:
        raise InvalidRequest(f"{text[:40]!r} is not one of {', '.join(SloClass)}", field=SLO_HEADER) from None


def _call(request: HttpRequest, chosen: Chosen, body: bytes, inputs: tuple[Tensor, ...], output_names: tuple[str, ...]) -> Call:
    headers = request.headers
    preferences = {part.partition(";")[0].strip().lower() for part in headers.get("prefer", "").split(",")}
    # All that decides the answer and its form, so that a key cannot be used for two things.
    # The version counts where it was asked for: a retry meets the first answer, also when traffic moved in between.
    decisive = [request.path, headers.get("content-type", ""), headers.get(oip.HEADER_LENGTH, ""), headers.get(VARIANT_HEADER, "")]
    return Call(
        chosen=chosen,
        inputs=inputs,
        output_names=output_names,
        arrival_at_s=request.arrival_at_s,
        client=request.client,
        body_sha256=hashlib.sha256(msgspec.json.encode(decisive) + body).hexdigest(),
        idempotency_key=headers.get("idempotency-key"),
        asynchronous="respond-async" in preferences,
        slo_class=_slo_class(request),
        trace_id=trace_header() or headers.get("x-amzn-trace-id"),
    )


def _served(request: HttpRequest, served: Served, model: str, encode: Encode) -> HttpResponse:
    answer, slo_class = served.answer, _slo_class(request)
    reason = served.reason.encode("ascii", "replace").decode().replace("\n", " ")
    chosen = {VERSION_HEADER: served.model_version, SLO_HEADER: str(slo_class), "x-markserve-reason": reason}
    how = {**_how(answer), **chosen}
    if served.timings_s:
        how["server-timing"] = ", ".join(f"{name};dur={seconds * 1000:.1f}" for name, seconds in served.timings_s)
    facts = {
        "model": model,
        "model_version": served.model_version,
        "slo_class": str(slo_class),
        "request_id": answer.request_id,
        "tier": str(answer.tier),
        "reason": served.reason,
        "batch_size": answer.batch_size,
        "timings_ms": {name: round(seconds * 1000, 1) for name, seconds in served.timings_s},
    }
    if answer.error is not None:
        return replace(_failed(request, answer.error.status, answer.error.message, headers=how), facts=facts)
    body, headers = encode(answer.outputs)
    if len(body) > MAX_RESPONSE_BYTES:
        raise PayloadTooLarge(
            f"make an answer of {len(body)} bytes, the limit is {MAX_RESPONSE_BYTES}; ask for fewer, for binary data, or for fewer rows",
            field="outputs",
        )
    return HttpResponse(status=200, body=body, headers={**headers, **how}, facts=facts)


def _how(answer: Answer) -> dict[str, str]:
    headers = {"x-markserve-request-id": answer.request_id, "x-markserve-tier": str(answer.tier)}
    if answer.model_version:
        headers[VERSION_HEADER] = answer.model_version
    if answer.tier is Tier.WORKER and answer.batch_size:
        headers["x-markserve-batch-size"] = str(answer.batch_size)
    return headers


def _accepted(request_id: str, model: str) -> HttpResponse:
    headers = {"location": f"/v2/requests/{request_id}", "retry-after": f"{RETRY_AFTER_S:.0f}", "x-markserve-request-id": request_id}
    response = _json(202, {"id": request_id, "model_name": model, "status": "pending"})
    return replace(response, headers={**response.headers, **headers}, facts={"model": model, "request_id": request_id})


def _failed(
    request: HttpRequest, status: int, message: str, *, retry_after_s: float | None = None, headers: Mapping[str, str] | None = None
) -> HttpResponse:
    if retry_after_s is None and status in (429, 503):
        retry_after_s = RETRY_AFTER_S
    extra = {**(headers or {}), **({} if retry_after_s is None else {"retry-after": f"{retry_after_s:.0f}"})}
    if request.segments[:1] == ("endpoints",):
        status, body, own = sagemaker.encode_error(status, message)
        return HttpResponse(status=status, body=body, headers={**own, **extra})
    return HttpResponse(status=status, body=oip.encode_error(message), headers={"content-type": "application/json", **extra})


def _json(status: int, content: Mapping[str, Any]) -> HttpResponse:
    return HttpResponse(status=status, body=msgspec.json.encode(content), headers={"content-type": "application/json"})
