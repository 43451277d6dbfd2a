"""What the planner would do now: the plan function's own use case, on live state, with every write held back."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any, cast

from functions.plan import app as planning
from markserve import wiring
from markserve.errors import InvariantViolated
from markserve.messages import PlanRecord
from markserve.ports import ControlStore, InstanceRegistry
from markserve.telemetry import logger

CONTROL_READS = ("latest_forecast", "forecasts", "latest_plan", "plans", "decisions", "claims")
REGISTRY_READS = ("list",)


class ReadOnly:
    """Passes on only what is known to read; every other call does nothing.

    Named reads rather than named writes: a method that a port gains later is held back until somebody has looked at it.
    """

    def __init__(self, port: object, reads: Collection[str]) -> None:
        self._port = port
        self._reads = frozenset(reads)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._port, name) if name in self._reads else _nothing


def _nothing(*arguments: object, **named: object) -> None:
    del arguments, named


def preview(trigger: str, *, model: str | None, now_s: float) -> PlanRecord:
    """Plan as the control cycle would at `now_s`, and change nothing.

    Raises
    ------
    InvalidRequest
        If there is no such trigger.
    """
    with _quiet():
        planned = planning.run(
            planning.parse({"trigger": trigger, "model": model}),
            models=wiring.models(),
            control=cast("ControlStore", ReadOnly(wiring.control(), CONTROL_READS)),
            windows=wiring.windows(),
            instances=cast("InstanceRegistry", ReadOnly(wiring.instances(), REGISTRY_READS)),
            fleet=wiring.fleet(),
            parameters=wiring.parameters(),
            work_queue=wiring.work_queue,
            settings=wiring.settings(),
            now_s=now_s,
        )
    if planned.record is None:
        raise InvariantViolated("a plan that is not stored lost to another")
    return planned.record


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the function's log lines, which are for CloudWatch, off standard output."""
    before = logger.log_level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)
