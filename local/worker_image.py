"""Boots workers as forks of one process that has imported what a worker needs.

In AWS a worker imports torch on cores of its own. Here they are the front's, and seconds of a core for every launch would make the
rest of the system late. From the imports on, a fork is `python -m local.worker`.
"""

from __future__ import annotations

import gc
import importlib
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

from local.processes import ProcessLedger

PRELOADED = ("torch", "local.worker", "local.preloaded")
POLL_S = 0.02
"""How often the image looks for workers that have ended."""
STOP_GRACE_S = 2.0
NICENESS = 10
"""What a worker still does before it serves is done on cores that would not be the front's in AWS."""


@dataclass(kw_only=True)
class ForkedWorker:
    """A booted worker; what a fleet uses of `subprocess.Popen`."""

    image: WorkerImage
    pid: int
    returncode: int | None = None
    """Negative: the signal that ended it."""

    def poll(self) -> int | None:
        """Look whether it has ended, and return its exit code."""
        self.image.look()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end.

        Raises
        ------
        subprocess.TimeoutExpired
            If it has not ended after `timeout` seconds.
        """
        give_up_at_s = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if timeout is not None and give_up_at_s is not None and time.monotonic() >= give_up_at_s:
                raise subprocess.TimeoutExpired(f"worker {self.pid}", timeout)
            time.sleep(POLL_S)
        return code

    def terminate(self) -> None:
        """Ask it to end."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)


@dataclass(kw_only=True)
class WorkerImage:
    """The process that workers are forked from, seen from the outside."""

    ledger: ProcessLedger
    process: subprocess.Popen[bytes]
    pipe: Connection
    _running: dict[int, ForkedWorker] = field(default_factory=dict, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)

    @classmethod
    def start(cls, *, ledger: ProcessLedger, env: Mapping[str, str], log_path: Path) -> WorkerImage:
        """Start the image; it imports in its own time, and the first boot waits for that."""
        ours, theirs = multiprocessing.Pipe()
        command = [sys.executable, "-c", f"from local.worker_image import serve_forks; serve_forks({theirs.fileno()})"]
        process = ledger.spawn("worker-image", command, env=env, log_path=log_path, pass_fds=[theirs.fileno()])
        theirs.close()
        return cls(ledger=ledger, process=process, pipe=ours)

    def boot(self, name: str, env: Mapping[str, str], log_path: Path) -> ForkedWorker:
        """Fork a worker with environment `env` and its output appended to `log_path`.

        Raises
        ------
        RuntimeError
            If the image has ended.
        """
        log_path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with self._lock:
                self.pipe.send((dict(env), str(log_path)))
                while (pid := self._receive()) is None:
                    pass
                worker = self._running[pid] = ForkedWorker(image=self, pid=pid)
        except (EOFError, OSError) as error:
            raise RuntimeError(f"no worker can boot: the image's process has ended, see worker-image.log next to {log_path}") from error
        self.ledger.record(name, pid)
        return worker

    def look(self) -> None:
        """Note which workers have ended."""
        with self._lock:
            try:
                while self.pipe.poll():
                    self._receive()
            except (EOFError, OSError):  # nobody would learn of their ends any more
                for worker in self._running.values():
                    with suppress(ProcessLookupError):
                        os.kill(worker.pid, signal.SIGKILL)
                    worker.returncode = -signal.SIGKILL
                self._running.clear()

    def close(self) -> None:
        """End the image; workers are to be ended first."""
        self.ledger.stop(self.process, grace_s=STOP_GRACE_S)
        self.pipe.close()

    def _receive(self) -> int | None:
        """Take the next message: the process id of a worker that was booted, or None for the end of one."""
        pid, code = self.pipe.recv()
        if code is None:
            return int(pid)
        if pid in self._running:
            self._running.pop(pid).returncode = code
        return None


def serve_forks(descriptor: int) -> None:
    """Import, then fork as asked and tell of each end, until the other end of the pipe closes."""
    pipe = Connection(descriptor)
    for module in PRELOADED:
        importlib.import_module(module)
    gc.collect()
    gc.freeze()  # what all forks share stays shared
    pids: set[int] = set()
    with suppress(EOFError, OSError):
        while True:
            if pipe.poll(POLL_S):
                env, log_path = pipe.recv()
                pid = os.fork()
                if pid == 0:
                    pipe.close()
                    _become_worker(env, log_path)
                pids.add(pid)
                pipe.send((pid, None))
            for pid in list(pids):
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    pids.discard(pid)
                    pipe.send((pid, os.waitstatus_to_exitcode(status)))


def _become_worker(env: Mapping[str, str], log_path: str) -> None:
    """Turn a fork into what `python -m local.worker` is; never returns."""
    try:
        os.setsid()  # Ctrl-C in the terminal reaches only the system, so that its stop stays orderly
        os.nice(NICENESS)
        log = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.environ.clear()
        os.environ.update(env)
        importlib.import_module("local.worker").main()
    except BaseException:  # noqa: BLE001  # the process's entry point
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(1)
