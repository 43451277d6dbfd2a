"""Starts the control cycle every few seconds, as EventBridge Scheduler starts it every minute in AWS."""

from __future__ import annotations

import json
import logging
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from botocore.exceptions import BotoCoreError, ClientError

if TYPE_CHECKING:
    from mypy_boto3_stepfunctions import SFNClient

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class ControlTicker:
    """Ticks from `start` to `stop`. A cycle that outlasts its interval delays the next one instead of racing it."""

    states: SFNClient
    state_machine_arn: str
    cycle_s: float
    executions: list[str] = field(default_factory=list, init=False)
    """Executions started so far."""
    _stopping: threading.Event = field(default_factory=threading.Event, init=False)
    _thread: threading.Thread | None = field(default=None, init=False)

    def start(self) -> None:
        """Tick in a thread of its own, at once and then every `cycle_s`."""
        self._thread = threading.Thread(target=self._tick, name="control-ticker", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop ticking; an execution under way finishes by itself."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()

    def trigger(self, reason: str) -> str:
        """Start one cycle and return the ARN of its execution."""
        arn = self.states.start_execution(stateMachineArn=self.state_machine_arn, input=json.dumps({"trigger": reason}))["executionArn"]
        self.executions.append(arn)
        return arn

    def _tick(self) -> None:
        while not self._stopping.is_set():
            try:
                if not (self.executions and self._is_running(self.executions[-1])):
                    self.trigger("schedule")
            except (BotoCoreError, ClientError):
                logger.exception("the control cycle was not started; trying again in %.0f s", self.cycle_s)
            self._stopping.wait(self.cycle_s)

    def _is_running(self, execution_arn: str) -> bool:
        return self.states.describe_execution(executionArn=execution_arn)["status"] == "RUNNING"
