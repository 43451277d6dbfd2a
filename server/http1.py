"""HTTP/1.1 connections: bytes in, complete requests out, replies in order, nothing unbounded.

The parser is llhttp (httptools). What is decided here is only how much a client may hold: header and body bytes,
requests in flight, and time. Paths and bodies mean nothing here.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Protocol

import httptools

MAX_HEADER_BYTES = 32 * 1024
PIPELINE_LIMIT = 16
"""Requests of one connection in flight; beyond it the socket is not read."""

_STATUS_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus}
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What a client may hold."""

    max_payload_bytes: int = 10 * 1024 * 1024
    max_connections: int = 4096
    request_timeout_s: float = 10.0
    """From a request's first byte to its last, and for a client to take its reply."""
    idle_timeout_s: float = 75.0


class Exchange:
    """One request and the place of its reply. `reply` may be called at any later time, once."""

    __slots__ = ("_connection", "_response", "arrival_at_s", "body", "headers", "keep_alive", "method", "url")

    def __init__(self, connection: Connection, arrival_at_s: float) -> None:
        self._connection = connection
        self._response: list[bytes] | None = None
        self.arrival_at_s = arrival_at_s
        self.method = ""
        self.url = b""
        self.headers: dict[str, str] = {}
        self.body = b""
        self.keep_alive = True

    def reply(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        """Send the reply, after those of the requests before it."""
        lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
        tail = "\r\n" if self.keep_alive else "connection: close\r\n\r\n"
        head = f"{lines}content-length: {len(body)}\r\n{tail}".encode("latin-1", "replace")
        parts = [_STATUS_LINES[status] + head]
        if self.method != "HEAD":
            parts.append(body)
        self._response = parts
        self._connection.flush()

    @property
    def response(self) -> list[bytes] | None:
        """The reply, once there is one."""
        return self._response

    @property
    def is_abandoned(self) -> bool:
        """Whether the client has gone, so that computing would be for nobody."""
        return self._connection.is_closed


class Application(Protocol):
    """What connections serve."""

    limits: Limits

    def handle(self, exchange: Exchange) -> None:
        """Answer a complete request, now or later."""

    def refuse(self, exchange: Exchange, status: int, message: str) -> None:
        """Answer a request that cannot be read; the connection ends with it."""

    def joined(self, connection: Connection) -> bool:
        """Take in a connection; False when there are too many."""

    def left(self, connection: Connection) -> None:
        """Forget a connection."""

    @property
    def is_draining(self) -> bool:
        """Whether connections are to end with their next reply."""


class Connection(asyncio.Protocol):
    """One client connection."""

    __slots__ = (
        "_app",
        "_body",
        "_body_bytes",
        "_clock",
        "_exchange",
        "_header_bytes",
        "_is_lingering",
        "_is_paused_for_client",
        "_is_reading",
        "_parser",
        "_pending",
        "_transport",
        "is_closed",
        "waits_since_s",
    )

    def __init__(self, app: Application, clock: Callable[[], float]) -> None:
        self._app = app
        self._clock = clock
        self._parser = httptools.HttpRequestParser(self)
        self._transport: Any = None
        self._pending: deque[Exchange] = deque()
        self._exchange: Exchange | None = None  # being read
        self._body: list[bytes] = []
        self._body_bytes = 0
        self._header_bytes = 0
        self._is_reading = True
        self._is_paused_for_client = False
        self._is_lingering = False
        self.is_closed = False
        self.waits_since_s = clock()
        """Since when the client owes something: a whole request, the next one, or the reading of a reply."""

    # --- asyncio ----------------------------------------------------------------------------------------------

    def connection_made(self, transport: Any) -> None:
        """Begin, or end at once when there are too many."""
        self._transport = transport
        if not self._app.joined(self):
            exchange = Exchange(self, self._clock())
            self._pending.append(exchange)
            exchange.keep_alive = False
            self._app.refuse(exchange, 503, "too many connections; try again")

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # asyncio's signature
        """End; what is being computed for it goes nowhere."""
        self.is_closed = True
        self._pending.clear()
        self._app.left(self)

    def pause_writing(self) -> None:
        """Read no more from a client that does not take its replies."""
        self._is_paused_for_client = True
        self.waits_since_s = self._clock()
        self._pause_or_resume()

    def resume_writing(self) -> None:
        """Go on once the client has caught up."""
        self._is_paused_for_client = False
        self._pause_or_resume()

    def data_received(self, data: bytes) -> None:
        """Parse what came."""
        if self._is_lingering or self.is_closed or self._transport.is_closing():
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._end_with(self._current(), 400, "protocol upgrades are not supported")
        except httptools.HttpParserError as error:
            if not self._transport.is_closing() and not self._is_ending():
                self._end_with(self._current(), 400, f"not HTTP/1.1: {error}")

    def eof_received(self) -> bool:
        """Keep a half-closed connection open while replies are due; a request cut off by it will get none."""
        if self._exchange is not None:
            self._pending.remove(self._exchange)
            self._exchange = None
        if not self._pending:
            return False
        self._pending[-1].keep_alive = False
        return True

    # --- httptools --------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """Start a request."""
        self._begin()

    def on_url(self, url: bytes) -> None:
        """Collect the request target, which may come in pieces."""
        exchange = self._current()
        exchange.url += url
        self._count_header_bytes(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        """Collect a header."""
        self._count_header_bytes(len(name) + len(value))
        key = name.decode("latin-1").lower()
        headers = self._current().headers
        # Twice the same header means a list (RFC 9110); of the ones that count here a second one is a mistake that decoding refuses.
        headers[key] = f"{headers[key]}, {value.decode('latin-1')}" if key in headers else value.decode("latin-1")

    def on_headers_complete(self) -> None:
        """Refuse what is announced too large, before it comes."""
        exchange = self._current()
        exchange.method = self._parser.get_method().decode("latin-1")
        exchange.keep_alive = self._parser.should_keep_alive() and not self._app.is_draining
        length = exchange.headers.get("content-length", "")
        if length.isdecimal() and int(length) > self._app.limits.max_payload_bytes:
            self._refuse_payload()
        elif exchange.headers.get("expect", "").lower() == "100-continue" and not self._is_ending():
            self._transport.write(_CONTINUE)

    def on_body(self, body: bytes) -> None:
        """Collect a piece of the body."""
        self._body_bytes += len(body)
        if self._body_bytes > self._app.limits.max_payload_bytes:
            self._body.clear()
            self._refuse_payload()
        else:
            self._body.append(body)

    def on_message_complete(self) -> None:
        """Hand the request over."""
        exchange, self._exchange = self._exchange, None
        if exchange is None or self._is_ending():
            return
        parts = self._body
        exchange.body = parts[0] if len(parts) == 1 else b"".join(parts)
        self._body = []
        self._app.handle(exchange)
        if len(self._pending) >= PIPELINE_LIMIT:
            self._pause_or_resume()

    # --- replies ----------------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Write every reply whose predecessors are written."""
        pending = self._pending
        while pending and (response := pending[0].response) is not None:
            exchange = pending.popleft()
            if self.is_closed:
                continue
            self._transport.write(b"".join(response))
            if not exchange.keep_alive:
                pending.clear()
                self._close()
                return
        self.waits_since_s = self._clock()
        if not self._is_reading:
            self._pause_or_resume()

    def expire(self, now_s: float) -> None:
        """End the connection if the client has kept it waiting for too long."""
        limits = self._app.limits
        if self.is_closed or self._is_lingering or self._transport.is_closing():
            if now_s - self.waits_since_s > limits.request_timeout_s:
                self._transport.abort()
        elif self._is_paused_for_client and now_s - self.waits_since_s > limits.request_timeout_s:
            self._transport.abort()
        elif self._exchange is not None and now_s - self._exchange.arrival_at_s > limits.request_timeout_s:
            self._end_with(self._exchange, 408, f"the request took longer than {limits.request_timeout_s:g} s to arrive")
        elif not self._pending and now_s - self.waits_since_s > limits.idle_timeout_s:
            self._transport.close()

    def close_if_idle(self) -> None:
        """End a connection that waits for its next request."""
        if not self._pending and self._exchange is None and self._transport is not None:
            self._transport.close()

    # --- inside -----------------------------------------------------------------------------------------------

    def _close(self) -> None:
        self.waits_since_s = self._clock()
        if self._is_lingering:
            # The client may still be sending. Closing now would reset the connection, and the reply with it; what comes is thrown away.
            self._transport.write_eof()
        else:
            self._transport.close()

    def _begin(self) -> Exchange:
        exchange = Exchange(self, self._clock())
        self._exchange = exchange
        self._pending.append(exchange)
        self._body = []
        self._body_bytes = self._header_bytes = 0
        return exchange

    def _current(self) -> Exchange:
        return self._exchange or self._begin()

    def _is_ending(self) -> bool:
        return bool(self._pending) and not self._pending[-1].keep_alive and self._pending[-1].response is not None

    def _count_header_bytes(self, count: int) -> None:
        self._header_bytes += count
        if self._header_bytes > MAX_HEADER_BYTES and not self._is_ending():
            self._end_with(self._current(), 431, f"headers have more than {MAX_HEADER_BYTES} bytes")

    def _refuse_payload(self) -> None:
        if not self._is_ending():
            self._end_with(self._current(), 413, f"the body has more than {self._app.limits.max_payload_bytes} bytes")

    def _end_with(self, exchange: Exchange, status: int, message: str) -> None:
        exchange.keep_alive = False
        self._exchange = None
        self._body.clear()
        self._is_lingering = True
        self._app.refuse(exchange, status, message)

    def _pause_or_resume(self) -> None:
        wanted = len(self._pending) < PIPELINE_LIMIT and not self._is_paused_for_client
        if wanted == self._is_reading or self.is_closed or self._transport.is_closing():
            return
        self._is_reading = wanted
        if wanted:
            self._transport.resume_reading()
        else:
            self._transport.pause_reading()
