"""Child processes of the local system, recorded on disk so that even a crash leaves none behind."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import msgspec
import psutil


class ProcessRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A process by id and birth; the birth tells it from a later process with the same id."""

    name: str
    pid: int
    created_at_s: float


class Child(Protocol):
    """A process of ours: `subprocess.Popen`, or what acts like one."""

    pid: int

    def poll(self) -> int | None: ...  # noqa: D102
    def wait(self, timeout: float | None = None) -> int: ...  # noqa: D102
    def terminate(self) -> None: ...  # noqa: D102
    def kill(self) -> None: ...  # noqa: D102


Starter = Callable[[str, Mapping[str, str], Path], Child]
"""Starts a process of a name, with an environment, and its output appended to a path."""


class ProcessLedger:
    """Starts processes and keeps `path` listing those that may still run."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._records: dict[int, ProcessRecord] = {}

    def spawn(
        self, name: str, command: Sequence[str], *, env: Mapping[str, str], log_path: Path, pass_fds: Sequence[int] = ()
    ) -> subprocess.Popen[bytes]:
        """Start `command` with its output appended to `log_path`.

        It gets a session of its own, so that Ctrl-C in the terminal reaches only us and the stop stays orderly.
        """
        log_path.parent.mkdir(parents=True, exist_ok=True)
        with log_path.open("ab") as log:
            process = subprocess.Popen(  # noqa: S603  # our own commands, never a user's
                list(command),
                env=dict(env),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=pass_fds,
            )
        self.record(name, process.pid)
        return process

    def starter(self, command: Sequence[str]) -> Starter:
        """Make what spawns `command`."""
        return lambda name, env, log_path: self.spawn(name, command, env=env, log_path=log_path)

    def record(self, name: str, pid: int) -> None:
        """List a process that just started; one that has ended already needs no listing."""
        with suppress(psutil.NoSuchProcess):
            self._records[pid] = ProcessRecord(name=name, pid=pid, created_at_s=psutil.Process(pid).create_time())
            self._save()

    def forget(self, process: Child) -> None:
        """Strike a process that has ended."""
        if self._records.pop(process.pid, None) is not None:
            self._save()

    def stop(self, process: Child, *, grace_s: float) -> int:
        """Ask a process to end, kill it when it has not within `grace_s`, and return its exit code."""
        process.terminate()
        try:
            code = process.wait(timeout=grace_s)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        self.forget(process)
        return code

    def _save(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        partial = self._path.with_suffix(".partial")
        partial.write_bytes(msgspec.json.encode(list(self._records.values())))
        partial.replace(self._path)


def is_running(record: ProcessRecord) -> bool:
    """Whether the very process of this record still runs."""
    try:
        process = psutil.Process(record.pid)
        return abs(process.create_time() - record.created_at_s) < 1.0 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def reap(path: Path) -> list[ProcessRecord]:
    """Kill what an earlier run that crashed left behind, and return it."""
    if not path.exists():
        return []
    left = [record for record in msgspec.json.decode(path.read_bytes(), type=list[ProcessRecord]) if is_running(record)]
    for record in left:
        _kill_tree(record.pid)
    path.unlink()
    return left


def _kill_tree(pid: int) -> None:
    try:
        parent = psutil.Process(pid)
        family = [*parent.children(recursive=True), parent]
    except psutil.NoSuchProcess:
        return
    for process in family:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(family, timeout=5.0)
