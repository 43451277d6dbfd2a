"""How much memory a run takes, with every process it started."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

import psutil

SAMPLE_EVERY_S = 2.0


def memory_bytes() -> int:
    """Memory of this process and all its descendants; what they share counts once where the system tells (Linux)."""
    own = psutil.Process()
    total = 0
    for process in [own, *own.children(recursive=True)]:
        try:
            detail = process.memory_full_info()
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        total += getattr(detail, "pss", detail.uss)
    return total


@dataclass
class MemoryWatch:
    """Samples memory from `start` to `stop` and keeps the highest."""

    peak_bytes: int = 0
    _done: threading.Event = field(default_factory=threading.Event, init=False)
    _thread: threading.Thread | None = field(default=None, init=False)

    def start(self) -> None:
        """Sample in a thread of its own."""
        self._thread = threading.Thread(target=self._watch, name="memory", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop sampling."""
        self._done.set()
        if self._thread is not None:
            self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(SAMPLE_EVERY_S):
            self.peak_bytes = max(self.peak_bytes, memory_bytes())
