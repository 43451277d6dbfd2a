"""What AWS may answer, and the error class that tells the caller what to do next."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError
from botocore.stub import Stubber

from markserve.adapters.dynamodb import CONFLICT_ATTEMPTS, Table
from markserve.adapters.dynamodb_results import DynamoResultStore
from markserve.adapters.eventbridge import EventBridgePublisher
from markserve.adapters.s3 import S3BlobStore
from markserve.adapters.sqs import SqsMetricsSink, SqsWorkQueue
from markserve.errors import ConfigurationError, DependencyUnavailable, MarkserveError, Throttled
from markserve.messages import InstanceReady
from tests.builders import NOW_S, a_metrics_batch, a_request

DEAD_URL = "http://127.0.0.1:1/dlq"
QUEUE_URL = "http://127.0.0.1:1/work"
READY = InstanceReady(model="digits", instance_id="i-1", at_s=NOW_S)

Clients = Callable[[str], Any]


@pytest.mark.parametrize(
    ("code", "status", "raised"),
    [
        ("ProvisionedThroughputExceededException", 400, Throttled),
        ("ThrottlingException", 400, Throttled),
        ("InternalServerError", 500, DependencyUnavailable),
        ("SomethingNew", 503, DependencyUnavailable),
        ("AccessDeniedException", 400, ConfigurationError),
        ("ResourceNotFoundException", 400, ConfigurationError),
    ],
)
@pytest.mark.parametrize("operation", ["get_item", "put_item", "update_item", "delete_item", "query", "transact_write_items"])
def test_table_translates_a_refused_call(aws: Clients, operation: str, code: str, status: int, raised: type[MarkserveError]) -> None:
    client = aws("dynamodb")
    table = Table(client, "results", sleep=lambda _: None)
    calls: dict[str, Callable[[], object]] = {
        "get_item": lambda: table.get({"pk": "p", "sk": "s"}),
        "put_item": lambda: table.put({"pk": {"S": "p"}}),
        "update_item": lambda: table.update({"pk": "p"}, "SET a = :a", a={"S": "x"}),
        "delete_item": lambda: table.delete({"pk": "p"}),
        "query": lambda: list(table.query("p")),
        "transact_write_items": lambda: table.transact([table.put_operation({"pk": {"S": "p"}})]),
    }

    with Stubber(client) as stub:
        stub.add_client_error(operation, service_error_code=code, http_status_code=status)
        with pytest.raises(raised, match="results") as translated:
            calls[operation]()

    assert isinstance(translated.value.__cause__, ClientError)


def cancel(stub: Stubber, *reasons: str) -> None:
    stub.add_client_error(
        "transact_write_items",
        service_error_code="TransactionCanceledException",
        http_status_code=400,
        modeled_fields={"CancellationReasons": [{"Code": reason} for reason in reasons]},
    )


def test_transaction_is_tried_again_when_another_one_holds_its_items(aws: Clients) -> None:
    pauses: list[float] = []
    client = aws("dynamodb")
    table = Table(client, "windows", sleep=pauses.append)

    with Stubber(client) as stub:
        cancel(stub, "None", "TransactionConflict")
        cancel(stub, "ThrottlingError")
        stub.add_response("transact_write_items", {})
        assert table.transact([table.put_operation({"pk": {"S": "p"}})])

    assert len(pauses) == 2
    assert 0 <= pauses[0] <= 0.02
    assert 0 <= pauses[1] <= 0.04


def test_transaction_raises_throttled_when_conflicts_do_not_end(aws: Clients) -> None:
    client = aws("dynamodb")
    table = Table(client, "windows", sleep=lambda _: None)

    with Stubber(client) as stub:
        for _ in range(CONFLICT_ATTEMPTS):
            cancel(stub, "TransactionConflict")
        with pytest.raises(Throttled, match="windows"):
            table.transact([table.put_operation({"pk": {"S": "p"}})])
        stub.assert_no_pending_responses()


def test_transaction_is_not_tried_again_when_a_condition_fails(aws: Clients) -> None:
    client = aws("dynamodb")
    table = Table(client, "windows", sleep=lambda _: None)

    with Stubber(client) as stub:
        cancel(stub, "TransactionConflict", "ConditionalCheckFailed")
        assert not table.transact([table.put_operation({"pk": {"S": "p"}})])


def test_transaction_raises_configuration_error_when_an_item_is_invalid(aws: Clients) -> None:
    client = aws("dynamodb")
    table = Table(client, "windows", sleep=lambda _: None)

    with Stubber(client) as stub:
        cancel(stub, "None", "ValidationError")
        with pytest.raises(ConfigurationError, match="windows"):
            table.transact([table.put_operation({"pk": {"S": "p"}})])


def test_results_store_raises_dependency_unavailable_when_nobody_answers() -> None:
    config = Config(connect_timeout=0.2, retries={"total_max_attempts": 1})
    client = boto3.client("dynamodb", region_name="us-east-1", endpoint_url="http://127.0.0.1:1", config=config)

    with pytest.raises(DependencyUnavailable, match="results did not answer"):
        DynamoResultStore(client, "results").get("request-1")
    client.close()


@pytest.mark.parametrize(
    ("code", "status", "raised"),
    [
        ("RequestThrottled", 403, Throttled),
        ("OverLimit", 403, Throttled),
        ("InternalError", 500, DependencyUnavailable),
        ("QueueDoesNotExist", 400, ConfigurationError),
    ],
)
def test_queues_translate_a_refused_send(aws: Clients, code: str, status: int, raised: type[MarkserveError]) -> None:
    client = aws("sqs")
    queue, sink = SqsWorkQueue(client, QUEUE_URL, dead_letter_queue_url=DEAD_URL), SqsMetricsSink(client, QUEUE_URL)

    sends: list[Callable[[], None]] = [lambda: queue.send(a_request()), lambda: sink.send(a_metrics_batch())]
    with Stubber(client) as stub:
        for send in sends:
            stub.add_client_error("send_message", service_error_code=code, http_status_code=status)
            with pytest.raises(raised, match=QUEUE_URL):
                send()


def test_queue_raises_when_a_batch_fails_in_part_unless_the_receipt_expired(aws: Clients) -> None:
    client = aws("sqs")
    queue = SqsWorkQueue(client, QUEUE_URL, dead_letter_queue_url=DEAD_URL)
    expired = {"Id": "0", "Code": "ReceiptHandleIsInvalid", "SenderFault": True}
    failed = {"Id": "1", "Code": "InternalError", "SenderFault": False}

    with Stubber(client) as stub:
        stub.add_response("delete_message_batch", {"Successful": [], "Failed": [expired]})
        queue.delete(["r-0", "r-1"])
        stub.add_response("delete_message_batch", {"Successful": [], "Failed": [expired, failed]})
        with pytest.raises(DependencyUnavailable, match="failed 1 entries of a batch: InternalError"):
            queue.delete(["r-0", "r-1"])


@pytest.mark.parametrize(
    ("code", "status", "raised"),
    [("SlowDown", 503, Throttled), ("InternalError", 500, DependencyUnavailable), ("AccessDenied", 403, ConfigurationError)],
)
def test_blob_store_translates_a_refused_call(aws: Clients, code: str, status: int, raised: type[MarkserveError]) -> None:
    client = aws("s3")
    store = S3BlobStore(client, "artefacts")

    with Stubber(client) as stub:
        for operation, call in (("get_object", lambda: store.get("k")), ("put_object", lambda: store.put("k", b""))):
            stub.add_client_error(operation, service_error_code=code, http_status_code=status)
            with pytest.raises(raised, match="s3://artefacts/k"):
                call()


@pytest.mark.parametrize(
    ("code", "raised"),
    [("ThrottlingException", Throttled), ("InternalFailure", DependencyUnavailable), ("MalformedDetail", ConfigurationError)],
)
def test_event_publisher_raises_when_the_bus_refuses_the_entry(aws: Clients, code: str, raised: type[MarkserveError]) -> None:
    client = aws("events")
    publisher = EventBridgePublisher(client, "markserve-bus")

    with Stubber(client) as stub:
        stub.add_response("put_events", {"FailedEntryCount": 1, "Entries": [{"ErrorCode": code, "ErrorMessage": "from EventBridge"}]})
        with pytest.raises(raised, match="markserve-bus"):
            publisher.publish(READY)
        stub.add_client_error("put_events", service_error_code=code, http_status_code=400)
        with pytest.raises(raised, match="markserve-bus"):
            publisher.publish(READY)
