"""`InterruptionNotice` from the instance metadata service (IMDSv2)."""

from __future__ import annotations

import http.client
from datetime import datetime
from urllib.parse import urlsplit

import msgspec

from markserve.errors import DependencyUnavailable

NOTICE_PATH = "/latest/meta-data/spot/instance-action"
TOKEN_PATH = "/latest/api/token"  # noqa: S105  # a path
TOKEN_TTL_S = 21_600
"""The longest that IMDSv2 grants."""
TIMEOUT_S = 1.0
"""The service is on the host: an answer takes milliseconds or does not come."""


class _SpotInstanceAction(msgspec.Struct):
    action: str
    time: datetime


class ImdsInterruptionNotice:
    """The spot interruption notice of the instance that this runs on."""

    def __init__(self, base_url: str) -> None:
        parts = urlsplit(base_url)
        self._host, self._port = parts.hostname or "", parts.port or 80
        self._token = ""

    def pending(self) -> float | None:
        status, body = self._notice()
        if status == 401:  # the token expired
            self._token = ""
            status, body = self._notice()
        if status == 404:
            return None
        if status != 200:
            raise DependencyUnavailable(f"instance metadata answered {status} to {NOTICE_PATH}")
        try:
            return msgspec.json.decode(body, type=_SpotInstanceAction).time.timestamp()
        except msgspec.MsgspecError as error:
            raise DependencyUnavailable(f"instance metadata sent an unreadable interruption notice: {error}") from error

    def _notice(self) -> tuple[int, bytes]:
        if not self._token:
            status, body = self._request("PUT", TOKEN_PATH, {"X-aws-ec2-metadata-token-ttl-seconds": str(TOKEN_TTL_S)})
            if status != 200:
                raise DependencyUnavailable(f"instance metadata answered {status} to a token request")
            self._token = body.decode()
        return self._request("GET", NOTICE_PATH, {"X-aws-ec2-metadata-token": self._token})

    def _request(self, method: str, path: str, headers: dict[str, str]) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(self._host, self._port, timeout=TIMEOUT_S)
        try:
            connection.request(method, path, headers=headers)
            response = connection.getresponse()
            return response.status, response.read()
        except (OSError, http.client.HTTPException) as error:
            raise DependencyUnavailable(f"instance metadata at {self._host}:{self._port} did not answer: {error}") from error
        finally:
            connection.close()
