"""A message that is held for longer than its visibility timeout stays with who holds it, unless that one hangs or dies."""

from __future__ import annotations

from markserve.errors import DependencyUnavailable
from tests.worker.rig import Rig

TIMEOUT_S = 30.0


def hold(rig: Rig, seconds: int) -> None:
    """Let time pass with a look at each second, as the worker's thread does."""
    for _ in range(seconds):
        rig.clock.pause(1.0)
        rig.engine.keep_hidden()


def test_a_message_is_still_hidden_when_it_waits_for_longer_than_its_timeout() -> None:
    rig = Rig()
    rig.send_async("patient")
    rig.receive()

    hold(rig, 100)

    assert rig.queue.depth() == 0
    assert rig.run_one()
    rig.engine.tidy()
    assert rig.answer("patient") is not None
    rig.clock.pause(TIMEOUT_S + 1.0)
    assert rig.queue.depth() == 0


def test_a_message_is_extended_once_in_two_thirds_of_its_timeout() -> None:
    rig = Rig()
    for number in range(3):
        rig.send_async(str(number))
    rig.receive()
    calls_before = rig.queue.calls

    hold(rig, 19)
    assert rig.queue.calls == calls_before
    hold(rig, 81)

    # At 20, 40, 60, 80 and 100 s: one call for all of them.
    assert rig.queue.calls - calls_before == 5


def test_no_call_is_made_when_requests_are_answered_in_time() -> None:
    rig = Rig()
    for number in range(50):
        rig.send(str(number))
        rig.receive()
        rig.run_one()
    rig.engine.tidy()
    calls_before = rig.queue.calls

    hold(rig, 60)

    assert rig.queue.calls == calls_before


def test_a_request_that_its_front_gives_up_before_the_timeout_is_not_extended() -> None:
    rig = Rig()
    rig.send("timed", deadline_at_s=rig.clock.now_s + 24.0, spill_at_s=rig.clock.now_s + 22.0)
    rig.receive()
    calls_before = rig.queue.calls

    hold(rig, 21)

    assert rig.queue.calls == calls_before


def test_the_messages_of_a_batch_that_hangs_come_back() -> None:
    rig = Rig()
    rig.send_async("hangs")
    rig.receive()
    assert rig.engine.next_batch() is not None

    hold(rig, 29)
    assert rig.queue.depth() == 0  # slow, as far as anybody knows
    hold(rig, 45)

    assert rig.queue.depth() == 1


def test_the_messages_of_a_worker_that_died_come_back_within_one_timeout() -> None:
    rig = Rig()
    rig.send_async("orphan")
    rig.receive()
    hold(rig, 65)

    rig.restart()
    rig.clock.pause(TIMEOUT_S)

    assert rig.queue.depth() == 1


def test_extension_is_tried_again_when_the_queue_did_not_answer() -> None:
    faults: dict[str, Exception] = {"extend": DependencyUnavailable("down")}
    rig = Rig(queue=faults)
    rig.send_async("patient")
    rig.receive()
    hold(rig, 24)

    faults.clear()
    hold(rig, 20)

    assert rig.queue.depth() == 0


def test_a_message_that_was_given_back_is_let_go() -> None:
    rig = Rig()
    rig.send_async("r1")
    rig.receive()
    rig.engine.drain("spot interruption notice", finish_by_s=rig.clock.now_s + 1.0)
    assert not rig.run_one()
    calls_before = rig.queue.calls

    hold(rig, 60)

    assert (rig.queue.calls, rig.queue.depth()) == (calls_before, 1)
