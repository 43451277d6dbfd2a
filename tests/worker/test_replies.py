"""Answers on their way out: how they share calls, and what becomes of those that cannot be stored."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from markserve.adapters.memory import MemoryResultStore
from markserve.errors import Throttled, Transient
from markserve.messages import Answer
from markserve.ports import ReceivedRequest
from tests.builders import a_request, a_tensor, an_answer
from tests.worker.rig import Rig
from worker.mailbox import PARCEL_ANSWERS, PARCEL_BYTES, STORE_RETRY_S, Finished, parcels


def finished(request_id: str, output_bytes: int = 4) -> Finished:
    request = a_request(request_id=request_id)
    outputs = (a_tensor(values=(0.0,) * (output_bytes // 4)),)
    return Finished(
        received=ReceivedRequest(receipt=request_id, request=request, receive_count=1),
        answer=an_answer(request_id=request_id, outputs=outputs),
    )


@pytest.mark.parametrize(
    ("output_bytes", "sizes"),
    [
        ([], []),
        ([4], [1]),
        ([4] * 60, [PARCEL_ANSWERS, PARCEL_ANSWERS, 10]),
        ([PARCEL_BYTES // 2] * 5, [2, 2, 1]),
        ([4, 2 * PARCEL_BYTES, 4, 4], [1, 1, 2]),
    ],
)
def test_small_answers_share_a_call_and_large_ones_do_not(output_bytes: list[int], sizes: list[int]) -> None:
    answers = [finished(str(number), size) for number, size in enumerate(output_bytes)]

    divided = list(parcels(answers))

    assert [len(parcel) for parcel in divided] == sizes
    assert [one for parcel in divided for one in parcel] == answers


class ThrottledResults(MemoryResultStore):
    """Refuses some requests a number of times."""

    def __init__(self, refusals: dict[str, int]) -> None:
        super().__init__()
        self.refusals = refusals
        self.calls: list[list[str]] = []

    def put_answers(self, answers: Sequence[Answer], *, expires_at_s: float, accepted_as: Sequence[str] = ()) -> list[bool | Transient]:
        self.calls.append([answer.request_id for answer in answers])
        return super().put_answers(answers, expires_at_s=expires_at_s, accepted_as=accepted_as)

    def put_answer(self, answer: Answer, *, expires_at_s: float, accepted_as: str = "") -> bool:
        if self.refusals.get(answer.request_id, 0):
            self.refusals[answer.request_id] -= 1
            raise Throttled("slow down")
        return super().put_answer(answer, expires_at_s=expires_at_s, accepted_as=accepted_as)


def answered(results: ThrottledResults, *request_ids: str) -> Rig:
    """A worker that has dealt with requests, and looked a last time for what is to be deleted."""
    rig = Rig()
    rig.results = results
    rig.restart()
    for request_id in request_ids:
        rig.send_async(request_id)
    rig.receive()
    rig.run_one()
    rig.engine.tidy()
    rig.clock.pause(60.0)
    return rig


def test_only_what_was_refused_is_tried_again() -> None:
    results = ThrottledResults({"b": 2})

    rig = answered(results, "a", "b", "c")

    assert results.calls == [["a", "b", "c"], ["b"], ["b"]]
    assert rig.engine.stats().completed == 3
    assert rig.queue.depth() == 0


def test_only_the_message_of_an_answer_that_was_never_stored_comes_back() -> None:
    results = ThrottledResults({"b": len(STORE_RETRY_S) + 1})

    rig = answered(results, "a", "b", "c")

    assert rig.engine.stats().completed == 2
    assert rig.queue.depth() == 1
    assert [rig.answer(name) is not None for name in "abc"] == [True, False, True]
