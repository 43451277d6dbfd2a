"""Code that stops before each call to the outside, so that somebody else decides who goes on and how the call ends.

A process is ordinary synchronous code in a greenlet. It cannot be copied, so a state is reached again by running the same
choices from the start; everything that a process knows is the calls it made and what they returned, its `history`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

from greenlet import getcurrent, greenlet


@dataclass(frozen=True, kw_only=True, slots=True)
class Pause:
    """What a process is about to do."""

    call: str
    wake_at_s: float | None = None
    """Not before this instant (a sleep)."""
    outcomes: Callable[[], Sequence[Hashable]] = lambda: ("ok",)
    """How the call can end now; empty while it has to wait."""
    may_fail: bool = False


class Process:
    """One actor.

    Attributes
    ----------
    history
        What it saw: its local state, since its code is deterministic.
    result
        What it came to; None while it runs.
    """

    def __init__(self, name: str, body: Callable[[], Hashable]) -> None:
        self.name = name
        self.history: list[Hashable] = []
        self.result: Hashable | None = None
        self.waiting: Pause | None = None
        self._body = body
        self._hub = getcurrent()
        self._greenlet = greenlet(self._run)

    @property
    def state(self) -> Hashable:
        """All that its future depends on, besides what is shared."""
        if self.result is not None:
            return ("ended", self.result)
        assert self.waiting is not None  # noqa: S101 - it runs only within `resume`
        return (tuple(self.history), self.waiting.call, self.waiting.wake_at_s)

    def resume(self, outcome: Hashable = None) -> None:
        """Let it go on to its next pause, or its end."""
        self.waiting = None
        self._greenlet.switch(outcome)

    def kill(self) -> None:
        """End it where it stands, as a crash would."""
        self._greenlet.throw()
        self.waiting = None
        self.result = "crashed"

    def pause(self, pause: Pause) -> Hashable:
        """Stop here, within the process; returns the outcome that was chosen."""
        self.waiting = pause
        return self._hub.switch()  # type: ignore[no-any-return]  # greenlet passes anything

    def _run(self, _: object = None) -> None:
        self.result = self._body()
