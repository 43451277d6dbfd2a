"""A system in memory as the console would find it, and an HTTP server that hands requests over as API Gateway does."""

from __future__ import annotations

import base64
import math
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from functions.console.app import pages
from markserve.adapters.memory import (
    MemoryControlStore,
    MemoryInstanceRegistry,
    MemoryModelStore,
    MemoryParameterSource,
    MemoryParameterWriter,
    MemoryWindowStore,
)
from markserve.console_routes import respond
from markserve.console_view import Console, ConsoleGrid, ConsolePorts
from markserve.core.histogram import bucket_index
from markserve.core.tunables import Tunables
from markserve.core.types import Instance, InstanceState, Tier
from markserve.errors import DependencyUnavailable
from markserve.messages import Alternative, ArrivalCounts, MetricsBatch, ModelRecord, OutcomeCounts
from markserve.protocol.http import request_from_event
from tests.builders import (
    MODEL,
    NOW_S,
    a_decision,
    a_forecast_record,
    a_launch,
    a_model_record,
    a_plan_record,
    a_spot_offering,
    an_instance,
    worker_stats,
)

WINDOW_S, STEP_S = 5.0, 60.0
GRID = ConsoleGrid(stack_name="markserve", window_s=WINDOW_S, step_s=STEP_S, heartbeat_s=1.0, spillover_memory_mb=1769)


class Scene:
    """Ports in memory and a console on them; `outage` makes every read fail."""

    def __init__(self, *models: ModelRecord, instances: tuple[Instance, ...] = (), now_s: float = NOW_S, **tunables: Any) -> None:
        self.now_s = now_s
        self.windows = MemoryWindowStore()
        self.control = MemoryControlStore()
        self.instances = MemoryInstanceRegistry(*instances)
        self.parameters = MemoryParameterSource(Tunables(**tunables))
        self.models = MemoryModelStore(*models)
        self.outage = False
        self.facts: list[Mapping[str, Any]] = []

    @property
    def console(self) -> Console:
        if self.outage:
            raise DependencyUnavailable("told to fail")
        ports = ConsolePorts(
            models=self.models,
            windows=self.windows,
            control=self.control,
            instances=self.instances,
            parameters=self.parameters,
            writer=MemoryParameterWriter(self.parameters),
        )
        return Console(ports, GRID, now_s=lambda: self.now_s)

    def count(self, at_s: float, *, worker: int = 0, late: int = 0, spilled: int = 0, rejected: int = 0, ticks: bool = True) -> None:
        """Record one window: so many answers of each kind, 60 ms, 300 ms and 150 ms after arrival."""
        outcomes = [
            OutcomeCounts(
                model=MODEL,
                window_at_s=at_s,
                tier=Tier.WORKER,
                ok=worker + late,
                within_slo=worker,
                latency_histogram={str(bucket_index(0.06)): worker, str(bucket_index(0.3)): late},
            ),
            OutcomeCounts(
                model=MODEL,
                window_at_s=at_s,
                tier=Tier.LAMBDA,
                ok=spilled,
                within_slo=spilled,
                latency_histogram={str(bucket_index(0.15)): spilled},
            ),
            OutcomeCounts(
                model=MODEL, window_at_s=at_s, tier=None, errors=rejected, latency_histogram={str(bucket_index(0.005)): rejected}
            ),
        ]
        requests = worker + late + spilled + rejected
        batch = MetricsBatch(
            batch_id=f"batch-{at_s}",
            sent_at_s=at_s + WINDOW_S,
            arrivals=(ArrivalCounts(model=MODEL, window_at_s=at_s, count=requests),) if requests else (),
            outcomes=tuple(o for o in outcomes if o.ok + o.errors),
            tick_at_s=at_s + WINDOW_S + 1.0 if ticks else None,
        )
        self.windows.apply([batch], expires_at_s=at_s + 1e6)

    def event(self, method: str, path: str, *, headers: Mapping[str, str] | None = None, body: bytes = b"", **query: str) -> dict[str, Any]:
        """Write an HTTP API event of payload format 2.0, as of a stack without authorisation."""
        return {
            "version": "2.0",
            "rawPath": path,
            "queryStringParameters": dict(query),
            "headers": {"content-type": "application/json", **(headers or {})},
            "requestContext": {"http": {"method": method, "path": path}, "stage": "$default", "timeEpoch": self.now_s * 1000},
            "body": base64.b64encode(body).decode(),
            "isBase64Encoded": True,
        }

    @staticmethod
    def body_of(event: Mapping[str, Any]) -> bytes:
        """Body of an event of ours."""
        return base64.b64decode(event["body"])

    def answer(self, event: Mapping[str, Any]) -> dict[str, Any]:
        """Answer as the function does."""
        response = respond(request_from_event(event), console=lambda: self.console, pages=pages())
        self.facts.append(response.facts)
        return response.to_event()


def a_busy_scene(now_s: float = NOW_S) -> Scene:
    """A quarter of an hour of rising load, a spot interruption, a spill, forecasts and plans."""
    spot = a_spot_offering()
    lost = an_instance(
        instance_id="i-0lost",
        offering=spot,
        state=InstanceState.TERMINATED,
        requested_at_s=now_s - 800,
        serving_at_s=now_s - 640,
        drain_at_s=now_s - 330,
        terminated_at_s=now_s - 300,
        end_reason="spot interruption",
        reason="cheapest for 24 requests/s",
        stats=worker_stats(service_rate_rps=22.0, completed=5210, batches=1400),
    )
    kept = an_instance(
        instance_id="i-0kept",
        requested_at_s=now_s - 700,
        serving_at_s=now_s - 520,
        reason="on demand until the interrupted spot instance is replaced",
        heartbeat_at_s=now_s - 1,
        stats=worker_stats(service_rate_rps=24.0, completed=9120, batches=2100),
    )
    coming = replace(
        kept,
        instance_id="i-0coming",
        offering=spot,
        state=InstanceState.WARMING,
        requested_at_s=now_s - 90,
        running_at_s=now_s - 50,
        serving_at_s=None,
        stats=worker_stats(service_rate_rps=0.0),
    )
    scene = Scene(a_model_record(), a_model_record(model="encoder"), instances=(lost, kept, coming), now_s=now_s)
    start_s = math.floor((now_s - 960) / WINDOW_S) * WINDOW_S
    for index in range(192):
        at_s = start_s + index * WINDOW_S
        if at_s > now_s - 7:  # not yet in
            continue
        load = max(8, round(WINDOW_S * (9 + 8 * math.sin(index / 45) + 3 * math.sin(index / 3))))
        hurt = 126 <= index < 138
        spilled = round(0.5 * load) if hurt else round(0.04 * load)
        scene.count(at_s, worker=load - spilled - (2 if hurt else 0), late=1 if hurt else 0, spilled=spilled, rejected=1 if hurt else 0)
    for step in range(17):
        origin_s = now_s - 960 + 60 * step
        ahead = [9 + 8 * math.sin((step * 12 + 12 * i) / 45) for i in range(10)]
        rates = {q: tuple(factor * max(1.0, rate) for rate in ahead) for q, factor in (("0.5", 1.05), ("0.9", 1.3), ("0.99", 1.6))}
        scene.control.put_forecast(
            a_forecast_record(origin_at_s=origin_s, rates_rps=rates, forecaster="seasonal", reason="least cost over the last 40 steps")
        )
        scene.control.put_plan(
            a_plan_record(
                plan_id=f"plan-{step + 1}",
                version=step + 1,
                created_at_s=origin_s + 2,
                demand_rps={MODEL: 1.3 * ahead[3], "encoder": 2.0},
                capacity_rps={MODEL: 24.0, "encoder": 6.0},
                actions=(
                    a_launch(offering=spot, plan_id=f"plan-{step + 1}", reason="covers 9.1 requests/s from minute 3 on at the least cost"),
                ),
                alternatives=(
                    Alternative(offering="c5.xlarge/spot/us-east-1a", cost_usd=0.00212, reason="serves the same for 1.7 times the cost"),
                    Alternative(offering="c5.large/spot/us-east-1b", cost_usd=None, reason="set aside for 3 minutes: no capacity"),
                ),
                reason="1 launch, 0 drains: demand at the 0.93 quantile, which live prices make worth buying",
            )
        )
    for ago_s, event, subject, reason in (
        (640, "instance_serving", "i-0lost", "model loaded and warm"),
        (335, "instance_interrupted", "i-0lost", "spot interruption warning: two minutes"),
        (330, "slo_at_risk", MODEL, "burning 6.2 times too fast, heading for 96.10% within 60 s"),
        (90, "instance_launched", "i-0coming", "replaces i-0lost in another pool"),
    ):
        scene.control.log(a_decision(at_s=now_s - ago_s, event=event, subject=subject, reason=reason))
    return scene


@contextmanager
def served(scene: Scene) -> Iterator[str]:
    """Serve a scene on loopback; yields its base URL."""

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            url = urlsplit(self.path)
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            event = scene.event(self.command, url.path, headers=dict(self.headers), body=body, **dict(parse_qsl(url.query)))
            try:
                response = scene.answer(event)
            except DependencyUnavailable:
                response = {
                    "statusCode": 503,
                    "headers": {"content-type": "application/json"},
                    "body": '{"error":"down"}',
                    "isBase64Encoded": False,
                }
            data = base64.b64decode(response["body"]) if response["isBase64Encoded"] else response["body"].encode()
            self.send_response(response["statusCode"])
            for name, value in response["headers"].items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_PUT = _answer  # noqa: N815  # the standard library's names

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            """Say nothing: a test's output is its own."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
