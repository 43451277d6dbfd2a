from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from markserve.adapters.memory import MemoryWorkQueue
from markserve.adapters.sqs import SqsWorkQueue
from markserve.errors import PayloadTooLarge
from markserve.messages import InferenceRequest, decode, encode
from markserve.ports import WorkQueue
from tests.builders import a_request, a_tensor
from tests.contract.conftest import BACKENDS


@dataclass
class Scene:
    """A queue with its back doors."""

    queue: WorkQueue
    send_raw: Callable[[str], object]
    dead_letters: Callable[[], list[tuple[str, str]]]
    """(body, reason)"""
    calls: Callable[[], int]
    let_pass: Callable[[float], object]
    """Seconds of the queue's clock."""


VISIBILITY_S = 2
"""As short as SQS's whole seconds allow, and a second to look before the end: one of the clocks is real."""


@pytest.fixture(params=BACKENDS)
def scene(request: pytest.FixtureRequest) -> Scene:
    return memory_scene() if request.param == "memory" else sqs_scene(request.getfixturevalue("aws")("sqs"))


@pytest.fixture(params=BACKENDS)
def brief(request: pytest.FixtureRequest) -> Scene:
    """A queue whose visibility timeout ends within the test."""
    return memory_scene(VISIBILITY_S) if request.param == "memory" else sqs_scene(request.getfixturevalue("aws")("sqs"), VISIBILITY_S)


def memory_scene(visibility_s: float = 30.0) -> Scene:
    now_s = [0.0]
    queue = MemoryWorkQueue(now=lambda: now_s[0], visibility_s=visibility_s)

    def let_pass(seconds: float) -> None:
        now_s[0] += seconds

    return Scene(
        queue=queue,
        send_raw=lambda body: queue.send_raw(body.encode()),
        dead_letters=lambda: [(letter.body.decode(), letter.reason) for letter in queue.dead_letters],
        calls=lambda: queue.calls,
        let_pass=let_pass,
    )


def sqs_scene(client: Any, visibility_s: int = 30) -> Scene:
    attributes = {"VisibilityTimeout": str(visibility_s)}
    work_url, dead_url = (client.create_queue(QueueName=name, Attributes=attributes)["QueueUrl"] for name in ("work", "work-dlq"))
    queue = SqsWorkQueue(client, work_url, dead_letter_queue_url=dead_url)

    def dead_letters() -> list[tuple[str, str]]:
        messages = client.receive_message(QueueUrl=dead_url, MaxNumberOfMessages=10, MessageAttributeNames=["All"]).get("Messages", [])
        assert all(message["MessageAttributes"]["source_queue_url"]["StringValue"] == work_url for message in messages)
        return [(message["Body"], message["MessageAttributes"]["reason"]["StringValue"]) for message in messages]

    return Scene(
        queue=queue,
        send_raw=lambda body: client.send_message(QueueUrl=work_url, MessageBody=body),
        dead_letters=dead_letters,
        calls=lambda: queue.calls,
        let_pass=time.sleep,
    )


def numbered(count: int) -> list[InferenceRequest]:
    return [a_request(request_id=f"request-{i:02d}") for i in range(count)]


def test_work_queue_delivers_what_was_sent(scene: Scene) -> None:
    sent = a_request(spill_at_s=None, deadline_at_s=None, trace_id="trace")

    scene.queue.send(sent)
    received = scene.queue.receive(max_messages=10, wait_s=0.0)

    assert [(one.request, one.receive_count) for one in received] == [(sent, 1)]


def test_work_queue_returns_nothing_when_it_is_empty(scene: Scene) -> None:
    assert scene.queue.receive(max_messages=10, wait_s=0.0) == []
    assert scene.queue.depth() == 0


def test_work_queue_hides_a_message_while_it_is_being_worked_on(scene: Scene) -> None:
    scene.queue.send(a_request())

    scene.queue.receive(max_messages=1, wait_s=0.0)

    assert scene.queue.receive(max_messages=1, wait_s=0.0) == []
    assert scene.queue.depth() == 0


def test_work_queue_receives_ten_messages_at_most(scene: Scene) -> None:
    for request in numbered(12):
        scene.queue.send(request)

    first = scene.queue.receive(max_messages=50, wait_s=0.0)
    second = scene.queue.receive(max_messages=50, wait_s=0.0)

    assert (len(first), len(second)) == (10, 2)
    assert sorted(one.request.request_id for one in first + second) == [request.request_id for request in numbered(12)]


def test_work_queue_forgets_messages_when_they_are_deleted(scene: Scene) -> None:
    for request in numbered(12):
        scene.queue.send(request)
    received = [one for _ in range(2) for one in scene.queue.receive(max_messages=10, wait_s=0.0)]
    calls_before = scene.calls()

    scene.queue.delete([one.receipt for one in received])

    assert scene.calls() - calls_before == 2
    scene.queue.release([one.receipt for one in received])
    assert scene.queue.receive(max_messages=10, wait_s=0.0) == []


def test_work_queue_makes_no_call_when_there_is_nothing_to_delete(scene: Scene) -> None:
    scene.queue.delete([])
    scene.queue.release([])
    scene.queue.extend([], for_s=30.0)

    assert scene.calls() == 0


def test_work_queue_redelivers_and_counts_when_a_message_is_released(scene: Scene) -> None:
    scene.queue.send(a_request())
    (first,) = scene.queue.receive(max_messages=1, wait_s=0.0)

    scene.queue.release([first.receipt])
    (second,) = scene.queue.receive(max_messages=1, wait_s=0.0)

    assert (second.request, second.receive_count) == (first.request, 2)


def test_work_queue_says_how_long_it_hides_a_message(brief: Scene) -> None:
    assert brief.queue.visibility_timeout_s() == VISIBILITY_S


def test_work_queue_hides_a_message_for_longer_when_it_is_extended(brief: Scene) -> None:
    for request in numbered(2):
        brief.queue.send(request)
    kept, left = brief.queue.receive(max_messages=10, wait_s=0.0)

    brief.queue.extend([kept.receipt], for_s=30.0)
    brief.let_pass(VISIBILITY_S + 0.1)
    received = brief.queue.receive(max_messages=10, wait_s=0.0)

    assert [(one.request, one.receive_count) for one in received] == [(left.request, 2)]


def test_work_queue_extends_nothing_that_is_deleted(scene: Scene) -> None:
    scene.queue.send(a_request())
    (received,) = scene.queue.receive(max_messages=10, wait_s=0.0)
    scene.queue.delete([received.receipt])

    scene.queue.extend([received.receipt], for_s=60.0)

    assert scene.queue.receive(max_messages=10, wait_s=0.0) == []


def test_memory_queue_extends_nothing_that_is_visible_again() -> None:
    """As SQS: MessageNotInflight. moto extends it all the same."""
    scene = memory_scene(VISIBILITY_S)
    scene.queue.send(a_request())
    (late,) = scene.queue.receive(max_messages=10, wait_s=0.0)
    scene.let_pass(VISIBILITY_S + 0.1)

    scene.queue.extend([late.receipt], for_s=30.0)
    (again,) = scene.queue.receive(max_messages=10, wait_s=0.0)
    scene.queue.extend([late.receipt], for_s=30.0)  # and nothing that somebody else holds
    scene.let_pass(VISIBILITY_S + 0.1)

    assert (again.receive_count, scene.queue.depth()) == (2, 1)


def test_work_queue_extends_ten_messages_a_call(scene: Scene) -> None:
    for request in numbered(12):
        scene.queue.send(request)
    received = [one for _ in range(2) for one in scene.queue.receive(max_messages=10, wait_s=0.0)]
    calls_before = scene.calls()

    scene.queue.extend([one.receipt for one in received], for_s=60.0)

    assert scene.calls() - calls_before == 2


def test_work_queue_counts_visible_messages_as_its_depth(scene: Scene) -> None:
    for request in numbered(3):
        scene.queue.send(request)

    assert scene.queue.depth() == 3


def test_work_queue_buries_a_rejected_message_with_its_reason(scene: Scene) -> None:
    scene.queue.send(a_request())
    (received,) = scene.queue.receive(max_messages=1, wait_s=0.0)

    scene.queue.reject(received, reason="crashed its worker twice")

    ((body, reason),) = scene.dead_letters()
    assert decode(body, InferenceRequest) == a_request()
    assert reason == "crashed its worker twice"
    assert scene.queue.receive(max_messages=1, wait_s=0.0) == []


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("not json", "not a valid InferenceRequest"),
        ('{"request_id": 7}', "not a valid InferenceRequest"),
        (encode(a_request(schema_version=99)).decode(), "schema_version 99"),
    ],
)
def test_work_queue_buries_a_message_that_it_cannot_read_and_delivers_the_others(scene: Scene, body: str, reason: str) -> None:
    scene.send_raw(body)
    scene.queue.send(a_request())

    received = [one for _ in range(2) for one in scene.queue.receive(max_messages=10, wait_s=0.0)]

    assert [one.request for one in received] == [a_request()]
    ((dead_body, dead_reason),) = scene.dead_letters()
    assert dead_body == body
    assert reason in dead_reason


def test_work_queue_refuses_a_request_that_does_not_fit(scene: Scene) -> None:
    with pytest.raises(PayloadTooLarge, match="exceeds the queue's"):
        scene.queue.send(a_request(inputs=(a_tensor(values=(0.0,) * 200_000),)))

    assert scene.queue.depth() == 0


def test_memory_queue_redelivers_when_the_visibility_timeout_ends() -> None:
    now_s = [0.0]
    queue = MemoryWorkQueue(now=lambda: now_s[0], visibility_s=30.0, max_receive_count=2)
    queue.send(a_request())

    received = []
    for instant in (0.0, 29.9, 30.0, 60.0):
        now_s[0] = instant
        received.append([one.receive_count for one in queue.receive(max_messages=1, wait_s=0.0)])

    assert received == [[1], [], [2], []]
    assert [letter.reason for letter in queue.dead_letters] == ["received 2 times without an answer"]
