"""What the dead-letter queue of requests holds, why, and how to send it again without answering anybody twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import msgspec

from markserve.errors import InvalidRequest, MarkserveError
from markserve.messages import InferenceRequest, decode, encode
from markserve.ports import ModelStore, ResultStore

if TYPE_CHECKING:
    from mypy_boto3_sqs import SQSClient

PER_RECEIVE = 10
HELD_S = 30
"""How long a message is held back from other readers while it is looked at or sent again."""
EMPTY_RECEIVES = 3
"""SQS asks a sample of its servers: one empty answer does not mean that nothing is there."""
GIVEN_UP = "received too often without an answer: its workers died"


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True):
    """A request that was given up."""

    message_id: str
    receipt: str
    body: str
    reason: str
    sent_at_s: float
    """When it was set aside."""
    source_queue_url: str
    request: InferenceRequest | None
    """None when it cannot be read."""

    @property
    def request_id(self) -> str:
        """Id of the request, or of the message where the request cannot be read."""
        return self.request.request_id if self.request else self.message_id


class Redriven(msgspec.Struct, frozen=True, kw_only=True):
    """What came of sending one request again."""

    request_id: str
    sent: bool
    why: str


def read(sqs: SQSClient, queue_url: str) -> list[DeadLetter]:
    """Read every message and hold it back; `release` lets go of those that stay."""
    found: dict[str, DeadLetter] = {}
    empty = 0
    while empty < EMPTY_RECEIVES:
        response = sqs.receive_message(
            QueueUrl=queue_url,
            MaxNumberOfMessages=PER_RECEIVE,
            VisibilityTimeout=HELD_S,
            MessageAttributeNames=["All"],
            MessageSystemAttributeNames=["SentTimestamp"],
        )
        messages = response.get("Messages", [])
        empty = 0 if messages else empty + 1
        for message in messages:
            found[message["MessageId"]] = _letter(message)
    return sorted(found.values(), key=lambda letter: letter.sent_at_s)


def release(sqs: SQSClient, queue_url: str, letters: list[DeadLetter]) -> None:
    """Let other readers see messages again."""
    for batch in _tens(letters):
        entries = [{"Id": str(n), "ReceiptHandle": letter.receipt, "VisibilityTimeout": 0} for n, letter in enumerate(batch)]
        sqs.change_message_visibility_batch(QueueUrl=queue_url, Entries=entries)  # type: ignore[arg-type]  # a list of exactly these


def delete(sqs: SQSClient, queue_url: str, letters: list[DeadLetter]) -> None:
    """Delete messages."""
    for batch in _tens(letters):
        sqs.delete_message_batch(
            QueueUrl=queue_url, Entries=[{"Id": str(n), "ReceiptHandle": letter.receipt} for n, letter in enumerate(batch)]
        )


def redrive(
    sqs: SQSClient, queue_url: str, letters: list[DeadLetter], *, models: ModelStore, results: ResultStore, now_s: Callable[[], float]
) -> list[Redriven]:
    """Send requests to their model's queue again, where somebody still waits for the answer.

    Safe to repeat. A request is sent before it is deleted, so a crash in between leaves it twice, never nowhere; the results table
    takes one answer only. It is marked as suspect, so a worker runs it alone: had it killed one, it takes no others with it.
    What cannot be sent stays where it is.
    """
    done: list[Redriven] = []
    for letter in letters:
        refusal, target_url = _refusal(letter, models, results, now_s())
        if letter.request is not None and refusal is None:
            sqs.send_message(QueueUrl=target_url, MessageBody=encode(letter.request.as_suspect()).decode())
            delete(sqs, queue_url, [letter])
        else:
            release(sqs, queue_url, [letter])
        done.append(Redriven(request_id=letter.request_id, sent=refusal is None, why=refusal or f"sent to {target_url.rsplit('/', 1)[-1]}"))
    return done


def _refusal(letter: DeadLetter, models: ModelStore, results: ResultStore, now_s: float) -> tuple[str | None, str]:
    """Return why a request is not worth sending, and where it would go."""
    request = letter.request
    if request is None:
        return "it cannot be read", ""
    if request.deadline_at_s is not None and request.deadline_at_s < now_s:
        return "its deadline has passed, nobody waits", ""
    stored = results.get(request.request_id)
    if stored is not None and stored.answer is not None:
        error = stored.answer.error
        return f"it was answered: {f'error {error.status}, {error.message}' if error else 'with a result'}", ""
    try:
        queue_url = models.get(request.model, request.model_version).queue_url
    except MarkserveError as error:
        return str(error), ""
    return (None, queue_url) if queue_url else (f"{request.model} has no work queue", "")


def _letter(message: Any) -> DeadLetter:
    attributes = message.get("MessageAttributes", {})
    body = message.get("Body", "")
    reason = attributes.get("reason", {}).get("StringValue")
    try:
        request = decode(body, InferenceRequest)
    except InvalidRequest as error:
        request, reason = None, reason or str(error)
    return DeadLetter(
        message_id=message.get("MessageId", ""),
        receipt=message.get("ReceiptHandle", ""),
        body=body,
        reason=reason or GIVEN_UP,
        sent_at_s=int(message.get("Attributes", {}).get("SentTimestamp", "0")) / 1000,
        source_queue_url=attributes.get("source_queue_url", {}).get("StringValue", ""),
        request=request,
    )


def _tens(letters: list[DeadLetter]) -> Iterator[list[DeadLetter]]:
    for start in range(0, len(letters), PER_RECEIVE):
        yield letters[start : start + PER_RECEIVE]
