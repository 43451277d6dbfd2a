"""`markserve console`: where it says the console is, and its signing proxy before a gateway that checks signatures."""

from __future__ import annotations

import json
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from typer.testing import CliRunner

from cli.main import app
from cli.signing_proxy import SigningProxy
from tests.builders import a_model_record
from tests.console.scene import Scene, a_busy_scene, served

CREDENTIALS = Credentials("123456789012", "not-a-secret", "a-session")
REGION = "eu-central-1"


def is_signed(event: Mapping[str, Any], base_url: str) -> bool:
    """Compute the signature again from what arrived, as API Gateway does."""
    headers = {name.lower(): value for name, value in event["headers"].items()}
    if "authorization" not in headers:
        return False
    signed = headers["authorization"].split("SignedHeaders=")[1].split(",")[0].split(";")
    query = "&".join(f"{name}={value}" for name, value in event["queryStringParameters"].items())
    request = AWSRequest(
        method=event["requestContext"]["http"]["method"],
        url=f"{base_url}{event['rawPath']}" + (f"?{query}" if query else ""),
        headers={name: headers[name] for name in signed},
        data=Scene.body_of(event),
    )
    request.context["timestamp"] = headers["x-amz-date"]
    auth = SigV4Auth(CREDENTIALS, "execute-api", REGION)
    expected = auth.signature(auth.string_to_sign(request, auth.canonical_request(request)), request)
    return headers["authorization"].endswith(f"Signature={expected}")


@contextmanager
def iam_stack(scene: Scene) -> Iterator[str]:
    """Serve a scene behind a gateway with ApiAuth=iam."""
    inner = scene.answer
    base: list[str] = []

    def gateway(event: Mapping[str, Any]) -> dict[str, Any]:
        if event["rawPath"].startswith("/v2/") and not is_signed(event, base[0]):
            return {
                "statusCode": 403,
                "headers": {"content-type": "application/json"},
                "body": '{"message":"Forbidden"}',
                "isBase64Encoded": False,
            }
        return inner(event)

    scene.answer = gateway  # type: ignore[method-assign]  # the gateway stands before the function
    with served(scene) as url:
        base.append(url)
        yield url


@contextmanager
def proxied(url: str) -> Iterator[SigningProxy]:
    proxy = SigningProxy(url, credentials=CREDENTIALS, region=REGION)
    thread = threading.Thread(target=proxy.serve_forever, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.shutdown()
        proxy.server_close()
        thread.join()


def ask(proxy: SigningProxy, path: str, *, method: str = "GET", body: bytes | None = None, **headers: str) -> tuple[int, bytes]:
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(f"http://127.0.0.1:{proxy.server_port}{path}", data=body, method=method, headers=given)
    try:
        with urllib.request.urlopen(request, timeout=30) as response:  # noqa: S310  # loopback
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def test_proxy_signs_what_has_its_key_so_that_the_gateway_lets_it_through() -> None:
    scene = a_busy_scene()
    with iam_stack(scene) as url, proxied(url) as proxy:
        status, body = ask(proxy, "/v2/console/overview?model=digits&minutes=5", x_api_key=proxy.key)
        assert (status, json.loads(body)["model"]) == (200, "digits")
        change = b'{"value": "0.5"}'
        path = "/v2/console/parameters/rt-max-s"
        assert ask(proxy, path, method="PUT", body=change, x_api_key=proxy.key, content_type="application/json")[0] == 200
        assert scene.parameters.get().rt_max_s == 0.5
        assert ask(proxy, "/console")[0] == 200


def test_proxy_forwards_nothing_of_strangers_and_no_other_path() -> None:
    scene = a_busy_scene()
    with iam_stack(scene) as url, proxied(url) as proxy:
        assert ask(proxy, "/v2/console/overview")[0] == 401
        assert ask(proxy, "/v2/console/overview", x_api_key="guessed")[0] == 401
        assert ask(proxy, "/v2/models/digits/infer", x_api_key=proxy.key)[0] == 404
        assert ask(proxy, "/console/../v2/models/digits", x_api_key=proxy.key)[0] == 404
        assert ask(proxy, "/v2/console/overview", x_api_key=proxy.key, host="evil.example")[0] == 421
        assert scene.facts == []


def test_command_prints_where_the_console_of_an_open_stack_is() -> None:
    with served(Scene(a_model_record())) as url:
        result = CliRunner().invoke(app, ["console", "--url", url, "--json"])

    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == {"url": f"{url}/console", "authorisation": "none"}


def test_command_says_what_is_missing_where_requests_must_be_signed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    with iam_stack(Scene(a_model_record())) as url:
        result = CliRunner().invoke(app, ["console", "--url", url])

    assert result.exit_code == 1
    assert "wants signed requests, and there are no AWS credentials" in result.output


@pytest.mark.parametrize(("url", "code", "said"), [("ftp://x", 2, "is not a URL"), ("http://127.0.0.1:9", 1, "does not answer")])
def test_command_says_in_one_line_what_is_wrong_with_an_address(url: str, code: int, said: str) -> None:
    result = CliRunner().invoke(app, ["console", "--url", url])

    assert (result.exit_code, said in result.output) == (code, True)
