"""Reading HTTP/1.1 replies off a connection, and judging what they say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum

HEAD_END = b"\r\n\r\n"


class Outcome(IntEnum):
    """What became of one request."""

    PENDING = 0
    OK = 1
    """Answered, and the answer is the expected one; in time or late."""
    WRONG = 2
    """Status 200 with another output than this input's."""
    REJECTED = 3
    """429 or 503: the server said that it would not."""
    ERROR = 4
    """Any other status."""
    UNANSWERED = 5
    """No reply before the generator gave up."""
    LOST = 6
    """The server closed the connection instead of replying."""


class BadReply(ValueError):
    """What came is no HTTP/1.1 reply that this reader knows."""


@dataclass(frozen=True, slots=True)
class Reply:
    """One HTTP reply."""

    status: int
    body: bytes
    consumed: int
    """Bytes of the buffer that the reply took; more than that answers nothing that was asked."""
    closes: bool
    """The server will close the connection."""


def read_reply(buffer: bytes | bytearray) -> Reply | None:
    """Parse the first reply in the buffer; None while it is incomplete.

    Raises
    ------
    BadReply
        If the head is malformed, or says neither a length nor chunks.
    """
    end = buffer.find(HEAD_END)
    if end < 0:
        return None
    head = bytes(buffer[:end]).lower()
    if not head.startswith(b"http/1."):
        raise BadReply(f"a reply begins with {head[:20]!r}")
    status = int(head[9:12])
    closes = b"\r\nconnection: close" in head
    length_at = head.find(b"\r\ncontent-length:")
    if length_at >= 0:
        begin = end + len(HEAD_END)
        stop = head.find(b"\r\n", length_at + 2)
        size = int(head[length_at + 17 : stop if stop >= 0 else None])
        if len(buffer) < begin + size:
            return None
        return Reply(status, bytes(buffer[begin : begin + size]), begin + size, closes)
    if b"\r\ntransfer-encoding: chunked" not in head:
        raise BadReply("a reply with neither content-length nor chunks")
    return _read_chunks(buffer, end + len(HEAD_END), status, closes)


def _read_chunks(buffer: bytes | bytearray, at: int, status: int, closes: bool) -> Reply | None:
    body = bytearray()
    while True:
        line_end = buffer.find(b"\r\n", at)
        if line_end < 0:
            return None
        size = int(bytes(buffer[at:line_end]), 16)
        at = line_end + 2
        if len(buffer) < at + size + 2:
            return None
        body += buffer[at : at + size]
        at += size + 2
        if size == 0:
            return Reply(status, bytes(body), at, closes)


def judge(reply: Reply, expected: Sequence[float], decode: Callable[[bytes], Sequence[float]], tolerance: float) -> Outcome:
    """Say what a reply is worth, given the output that its input must produce.

    `decode` turns a body into the output's values and may raise `ValueError`, `KeyError`, `IndexError` or `TypeError`.
    """
    if reply.status in (429, 503):
        return Outcome.REJECTED
    if reply.status != 200:
        return Outcome.ERROR
    try:
        values = decode(reply.body)
        matches = len(values) == len(expected) and all(abs(a - b) <= tolerance for a, b in zip(values, expected, strict=True))
    except (ValueError, KeyError, IndexError, TypeError):
        return Outcome.WRONG
    return Outcome.OK if matches else Outcome.WRONG
