"""Put a server together, run it until it is told to end, and end it without losing what it holds."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import uvloop

from markserve.errors import ConfigurationError
from markserve.telemetry import logger
from server import scheduling
from server.app import App, sweep_forever
from server.channel import Load
from server.engine import Engine
from server.http1 import Connection, Limits
from server.manifest import ServedModel

BACKLOG = 1024
OTHER_FILES = 128
"""Descriptors beside those of connections."""
PROFILE_S = 4.0
"""Time spent on measuring T(b) at start."""
MARGIN_SHARE = 0.04
"""Share of the objective that the start's measuring leaves for everything but the model."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerSettings:
    """What an operator may choose."""

    rt_max_s: float = 0.2
    host: str = "127.0.0.1"
    port: int = 8000
    threads: int = 0
    max_batch_size: int = 0
    drain_timeout_s: float = 30.0
    profile_s: float = PROFILE_S
    limits: Limits = field(default_factory=Limits)


def serve(
    models: Sequence[ServedModel], settings: ServerSettings, *, say: Callable[[str], None], on_ready: Callable[[str, App], None]
) -> int:
    """Serve until SIGTERM or SIGINT; return the exit code.

    Raises
    ------
    ConfigurationError
        If the address cannot be bound, or no model can be served.
    """
    for handler in logger.handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setStream(sys.stderr)  # standard output is for what was asked for
    scheduling.yielding()
    return uvloop.run(_serve(models, settings, say, on_ready))


async def _serve(
    models: Sequence[ServedModel], settings: ServerSettings, say: Callable[[str], None], on_ready: Callable[[str, App], None]
) -> int:
    loop = asyncio.get_running_loop()
    clock = time.monotonic
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    engines = {
        model.record.model: Engine(model, _load(model, settings), rt_max_s=settings.rt_max_s, loop=loop, clock=clock, say=say)
        for model in models
    }
    app = App(engines, rt_max_s=settings.rt_max_s, limits=settings.limits, clock=clock)
    _allow_connections(settings.limits.max_connections, say)
    listener = _listen(settings.host, settings.port)
    server = await loop.create_server(lambda: Connection(app, clock), sock=listener, backlog=BACKLOG)
    sweeper = loop.create_task(sweep_forever(app))
    try:
        is_told_to_stop = await _start(engines, stop)
        if not is_told_to_stop:
            gc.collect()
            gc.freeze()  # what starting left behind is never garbage
            host, port = listener.getsockname()[:2]
            on_ready(f"http://{f'[{host}]' if ':' in host else host}:{port}", app)
            await stop.wait()
        await _drain(app, settings.drain_timeout_s, clock, say)
    finally:
        sweeper.cancel()
        server.close()
        for connection in list(app.connections):
            connection.close_if_idle()
        for engine in engines.values():
            await engine.close()
    return 0


async def _start(engines: dict[str, Engine], stop: asyncio.Event) -> bool:
    """Start the models one after the other, as measuring two at once would measure neither; True when told to stop."""
    for engine in engines.values():
        await engine.start()
        waits = [asyncio.ensure_future(engine.ready.wait()), asyncio.ensure_future(stop.wait())]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        if stop.is_set():
            return True
    refusals = [f"{name}: {engine.refusal}" for name, engine in engines.items() if engine.refusal is not None]
    if len(refusals) == len(engines):
        raise ConfigurationError("; ".join(refusals))
    return False


async def _drain(app: App, timeout_s: float, clock: Callable[[], float], say: Callable[[str], None]) -> None:
    app.is_draining = True
    give_up_at_s = clock() + timeout_s
    if app.held:
        say(f"draining: {app.held} requests held")
    while app.held and clock() < give_up_at_s:
        await asyncio.sleep(0.02)
    await asyncio.sleep(0.05)  # last replies leave their buffers


def _load(model: ServedModel, settings: ServerSettings) -> Load:
    return Load(
        record=model.record,
        path=str(model.path),
        latency_budget_s=settings.rt_max_s * (1 - MARGIN_SHARE),
        profile_s=settings.profile_s,
        threads=settings.threads,
        max_batch_size=settings.max_batch_size,
    )


def _allow_connections(count: int, say: Callable[[str], None]) -> None:
    """Raise the process's limit of open files to what connections need, as far as it goes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + OTHER_FILES
    is_unlimited = hard == resource.RLIM_INFINITY
    if not is_unlimited and hard < wanted:
        say(f"only {hard} files may be open, too few for {count} connections: raise `ulimit -Hn`, or lower --max-connections")
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted if is_unlimited else min(wanted, hard), hard))


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        raise ConfigurationError(
            f"cannot listen on {host}:{port}: {os.strerror(error.errno) if error.errno and error.errno > 0 else error}"
        ) from error
    return listener
