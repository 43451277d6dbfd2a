"""The embedded EC2: a moto server with spot prices that mean something, and capacity that can run out.

Run as `python -m local.embedded_ec2` with moto's own arguments. moto prices every spot pool at 0.00001 USD; a planner
fed with that buys nothing but spot. Here each pool costs its type's list price less its typical spot saving.

`PUT /_markserve/faults` has chosen calls throttled, and chosen pools empty (`local.faults`), for rehearsals.
"""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import parse_qs

from local.embedded_server import OBSERVER_APP_ID
from local.faults import FAULTS_PATH, Fault, FaultBoard
from markserve.catalog import load_catalog


def price_spot_history(history: list[dict[str, Any]], prices_usd_per_hour: dict[str, float]) -> list[dict[str, Any]]:
    """Keep the pools of known types, at their price.

    >>> price_spot_history([{"InstanceType": "c5.large", "SpotPrice": "0.00001"}, {"InstanceType": "x"}], {"c5.large": 0.034})
    [{'InstanceType': 'c5.large', 'SpotPrice': '0.034000'}]
    """
    return [
        {**pool, "SpotPrice": f"{prices_usd_per_hour[pool['InstanceType']]:.6f}"}
        for pool in history
        if pool["InstanceType"] in prices_usd_per_hour
    ]


StartResponse = Callable[[str, list[tuple[str, str]]], Any]
WsgiApp = Callable[[dict[str, Any], StartResponse], Iterable[bytes]]

EC2_NAMESPACE = "http://ec2.amazonaws.com/doc/2016-11-15/"


class WithFaults:
    """Wraps moto's WSGI app; lets the board's faults happen."""

    def __init__(self, inner: WsgiApp) -> None:
        self._inner = inner
        self._board = FaultBoard()

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        """Serve one request."""
        if environ["PATH_INFO"] == FAULTS_PATH:
            self._board.put(_read(environ))
            return _reply(start_response, 200, b"")
        if self._board.is_clear or OBSERVER_APP_ID in environ.get("HTTP_USER_AGENT", ""):
            return self._inner(environ, start_response)
        body = _read(environ)
        action = parse_qs(body.decode("utf-8", errors="replace")).get("Action", [""])[0]
        fault = self._board.strike(f"ec2:{action}", body)
        if fault is not None and fault.effect == "error":
            return _reply(start_response, fault.status, refusal(fault))
        if fault is not None and fault.effect == "dry":
            return _reply(start_response, 200, dry_fleet(fault))
        if fault is not None and fault.effect == "partial":
            body = fleet_of_one(body)
        if fault is not None and fault.effect == "delay":
            time.sleep(fault.delay_s)
        environ["wsgi.input"], environ["CONTENT_LENGTH"] = io.BytesIO(body), str(len(body))
        return self._inner(environ, start_response)


def refusal(fault: Fault) -> bytes:
    """Write an error as EC2 does."""
    error = f"<Error><Code>{fault.code}</Code><Message>a fault on purpose</Message></Error>"
    return f"<Response><Errors>{error}</Errors><RequestID>fault</RequestID></Response>".encode()


def dry_fleet(fault: Fault) -> bytes:
    """Write what CreateFleet answers for an instant fleet when no pool has capacity: a fleet, no instances, and why."""
    error = f"<item><errorCode>{fault.code}</errorCode><errorMessage>a fault on purpose</errorMessage></item>"
    return (
        f'<CreateFleetResponse xmlns="{EC2_NAMESPACE}"><requestId>fault</requestId><fleetId>fleet-dry</fleetId>'
        f"<errorSet>{error}</errorSet><fleetInstanceSet/></CreateFleetResponse>"
    ).encode()


def fleet_of_one(body: bytes) -> bytes:
    """Ask for one instance instead of several.

    >>> fleet_of_one(b"Action=CreateFleet&TargetCapacitySpecification.TotalTargetCapacity=3&Type=instant")
    b'Action=CreateFleet&TargetCapacitySpecification.TotalTargetCapacity=1&Type=instant'
    """
    name = b"TargetCapacitySpecification.TotalTargetCapacity="
    return b"&".join(name + b"1" if part.startswith(name) else part for part in body.split(b"&"))


def _read(environ: dict[str, Any]) -> bytes:
    body: bytes = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    return body


def _reply(start_response: StartResponse, status: int, body: bytes) -> Iterable[bytes]:
    start_response(f"{status} -", [("Content-Type", "text/xml"), ("Content-Length", str(len(body)))])
    return [body]


def main() -> None:
    """Serve until told to stop."""
    from moto import server
    from moto.core.responses import ActionResult
    from moto.ec2.responses.spot_instances import SpotInstances

    prices = {entry.instance_type: entry.typical_spot_usd_per_hour for entry in load_catalog().entries}
    unpriced = SpotInstances.describe_spot_price_history

    def priced(self: Any) -> Any:
        return ActionResult({"SpotPriceHistory": price_spot_history(unpriced(self).result["SpotPriceHistory"], prices)})

    SpotInstances.describe_spot_price_history = priced
    dispatcher = server.DomainDispatcherApplication
    server.DomainDispatcherApplication = lambda create: WithFaults(dispatcher(create))
    server.main(sys.argv[1:])


if __name__ == "__main__":
    main()
