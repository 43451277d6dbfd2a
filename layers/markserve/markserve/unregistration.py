"""Take a model out of service without losing what was accepted for it.

New requests end first, since the record goes first; workers go on until the planner drains them, and by then the work queue is
to be empty. Only then does the queue go, too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from markserve.ports import ModelStore

POLL_S = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Unregistered:
    """What became of a model that was taken out of service."""

    model: str
    waited_s: float
    left: int
    """Messages still in its work queue; 0 when everything accepted is answered."""


def unregister_model(
    model: str,
    *,
    models: ModelStore,
    waiting: Callable[[str], int],
    delete_queue: Callable[[str], None],
    settle_s: float,
    patience_s: float,
    now_s: Callable[[], float],
    sleep: Callable[[float], None],
) -> Unregistered:
    """Remove the model's record, wait until its work queue has been empty for `settle_s`, and delete the queue.

    Parameters
    ----------
    waiting
        Messages in a queue by URL, those being processed included.
    settle_s
        How long fronts may still accept for the model: the age of their cached records, and one request's longest life.
    patience_s
        How long to wait at most; the queue then stays, for whoever wants to look into it.

    Raises
    ------
    UnknownModel
        If there is no such model.
    """
    record = models.get(model)
    models.delete(model)
    started_at_s = empty_since_s = now_s()
    left = 0
    while now_s() - started_at_s < patience_s:
        left = waiting(record.queue_url)
        if left:
            empty_since_s = now_s()
        elif now_s() - empty_since_s >= settle_s:
            delete_queue(record.queue_url)
            break
        sleep(POLL_S)
    return Unregistered(model=model, waited_s=now_s() - started_at_s, left=left)
