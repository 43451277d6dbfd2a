"""The API's handler behind a real HTTP server."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.functions.test_api import World, an_event


@contextmanager
def served(world: World, *, drops_first: bool = False) -> Iterator[str]:
    """Serve on a free port of the loopback interface, dropping the first connection after its request on demand."""
    lock, dropped = threading.Lock(), threading.Event()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer()

        def do_POST(self) -> None:
            self._answer()

        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            if drops_first and not dropped.is_set():
                dropped.set()
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True
                return
            headers = {name.lower(): value for name, value in self.headers.items()}
            with lock:
                world.clock.sleep(0.1)  # or nobody who polls would see time pass
                reply = world.ask(an_event(self.path, method=self.command, body=body, headers=headers, client="me"))
            self.send_response(reply.status)
            for name, value in {**reply.headers, "content-length": str(len(reply.body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(reply.body)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # its name in the standard library
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
