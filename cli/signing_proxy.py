"""A proxy on loopback that signs the console's requests with your AWS credentials, as a browser cannot.

It forwards the console's paths and no others, to one API. Whoever has no key of this run is refused: other pages in the same browser
reach loopback too, and must not act with your credentials.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.exceptions import BotoCoreError
from botocore.httpsession import URLLib3Session

HOST = "127.0.0.1"
SERVICE = "execute-api"
MAX_BODY_BYTES = 64 * 1024
KEY_BYTES = 24
FORWARDED = ("accept", "content-type", "if-none-match", "sec-fetch-site")
NOT_RETURNED = {"connection", "content-length", "content-encoding", "date", "server", "transfer-encoding"}


class SigningProxy(ThreadingHTTPServer):
    """Serves `http://127.0.0.1:<port>/console` for one API.

    Parameters
    ----------
    credentials
        botocore credentials; refreshed ones are asked anew for each request.
    port
        0 takes any that is free.
    """

    daemon_threads = True

    def __init__(self, api_url: str, *, credentials: Any, region: str, port: int = 0) -> None:
        self.api_url = api_url.rstrip("/")
        self.key = secrets.token_urlsafe(KEY_BYTES)
        self._credentials = credentials
        self._region = region
        self._session = URLLib3Session(timeout=30)
        super().__init__((HOST, port), _Handler)

    @property
    def page_url(self) -> str:
        """Where the console is, with the key in the fragment: browsers send that to nobody."""
        return f"http://{HOST}:{self.server_port}/console#key={self.key}"

    def forward(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> Any:
        """Sign a request and send it."""
        request = AWSRequest(method=method, url=f"{self.api_url}{path}", headers=dict(headers), data=body)
        SigV4Auth(self._credentials.get_frozen_credentials(), SERVICE, self._region).add_auth(request)
        return self._session.send(request.prepare())


class _Handler(BaseHTTPRequestHandler):
    server: SigningProxy

    def _answer(self) -> None:
        problem = self._refusal()
        if problem is not None:
            self._reply(problem[0], {"content-type": "application/json"}, f'{{"error":"{problem[1]}"}}'.encode())
            return
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        headers = {name: self.headers[name] for name in FORWARDED if name in self.headers}
        try:
            response = self.server.forward(self.command, self.path, headers, body)
        except BotoCoreError:
            self._reply(502, {"content-type": "application/json"}, b'{"error":"the API does not answer"}')
            return
        kept = {name: value for name, value in response.headers.items() if name.lower() not in NOT_RETURNED}
        self._reply(response.status_code, kept, response.content)

    def _refusal(self) -> tuple[int, str] | None:
        """Say why a request is not forwarded; None when it is."""
        # A name of somebody else that resolves to loopback must not make this page's origin theirs.
        if self.headers.get("host") != f"{HOST}:{self.server.server_port}":
            return 421, "this is another host"
        path = urlsplit(self.path).path
        if ".." in path or not path.startswith(("/console", "/v2/console/")):
            return 404, "only the console is served here"
        if path.startswith("/v2/") and not hmac.compare_digest(self.headers.get("x-api-key", "").encode(), self.server.key.encode()):
            return 401, "open the address that markserve console printed"
        if int(self.headers.get("content-length") or 0) > MAX_BODY_BYTES:
            return 413, "the body is too large"
        return None

    def _reply(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_PUT = _answer  # noqa: N815  # the standard library's names

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the standard library's name
        """Say nothing: the terminal shows the address."""
