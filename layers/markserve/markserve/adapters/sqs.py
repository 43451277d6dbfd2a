"""`WorkQueue` and `MetricsSink` on SQS.

Every call is billed and counted: `calls` is what the queue cost so far. Bodies are JSON text; a message that cannot
be read goes to the dead-letter queue with the reason as an attribute, where a person can look at it.
"""

from __future__ import annotations

import itertools
import math
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from botocore.exceptions import BotoCoreError, ClientError

from markserve.errors import ConfigurationError, DependencyUnavailable, InvalidRequest, MarkserveError, PayloadTooLarge, Throttled
from markserve.messages import InferenceRequest, MetricsBatch, decode, encode
from markserve.ports import ReceivedRequest
from markserve.refusals import log_refusal

if TYPE_CHECKING:
    from mypy_boto3_sqs import SQSClient
    from mypy_boto3_sqs.literals import QueueAttributeNameType

MAX_BODY_BYTES = 1024 * 1024 - 4096
"""SQS takes 1 MiB, attributes included; 4 KiB stay free for the reason, should it end in the dead-letter queue."""
MAX_BATCH = 10
MAX_REASON_CHARACTERS = 1000
NOT_ALLOWED_IN_ATTRIBUTES = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

THROTTLED = frozenset({"OverLimit", "RequestThrottled", "ThrottlingException", "KmsThrottled", "AWS.SimpleQueueService.OverLimit"})
UNAVAILABLE = frozenset({"InternalError", "InternalFailure", "ServiceUnavailable"})
RECEIPT_EXPIRED = frozenset(
    {"ReceiptHandleIsInvalid", "InvalidParameterValue", "AWS.SimpleQueueService.MessageNotInflight", "MessageNotInflight"}
)

ResultT = TypeVar("ResultT")


class SqsWorkQueue:
    """A model's work queue; safe to share between receiver threads."""

    def __init__(self, client: SQSClient, queue_url: str, *, dead_letter_queue_url: str) -> None:
        self._client = client
        self._queue_url = queue_url
        self._dead_letter_queue_url = dead_letter_queue_url
        self._lock = threading.Lock()
        self._visibility_timeout_s: float | None = None
        self.calls = 0

    def send(self, request: InferenceRequest) -> None:
        body = encode(request)
        if len(body) > MAX_BODY_BYTES:
            raise PayloadTooLarge(f"request of {len(body)} bytes exceeds the queue's {MAX_BODY_BYTES}", field="inputs")
        self._call(lambda: self._client.send_message(QueueUrl=self._queue_url, MessageBody=body.decode()))

    def receive(self, *, max_messages: int, wait_s: float) -> list[ReceivedRequest]:
        # SQS waits whole seconds; rounding down never waits longer than the caller can afford.
        response = self._call(
            lambda: self._client.receive_message(
                QueueUrl=self._queue_url,
                MaxNumberOfMessages=min(max_messages, MAX_BATCH),
                WaitTimeSeconds=min(int(wait_s), 20),
                MessageSystemAttributeNames=["ApproximateReceiveCount"],
            )
        )
        received = [self._read(message) for message in response.get("Messages", ())]
        return [one for one in received if one is not None]

    def _read(self, message: Any) -> ReceivedRequest | None:
        try:
            request = decode(message["Body"], InferenceRequest)
        except InvalidRequest as error:
            log_refusal("work message", error, message_id=message["MessageId"])
            self._bury(message["Body"], message["ReceiptHandle"], reason=str(error))
            return None
        count = int(message["Attributes"]["ApproximateReceiveCount"])
        return ReceivedRequest(receipt=message["ReceiptHandle"], request=request, receive_count=count)

    def delete(self, receipts: Sequence[str]) -> None:
        for entries in _batches(receipts):
            response = self._call(
                lambda entries=entries: self._client.delete_message_batch(  # type: ignore[misc]  # mypy cannot infer a default's type
                    QueueUrl=self._queue_url, Entries=entries
                )
            )
            _raise_for_failed(response, self._queue_url)

    def release(self, receipts: Sequence[str]) -> None:
        self._hide(receipts, 0)

    def extend(self, receipts: Sequence[str], *, for_s: float) -> None:
        self._hide(receipts, math.ceil(for_s))

    def _hide(self, receipts: Sequence[str], for_s: int) -> None:
        for entries in _batches(receipts):
            hidden = [entry | {"VisibilityTimeout": for_s} for entry in entries]
            response = self._call(
                lambda hidden=hidden: self._client.change_message_visibility_batch(  # type: ignore[misc]  # as above
                    QueueUrl=self._queue_url, Entries=hidden
                )
            )
            _raise_for_failed(response, self._queue_url)

    def reject(self, received: ReceivedRequest, *, reason: str) -> None:
        self._bury(encode(received.request).decode(), received.receipt, reason=reason)

    def _bury(self, body: str, receipt: str, *, reason: str) -> None:
        # Sent before deleted: a crash in between leaves the message twice, never nowhere.
        self._call(
            lambda: self._client.send_message(
                QueueUrl=self._dead_letter_queue_url,
                MessageBody=body,
                MessageAttributes={
                    "reason": {"DataType": "String", "StringValue": _attribute(reason)},
                    "source_queue_url": {"DataType": "String", "StringValue": self._queue_url},
                },
            )
        )
        self.delete([receipt])

    def depth(self) -> int:
        return int(self._attributes()["ApproximateNumberOfMessages"])

    def visibility_timeout_s(self) -> float:
        if self._visibility_timeout_s is None:
            self._attributes()
        return self._visibility_timeout_s or 0.0

    def _attributes(self) -> Mapping[QueueAttributeNameType, str]:
        """Read what changes: one call for both, so that whoever asks for the depth now and then learns of a changed timeout."""
        response = self._call(
            lambda: self._client.get_queue_attributes(
                QueueUrl=self._queue_url, AttributeNames=["ApproximateNumberOfMessages", "VisibilityTimeout"]
            )
        )
        self._visibility_timeout_s = float(response["Attributes"]["VisibilityTimeout"])
        return response["Attributes"]

    def _call(self, call: Callable[[], ResultT]) -> ResultT:
        with self._lock:
            self.calls += 1
        try:
            return call()
        except (ClientError, BotoCoreError) as error:
            raise _translate(error, self._queue_url) from error


class SqsMetricsSink:
    """Where fronts report what they saw."""

    def __init__(self, client: SQSClient, queue_url: str) -> None:
        self._client = client
        self._queue_url = queue_url

    def send(self, batch: MetricsBatch) -> None:
        try:
            self._client.send_message(QueueUrl=self._queue_url, MessageBody=encode(batch).decode())
        except (ClientError, BotoCoreError) as error:
            raise _translate(error, self._queue_url) from error


def _batches(receipts: Sequence[str]) -> Iterator[list[Any]]:
    for start in itertools.islice(itertools.count(step=MAX_BATCH), -(-len(receipts) // MAX_BATCH)):
        yield [{"Id": str(i), "ReceiptHandle": receipt} for i, receipt in enumerate(receipts[start : start + MAX_BATCH])]


def _attribute(reason: str) -> str:
    return NOT_ALLOWED_IN_ATTRIBUTES.sub("?", reason)[:MAX_REASON_CHARACTERS] or "no reason given"


def _raise_for_failed(response: Any, queue_url: str) -> None:
    """Raise when entries of a batch failed for a reason that a retry may mend; an expired receipt is not one."""
    failed = [entry for entry in response.get("Failed", ()) if entry["Code"] not in RECEIPT_EXPIRED]
    if failed:
        codes = ", ".join(sorted({entry["Code"] for entry in failed}))
        raise DependencyUnavailable(f"SQS queue {queue_url} failed {len(failed)} entries of a batch: {codes}")


def _translate(error: ClientError | BotoCoreError, queue_url: str) -> MarkserveError:
    if not isinstance(error, ClientError):
        return DependencyUnavailable(f"SQS queue {queue_url} did not answer: {error}")
    code, status = error.response.get("Error", {}).get("Code", ""), error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if code in THROTTLED:
        return Throttled(f"SQS throttled queue {queue_url}: {code}")
    if code in UNAVAILABLE or status >= 500:
        return DependencyUnavailable(f"SQS failed on queue {queue_url}: {code}")
    return ConfigurationError(f"SQS refused an operation on queue {queue_url}: {error}")
