"""Whatever arrives on a queue: what is bad is told in one line and set aside, the rest is served."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from markserve.messages import InferenceRequest, MetricsBatch, encode
from markserve.triggers import QueueMessage
from tests.builders import NOW_S, a_metrics_batch, a_request
from tests.functions import test_ingest
from tests.fuzz.handlers import listening
from tests.fuzz.profiles import fuzz
from tests.fuzz.strategies import BELOW_TEXT, DEEP_TEXT, bodies, is_readable
from tests.worker.rig import Rig


@fuzz(60)
@given(st.lists(bodies(a_metrics_batch()), max_size=6))
@example([DEEP_TEXT, BELOW_TEXT])
def test_ingest_sets_aside_exactly_what_it_cannot_read(bad: list[str]) -> None:
    stack = test_ingest.Stack()
    reports = [QueueMessage(message_id=f"m-{n}", body=body) for n, body in enumerate(bad)]
    good = QueueMessage(message_id="good", body=encode(a_metrics_batch(batch_id="the good one")).decode())

    with listening() as lines:
        result = stack.ingest(*reports, good)

    assert result.failed_ids == [r.message_id for r in reports if not is_readable(r.body, MetricsBatch)]
    assert [line.__dict__["message_id"] for line in lines if line.getMessage() == "refused"] == result.failed_ids
    assert result.applied + result.repeated + len(result.failed_ids) == len(reports) + 1
    assert stack.arrivals()[NOW_S] >= 10


@fuzz(60)
@given(st.lists(bodies(a_request()), max_size=4))
@example([DEEP_TEXT, BELOW_TEXT])
def test_worker_buries_exactly_what_it_cannot_read_and_serves_the_rest(bad: list[str]) -> None:
    rig = Rig()
    for body in bad:
        rig.queue.send_raw(body.encode(errors="surrogatepass"))
    rig.send_async("good")

    with listening() as lines:
        for _ in range(12):
            rig.receive()
            while rig.run_one():
                pass
            rig.clock.pause(0.3)
        rig.engine.tidy()

    answer = rig.answer("good")
    assert answer is not None
    assert answer.error is None
    unreadable = sum(not is_readable(body, InferenceRequest) for body in bad)
    assert len(rig.queue.dead_letters) == unreadable
    assert all(letter.reason for letter in rig.queue.dead_letters)
    assert [line.__dict__["refused"] for line in lines if line.getMessage() == "refused"] == ["work message"] * unreadable
