"""The OpenAPI document that the server publishes of itself."""

from __future__ import annotations

from typing import Any

from markserve import __version__
from markserve.protocol.tensors import ELEMENT_BYTES

_ERROR = {"description": "What was wrong.", "content": {"application/json": {"schema": {"type": "object"}}}}


def openapi(models: list[str], max_payload_bytes: int) -> dict[str, Any]:
    """Describe every path; models are enumerated, as they do not change while the server runs."""
    name = {"name": "model", "in": "path", "required": True, "schema": {"type": "string", "enum": models}}
    infer = {
        "operationId": "infer",
        "summary": "Compute a model's outputs.",
        "description": f"JSON, or JSON followed by raw tensor bytes (binary tensor extension). At most {max_payload_bytes} bytes.",
        "parameters": [name, _TIMEOUT],
        "requestBody": {"required": True, "content": {"application/json": {"schema": _REQUEST}}},
        "responses": _responses("Outputs.", {"$ref": "#/components/schemas/Response"}, 400, 404, 408, 413, 500, 503),
    }
    invoke = {
        "operationId": "invoke",
        "summary": "SageMaker's InvokeEndpoint.",
        "parameters": [name, _TIMEOUT],
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": _INSTANCES}, "text/csv": {"schema": {"type": "string"}}},
        },
        "responses": _responses("Predictions.", {"type": "object"}, 400, 413, 424, 503),
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "markserve", "version": __version__, "description": "Open Inference Protocol v2 over REST."},
        "paths": {
            "/v2": _get("serverMetadata", "What this server is."),
            "/v2/health/live": _get("live", "Whether the process answers."),
            "/v2/health/ready": _get("ready", "Whether it should get traffic.", 503),
            "/v2/models": _get("models", "What is served."),
            "/v2/models/{model}": {"parameters": [name], **_get("modelMetadata", "A model's tensors.", 404)},
            "/v2/models/{model}/ready": {"parameters": [name], **_get("modelReady", "Whether a model serves.", 404, 503)},
            "/v2/models/{model}/infer": {"post": infer},
            "/endpoints/{model}/invocations": {"post": invoke},
            "/openapi.json": _get("openapi", "This document."),
            "/metrics": {
                "get": {
                    "operationId": "metrics",
                    "responses": {"200": {"description": "Prometheus text.", "content": {"text/plain": {"schema": {"type": "string"}}}}},
                }
            },
        },
        "components": {"schemas": {"Response": _RESPONSE}},
    }


def _get(operation: str, summary: str, *errors: int) -> dict[str, Any]:
    return {"get": {"operationId": operation, "summary": summary, "responses": _responses(summary, {"type": "object"}, *errors)}}


def _responses(description: str, schema: dict[str, Any], *errors: int) -> dict[str, Any]:
    ok = {"description": description, "content": {"application/json": {"schema": schema}}}
    return {"200": ok, **{str(status): _ERROR for status in errors}}


_TIMEOUT = {
    "name": "x-markserve-timeout-ms",
    "in": "header",
    "required": False,
    "description": "This request's own latency objective, from its first byte; default: the server's.",
    "schema": {"type": "integer", "minimum": 1, "maximum": 600_000},
}
_TENSOR: dict[str, Any] = {
    "type": "object",
    "required": ["name", "shape", "datatype"],
    "properties": {
        "name": {"type": "string"},
        "shape": {"type": "array", "items": {"type": "integer", "minimum": 1}},
        "datatype": {"enum": [*ELEMENT_BYTES, "BYTES"]},
        "parameters": {"type": "object"},
        "data": {"type": "array"},
    },
}
_REQUEST = {
    "type": "object",
    "required": ["inputs"],
    "properties": {
        "id": {"type": "string"},
        "parameters": {"type": "object"},
        "inputs": {"type": "array", "items": _TENSOR},
        "outputs": {
            "type": "array",
            "items": {"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}, "parameters": {"type": "object"}}},
        },
    },
}
_RESPONSE = {
    "type": "object",
    "required": ["model_name", "outputs"],
    "properties": {
        "model_name": {"type": "string"},
        "model_version": {"type": "string"},
        "id": {"type": "string"},
        "outputs": {"type": "array", "items": _TENSOR},
    },
}
_INSTANCES = {"type": "object", "properties": {"instances": {"type": "array"}}, "required": ["instances"]}
