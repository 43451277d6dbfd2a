"""`markserve console`: where the console is, and a signing proxy for a stack that wants signed requests."""

from __future__ import annotations

import json as json_module
import os
import re
import urllib.error
import urllib.request
import webbrowser
from typing import Annotated

import typer

from cli.console import Problem, emit_json, err, explained, out
from cli.system import Json
from cli.target import api_url

ANSWER_TIMEOUT_S = 30.0
_REGION = re.compile(r"\.execute-api\.([a-z0-9-]+)\.amazonaws\.com")


@explained()
def console(
    url: Annotated[str | None, typer.Option(help="Base URL of the API; default: MARKSERVE_API_URL, else the local system.")] = None,
    open_page: Annotated[bool, typer.Option("--open", help="Open it in your browser.")] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the signing proxy; 0 takes any.")] = 0,
    json: Json = False,
) -> None:
    """Print where the console is; where requests have to be signed (ApiAuth=iam), serve it here with your credentials until Ctrl-C."""
    base = api_url(url)
    wants = _authorisation(base)
    if wants == "iam":
        _proxied(base, port=port, open_page=open_page, as_json=json)
        return
    page = f"{base}/console"
    if json:
        emit_json({"url": page, "authorisation": wants})
    else:
        out.print(page, highlight=False, soft_wrap=True)
        if wants == "key":
            err.print("it asks for an operator's key: `markserve clients add NAME --operator` makes one; or for a token", highlight=False)
    if open_page:
        webbrowser.open(page)


def _authorisation(base: str) -> str:
    """Ask without credentials, and see what the gateway wants: none, key (or token), or iam."""
    try:
        with urllib.request.urlopen(f"{base}/v2/console/parameters", timeout=ANSWER_TIMEOUT_S):  # noqa: S310  # api_url checked it
            return "none"
    except urllib.error.HTTPError as error:
        with error:
            # API Gateway: 401 for a missing key or token, 403 for a missing signature.
            found = {401: "key", 403: "iam"}.get(error.code)
            if found is not None:
                return found
            said = _said(error.read())
        step = "deploy this version of the stack" if error.code == 404 else "`markserve status` shows the state of the system"
        raise Problem(f"{base} has no console: it answered {error.code} {said}", next_step=step) from error
    except (urllib.error.URLError, OSError) as error:
        raise Problem(f"{base} does not answer: {error}", next_step="check the URL; `markserve up` starts a local system") from error


def _said(body: bytes) -> str:
    try:
        return str(json_module.loads(body).get("error", ""))[:200]
    except (ValueError, AttributeError):
        return ""


def _proxied(base: str, *, port: int, open_page: bool, as_json: bool) -> None:
    import boto3

    from cli.signing_proxy import SigningProxy

    session = boto3.Session()
    credentials = session.get_credentials()
    if credentials is None:
        step = "sign in (`aws sso login`, or AWS_PROFILE) as a principal that may execute-api:Invoke the console's routes"
        raise Problem(f"{base} wants signed requests, and there are no AWS credentials", next_step=step)
    match = _REGION.search(base)
    region = match[1] if match else session.region_name or os.environ.get("MARKSERVE_REGION") or "us-east-1"
    try:
        proxy = SigningProxy(base, credentials=credentials, region=region, port=port)
    except OSError as error:
        raise Problem(f"port {port} is not free: {error}", next_step="leave --port out") from error
    with proxy:
        if as_json:
            emit_json({"url": proxy.page_url, "authorisation": "iam"})
        else:
            out.print(proxy.page_url, highlight=False, soft_wrap=True)
            err.print("signing with your AWS credentials, for whoever has this address; Ctrl-C ends it", highlight=False)
        if open_page:
            webbrowser.open(proxy.page_url)
        try:
            proxy.serve_forever()
        except KeyboardInterrupt:
            err.print("ended", highlight=False)
