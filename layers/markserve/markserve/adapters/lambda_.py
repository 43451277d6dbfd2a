"""`SpilloverInvoker` on Lambda."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
from botocore.exceptions import BotoCoreError, ClientError

from markserve.errors import ConfigurationError, DependencyUnavailable, InvalidRequest, MarkserveError, PayloadTooLarge, Throttled
from markserve.messages import Answer, InferenceRequest, decode, encode

if TYPE_CHECKING:
    from mypy_boto3_lambda import LambdaClient

WARM_HOLD_S = 1.0
"""How long a warm-up keeps its environment busy, so that the next one of the same round needs another environment."""

THROTTLED = frozenset(
    {
        "TooManyRequestsException",
        "ThrottlingException",
        "EC2ThrottledException",
        "ENILimitReachedException",
        "SubnetIPAddressLimitReachedException",
    }
)
UNAVAILABLE = frozenset({"ServiceException", "ResourceNotReadyException", "ResourceConflictException", "EC2UnexpectedException"})
TOO_LARGE = frozenset({"RequestTooLargeException", "RequestEntityTooLargeException"})


class LambdaSpilloverInvoker:
    """The spillover function; `client` must not retry, since a second run may end after the deadline."""

    def __init__(self, client: LambdaClient, function_name: str, *, warm_hold_s: float = WARM_HOLD_S) -> None:
        self._client = client
        self._function_name = function_name
        self._warm_hold_s = warm_hold_s

    def invoke(self, request: InferenceRequest) -> Answer:
        response = self._call(InvocationType="RequestResponse", Payload=encode(request))
        payload = response["Payload"].read()
        if response.get("FunctionError"):
            raise DependencyUnavailable(f"{self._function_name} failed: {payload[:300].decode(errors='replace')}")
        try:
            return decode(payload, Answer)
        except InvalidRequest as error:
            raise DependencyUnavailable(f"{self._function_name} returned no answer: {error}") from error

    def warm(self, *, model: str, environments: int) -> None:
        # Asynchronous invocations queue in Lambda and run at once, each holding its environment for a moment.
        payload = msgspec.json.encode({"warmup": True, "model": model, "hold_s": self._warm_hold_s})
        for _ in range(environments):
            self._call(InvocationType="Event", Payload=payload)

    def _call(self, **arguments: Any) -> Any:
        try:
            return self._client.invoke(FunctionName=self._function_name, **arguments)
        except (ClientError, BotoCoreError) as error:
            raise _translate(error, self._function_name) from error


def _translate(error: ClientError | BotoCoreError, function_name: str) -> MarkserveError:
    if not isinstance(error, ClientError):
        return DependencyUnavailable(f"{function_name} did not answer: {error}")
    code, status = error.response.get("Error", {}).get("Code", ""), error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if code in THROTTLED:
        return Throttled(f"{function_name} is at its concurrency limit: {code}")
    if code in TOO_LARGE:
        return PayloadTooLarge(f"the request exceeds what Lambda takes: {code}", field="inputs")
    if code in UNAVAILABLE or status >= 500:
        return DependencyUnavailable(f"{function_name} failed: {code}")
    return ConfigurationError(f"{function_name} cannot be invoked: {error}")
