"""Front's side of a model's process: start it, talk to it, notice its end, start it again."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from collections.abc import Sequence
from typing import Any, Protocol

from server.channel import SOCKET_BUFFER_BYTES, FrameReader, FromModel, Load, Run, pack

RESTART_PAUSES_S = (0.5, 1.0, 2.0, 5.0, 15.0, 60.0)
"""Waits before starts after a death; the last one repeats."""


class Listener(Protocol):
    """Who hears from the model's process."""

    @property
    def wants_restart(self) -> bool:
        """Whether a process that ended should be started again."""

    def heard(self, message: FromModel, data: memoryview) -> None:
        """Take a message."""

    def died(self, reason: str) -> None:
        """Take it that the process has ended, and what it was computing is lost."""


class _Channel(asyncio.Protocol):
    def __init__(self, link: ModelLink) -> None:
        self._link = link
        self._reader = FrameReader()

    def data_received(self, data: bytes) -> None:
        for message, tensors in self._reader.feed(data):
            self._link.listener.heard(message, tensors)

    def connection_lost(self, exc: Exception | None) -> None:
        self._link.ended(exc)


class ModelLink:
    """One model's process, kept running.

    Parameters
    ----------
    load
        What the process is to load; sent again after every restart.
    """

    def __init__(self, load: Load, listener: Listener, *, loop: asyncio.AbstractEventLoop) -> None:
        self.listener = listener
        self._load = load
        self._loop = loop
        self._transport: Any = None
        self._process: subprocess.Popen[bytes] | None = None
        self._deaths = 0
        self._is_closing = False
        self._timer: asyncio.TimerHandle | None = None

    @property
    def pid(self) -> int:
        """Process id, 0 while there is none."""
        return self._process.pid if self._process else 0

    async def start(self) -> None:
        """Start the process and tell it what to load."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        for end in (ours, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER_BYTES)
        with theirs:
            # The interpreter, module and descriptor are ours; nothing of a request gets here.
            self._process = subprocess.Popen(  # noqa: S603
                [sys.executable, "-m", "server.model_process", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
            )
        ours.setblocking(False)
        self._transport, _ = await self._loop.create_unix_connection(lambda: _Channel(self), sock=ours)
        self._write(pack(self._load))

    def run(self, message: Run, buffers: Sequence[bytes | memoryview]) -> None:
        """Have a batch computed."""
        self._write(pack(message, buffers))

    def proven(self) -> None:
        """Note that the process has served, so that its next death is a new one."""
        self._deaths = 0

    def kill(self) -> None:
        """End a process that hangs; it is started again."""
        if self._process is not None:
            self._process.kill()

    async def close(self) -> None:
        """End the process for good."""
        self._is_closing = True
        if self._timer is not None:
            self._timer.cancel()
        if self._transport is not None:
            self._transport.close()
        process, self._process = self._process, None
        if process is not None:
            await self._loop.run_in_executor(None, _end, process, 5.0)

    def ended(self, exc: Exception | None) -> None:
        """React to the end of the process."""
        process, self._process, self._transport = self._process, None, None
        if self._is_closing or process is None:
            return
        self._burying = self._loop.create_task(self._bury(process, exc))

    async def _bury(self, process: subprocess.Popen[bytes], exc: Exception | None) -> None:
        code = await self._loop.run_in_executor(None, _end, process, 1.0)
        if self._is_closing or not self.listener.wants_restart:
            return
        reason = f"signal {-code}" if code < 0 else f"exit code {code}"
        pause_s = RESTART_PAUSES_S[min(self._deaths, len(RESTART_PAUSES_S) - 1)]
        self._deaths += 1
        self.listener.died(f"{reason}{f' ({exc})' if exc else ''}; starting again in {pause_s:g} s")
        self._timer = self._loop.call_later(pause_s, self._restart)

    def _restart(self) -> None:
        self._starting = self._loop.create_task(self.start())

    def _write(self, parts: list[bytes | memoryview]) -> None:
        if self._transport is not None:
            self._transport.write(b"".join(parts))


def _end(process: subprocess.Popen[bytes], patience_s: float) -> int:
    try:
        return process.wait(patience_s)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()
