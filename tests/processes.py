"""Looking at processes that may end while one looks."""

from __future__ import annotations

import psutil


def has_ended(process: psutil.Process | int) -> bool:
    """Whether a process, or the one of an id, runs no more; one that nobody has waited for yet has ended, too."""
    try:
        process = psutil.Process(process) if isinstance(process, int) else process
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def command_line(process: psutil.Process) -> str:
    """Its command line; empty if it has ended."""
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""
