"""The published OpenAPI document is valid, is what the front serves, and holds whatever a client sends."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable
from typing import Any

import schemathesis
from hypothesis import given
from hypothesis import strategies as st
from openapi_spec_validator import validate

from markserve import __version__
from markserve.routes import ROUTES, openapi_document
from tests.builders import NOW_S
from tests.functions.test_api import World
from tests.fuzz.profiles import fuzz

DOCUMENT: dict[str, Any] = json.loads(openapi_document())
TOLD = {"400", "404", "405", "413", "415", "422", "424", "429", "503", "504"}


def test_document_is_valid_and_of_this_version() -> None:
    validate(DOCUMENT)

    assert DOCUMENT["info"]["version"] == __version__


def test_document_names_every_route_and_no_other() -> None:
    documented = {(method.upper(), path) for path, methods in DOCUMENT["paths"].items() for method in methods}

    assert documented == {(method, f"/{pattern}") for method, pattern, _ in ROUTES}


def test_document_is_served() -> None:
    reply = World().get("/openapi.json")

    assert (reply.status, reply.headers["content-type"], reply.json) == (200, "application/json", DOCUMENT)


def gateway(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """WSGI as API Gateway would pass it on; every request meets a new system that answers within the objective."""
    body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    headers = {name[5:].replace("_", "-").lower(): value for name, value in environ.items() if name.startswith("HTTP_")}
    if environ.get("CONTENT_TYPE"):
        headers["content-type"] = environ["CONTENT_TYPE"]
    world = World()
    event = {
        "version": "2.0",
        "rawPath": environ.get("REQUEST_URI", environ["PATH_INFO"]).partition("?")[0],
        "headers": headers,
        "requestContext": {"http": {"method": environ["REQUEST_METHOD"]}, "stage": "$default", "timeEpoch": NOW_S * 1000},
        "body": base64.b64encode(body).decode(),
        "isBase64Encoded": True,
    }
    reply = world.ask(event)
    assert world.clock() - NOW_S < 2.0, "it must answer within the objective and its grace"
    start_response(f"{reply.status} told", list(reply.headers.items()))
    return [reply.body]


SCHEMA = schemathesis.openapi.from_dict(DOCUMENT)
SCHEMA.app = gateway
OPERATIONS = [result.ok() for result in SCHEMA.get_all_operations()]


@fuzz(40)
@given(st.data())
def test_no_request_makes_the_front_fail_or_answer_what_the_document_does_not_say(data: st.DataObject) -> None:
    operation = data.draw(st.sampled_from(OPERATIONS))
    modes = list(schemathesis.GenerationMode)
    case = data.draw(operation.as_strategy(generation_mode=data.draw(st.sampled_from(modes))))

    response = case.call()

    status = str(response.status_code)
    assert status in operation.definition.raw["responses"] or status in TOLD, (status, response.text[:300])
    assert status != "500", response.text[:300]
    if status.startswith("2"):
        case.validate_response(response)
    else:
        assert isinstance(response.json(), dict)
