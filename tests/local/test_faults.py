"""Faults on purpose hit what they name, as often as they say, and nobody else."""

import asyncio
from collections.abc import MutableMapping
from typing import Any
from urllib.parse import urlencode

import msgspec
import pytest

from local.embedded_ec2 import WithFaults
from local.embedded_server import OBSERVER_APP_ID, Meter, extend
from local.faults import FAULTS_PATH, Fault, FaultBoard


def a_board(*faults: Fault) -> FaultBoard:
    board = FaultBoard()
    board.put(msgspec.json.encode(list(faults)))
    return board


def test_fault_hits_the_action_and_the_resource_it_names() -> None:
    board = a_board(Fault(action="sqs:Send*", effect="error", mentions="work-digits"))

    assert board.strike("sqs:SendMessage", b"work-digits") is not None
    assert board.strike("sqs:SendMessage", b"metrics") is None
    assert board.strike("sqs:ReceiveMessage", b"work-digits") is None


def test_fault_hits_about_its_share() -> None:
    board = a_board(Fault(action="*", effect="error", share=0.25))

    hits = sum(board.strike("sqs:SendMessage", b"") is not None for _ in range(2000))

    assert hits == pytest.approx(500, rel=0.15)


def test_board_refuses_what_is_no_list_of_faults() -> None:
    with pytest.raises(msgspec.ValidationError):
        FaultBoard().put(b'[{"action": "*", "effect": "explode"}]')


class Service:
    """Counts what reaches the embedded AWS behind the faults."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.app = extend(self._serve, Meter())

    async def _serve(self, _scope: Any, receive: Any, send: Any) -> None:
        self.bodies.append((await receive())["body"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"served"})

    def call(self, path: str, body: bytes = b"", target: str = "", agent: str = "boto") -> tuple[int, bytes]:
        sent: list[MutableMapping[str, Any]] = []
        headers = [(b"x-amz-target", target.encode()), (b"user-agent", agent.encode())]
        scope = {"type": "http", "method": "POST", "path": path, "headers": headers}

        async def receive() -> MutableMapping[str, Any]:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: MutableMapping[str, Any]) -> None:
            sent.append(message)

        asyncio.run(self.app(scope, receive, send))
        return sent[0]["status"], sent[1]["body"]

    def put(self, *faults: Fault) -> None:
        assert self.call(FAULTS_PATH, msgspec.json.encode(list(faults)))[0] == 200


SEND = "AmazonSQS.SendMessage"


def test_embedded_aws_refuses_what_it_is_told_to_refuse_and_is_whole_once_healed() -> None:
    service = Service()
    service.put(Fault(action="sqs:SendMessage", effect="error", code="ThrottlingException", status=400))

    status, body = service.call("/", b"{}", SEND)

    assert (status, msgspec.json.decode(body)["__type"], service.bodies) == (400, "ThrottlingException", [])
    service.put()
    assert service.call("/", b"{}", SEND) == (200, b"served")


def test_duplicate_is_carried_out_twice_and_answered_once() -> None:
    service = Service()
    service.put(Fault(action="sqs:SendMessage", effect="duplicate"))

    assert service.call("/", b"message", SEND) == (200, b"served")
    assert service.bodies == [b"message", b"message"]


def test_observer_is_spared() -> None:
    service = Service()
    service.put(Fault(action="*", effect="error"))

    assert service.call("/", b"{}", SEND, agent=f"boto app/{OBSERVER_APP_ID}") == (200, b"served")


class Ec2:
    """Counts what reaches moto behind the faults."""

    def __init__(self, *faults: Fault) -> None:
        self.bodies: list[bytes] = []
        self.app = WithFaults(self._serve)
        self.call(FAULTS_PATH, msgspec.json.encode(list(faults)))

    def _serve(self, environ: dict[str, Any], start_response: Any) -> list[bytes]:
        self.bodies.append(environ["wsgi.input"].read())
        start_response("200 OK", [])
        return [b"served"]

    def call(self, path: str, body: bytes) -> tuple[str, bytes]:
        import io

        said: list[str] = []
        environ = {"PATH_INFO": path, "CONTENT_LENGTH": str(len(body)), "wsgi.input": io.BytesIO(body)}
        answer = self.app(environ, lambda status, _: said.append(status))
        return said[0], b"".join(answer)


def a_fleet_request(count: int, capacity_type: str) -> bytes:
    name = "TargetCapacitySpecification"
    return urlencode(
        {"Action": "CreateFleet", f"{name}.TotalTargetCapacity": count, f"{name}.DefaultTargetCapacityType": capacity_type}
    ).encode()


def test_dry_pool_answers_a_fleet_without_instances_and_others_are_served() -> None:
    ec2 = Ec2(Fault(action="ec2:CreateFleet", effect="dry", mentions="CapacityType=spot", code="InsufficientInstanceCapacity"))

    status, body = ec2.call("/", a_fleet_request(2, "spot"))

    assert status.startswith("200")
    assert b"InsufficientInstanceCapacity" in body
    assert ec2.call("/", a_fleet_request(2, "on-demand"))[1] == b"served"


def test_partial_fulfilment_asks_for_one() -> None:
    ec2 = Ec2(Fault(action="ec2:CreateFleet", effect="partial"))

    ec2.call("/", a_fleet_request(3, "spot"))

    assert b"TotalTargetCapacity=1&" in ec2.bodies[-1]
