"""What acting on instances has in common: the ports, the decision log, and conditional transitions."""

from __future__ import annotations

from dataclasses import dataclass

from markserve.core.lifecycle import states_before
from markserve.core.types import Instance, InstanceState, Offering
from markserve.errors import StaleWrite
from markserve.messages import DecisionRecord
from markserve.ports import ControlStore, EventPublisher, Fleet, InstanceRegistry, ParameterSource, SpilloverInvoker
from markserve.telemetry import logger

DRY_POOL_S = 180.0
"""How long a pool that had no capacity, or is being interrupted, is not bought from: capacity comes back within
minutes, and same-pool interruptions follow each other within 3 (Karpenter uses the same time)."""
ALREADY_STARTED = (InstanceState.REQUESTED, InstanceState.WARMING, InstanceState.SERVING)


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What was done, in past tense, how often, and why."""

    event: str
    reason: str
    count: int = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class LifecycleContext:
    """The ports that acting on instances needs, and the instant of the invocation."""

    instances: InstanceRegistry
    control: ControlStore
    fleet: Fleet
    spillover: SpilloverInvoker
    events: EventPublisher
    parameters: ParameterSource
    now_s: float

    def find(self, instance_id: str) -> Instance | None:
        """Look an instance up in the registry."""
        return next((i for i in self.instances.list() if i.instance_id == instance_id), None)

    def log(self, outcome: Outcome, *, model: str, subject: str, **detail: str | float | int | bool | None) -> Outcome:
        """Record an outcome in the decision log and in this process's log, and return it."""
        self.control.log(
            DecisionRecord(at_s=self.now_s, model=model, subject=subject, event=outcome.event, reason=outcome.reason, detail=detail)
        )
        logger.info(outcome.event, extra={"model": model, "subject": subject, "reason": outcome.reason, **detail})
        return outcome

    def transition(self, instance_id: str, state: InstanceState, reason: str) -> bool:
        """Record a state from wherever it may legally be entered; False when somebody was first."""
        try:
            self.instances.transition(instance_id, expected=states_before(state), state=state, at_s=self.now_s, reason=reason)
        except StaleWrite as error:
            logger.info("nothing to record", extra={"instance_id": instance_id, "reason": str(error)})
            return False
        return True

    def is_done(self, name: str) -> bool:
        """Whether something that happens once has happened."""
        return name in self.control.claims(name, now_s=self.now_s)

    def mark_done(self, name: str, *, for_s: float) -> None:
        """Remember that it has, after it did: a retry after a failure has to act."""
        self.control.claim(name, now_s=self.now_s, for_s=for_s)

    def mark_dry(self, offering: Offering) -> None:
        """Keep the planner from buying of a pool for `DRY_POOL_S`."""
        self.control.claim(f"unavailable/{offering.key}", now_s=self.now_s, for_s=DRY_POOL_S)
