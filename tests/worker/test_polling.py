"""When a poll is due, on values alone: a batch of 20 rows takes 60 ms, a call 10 ms."""

from __future__ import annotations

from functools import partial
from math import inf

import pytest

from markserve.core.profiles import LatencyEstimate
from markserve.core.tunables import Tunables
from markserve.core.visibility import Run
from markserve.messages import InferenceRequest
from tests.builders import NOW_S, a_profile, a_request
from worker.intake import Work
from worker.pacing import EARLY_WINDOW, ROUND_TRIP_WINDOW, Pacing
from worker.polling import Polling

ROUND_TRIP_S = 0.010
about = partial(pytest.approx, abs=1e-6)  # a float holds an instant of today to a fraction of a microsecond
RUN = Run(started_at_s=NOW_S, ends_at_s=NOW_S + 0.060)
NEXT = Run(started_at_s=NOW_S + 0.060, ends_at_s=NOW_S + 0.120)
ROOM = 20


class Scene:
    """A worker that gets `rate_rps` and holds `held` requests."""

    def __init__(self, *, rate_rps: float = 0.0, held: int = 0, early_share: float = 0.0) -> None:
        self.pacing: Pacing[Work] = Pacing(
            estimate=LatencyEstimate(a_profile()), tunables=Tunables(rt_max_s=0.4), max_batch_size=32, spill_reserve_s=0.0
        )
        for _ in range(ROUND_TRIP_WINDOW):
            self.pacing.observe_round_trip(ROUND_TRIP_S)
        for _ in range(EARLY_WINDOW):
            self.pacing.observe_end(Run(started_at_s=0.0, ends_at_s=1.0), now_s=1.0 - early_share)
        for step in range(1000, -1, -1):
            self.pacing.observe_arrivals(round(rate_rps / 10), now_s=NOW_S - step / 10)
        for number in range(held):
            self.pacing.accumulator.add(work(str(number)), size=1, answer_by_s=NOW_S + 10.0, reply_overhead_s=0.0, now_s=NOW_S)
        self.polling = Polling(self.pacing, now_s=NOW_S)

    def due_s(self, run: Run | None = RUN, *, after_s: float = 0.0) -> float:
        """When a poll is due, from the start of the first run, if asked `after_s` from it."""
        return after_s + self.polling.pause_s(run, room=ROOM, now_s=NOW_S + after_s)


def work(request_id: str) -> Work:
    request: InferenceRequest = a_request(request_id=request_id)
    return Work(received=None, request=request, rows=1, received_at_s=NOW_S, is_suspect=False)  # type: ignore[arg-type]  # never looked at


def test_an_idle_runner_is_fed_at_once() -> None:
    assert Scene().due_s(None) == 0.0


def test_nothing_is_due_without_room_or_with_a_call_under_way() -> None:
    scene = Scene()
    assert scene.polling.pause_s(None, room=0, now_s=NOW_S) == inf
    scene.polling.begin()
    assert scene.due_s(None) == inf
    scene.polling.end()
    assert scene.due_s(None) == 0.0


def test_a_poll_comes_back_as_the_runner_is_free() -> None:
    assert Scene().due_s() == about(0.060 - ROUND_TRIP_S)
    assert Scene(early_share=0.1).due_s() == about(0.9 * 0.060 - ROUND_TRIP_S)


@pytest.mark.parametrize(("rate_rps", "polls"), [(100, 1), (150, 1), (250, 2), (400, 3)])
def test_as_many_polls_are_made_as_bring_what_is_expected(rate_rps: float, polls: int) -> None:
    assert Scene(rate_rps=rate_rps).due_s() == about(0.060 - polls * ROUND_TRIP_S)


def test_a_short_poll_is_the_last_of_its_run_when_what_is_held_keeps_up() -> None:
    scene = Scene(rate_rps=100, held=5)
    scene.polling.came_back(is_full=False, begun_during=RUN, now_s=NOW_S + 0.050)

    assert scene.due_s(after_s=0.050) == inf
    assert scene.due_s(NEXT, after_s=0.061) == about(0.120 - ROUND_TRIP_S)


def test_one_more_poll_is_made_when_what_is_held_would_let_the_runner_wait() -> None:
    scene = Scene(rate_rps=250, held=5)
    scene.polling.came_back(is_full=False, begun_during=RUN, now_s=NOW_S + 0.045)

    assert scene.due_s(after_s=0.045) == about(0.060 - ROUND_TRIP_S)


def test_a_full_poll_is_followed_by_another_while_it_can_still_be_of_use() -> None:
    scene = Scene(rate_rps=100, held=10)
    scene.polling.came_back(is_full=True, begun_during=RUN, now_s=NOW_S + 0.055)

    assert scene.due_s(after_s=0.055) <= 0.055
    assert scene.due_s(after_s=0.060) == inf


def test_a_poll_that_began_before_the_run_is_not_the_last_of_it() -> None:
    scene = Scene(rate_rps=100, held=5)
    scene.polling.came_back(is_full=False, begun_during=None, now_s=NOW_S)

    assert scene.due_s(after_s=0.001) == about(0.060 - ROUND_TRIP_S)
