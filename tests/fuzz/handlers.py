"""Each function's handler as Lambda calls it, on ports in memory; what it says in its log, and what it changes."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
from msgspec.structs import replace

import functions.api.app as api
import functions.authorizer.app as authorizer
import functions.console.app as console
import functions.forecast.app as forecast
import functions.ingest.app as ingest
import functions.lifecycle.app as lifecycle
import functions.plan.app as plan
import functions.spillover.app as spillover
from markserve import wiring
from markserve.adapters.memory import MemoryBlobStore, MemoryModelRunner, MemoryModelStore
from markserve.adapters.memory_clients import MemoryClientStore
from markserve.errors import InvalidRequest
from markserve.messages import ClientRecord
from markserve.protocol.http import request_from_event
from markserve.telemetry import logger
from tests.builders import a_model_record, an_instance
from tests.console.scene import Scene
from tests.functions import test_api, test_forecast, test_ingest, test_lifecycle, test_plan
from tests.functions.test_control_handlers import Context

KEY = "a-key"


@dataclass(frozen=True, kw_only=True)
class Function:
    """A handler, and everything that it could change."""

    handler: Callable[[Any, Any], dict[str, Any]]
    stores: tuple[object, ...]

    def __call__(self, event: Any) -> dict[str, Any]:
        return self.handler(event, Context())

    def state(self) -> list[str]:
        """All that the stores hold, as text."""
        return [repr(vars(store)) for store in self.stores]


@contextmanager
def listening(level: int = logging.WARNING) -> Iterator[list[logging.LogRecord]]:
    """Collect what is logged at a level or above."""
    lines: list[logging.LogRecord] = []

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record)

    ear = Ear(level=level)
    logger.addHandler(ear)
    try:
        yield lines
    finally:
        logger.removeHandler(ear)


def written(line: logging.LogRecord) -> str:
    """What a line looks like in CloudWatch Logs."""
    return logger.registered_formatter.format(line)


@contextmanager
def function(name: str) -> Iterator[Function]:
    """A function on new ports, with time that never waits."""
    with pytest.MonkeyPatch.context() as patch:
        clock = SimpleNamespace(time=time.time, sleep=lambda _: None)
        for app in (api, spillover):
            patch.setattr(app, "time", clock)
        yield BUILDERS[name](patch)


def _wire(patch: pytest.MonkeyPatch, **ports: object) -> tuple[object, ...]:
    for name, port in ports.items():
        patch.setattr(wiring, name, lambda *_, port=port, **__: port)
    patch.setattr(wiring, "settings", lambda: test_plan.SETTINGS)
    return tuple(ports.values())


def _ingest(patch: pytest.MonkeyPatch) -> Function:
    patch.setattr(ingest, "_judged_at_s", {})
    stack = test_ingest.Stack()
    ports = {"windows": stack.windows, "control": stack.control, "events": stack.events, "parameters": stack.parameters}
    return Function(handler=ingest.handler, stores=_wire(patch, **ports))


def _forecast(patch: pytest.MonkeyPatch) -> Function:
    stack = test_forecast.Stack()
    ports = {"windows": stack.windows, "control": stack.control, "blobs": stack.blobs, "metrics_sink": stack.sink, "events": stack.events}
    others = {"models": MemoryModelStore(a_model_record()), "learned_forecaster": test_forecast.Oracle()}
    return Function(handler=forecast.handler, stores=_wire(patch, **ports, **others))


def _plan(patch: pytest.MonkeyPatch) -> Function:
    world = test_plan.World()
    patch.setattr(wiring, "work_queue", lambda _: world.work_queue)
    names = ("models", "control", "windows", "instances", "fleet", "parameters")
    return Function(handler=plan.handler, stores=_wire(patch, **{name: getattr(world, name) for name in names}))


def _lifecycle(patch: pytest.MonkeyPatch) -> Function:
    world = test_lifecycle.World(an_instance(instance_id=test_lifecycle.RECORDED_ID), an_instance(instance_id="i-0001"))
    names = ("instances", "control", "fleet", "spillover", "events", "parameters")
    others = {"models": MemoryModelStore(a_model_record()), "blobs": MemoryBlobStore()}
    return Function(handler=lifecycle.handler, stores=_wire(patch, **{name: getattr(world, name) for name in names}, **others))


def _spillover(patch: pytest.MonkeyPatch) -> Function:
    stores = _wire(patch, models=MemoryModelStore(a_model_record()), blobs=MemoryBlobStore())
    patch.setattr(wiring, "model_runner", lambda *_, **__: MemoryModelRunner())
    return Function(handler=spillover.make_handler(), stores=stores)  # type: ignore[arg-type]  # Lambda's context is looked at by Powertools alone


def _authorizer(patch: pytest.MonkeyPatch) -> Function:
    clients = MemoryClientStore()
    clients.put(ClientRecord(client="shop", key_sha256=hashlib.sha256(KEY.encode()).hexdigest(), requests_per_minute=10))
    return Function(handler=authorizer.handler, stores=_wire(patch, clients=clients))


def _api(patch: pytest.MonkeyPatch) -> Function:
    world = test_api.World()
    record = a_model_record()
    image, logits = replace(record.inputs[0], shape=(-1, 1, 8, 8)), replace(record.outputs[0], name="logits")
    world.models.put(replace(record, inputs=(image,), outputs=(logits,)))
    patch.setattr(api, "_front", lambda: world.front)

    def at_its_instant(event: Any, context: Any) -> dict[str, Any]:
        with suppress(InvalidRequest):
            world.clock.now_s = request_from_event(event).arrival_at_s
        return api.handler(event, context)

    return Function(
        handler=at_its_instant, stores=(world.results, world.blobs, world.models, world.metrics, SimpleNamespace(sent=world.sent))
    )


def _console(patch: pytest.MonkeyPatch) -> Function:
    scene = Scene(a_model_record())
    patch.setattr(wiring, "console", lambda: scene.console)
    return Function(handler=console.handler, stores=(scene.control, scene.parameters))


BUILDERS: dict[str, Callable[[pytest.MonkeyPatch], Function]] = {
    "ingest": _ingest,
    "forecast": _forecast,
    "plan": _plan,
    "lifecycle": _lifecycle,
    "spillover": _spillover,
    "authorizer": _authorizer,
    "api": _api,
    "console": _console,
}
