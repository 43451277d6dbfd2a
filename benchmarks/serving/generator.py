"""Open-loop load over keep-alive connections: requests leave when the schedule says so, whatever became of those before.

One thread around epoll, on a core of its own: it spins in the last millisecond before a send, because a sleeping thread wakes late.
Requests are encoded beforehand. One request at a time per connection, so that a reply belongs to the request that went before it.
"""

from __future__ import annotations

import errno
import gc
import math
import resource
import select
import socket
import time
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.serving.replies import BadReply, Outcome, judge, read_reply
from benchmarks.serving.summary import RunRecord

UNANSWERED_AFTER_S = 2.0
"""Ten times RT_max: nobody waits for the answer any more, and its connection is closed."""
DOUBLED_WAIT_S = 0.1
"""How long to listen, after the last reply, for replies that nobody asked for."""
MOST_CONNECTIONS = 4096
SENDS_PER_TURN = 16
"""Sends between two looks at the replies; a generator that is behind must still read."""
SPIN_S = 0.0012
"""`epoll_wait` sleeps in whole milliseconds."""
TICK_S = 0.5


@dataclass(frozen=True, slots=True)
class Question:
    """A whole HTTP request, and the output it must produce."""

    payload: bytes
    expected: tuple[float, ...]


class _Connection:
    __slots__ = ("buffer", "fd", "is_connected", "is_used", "request", "sock")

    def __init__(self, address: tuple[str, int]) -> None:
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self.sock.setblocking(False)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.fd = self.sock.fileno()
        self.request = -1
        self.buffer = b""
        self.is_used = False
        """Whether it has carried a reply: only then may its end be the server's idle timeout."""
        self.is_connected = self.sock.connect_ex(address) == 0


class Generator:
    """Sends one schedule and records what came of each request.

    Parameters
    ----------
    questions
        Request i sends number `i % len(questions)`.
    decode
        Output values of a reply's body; see `judge`.
    tick
        Called about twice a second, to sample the server; must take well under a millisecond.
    """

    def __init__(
        self,
        address: tuple[str, int],
        questions: Sequence[Question],
        decode: Callable[[bytes], Sequence[float]],
        *,
        tolerance: float,
        connections: int,
        tick: Callable[[], None] | None = None,
        most_connections: int = MOST_CONNECTIONS,
    ) -> None:
        self._address = address
        self._questions = questions
        self._decode = decode
        self._tolerance = tolerance
        self._tick = tick
        self._connections_wanted = connections
        self._connections_most = most_connections
        self._epoll = select.epoll()
        self._open: dict[int, _Connection] = {}
        self._idle: deque[_Connection] = deque()
        self._waiting: deque[int] = deque()
        self._in_flight: deque[tuple[int, _Connection]] = deque()
        self._doubled = self._resent = self._most_open = self._unsettled = 0
        self._start = 0.0

    def run(self, schedule_s: Sequence[float]) -> RunRecord:
        """Send every request at its time; return when each is answered, refused or given up."""
        _raise_file_limit(self._connections_most + 512)
        count = len(schedule_s)
        self._schedule = schedule_s
        self._sent = array("d", [math.nan]) * count
        self._done = array("d", [math.nan]) * count
        self._outcomes = bytearray(count)
        self._held = bytearray(count)
        self._unsettled = count
        self._connect_beforehand()
        gc.collect()
        gc.disable()  # a collection pauses the schedule
        try:
            idle_s = self._send_all()
            ended = self._now()
            self._listen_for_doubled()
        finally:
            gc.enable()
            self._close_all()
        return RunRecord(
            scheduled_s=schedule_s,
            sent_s=self._sent,
            done_s=self._done,
            outcomes=self._outcomes,
            held=self._held,
            doubled=self._doubled,
            resent=self._resent,
            busy_share=1 - idle_s / ended,
            connections=self._most_open,
        )

    def _now(self) -> float:
        return time.perf_counter() - self._start

    def _connect_beforehand(self) -> None:
        self._start = time.perf_counter()
        while len(self._open) < self._connections_wanted and self._now() < 10:
            for _ in range(min(64, self._connections_wanted - len(self._open))):  # no more than the shortest listen backlog
                self._add_connection()
            while len(self._idle) < len(self._open) and self._now() < 10:
                self._turn(0.05)

    def _send_all(self) -> float:
        """Return the seconds in which there was nothing to do."""
        schedule, count = self._schedule, len(self._schedule)
        self._start = time.perf_counter() + 0.02
        following, next_tick, idle_s = 0, 0.0, 0.0
        while self._unsettled:
            now = self._now()
            sends = 0
            while following < count and schedule[following] <= now and sends < SENDS_PER_TURN:
                self._dispatch(following)
                following += 1
                sends += 1
                now = self._now()
            if now >= next_tick:
                next_tick = now + TICK_S
                self._give_up_old(now)
                if self._tick:
                    self._tick()
            gap_s = schedule[following] - now if following < count else 0.02
            before = self._now()
            events = self._turn(max(0.0, min(gap_s, 0.05) - SPIN_S))
            if not events and not sends:
                idle_s += self._now() - before
        return idle_s

    def _turn(self, wait_s: float) -> int:
        events = self._epoll.poll(wait_s if wait_s > 0.001 else 0)
        waited_until = self._now()
        for fd, event in events:
            connection = self._open.get(fd)
            if connection is None:
                continue
            if not connection.is_connected:
                self._finish_connecting(connection, event)
            else:
                self._receive(connection, waited_until)
        return len(events)

    def _dispatch(self, index: int) -> None:
        if self._idle:
            self._send(self._idle.popleft(), index)
            return
        self._waiting.append(index)
        self._held[index] = 1
        if len(self._open) < self._connections_most:
            self._add_connection()

    def _add_connection(self) -> None:
        connection = _Connection(self._address)
        self._open[connection.fd] = connection
        self._most_open = max(self._most_open, len(self._open))
        self._epoll.register(connection.fd, select.EPOLLIN | (0 if connection.is_connected else select.EPOLLOUT))
        if connection.is_connected:
            self._free(connection)

    def _finish_connecting(self, connection: _Connection, event: int) -> None:
        if event & (select.EPOLLERR | select.EPOLLHUP):
            self._drop(connection)
            if self._waiting:  # the server takes no more connections: the oldest request is lost
                self._settle(self._waiting.popleft(), Outcome.LOST, self._now())
            return
        connection.is_connected = True
        self._epoll.modify(connection.fd, select.EPOLLIN)
        self._free(connection)

    def _free(self, connection: _Connection) -> None:
        while self._waiting:
            index = self._waiting.popleft()
            if self._outcomes[index] == Outcome.PENDING:
                self._send(connection, index)
                return
        self._idle.append(connection)

    def _send(self, connection: _Connection, index: int) -> None:
        payload = self._questions[index % len(self._questions)].payload
        connection.request = index
        self._sent[index] = self._now()
        try:
            sent = connection.sock.send(payload)
        except OSError as error:
            self._ended(connection, self._now(), is_refused=error.errno not in (errno.EPIPE, errno.ECONNRESET))
            return
        if sent < len(payload):  # a kilobyte that does not fit the socket's empty buffer: nothing reads there
            self._settle(index, Outcome.LOST, self._now())
            self._drop(connection)
            return
        self._in_flight.append((index, connection))

    def _receive(self, connection: _Connection, now: float) -> None:
        try:
            data = connection.sock.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._ended(connection, now)
            return
        if connection.request < 0:
            self._doubled += 1
            self._drop(connection)
            return
        connection.buffer = connection.buffer + data if connection.buffer else data
        try:
            reply = read_reply(connection.buffer)
        except (BadReply, ValueError):
            self._settle(connection.request, Outcome.ERROR, now)
            self._drop(connection)
            return
        if reply is None:
            return
        index = connection.request
        question = self._questions[index % len(self._questions)]
        self._settle(index, judge(reply, question.expected, self._decode, self._tolerance), now)
        self._doubled += reply.consumed < len(connection.buffer)
        connection.request, connection.buffer, connection.is_used = -1, b"", True
        if reply.closes:
            self._drop(connection)
        else:
            self._free(connection)

    def _ended(self, connection: _Connection, now: float, *, is_refused: bool = False) -> None:
        """Handle the server's end of a connection.

        A request that crosses the server's closing of an idle connection is sent again, once, as every HTTP client does.
        """
        index = connection.request
        self._drop(connection)
        if index < 0:
            return
        if connection.is_used and not connection.buffer and not is_refused:
            self._resent += 1
            self._waiting.appendleft(index)
            self._add_connection()
        else:
            self._settle(index, Outcome.LOST, now)

    def _settle(self, index: int, outcome: Outcome, now: float) -> None:
        self._outcomes[index] = outcome
        self._done[index] = now
        self._unsettled -= 1

    def _give_up_old(self, now: float) -> None:
        while self._in_flight:
            index, connection = self._in_flight[0]
            if connection.request == index and now - self._schedule[index] < UNANSWERED_AFTER_S:
                break
            self._in_flight.popleft()
            if connection.request == index:
                self._settle(index, Outcome.UNANSWERED, now)
                self._drop(connection)
        while self._waiting and now - self._schedule[self._waiting[0]] >= UNANSWERED_AFTER_S:
            self._settle(self._waiting.popleft(), Outcome.UNANSWERED, now)

    def _drop(self, connection: _Connection) -> None:
        if self._open.pop(connection.fd, None) is not None:
            connection.sock.close()  # which also takes it out of the epoll set
            connection.request = -1
            if connection in self._idle:
                self._idle.remove(connection)

    def _listen_for_doubled(self) -> None:
        until = self._now() + DOUBLED_WAIT_S
        while self._now() < until:
            self._turn(0.02)

    def _close_all(self) -> None:
        for connection in list(self._open.values()):
            self._drop(connection)
        self._epoll.close()


def _raise_file_limit(wanted: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))
