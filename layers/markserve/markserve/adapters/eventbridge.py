"""`EventPublisher` on EventBridge: detail-type is the message's class name, the detail is the message."""

from __future__ import annotations

from typing import TYPE_CHECKING

from botocore.exceptions import BotoCoreError, ClientError

from markserve.errors import ConfigurationError, DependencyUnavailable, MarkserveError, Throttled
from markserve.messages import Message, encode

if TYPE_CHECKING:
    from mypy_boto3_events import EventBridgeClient

SOURCE = "markserve"
THROTTLED = frozenset({"ThrottlingException", "ThrottledException", "LimitExceededException"})
UNAVAILABLE = frozenset({"InternalException", "InternalFailure", "ServiceUnavailable"})


class EventBridgePublisher:
    """The stack's event bus."""

    def __init__(self, client: EventBridgeClient, bus_name: str) -> None:
        self._client = client
        self._bus_name = bus_name

    def publish(self, event: Message) -> None:
        detail_type = type(event).__name__
        try:
            response = self._client.put_events(
                Entries=[{"EventBusName": self._bus_name, "Source": SOURCE, "DetailType": detail_type, "Detail": encode(event).decode()}]
            )
        except ClientError as error:
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            raise _translate(error.response.get("Error", {}).get("Code", ""), status, self._bus_name) from error
        except BotoCoreError as error:
            raise DependencyUnavailable(f"event bus {self._bus_name} did not answer: {error}") from error
        # PutEvents reports an entry's failure in a successful response.
        if response.get("FailedEntryCount"):
            raise _translate(response["Entries"][0].get("ErrorCode", ""), 200, self._bus_name)


def _translate(code: str, status: int, bus_name: str) -> MarkserveError:
    if code in THROTTLED:
        return Throttled(f"event bus {bus_name} throttled: {code}")
    if code in UNAVAILABLE or status >= 500:
        return DependencyUnavailable(f"event bus {bus_name} failed: {code}")
    return ConfigurationError(f"event bus {bus_name} refused an event: {code}")
