from __future__ import annotations

import io
import json
from typing import Any

import pytest
from botocore.response import StreamingBody
from botocore.stub import Stubber

from markserve.adapters.lambda_ import LambdaSpilloverInvoker
from markserve.adapters.memory import MemorySpilloverInvoker
from markserve.core.types import Tier
from markserve.errors import ConfigurationError, DependencyUnavailable, MarkserveError, PayloadTooLarge, Throttled
from markserve.messages import encode
from markserve.ports import SpilloverInvoker
from tests.builders import a_request, an_answer
from tests.contract.conftest import BACKENDS

FUNCTION = "markserve-spillover"
ANSWER = an_answer(tier=Tier.LAMBDA)


@pytest.fixture
def stub(aws: Any) -> Stubber:
    """Lambda's API, answered here: running a container image needs more than an emulated account."""
    return Stubber(aws("lambda"))


def invoker(stub: Stubber) -> LambdaSpilloverInvoker:
    stub.activate()
    client: Any = stub.client
    return LambdaSpilloverInvoker(client, FUNCTION, warm_hold_s=0.5)


def add_response(stub: Stubber, payload: bytes, **response: object) -> None:
    body = StreamingBody(io.BytesIO(payload), len(payload))
    expected = {"FunctionName": FUNCTION, "InvocationType": "RequestResponse", "Payload": encode(a_request())}
    stub.add_response("invoke", {"StatusCode": 200, "Payload": body, **response}, expected)


@pytest.fixture(params=BACKENDS)
def throttled(request: pytest.FixtureRequest) -> SpilloverInvoker:
    if request.param == "memory":
        return MemorySpilloverInvoker(max_concurrency=0)
    stub = request.getfixturevalue("stub")
    stub.add_client_error("invoke", service_error_code="TooManyRequestsException", http_status_code=429)
    return invoker(stub)


@pytest.fixture(params=BACKENDS)
def working(request: pytest.FixtureRequest) -> SpilloverInvoker:
    if request.param == "memory":
        return MemorySpilloverInvoker(lambda _: ANSWER, max_concurrency=1)
    stub = request.getfixturevalue("stub")
    add_response(stub, encode(ANSWER))
    add_response(stub, encode(ANSWER))
    return invoker(stub)


def test_spillover_returns_the_answer(working: SpilloverInvoker) -> None:
    assert [working.invoke(a_request()), working.invoke(a_request())] == [ANSWER, ANSWER]


def test_spillover_raises_throttled_when_the_concurrency_limit_is_reached(throttled: SpilloverInvoker) -> None:
    with pytest.raises(Throttled, match="concurrency limit"):
        throttled.invoke(a_request())


def test_lambda_spillover_raises_dependency_unavailable_when_the_function_fails(stub: Stubber) -> None:
    add_response(stub, b'{"errorMessage": "out of memory"}', FunctionError="Unhandled")

    with pytest.raises(DependencyUnavailable, match="out of memory"):
        invoker(stub).invoke(a_request())


def test_lambda_spillover_raises_dependency_unavailable_when_the_answer_cannot_be_read(stub: Stubber) -> None:
    add_response(stub, b"null")

    with pytest.raises(DependencyUnavailable, match="returned no answer"):
        invoker(stub).invoke(a_request())


@pytest.mark.parametrize(
    ("code", "status", "raised"),
    [
        ("EC2ThrottledException", 502, Throttled),
        ("RequestTooLargeException", 413, PayloadTooLarge),
        ("ServiceException", 500, DependencyUnavailable),
        ("SomethingNew", 503, DependencyUnavailable),
        ("ResourceNotFoundException", 404, ConfigurationError),
        ("AccessDeniedException", 403, ConfigurationError),
    ],
)
def test_lambda_spillover_translates_a_refused_call(stub: Stubber, code: str, status: int, raised: type[MarkserveError]) -> None:
    stub.add_client_error("invoke", service_error_code=code, http_status_code=status)

    with pytest.raises(raised, match=FUNCTION if raised is not PayloadTooLarge else code):
        invoker(stub).invoke(a_request())


def test_lambda_spillover_warms_one_environment_per_asynchronous_invocation(stub: Stubber) -> None:
    payload = json.dumps({"warmup": True, "model": "digits", "hold_s": 0.5}, separators=(",", ":")).encode()
    for _ in range(3):
        stub.add_response("invoke", {"StatusCode": 202}, {"FunctionName": FUNCTION, "InvocationType": "Event", "Payload": payload})

    invoker(stub).warm(model="digits", environments=3)

    stub.assert_no_pending_responses()
