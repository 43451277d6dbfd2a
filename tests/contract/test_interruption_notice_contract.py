from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from markserve.adapters.imds import ImdsInterruptionNotice
from markserve.adapters.memory import MemoryInterruptionNotice
from markserve.errors import DependencyUnavailable

NOTICE_PATH = "/latest/meta-data/spot/instance-action"
NOTICE = b'{"action": "terminate", "time": "2023-11-14T22:13:20Z"}'
NOTICE_AT_S = 1_700_000_000.0


class Metadata(ThreadingHTTPServer):
    """An instance metadata service that insists on IMDSv2."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), MetadataHandler)
        self.documents: dict[str, bytes] = {}
        self.tokens_issued = 0
        self.is_broken = False


class MetadataHandler(BaseHTTPRequestHandler):
    server: Metadata

    def do_PUT(self) -> None:
        assert self.path == "/latest/api/token"
        assert 1 <= int(self.headers["X-aws-ec2-metadata-token-ttl-seconds"]) <= 21_600
        self.server.tokens_issued += 1
        self._reply(503 if self.server.is_broken else 200, f"token-{self.server.tokens_issued}".encode())

    def do_GET(self) -> None:
        if self.headers["X-aws-ec2-metadata-token"] != f"token-{self.server.tokens_issued}":
            self._reply(401, b"")
        elif self.path in self.server.documents:
            self._reply(200, self.server.documents[self.path])
        else:
            self._reply(404, b"")

    def _reply(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Stay silent."""


@pytest.fixture
def metadata() -> Iterator[Metadata]:
    with Metadata() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def notice_from(metadata: Metadata) -> ImdsInterruptionNotice:
    return ImdsInterruptionNotice(f"http://127.0.0.1:{metadata.server_port}")


def test_notice_is_none_until_an_interruption_is_announced(metadata: Metadata) -> None:
    from_cloud, in_memory = notice_from(metadata), MemoryInterruptionNotice()
    assert (from_cloud.pending(), in_memory.pending()) == (None, None)

    metadata.documents[NOTICE_PATH], in_memory.at_s = NOTICE, NOTICE_AT_S

    assert (from_cloud.pending(), in_memory.pending()) == (NOTICE_AT_S, NOTICE_AT_S)


def test_notice_uses_one_token_until_it_expires(metadata: Metadata) -> None:
    notice = notice_from(metadata)
    for _ in range(3):
        notice.pending()
    assert metadata.tokens_issued == 1

    metadata.tokens_issued += 1  # the service forgets the token it gave
    metadata.documents[NOTICE_PATH] = NOTICE

    assert notice.pending() == NOTICE_AT_S


def test_notice_raises_dependency_unavailable_when_the_service_fails(metadata: Metadata) -> None:
    metadata.is_broken = True

    with pytest.raises(DependencyUnavailable, match="answered 503"):
        notice_from(metadata).pending()


def test_notice_raises_dependency_unavailable_when_it_cannot_be_read(metadata: Metadata) -> None:
    metadata.documents[NOTICE_PATH] = b"soon"

    with pytest.raises(DependencyUnavailable, match="unreadable"):
        notice_from(metadata).pending()


def test_notice_raises_dependency_unavailable_when_nobody_answers(metadata: Metadata) -> None:
    notice = notice_from(metadata)
    metadata.server_close()

    with pytest.raises(DependencyUnavailable, match="did not answer"):
        notice.pending()
