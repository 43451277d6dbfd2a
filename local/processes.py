"""Child processes of the local system, recorded on disk so that even a crash leaves none behind."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import psutil


class ProcessRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A process by id and birth; the birth tells it from a later process with the same id."""

    name: str
    pid: int
    created_at_s: float


class ProcessLedger:
    """Starts processes and keeps `path` listing those that may still run."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._records: dict[int, ProcessRecord] = {}

    def spawn(self, name: str, command: Sequence[str], *, env: Mapping[str, str], log_path: Path) -> subprocess.Popen[bytes]:
        """Start `command` with its output appended to `log_path`.

        It gets a session of its own, so that Ctrl-C in the terminal reaches only us and the stop stays orderly.
        """
        log_path.parent.mkdir(parents=True, exist_ok=True)
        with log_path.open("ab") as log:
            process = subprocess.Popen(  # noqa: S603  # our own commands, never a user's
                list(command), env=dict(env), stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        self._records[process.pid] = ProcessRecord(name=name, pid=process.pid, created_at_s=psutil.Process(process.pid).create_time())
        self._save()
        return process

    def forget(self, process: subprocess.Popen[bytes]) -> None:
        """Strike a process that has ended."""
        if self._records.pop(process.pid, None) is not None:
            self._save()

    def stop(self, process: subprocess.Popen[bytes], *, grace_s: float) -> int:
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
