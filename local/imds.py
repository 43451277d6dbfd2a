"""Instance metadata service (IMDSv2) of one local instance, on loopback.

Answers what the worker asks on EC2: a session token, who it is, and whether it is about to be interrupted.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

TOKEN_PATH = "/latest/api/token"  # noqa: S105  # a path, not a secret
METADATA_ROOT = "/latest/meta-data/"
SPOT_ACTION = "spot/instance-action"
REBALANCE = "events/recommendations/rebalance"
TTL_HEADER = "x-aws-ec2-metadata-token-ttl-seconds"
TOKEN_HEADER = "x-aws-ec2-metadata-token"  # noqa: S105  # a header name, not a secret
MAX_TTL_S = 21_600


def utc_text(at_s: float) -> str:
    """Write an instant as AWS does.

    >>> utc_text(0.0)
    '1970-01-01T00:00:00Z'
    """
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class InstanceMetadata:
    """The metadata server of one instance; `base_url` is what 169.254.169.254 is on EC2."""

    def __init__(self, identity: Mapping[str, str]) -> None:
        self._documents = dict(identity)
        self._tokens: dict[str, float] = {}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler_for(self))
        self._server.daemon_threads = True
        self._thread = Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, name="imds", daemon=True)
        self._thread.start()

    @property
    def base_url(self) -> str:
        """Where the instance reaches its metadata."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def announce_interruption(self, at_s: float) -> None:
        """Publish the two-minute notice (here: as long as the caller chose)."""
        self._documents[SPOT_ACTION] = json.dumps({"action": "terminate", "time": utc_text(at_s)})

    def recommend_rebalance(self, at_s: float) -> None:
        """Publish a rebalance recommendation."""
        self._documents[REBALANCE] = json.dumps({"noticeTime": utc_text(at_s)})

    def stop(self) -> None:
        """Close the port."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def issue_token(self, ttl_s: int) -> str:
        """Start a session of `ttl_s`."""
        token = secrets.token_urlsafe(32)
        self._tokens[token] = time.monotonic() + ttl_s
        return token

    def is_valid(self, token: str | None) -> bool:
        """Whether the session is open; IMDSv1 requests carry no token and are refused."""
        return token is not None and self._tokens.get(token, 0.0) > time.monotonic()

    def document(self, path: str) -> str | None:
        """Metadata at `path`, None when there is none (no interruption is pending)."""
        return self._documents.get(path)


def _handler_for(metadata: InstanceMetadata) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_PUT(self) -> None:
            ttl = self.headers.get(TTL_HEADER, "")
            if self.path != TOKEN_PATH:
                self._reply(404, "")
            elif ttl.isdigit() and 1 <= int(ttl) <= MAX_TTL_S:
                self._reply(200, metadata.issue_token(int(ttl)))
            else:
                self._reply(400, "")

        def do_GET(self) -> None:
            if not metadata.is_valid(self.headers.get(TOKEN_HEADER)):
                self._reply(401, "")
                return
            document = metadata.document(self.path.removeprefix(METADATA_ROOT)) if self.path.startswith(METADATA_ROOT) else None
            self._reply(404 if document is None else 200, document or "")

        def _reply(self, status: int, text: str) -> None:
            body = text.encode()
            self.send_response(status)
            self.send_header("Content-Type", "text/plain")
            self.send_header("Content-Length", str(len(body)))
            # A worker may end between its question and our answer.
            with suppress(ConnectionError):
                self.end_headers()
                self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Stay silent: the worker asks once a second."""

    return Handler
