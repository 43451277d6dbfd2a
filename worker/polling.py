"""When to poll the queue: late enough that ten messages come in a call, early enough that the runner does not wait for them.

SQS bills calls, and a long poll returns with the first message: polling on while a batch runs would fetch one message a call. Left
in the queue until shortly before the runner is free, the same messages come ten a call.
"""

from __future__ import annotations

from math import ceil, inf

from markserve.core.visibility import Run
from worker.intake import Work
from worker.pacing import MESSAGES_PER_RECEIVE, Pacing


class Polling:
    """What earlier polls have shown, and when the next one is due. Not thread-safe: the engine's lock guards it."""

    def __init__(self, pacing: Pacing[Work], *, now_s: float) -> None:
        self._pacing = pacing
        self._under_way = 0
        self._emptied_at_s = now_s  # when a poll last left nothing behind
        self._emptied_during: Run | None = None
        self.queue_was_empty = False
        """Whether the last poll came back short."""

    def pause_s(self, run: Run | None, *, room: int, now_s: float) -> float:
        """How long to wait before a poll if nothing changes; infinite until something does.

        With an idle runner, or behind a backlog, it is due at once. While a batch runs, polls are due so that the last of those that the
        next batch is expected to need comes back as the runner is free. One that came back short by then was the last, unless what
        is held is too little for a batch that keeps up: then the runner would wait, and one more is due.
        """
        enough_room = min(MESSAGES_PER_RECEIVE, max(1, self._pacing.hold_limit // 2))
        if room < enough_room or self._under_way >= self._pacing.receivers_wanted:
            return inf
        if run is None or self._pacing.is_backlogged:
            return 0.0
        rate_rps = self._pacing.arrival_rate_rps(now_s)
        free_at_s = run.ends_at_s - self._pacing.early_share * (run.ends_at_s - run.started_at_s)
        was_emptied = self.queue_was_empty and self._emptied_during == run
        is_too_late = not self.queue_was_empty and now_s >= free_at_s
        if not was_emptied and not is_too_late:
            expected = rate_rps * (free_at_s - self._emptied_at_s)
            polls = max(1, ceil(expected / MESSAGES_PER_RECEIVE))
        elif self._pacing.accumulator.keeps_up(rate_rps):
            return inf
        else:
            polls = 1
        return free_at_s - polls * self._pacing.round_trip_s - now_s

    def begin(self) -> None:
        """Note that a poll has begun."""
        self._under_way += 1

    def end(self) -> None:
        """Note that it has ended, whatever came of it."""
        self._under_way -= 1

    def came_back(self, *, is_full: bool, begun_during: Run | None, now_s: float) -> None:
        """Learn from a poll whether it left anything behind."""
        self.queue_was_empty = not is_full
        if not is_full:
            self._emptied_at_s, self._emptied_during = now_s, begun_during

    def hold_off(self) -> None:
        """Note that nobody polls because there is no room: meanwhile the queue fills up."""
        self.queue_was_empty = False
