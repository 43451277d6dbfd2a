"""When to stop launching for a model whose instances never come to serve.

A model that cannot be loaded, or that takes its worker down before the first answer, would be bought for again and again:
each launch fails, the demand is still there, the next plan launches anew. After a few such launches in a row the model is
left alone for a while, longer after each further failure, as a circuit breaker does. Its requests are spilled meanwhile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markserve.core.types import Instance, InstanceState

FAILURES = 3
"""Launches in a row that ended before they served; two may be the cloud's bad luck."""
FIRST_PAUSE_S = 60.0
LONGEST_PAUSE_S = 3600.0
"""Then one attempt an hour: what was wrong may have been put right without a new version."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Quarantine:
    """Why a model is not launched for, and until when."""

    until_s: float
    failures: int
    reason: str


def quarantine(instances: Sequence[Instance], *, version_at_s: float, now_s: float) -> Quarantine | None:
    """Decide whether to launch for a model; None when nothing speaks against it.

    Counts the latest launches that failed without ever serving, up to one that served. From `FAILURES` on, no launch for
    `FIRST_PAUSE_S` after the last failure, twice as long after each further one, at most `LONGEST_PAUSE_S`. Instances that
    the cloud took away before they served count too: on EC2 a worker that crashes powers its machine off, which looks the
    same; a spot storm that does this three times in a row costs a pause of a minute.

    Parameters
    ----------
    instances
        The model's, ended ones included.
    version_at_s
        When the live version was registered: a new version has a clean record.

    Examples
    --------
    >>> quarantine([], version_at_s=0.0, now_s=100.0) is None
    True
    """
    launches = sorted((i for i in instances if i.requested_at_s >= version_at_s), key=lambda i: (i.requested_at_s, i.instance_id))
    failed: list[Instance] = []
    for instance in reversed(launches):
        if instance.serving_at_s is not None:
            break
        if instance.state is InstanceState.FAILED:  # one under way, or given back unused, says nothing
            failed.append(instance)
    if len(failed) < FAILURES:
        return None
    latest = max(failed, key=lambda i: i.terminated_at_s or i.requested_at_s)
    pause_s = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** (len(failed) - FAILURES))
    until_s = (latest.terminated_at_s or latest.requested_at_s) + pause_s
    if now_s >= until_s:
        return None
    reason = (
        f"quarantined: its last {len(failed)} launches ended before they served (the latest: {latest.end_reason or 'no reason known'}); "
        f"not launched for another {until_s - now_s:.0f} s, or until a new version is registered"
    )
    return Quarantine(until_s=until_s, failures=len(failed), reason=reason)
