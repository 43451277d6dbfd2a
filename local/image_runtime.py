"""What runs inside one emulated execution environment: load the handler once, then answer one invocation at a time."""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
import traceback
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType


@dataclass(frozen=True, kw_only=True)
class Invocation:
    """One event, as JSON."""

    request_id: str
    deadline_at_s: float
    payload: bytes


@dataclass(frozen=True, kw_only=True)
class Ready:
    """The handler's module is loaded."""


@dataclass(frozen=True, kw_only=True)
class Returned:
    """The handler's result, as JSON."""

    payload: bytes


@dataclass(frozen=True, kw_only=True)
class Failed:
    """The handler raised, or did not load; `fatal` when the environment cannot go on."""

    error_type: str
    message: str
    fatal: bool = False


Reply = Ready | Returned | Failed


@dataclass(frozen=True, kw_only=True)
class LambdaContext:
    """The part of Lambda's context object that handlers and Powertools read."""

    aws_request_id: str
    deadline_at_s: float
    function_name: str = field(default_factory=lambda: os.environ["AWS_LAMBDA_FUNCTION_NAME"])
    function_version: str = field(default_factory=lambda: os.environ["AWS_LAMBDA_FUNCTION_VERSION"])
    memory_limit_in_mb: int = field(default_factory=lambda: int(os.environ["AWS_LAMBDA_FUNCTION_MEMORY_SIZE"]))

    @property
    def invoked_function_arn(self) -> str:
        """ARN of the function in the local account."""
        return f"arn:aws:lambda:{os.environ.get('AWS_REGION', 'us-east-1')}:000000000000:function:{self.function_name}"

    @property
    def log_group_name(self) -> str:
        """Log group of the function."""
        return f"/aws/lambda/{self.function_name}"

    @property
    def log_stream_name(self) -> str:
        """One stream per environment."""
        return f"local/{os.getpid()}"

    def get_remaining_time_in_millis(self) -> int:
        """Time until Lambda would end the invocation."""
        return max(0, int((self.deadline_at_s - time.time()) * 1000))


def warm_template() -> None:
    """Do nothing: the fork server has finished its imports by the time this runs."""


def run_environment(pipe: Connection, folder: Path) -> None:
    """Load `app.py` of a function's folder and answer invocations until the pipe closes."""
    try:
        handler = _load(folder).handler
    except BaseException as error:  # noqa: BLE001  # an entry point: whatever init raised is the host's to report
        traceback.print_exc()
        pipe.send(Failed(error_type=type(error).__name__, message=str(error), fatal=True))
        return
    pipe.send(Ready())
    while True:
        try:
            invocation: Invocation = pipe.recv()
        except EOFError:
            return
        context = LambdaContext(aws_request_id=invocation.request_id, deadline_at_s=invocation.deadline_at_s)
        try:
            result = handler(json.loads(invocation.payload), context)
            reply: Returned | Failed = Returned(payload=json.dumps(result).encode())
        except Exception as error:  # noqa: BLE001  # an entry point: Lambda reports any exception as a function error
            traceback.print_exc()
            reply = Failed(error_type=type(error).__name__, message=str(error))
        pipe.send(reply)


def _load(folder: Path) -> ModuleType:
    """Import the handler's module with its own folder as the root, as in the image."""
    sys.path.insert(0, str(folder))
    return importlib.import_module("app")
