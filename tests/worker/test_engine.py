"""The worker's steps, one at a time, on a clock that only the test moves."""

from __future__ import annotations

import pytest

from markserve.core.types import Tier
from markserve.errors import DependencyUnavailable, InferenceFailed
from markserve.payloads import offload_inputs
from tests.builders import NOW_S, a_request, a_tensor, an_answer
from tests.worker.rig import Rig


def test_request_is_answered_and_its_message_deleted_when_run() -> None:
    rig = Rig()
    rig.send("r1")
    rig.clock.pause(0.01)

    rig.receive()
    assert rig.run_one()
    rig.engine.tidy()

    answer = rig.answer("r1")
    assert answer is not None
    assert (answer.tier, answer.instance_id, answer.batch_size) == (Tier.WORKER, "i-0001", 1)
    assert answer.queued_s == pytest.approx(0.01, abs=1e-6)
    assert answer.compute_s == pytest.approx(0.0125, abs=1e-6)
    assert answer.finished_at_s == pytest.approx(NOW_S + 0.0225)
    rig.clock.pause(60.0)
    assert rig.queue.depth() == 0
    assert rig.engine.stats().completed == 1


def test_requests_share_a_batch_when_they_wait_together() -> None:
    rig = Rig()
    for name in ("r1", "r2", "r3"):
        rig.send_async(name)

    rig.receive()
    rig.run_one()

    assert rig.model.batches == [["r1", "r2", "r3"]]
    assert [rig.answer(name).batch_size for name in ("r1", "r2", "r3") if rig.answer(name)] == [3, 3, 3]  # type: ignore[union-attr]


def test_only_the_bad_request_fails_when_the_model_raises_on_it() -> None:
    rig = Rig(failures={"bad": InferenceFailed("the model raised RuntimeError: boom")})
    for name in ("good", "bad"):
        rig.send_async(name)

    rig.receive()
    rig.run_one()

    good, bad = rig.answer("good"), rig.answer("bad")
    assert good is not None
    assert good.error is None
    assert bad is not None
    assert bad.error is not None
    assert (bad.error.status, bad.error.message) == (500, "the model raised RuntimeError: boom")
    stats = rig.engine.stats()
    assert (stats.completed, stats.failed) == (1, 1)


def test_unexpected_exception_is_answered_without_its_text() -> None:
    rig = Rig(failures={"bad": KeyError("/secret/path")})
    rig.send_async("bad")

    rig.receive()
    rig.run_one()

    answer = rig.answer("bad")
    assert answer is not None
    assert answer.error is not None
    assert answer.error.message == "inference failed"


def test_request_is_dropped_uncomputed_when_it_cannot_be_answered_in_time() -> None:
    rig = Rig()
    rig.send("late")
    rig.clock.pause(0.115)

    rig.receive()

    assert not rig.run_one()
    rig.engine.tidy()
    rig.clock.pause(60.0)
    assert rig.model.batches == []
    assert rig.queue.depth() == 0
    assert rig.answer("late") is None
    assert rig.engine.stats().dropped == 1


def test_async_request_is_never_dropped() -> None:
    rig = Rig()
    rig.send_async("whenever")
    rig.clock.pause(3600.0)

    rig.receive()
    rig.run_one()

    assert rig.answer("whenever") is not None


def test_nothing_more_is_received_when_enough_is_held() -> None:
    rig = Rig()
    for number in range(rig.pacing.limits.max_batch_size * 10):
        rig.send_async(f"r{number}")

    for _ in range(50):
        rig.receive()

    in_flight = rig.engine.stats().in_flight
    assert in_flight == rig.pacing.hold_limit
    assert rig.queue.depth() == rig.pacing.limits.max_batch_size * 10 - in_flight


def test_one_batch_is_held_when_there_is_no_backlog_and_several_behind_one() -> None:
    rig = Rig()
    alone = rig.pacing.hold_limit
    rig.send_async("first")
    rig.receive()
    assert rig.pacing.hold_limit == alone

    for number in range(100):
        rig.send_async(f"r{number}")
    rig.receive()
    rig.receive()

    assert rig.pacing.hold_limit == alone + 3 * rig.pacing.limits.max_batch_size


def test_calls_of_the_queue_are_reported_as_the_queue_counts_them() -> None:
    rig = Rig()
    for number in range(10):
        rig.send_async(f"r{number}")

    rig.receive()
    rig.run_one()
    rig.engine.tidy()

    # 10 sends by the test, 1 receive, 1 delete of ten, 1 depth, since a full receive leaves the depth unknown.
    assert rig.engine.stats().sqs_calls == 13


def test_inputs_are_fetched_when_they_travel_by_reference() -> None:
    rig = Rig()
    large = a_request(
        request_id="large", inputs=(a_tensor("image", (1.0,) * 200_000, shape=(1, 200_000)),), deadline_at_s=None, spill_at_s=None
    )
    rig.queue.send(offload_inputs(large, rig.blobs))

    rig.receive()
    rig.run_one()

    answer = rig.answer("large")
    assert answer is not None
    assert answer.outputs_ref is not None  # the memory model echoes its input, too large for the results table
    assert answer.outputs == ()


def test_request_is_answered_with_an_error_when_its_inputs_are_gone() -> None:
    rig = Rig()
    rig.send_async("orphan", inputs=(), inputs_ref="payloads/orphan/inputs")

    rig.receive()

    answer = rig.answer("orphan")
    assert answer is not None
    assert answer.error is not None
    assert "payloads/orphan/inputs" in answer.error.message
    assert rig.model.batches == []


def test_request_is_answered_404_when_its_version_is_unknown() -> None:
    rig = Rig()
    rig.send_async("odd", model_version="9")

    rig.receive()

    answer = rig.answer("odd")
    assert answer is not None
    assert answer.error is not None
    assert answer.error.status == 404


def test_versions_never_share_a_forward_pass() -> None:
    rig = Rig()
    rig.send_async("old", model_version="1")
    rig.send_async("new", model_version="2")

    rig.receive()
    rig.run_one()

    assert rig.model.batches == [["old"], ["new"]]
    assert rig.engine.stats().completed == 2


def test_answer_is_retried_when_the_results_table_does_not_answer() -> None:
    faults: dict[str, Exception] = {"put_answer": DependencyUnavailable("down")}
    rig = Rig(results=faults)
    rig.send_async("r1")
    rig.receive()
    batch = rig.engine.next_batch()
    assert batch is not None
    rig.engine.reply(rig.engine.run(batch))
    rig.engine.tidy()

    assert rig.engine.stats().completed == 0
    faults.clear()
    rig.clock.pause(30.0)
    assert rig.queue.depth() == 1  # not deleted: it comes back
    rig.restart()
    rig.receive()
    rig.run_one()
    assert rig.answer("r1") is not None


def test_message_is_deleted_unrun_when_another_answered_it_before() -> None:
    rig = Rig()
    rig.send_async("r1")
    rig.receive()
    rig.results.put_answer(an_answer(request_id="r1", instance_id="i-other"), expires_at_s=NOW_S + 60)
    rig.restart()
    rig.clock.pause(31.0)

    rig.receive()
    rig.engine.tidy()

    assert rig.model.batches == []
    rig.clock.pause(60.0)
    assert rig.queue.depth() == 0


def test_answer_of_a_slow_worker_changes_nothing_when_the_request_was_answered() -> None:
    rig = Rig()
    rig.send_async("r1")
    rig.receive()
    spilled = an_answer(request_id="r1", tier=Tier.LAMBDA)
    rig.results.put_answer(spilled, expires_at_s=NOW_S + 60)

    rig.run_one()

    assert rig.answer("r1") == spilled


def test_request_runs_alone_when_a_worker_died_holding_it() -> None:
    rig = Rig()
    rig.send_async("suspect")
    rig.receive()
    rig.restart()
    rig.clock.pause(31.0)
    rig.send_async("fresh")

    rig.receive()
    while rig.run_one():
        pass

    assert sorted(rig.model.batches) == [["fresh"], ["suspect"]]


def test_request_goes_to_the_dead_letters_with_the_reason_when_two_workers_died_holding_it() -> None:
    rig = Rig()
    rig.send_async("poison")
    for _ in range(2):
        rig.receive()
        rig.restart()
        rig.clock.pause(31.0)

    rig.receive()

    answer = rig.answer("poison")
    assert answer is not None
    assert answer.error is not None
    assert answer.error.status == 500
    assert rig.model.batches == []
    (dead,) = rig.queue.dead_letters
    assert dead.reason == "not run: 2 workers died or fell silent holding it, the last one running it alone"


def test_only_one_suspect_is_held_so_that_the_innocent_survive_the_guilty() -> None:
    rig = Rig()
    for name in ("poison", "innocent"):
        rig.send_async(name)
    rig.receive()  # both are held when the worker dies
    rig.restart()
    rig.clock.pause(31.0)
    rig.receive()  # one is kept, the other sent again
    assert rig.engine.stats().in_flight == 1
    rig.receive()  # nothing more is taken while a suspect is held
    assert rig.engine.stats().in_flight == 1
    rig.engine.tidy()
    batch = rig.engine.next_batch()
    assert batch is not None
    assert [work.request.request_id for work in batch.items] == ["poison"]
    rig.restart()  # and running it kills the worker again

    rig.clock.pause(31.0)
    for _ in range(4):
        rig.receive()
        rig.run_one()

    poison, innocent = rig.answer("poison"), rig.answer("innocent")
    assert poison is not None
    assert poison.error is not None
    assert innocent is not None
    assert innocent.error is None
    assert len(rig.queue.dead_letters) == 1


def test_message_given_back_by_two_drains_does_not_look_like_poison() -> None:
    rig = Rig()
    rig.send_async("r1")
    for _ in range(3):
        rig.receive()
        rig.engine.drain("spot interruption notice", finish_by_s=rig.clock.now_s + 1.0)
        assert not rig.run_one()
        rig.engine.tidy()
        rig.restart()

    rig.receive()
    assert rig.run_one()

    answer = rig.answer("r1")
    assert answer is not None
    assert answer.error is None
    assert rig.queue.dead_letters == []


def test_poison_that_somebody_answered_meanwhile_is_not_buried() -> None:
    rig = Rig()
    rig.send_async("r-1")
    for _ in range(2):  # two workers die holding it, the second one after it has answered
        rig.queue.receive(max_messages=1, wait_s=0.0)
        rig.clock.pause(31.0)
    rig.results.put_answer(an_answer(request_id="r-1"), expires_at_s=NOW_S + 60)

    rig.receive()
    rig.engine.tidy()

    assert (rig.queue.dead_letters, rig.queue.depth()) == ([], 0)


def test_answer_that_outlives_its_acceptance_is_kept_for_nobody() -> None:
    """A dead letter that is driven back to its queue days later, say: its client can no longer ask for the answer."""
    rig = Rig()
    rig.queue.send(a_request(request_id="old", arrival_at_s=NOW_S - 90_000.0, deadline_at_s=None, spill_at_s=None, body_sha256="abc"))

    rig.receive()
    assert rig.run_one()
    rig.engine.tidy()

    assert rig.results.get("old") is None
    rig.clock.pause(60.0)
    assert rig.queue.depth() == 0
    assert rig.queue.dead_letters == []
