"""Which held messages have to stay hidden from others for longer.

A queue hides a message for its visibility timeout from each receipt. Whoever holds it past that loses it to somebody else, who takes it
for the leavings of a dead worker. So its timeout is extended, by one call in ten messages, but only where it would be needed: nearly
every message is answered in a small part of its timeout.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

LEAD_SHARE = 1 / 3
"""Share of the timeout before its end in which a message is looked at: of 30 s, ten looks, and a call that is tried three times."""
SLACK_SHARE = 1 / 6
"""What should be done this share of the timeout before its end is left alone: time enough to store its answer and delete it."""
LONGEST_S = 43_200.0
"""SQS hides a message for twelve hours from its receipt, whatever is asked."""
STUCK_FACTOR, STUCK_FLOOR_S = 20.0, 30.0
"""A batch that takes this many times its estimate, and at least this long, will not come back."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldMessage:
    """A message that was received and is not dealt with."""

    receipt: str
    received_at_s: float
    hidden_since_s: float
    """Its receipt, or when it was last extended."""
    finish_at_s: float | None
    """When it should be dealt with; None when nobody knows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """The batch that is being computed."""

    started_at_s: float
    ends_at_s: float
    """By its estimate."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Extension:
    """Messages to hide for `for_s` from now, and why those."""

    receipts: tuple[str, ...]
    for_s: float
    reason: str


def choose_extension(held: Sequence[HeldMessage], *, run: Run | None, now_s: float, visibility_timeout_s: float) -> Extension:
    """Choose the messages whose timeout is to be extended now.

    A message is, once less than `LEAD_SHARE` of its timeout is left, unless it should be dealt with well before the end. An expectation
    that has passed says nothing: the message is still held. It is extended by one timeout and looked at again, not by all
    that it may take, so that a worker that dies holds it back no longer than ever.

    While the running batch is stuck nothing is extended. What a hung worker holds has to go to others, and only the timeout takes it there.

    Examples
    --------
    >>> held = [HeldMessage(receipt="a", received_at_s=0.0, hidden_since_s=0.0, finish_at_s=None)]
    >>> choose_extension(held, run=None, now_s=19.0, visibility_timeout_s=30.0).receipts
    ()
    >>> choose_extension(held, run=None, now_s=20.0, visibility_timeout_s=30.0)
    Extension(receipts=('a',), for_s=30.0, reason='1 of 1 held would be visible within 10 s and may not be done by then')
    """
    if run is not None and now_s - run.started_at_s > max(STUCK_FLOOR_S, STUCK_FACTOR * (run.ends_at_s - run.started_at_s)):
        stuck_s = now_s - run.started_at_s
        return Extension(receipts=(), for_s=0.0, reason=f"a batch has run for {stuck_s:.0f} s: what a stuck worker holds is left to others")
    lead_s = LEAD_SHARE * visibility_timeout_s
    due = tuple(one.receipt for one in held if _is_due(one, now_s, visibility_timeout_s, lead_s))
    if not due:
        return Extension(receipts=(), for_s=0.0, reason=f"none of {len(held)} held outlasts its visibility timeout")
    reason = f"{len(due)} of {len(held)} held would be visible within {lead_s:g} s and may not be done by then"
    return Extension(receipts=due, for_s=visibility_timeout_s, reason=reason)


def _is_due(one: HeldMessage, now_s: float, timeout_s: float, lead_s: float) -> bool:
    visible_at_s = one.hidden_since_s + timeout_s
    if not visible_at_s - lead_s <= now_s < visible_at_s or now_s + timeout_s > one.received_at_s + LONGEST_S:
        return False
    return one.finish_at_s is None or one.finish_at_s <= now_s or one.finish_at_s > visible_at_s - SLACK_SHARE * timeout_s
