"""Who gets a core that front and model share.

A front that woke for every packet would stop the model a thousand times a second, each time with a change of process and of what the
caches hold. As a batch process (Linux's SCHED_BATCH) it preempts nobody: it runs when the model waits for it or at the scheduler's next
tick, a few milliseconds on, and then reads every socket in one go. With a core of its own it is as quick as ever. When the model
has finished it is idle, so the front runs at once, reads all that has arrived, and sends the next batch.
"""

from __future__ import annotations

import os

from markserve.telemetry import logger


def yielding() -> None:
    """Have this process, and what it starts, preempt nobody."""
    _become("SCHED_BATCH")


def interactive() -> None:
    """Have this process scheduled as usual, whoever started it."""
    _become("SCHED_OTHER")


def _become(policy: str) -> None:
    if not hasattr(os, policy):
        return  # not Linux
    try:
        os.sched_setscheduler(0, getattr(os, policy), os.sched_param(0))
    except PermissionError as error:  # a sandbox that forbids it: slower on a shared core, and otherwise the same
        logger.warning("%s refused: %s", policy, error)
