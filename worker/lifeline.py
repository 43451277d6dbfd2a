"""The worker's signs of life: what the control plane hears from it, and what it hears back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from markserve.core.lifecycle import serves_until_s
from markserve.core.types import Instance, InstanceState
from markserve.errors import ConfigurationError, StaleWrite, Transient
from markserve.messages import InstanceDrained, InstanceReady
from markserve.ports import EventPublisher, InstanceRegistry, InterruptionNotice, ParameterSource
from markserve.telemetry import logger
from worker.engine import Engine

NOT_YET_DRAINING = (InstanceState.REQUESTED, InstanceState.WARMING, InstanceState.SERVING)
RETRY_S = 0.5
NOTICE = "spot interruption notice"


class Lifeline:
    """Reports readiness, heartbeats and drains of one instance. One thread at a time calls it."""

    def __init__(
        self,
        engine: Engine,
        *,
        model: str,
        instance_id: str,
        instances: InstanceRegistry,
        parameters: ParameterSource,
        events: EventPublisher,
        interruption: InterruptionNotice,
        clock: Callable[[], float],
        versions: Callable[[], tuple[str, ...]] = tuple,
    ) -> None:
        self._engine = engine
        self._model = model
        self._instance_id = instance_id
        self._instances = instances
        self._parameters = parameters
        self._events = events
        self._interruption = interruption
        self._clock = clock
        self._versions = versions
        self._is_drain_recorded = False
        self._is_leaving = False  # told of an interruption, and serving on until just before it

    def announce_ready(self, *, patience_s: float, pause: Callable[[float], object]) -> None:
        """Record that this instance serves, and say so.

        A restarted worker finds itself SERVING already, which is fine; one that is to drain learns it by heartbeat.

        Raises
        ------
        ConfigurationError
            If the registry does not know this instance within `patience_s`: nobody would ever stop it.
        """
        give_up_at_s = self._clock() + patience_s
        while not self._is_known():
            if self._clock() >= give_up_at_s:
                raise ConfigurationError(f"{self._instance_id} is not in the registry after {patience_s:g} s: not launched by this stack")
            pause(RETRY_S)
        try:
            self._move((InstanceState.REQUESTED, InstanceState.WARMING), InstanceState.SERVING, "warmed up")
        except StaleWrite as error:
            logger.info("readiness not recorded: %s", error)
        self.beat()
        if self._engine.drain_reason is None:
            self._events.publish(InstanceReady(model=self._model, instance_id=self._instance_id, at_s=self._clock()))

    def beat(self) -> None:
        """Report, and learn of a drain and of changed parameters."""
        self._engine.tidy()
        try:
            instance = self._heartbeat()
        except StaleWrite as error:
            self._engine.drain(f"not in the registry: {error}")
        else:
            if instance.state not in NOT_YET_DRAINING:
                self._is_drain_recorded = True
                if instance.state is InstanceState.DRAINING:
                    self.heed_interruption()  # the event may have been faster than our own look at the notice
                if not (self._is_leaving and instance.state is InstanceState.DRAINING):
                    self._engine.drain(f"the registry says {instance.state}: {instance.end_reason or instance.reason}")
        self._engine.follow(self._parameters.get(self._model))
        self._record_drain()

    def heed_interruption(self) -> None:
        """If the instance is about to be taken away, serve on, but drain in time."""
        try:
            ends_at_s = self._interruption.pending()
        except Transient as error:
            logger.warning("the instance metadata did not answer: %s", error)
            return
        if ends_at_s is None:
            return
        if not self._is_leaving:
            logger.info("%s: ends in %.0f s", NOTICE, ends_at_s - self._clock())
        self._is_leaving = True
        if self._clock() >= serves_until_s(ends_at_s, batch_latency_s=self._engine.stats().batch_latency_s):
            self._engine.drain(NOTICE, finish_by_s=ends_at_s)

    def conclude(self) -> None:
        """After a drain: leave the last figures, and say that this instance can go."""
        self.beat()
        reason = self._engine.drain_reason or "stopped"
        self._events.publish(InstanceDrained(model=self._model, instance_id=self._instance_id, at_s=self._clock(), reason=reason))
        logger.info("drained (%s): %s", reason, self._engine.stats())

    def _is_known(self) -> bool:
        try:
            self._heartbeat()
        except StaleWrite:
            return False
        return True

    def _heartbeat(self) -> Instance:
        stats = replace(self._engine.stats(), versions=self._versions())
        return self._instances.heartbeat(self._instance_id, at_s=self._clock(), stats=stats)

    def _record_drain(self) -> None:
        """Record a drain that began here, or is about to, so that nobody plans with this instance."""
        reason = self._engine.drain_reason or (NOTICE if self._is_leaving else None)
        if reason is None or self._is_drain_recorded:
            return
        try:
            self._move(NOT_YET_DRAINING, InstanceState.DRAINING, reason)
        except StaleWrite as error:
            logger.info("drain not recorded: %s", error)
        self._is_drain_recorded = True

    def _move(self, expected: tuple[InstanceState, ...], state: InstanceState, reason: str) -> None:
        self._instances.transition(self._instance_id, expected=expected, state=state, at_s=self._clock(), reason=reason)
