"""Keeps a local system running in the background; `markserve up` starts it, `markserve down` ends it.

`python -m local.supervisor` writes what it does to the state directory, so that other commands find the system.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Literal

import msgspec
import psutil

from local.processes import ProcessRecord, is_running, reap

DEFAULT_STATE_DIR = Path(__file__).resolve().parent.parent / ".markserve"
CYCLE_S = 10.0
STOP_TIMEOUT_S = 60.0

logger = logging.getLogger(__name__)


class UpOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What a user chooses when starting a system."""

    rt_max_s: float = 2.0
    sl_min: float = 0.98
    max_instances: int = 4
    cycle_s: float = CYCLE_S


class SystemState(msgspec.Struct, kw_only=True):
    """Where the background system is, and how far."""

    process: ProcessRecord
    options: UpOptions
    phase: Literal["starting", "ready", "failed"] = "starting"
    steps: list[str] = []
    started_at_s: float = 0.0
    api_url: str = ""
    model: str = ""
    env: dict[str, str] = {}
    """Variables with which a process reaches the system."""
    failure: str = ""


def state_dir() -> Path:
    """Return where local systems keep what they write: MARKSERVE_LOCAL_DIR, else .markserve in the repository."""
    return Path(os.environ.get("MARKSERVE_LOCAL_DIR") or DEFAULT_STATE_DIR)


def work_dir() -> Path:
    """Return where the background system logs and leaves its files."""
    return state_dir() / "up"


def log_path() -> Path:
    """Return the supervisor's own log."""
    return state_dir() / "supervisor.log"


def _state_path() -> Path:
    return state_dir() / "state.json"


def read_state() -> SystemState | None:
    """Return the state of the system that runs, or of one that failed to start; None when there is neither."""
    try:
        state = msgspec.json.decode(_state_path().read_bytes(), type=SystemState)
    except FileNotFoundError:
        return None
    return state if state.phase == "failed" or is_running(state.process) else None


def write_state(state: SystemState) -> None:
    """Replace the state, whole or not at all."""
    path = _state_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_bytes(msgspec.json.encode(state))
    partial.replace(path)


def start_supervisor(options: UpOptions) -> int:
    """Start the background process and return its id; follow `read_state` for what becomes of it."""
    state_dir().mkdir(parents=True, exist_ok=True)
    _state_path().unlink(missing_ok=True)
    with log_path().open("wb") as log:
        process = subprocess.Popen(  # noqa: S603  # our own module
            [sys.executable, "-m", "local.supervisor", msgspec.json.encode(options).decode()],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=DEFAULT_STATE_DIR.parent,
            start_new_session=True,
        )
    return process.pid


def stop_supervisor(state: SystemState) -> None:
    """End the background system and everything it started."""
    with suppress(ProcessLookupError):
        os.kill(state.process.pid, signal.SIGTERM)
    with suppress(psutil.NoSuchProcess, psutil.TimeoutExpired):
        psutil.Process(state.process.pid).wait(timeout=STOP_TIMEOUT_S)
    if is_running(state.process):
        with suppress(ProcessLookupError):
            os.kill(state.process.pid, signal.SIGKILL)
    reap(work_dir() / "processes.json")
    _state_path().unlink(missing_ok=True)


def main() -> None:
    """Run a system until told to stop."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    logging.getLogger("botocore").setLevel(logging.WARNING)
    options = msgspec.json.decode(sys.argv[1], type=UpOptions)
    own = psutil.Process()
    process = ProcessRecord(name="supervisor", pid=own.pid, created_at_s=own.create_time())
    state = SystemState(process=process, options=options, started_at_s=time.time())
    write_state(state)
    stopping = threading.Event()
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signal_number, lambda *_: stopping.set())

    def note(step: str) -> None:
        logger.info(step)
        state.steps.append(step)
        write_state(state)

    try:
        _run(options, state, note, stopping)
    except Exception as error:
        logger.exception("the system did not start")
        state.phase, state.failure = "failed", f"{type(error).__name__}: {error}"
        write_state(state)
        raise SystemExit(1) from error


def _run(options: UpOptions, state: SystemState, note: Callable[[str], None], stopping: threading.Event) -> None:
    from local.system import LocalSystem, SystemConfig  # torch takes seconds to import: the state is written first

    config = SystemConfig(
        work_dir=work_dir(),
        rt_max_s=options.rt_max_s,
        sl_min=options.sl_min,
        max_instances=options.max_instances,
        cycle_s=options.cycle_s,
    )
    with LocalSystem(config=config, note=note) as system:
        state.phase, state.api_url, state.model = "ready", system.deployment.api_url, system.record.model
        state.env = system.connecting_env()
        write_state(state)
        stopping.wait()
        logger.info("stopping")


if __name__ == "__main__":
    main()
