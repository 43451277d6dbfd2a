"""What extending visibility guarantees: who holds a message keeps it, who is quick asks for nothing, who hangs or dies loses it."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from markserve.core.visibility import (
    LEAD_SHARE,
    LONGEST_S,
    SLACK_SHARE,
    STUCK_FACTOR,
    STUCK_FLOOR_S,
    HeldMessage,
    Run,
    choose_extension,
)

timeouts = st.floats(min_value=1.0, max_value=600.0)
instants = st.floats(min_value=0.0, max_value=LONGEST_S)


@st.composite
def messages(draw: st.DrawFn) -> HeldMessage:
    received_at_s = draw(instants)
    return HeldMessage(
        receipt=draw(st.sampled_from("abcdefghijklmnop")),
        received_at_s=received_at_s,
        hidden_since_s=received_at_s + draw(st.floats(min_value=0.0, max_value=LONGEST_S)),
        finish_at_s=draw(st.none() | instants),
    )


def held_for(finish_at_s: float | None = None) -> HeldMessage:
    return HeldMessage(receipt="r", received_at_s=0.0, hidden_since_s=0.0, finish_at_s=finish_at_s)


def look(message: HeldMessage, now_s: float, timeout_s: float) -> HeldMessage | None:
    """The message after one look at it; None when it was left alone."""
    extension = choose_extension([message], run=None, now_s=now_s, visibility_timeout_s=timeout_s)
    return replace(message, hidden_since_s=now_s) if extension.receipts else None


@given(timeouts, st.lists(st.floats(min_value=0.01, max_value=0.99), min_size=1, max_size=60), st.none() | instants)
def test_a_message_never_becomes_visible_while_it_is_held_and_looked_at(
    timeout_s: float, gaps: list[float], finish_at_s: float | None
) -> None:
    """Looks come at any time, no further apart than the slack; and the expectation may be as wrong as it likes."""
    message, now_s = held_for(finish_at_s), 0.0
    for gap in gaps:
        now_s += gap * SLACK_SHARE * timeout_s
        assert now_s < message.hidden_since_s + timeout_s
        message = look(message, now_s, timeout_s) or message


@given(timeouts, st.integers(1, 40), st.floats(min_value=0.0, max_value=1.0))
def test_no_call_is_made_for_what_is_dealt_with_in_good_time(timeout_s: float, looks: int, share: float) -> None:
    done_at_s = share * (1 - LEAD_SHARE) * timeout_s * 0.999
    for number in range(looks):
        assert look(held_for(), done_at_s * number / looks, timeout_s) is None
        assert look(held_for(done_at_s), (1 - LEAD_SHARE * number / looks) * done_at_s, timeout_s) is None


@given(timeouts, st.floats(min_value=1 - LEAD_SHARE + 0.001, max_value=0.999), st.floats(min_value=0.0, max_value=2.0))
def test_what_should_be_done_before_the_end_is_left_alone_and_what_should_not_is_kept(timeout_s: float, at: float, finish: float) -> None:
    kept = look(held_for(finish * timeout_s), at * timeout_s, timeout_s) is not None

    assert kept == (finish <= at or finish > 1 - SLACK_SHARE)


@given(st.lists(messages(), max_size=30), timeouts, instants)
def test_only_what_is_held_and_still_hidden_is_extended_by_one_timeout_and_never_beyond_twelve_hours(
    held: list[HeldMessage], timeout_s: float, now_s: float
) -> None:
    extension = choose_extension(held, run=None, now_s=now_s, visibility_timeout_s=timeout_s)

    assert extension.reason
    assert extension.for_s == (timeout_s if extension.receipts else 0.0)
    for receipt in extension.receipts:
        named = [one for one in held if one.receipt == receipt]
        assert any(now_s < one.hidden_since_s + timeout_s and now_s + timeout_s <= one.received_at_s + LONGEST_S for one in named)


@given(st.lists(messages(), max_size=30), timeouts, st.floats(min_value=0.001, max_value=100.0), st.floats(min_value=1.001, max_value=10.0))
def test_nothing_is_extended_while_the_running_batch_is_stuck(
    held: list[HeldMessage], timeout_s: float, takes_s: float, over: float
) -> None:
    now_s = LONGEST_S / 2
    started_at_s = now_s - over * max(STUCK_FLOOR_S, STUCK_FACTOR * takes_s)
    run = Run(started_at_s=started_at_s, ends_at_s=started_at_s + takes_s)

    extension = choose_extension(held, run=run, now_s=now_s, visibility_timeout_s=timeout_s)

    assert extension.receipts == ()
    assert "stuck" in extension.reason


@given(timeouts)
def test_a_slow_batch_is_not_a_stuck_one(timeout_s: float) -> None:
    now_s = 0.9 * timeout_s
    run = Run(started_at_s=0.0, ends_at_s=2 * timeout_s)

    assert choose_extension([held_for(run.ends_at_s)], run=run, now_s=now_s, visibility_timeout_s=timeout_s).receipts == ("r",)


def test_a_queue_that_hides_nothing_is_asked_for_nothing() -> None:
    assert choose_extension([held_for()], run=None, now_s=0.0, visibility_timeout_s=0.0).receipts == ()
