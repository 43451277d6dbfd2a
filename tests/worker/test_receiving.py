"""When a receiver calls the queue: SQS bills calls, and a poll that comes too early brings one message."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

from tests.worker.rig import Rig


def polls_within(rig: Rig, seconds: float = 0.2) -> bool:
    """Whether a receiver would poll by itself, without anything else happening."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        waiting = pool.submit(rig.engine.wait_for_room)
        try:
            return waiting.result(timeout=seconds)
        except TimeoutError:
            rig.engine.abandon()
            return False


def test_receiver_polls_at_once_when_the_runner_is_idle() -> None:
    assert polls_within(Rig())


def test_receiver_waits_for_the_end_of_a_running_batch_when_the_last_poll_came_back_short() -> None:
    rig = Rig()
    for number in range(8):
        rig.send(str(number))
    rig.receive()
    assert rig.engine.next_batch() is not None
    for _ in range(32):  # the round trip as measured, instead of the first guess
        rig.pacing.observe_round_trip(0.001)

    assert not polls_within(rig)


def test_receiver_polls_in_time_for_the_next_batch() -> None:
    rig = Rig()
    for number in range(8):
        rig.send(str(number))
    rig.receive()
    batch = rig.engine.next_batch()
    assert batch is not None
    rig.clock.pause(rig.pacing.accumulator.estimate.batch_latency_s(batch.size) * (1 - rig.pacing.early_share) - rig.pacing.round_trip_s)

    assert polls_within(rig)


def test_receiver_polls_on_while_a_batch_runs_when_there_is_a_backlog() -> None:
    rig = Rig()
    for number in range(32):
        rig.send(str(number))
    rig.receive()
    rig.receive()
    assert rig.engine.next_batch() is not None

    assert polls_within(rig)


def test_only_as_many_receivers_poll_as_the_service_rate_needs() -> None:
    rig = Rig()
    assert rig.pacing.receivers_wanted >= 1
    release, all_poll = threading.Event(), threading.Barrier(rig.pacing.receivers_wanted + 1)
    receive = rig.queue.receive

    def slow(*, max_messages: int, wait_s: float) -> object:
        all_poll.wait(10)
        release.wait(10)
        return receive(max_messages=max_messages, wait_s=wait_s)

    rig.queue.receive = slow  # type: ignore[method-assign, assignment]  # a poll that is under way
    pollers = [threading.Thread(target=rig.engine.receive) for _ in range(rig.pacing.receivers_wanted)]
    for poller in pollers:
        poller.start()
    all_poll.wait(10)

    was_held_back = not polls_within(rig)
    release.set()
    for poller in pollers:
        poller.join()

    assert was_held_back
