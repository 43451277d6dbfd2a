"""The HTTP surface of served models: which path means what, how long a request may take, how errors are written."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from functools import partial
from urllib.parse import unquote

import msgspec

from markserve.errors import InvalidRequest, MarkserveError, Overloaded, UnknownModel
from markserve.messages import Tensor
from markserve.protocol import oip, sagemaker
from markserve.protocol.http import HttpRequest
from markserve.telemetry import logger
from server.engine import Engine, ModelFailed, retry_after_text
from server.exposition import exposition
from server.http1 import Connection, Exchange, Limits
from server.openapi import openapi

TIMEOUT_HEADER = "x-markserve-timeout-ms"
"""A request's own objective, in milliseconds from its first byte here; default: the server's."""
MAX_TIMEOUT_S = 600.0
JSON = {"content-type": "application/json"}
View = Callable[[Exchange], None]


class App:
    """Answers requests, by the engines of the models that are served.

    Parameters
    ----------
    clock
        Monotonic time.
    """

    def __init__(self, engines: Mapping[str, Engine], *, rt_max_s: float, limits: Limits, clock: Callable[[], float]) -> None:
        self.limits = limits
        self.connections: set[Connection] = set()
        self.is_draining = False
        self._engines = engines
        self._rt_max_s = rt_max_s
        self._clock = clock
        self._document = msgspec.json.encode(openapi(list(engines), limits.max_payload_bytes))
        self._views = self._routes()

    # --- connections ------------------------------------------------------------------------------------------

    def joined(self, connection: Connection) -> bool:
        """Take in a connection, within the limit."""
        is_welcome = len(self.connections) < self.limits.max_connections
        self.connections.add(connection)
        return is_welcome

    def left(self, connection: Connection) -> None:
        """Forget a connection."""
        self.connections.discard(connection)

    def sweep(self) -> None:
        """End connections whose client lets us wait, and let engines look after themselves."""
        now_s = self._clock()
        for connection in list(self.connections):
            connection.expire(now_s)
            if self.is_draining:
                connection.close_if_idle()
        for engine in self._engines.values():
            engine.check(now_s)

    @property
    def held(self) -> int:
        """Requests not yet answered."""
        return sum(engine.held for engine in self._engines.values())

    # --- requests ---------------------------------------------------------------------------------------------

    def handle(self, exchange: Exchange) -> None:
        """Answer a request, now or when its batch has run; whatever is raised on purpose becomes an error reply."""
        try:
            views = self._views.get(exchange.url) or self._find(exchange.url)
            view = views.get(exchange.method)
            if view is None:
                _send_error(exchange, 405, f"{exchange.method[:16]} is not allowed here", {"allow": ", ".join(views)})
                return
            view(exchange)
        except MarkserveError as error:
            _send_failure(exchange, error)
        except Exception:  # noqa: BLE001  # one request's surprise must not cost the others their server
            logger.exception("%s %s", exchange.method, exchange.url[:200])
            _send_error(exchange, 500, "internal error")

    def refuse(self, exchange: Exchange, status: int, message: str) -> None:
        """Answer what could not be read as a request."""
        _send_error(exchange, status, message)

    def _find(self, url: bytes) -> dict[str, View]:
        path = url.split(b"?", 1)[0]
        if path.startswith((b"http://", b"https://")):
            path = b"/" + path.split(b"/", 3)[3] if path.count(b"/") > 2 else b"/"
        segments = [segment for segment in unquote(path.decode("latin-1")).split("/") if segment]
        found = self._views.get(("/" + "/".join(segments)).encode("utf-8", "replace"))
        if found is not None:
            return found
        known = segments[:2] == ["v2", "models"] or segments[:1] == ["endpoints"]
        name = segments[2] if segments[:2] == ["v2", "models"] and len(segments) > 2 else segments[1] if len(segments) > 1 else ""
        if known and name and name not in self._engines:
            raise UnknownModel(f"no model {name[:100]!r}; there is {', '.join(self._engines)}", field="model")
        raise UnknownModel(f"no such path: {path[:200].decode('latin-1')}")

    def _routes(self) -> dict[bytes, dict[str, View]]:
        routes: dict[str, dict[str, View]] = {
            "/": _get(self._server_metadata),
            "/v2": _get(self._server_metadata),
            "/v2/health/live": _get(self._live),
            "/v2/health/ready": _get(self._ready),
            "/ping": _get(self._ready),
            "/metrics": _get(self._metrics),
            "/openapi.json": _get(self._openapi),
            "/v2/models": _get(self._model_list),
        }
        for name, engine in self._engines.items():
            for base in (f"/v2/models/{name}", f"/v2/models/{name}/versions/{engine.record.version}"):
                routes[base] = _get(partial(self._model_metadata, engine))
                routes[f"{base}/ready"] = _get(partial(self._model_ready, engine))
                routes[f"{base}/infer"] = {"POST": partial(self._infer, engine)}
            routes[f"/endpoints/{name}/invocations"] = {"POST": partial(self._invoke, engine)}
        return {path.encode(): views for path, views in routes.items()}

    # --- views ------------------------------------------------------------------------------------------------

    def _server_metadata(self, exchange: Exchange) -> None:
        _send_json(exchange, 200, oip.server_metadata())

    def _live(self, exchange: Exchange) -> None:
        _send_json(exchange, 200, {"live": True})

    def _ready(self, exchange: Exchange) -> None:
        waiting = [name for name, engine in self._engines.items() if not engine.is_ready and engine.refusal is None]
        if self.is_draining:
            _send_error(exchange, 503, "draining", {"retry-after": "1"})
        elif waiting or not any(engine.is_ready for engine in self._engines.values()):
            _send_error(exchange, 503, f"not ready: {', '.join(waiting or self._engines)}", {"retry-after": "1"})
        else:
            _send_json(exchange, 200, {"ready": True})

    def _model_list(self, exchange: Exchange) -> None:
        _send_json(exchange, 200, {"models": [{"name": name, "ready": e.is_ready} for name, e in self._engines.items()]})

    def _metrics(self, exchange: Exchange) -> None:
        text = exposition(self._engines, connections=len(self.connections), is_draining=self.is_draining)
        exchange.reply(200, text.encode(), {"content-type": "text/plain; version=0.0.4; charset=utf-8"})

    def _openapi(self, exchange: Exchange) -> None:
        exchange.reply(200, self._document, JSON)

    def _model_metadata(self, engine: Engine, exchange: Exchange) -> None:
        _send_json(exchange, 200, oip.model_metadata(engine.record, [engine.record.version]))

    def _model_ready(self, engine: Engine, exchange: Exchange) -> None:
        if engine.is_ready and not self.is_draining:
            _send_json(exchange, 200, {"name": engine.record.model, "ready": True})
        else:
            _send_error(exchange, 503, f"model {engine.record.model!r} is not ready: {engine.refusal or 'starting'}", {"retry-after": "1"})

    def _infer(self, engine: Engine, exchange: Exchange) -> None:
        deadline_at_s = self._admitted(engine, exchange)
        try:
            call = oip.decode_infer(_body(exchange), exchange.headers, engine.record)
        except InvalidRequest:
            engine.counters.invalid += 1
            raise
        self._submit(engine, exchange, deadline_at_s, call.inputs, partial(_encode_infer, call, engine))

    def _invoke(self, engine: Engine, exchange: Exchange) -> None:
        deadline_at_s = self._admitted(engine, exchange)
        try:
            call = sagemaker.decode_invocation(_body(exchange), exchange.headers, engine.record)
        except InvalidRequest:
            engine.counters.invalid += 1
            raise
        self._submit(engine, exchange, deadline_at_s, call.inputs, partial(_encode_invocation, call, engine))

    # --- parts ------------------------------------------------------------------------------------------------

    def _admitted(self, engine: Engine, exchange: Exchange) -> float:
        """Deadline of a request that may be served."""
        if self.is_draining:
            exchange.keep_alive = False
            raise Overloaded("draining: send it elsewhere", retry_after_s=1.0, status=503)
        given = exchange.headers.get(TIMEOUT_HEADER)
        deadline_at_s = exchange.arrival_at_s + (self._rt_max_s if given is None else _timeout_s(given))
        engine.admit(self._clock(), deadline_at_s)
        return deadline_at_s

    def _submit(
        self,
        engine: Engine,
        exchange: Exchange,
        deadline_at_s: float,
        inputs: tuple[Tensor, ...],
        encode: Callable[[tuple[Tensor, ...]], tuple[bytes, dict[str, str]]],
    ) -> None:
        counters = engine.counters

        def reply(outcome: tuple[Tensor, ...] | Exception, batch_size: int) -> None:
            if isinstance(outcome, Exception):
                counters.failed += isinstance(outcome, ModelFailed)
                counters.invalid += isinstance(outcome, InvalidRequest)
                _send_failure(exchange, outcome)
                return
            try:
                body, headers = encode(outcome)
            except InvalidRequest as error:  # outputs that JSON cannot carry
                counters.invalid += 1
                _send_failure(exchange, error)
                return
            headers["x-markserve-batch-size"] = str(batch_size)
            exchange.reply(200, body, headers)
            now_s = self._clock()
            counters.answered += 1
            counters.within_objective += now_s <= deadline_at_s
            counters.observe_latency(now_s - exchange.arrival_at_s)

        engine.submit(inputs, arrival_at_s=exchange.arrival_at_s, deadline_at_s=deadline_at_s, reply=reply)


def _get(view: View) -> dict[str, View]:
    return {"GET": view, "HEAD": view}


def _encode_infer(call: oip.InferCall, engine: Engine, outputs: tuple[Tensor, ...]) -> tuple[bytes, dict[str, str]]:
    return oip.encode_infer(call, model=engine.record.model, version=engine.record.version, outputs=_wanted(call.output_names, outputs))


def _encode_invocation(call: sagemaker.InvokeCall, engine: Engine, outputs: tuple[Tensor, ...]) -> tuple[bytes, dict[str, str]]:
    return sagemaker.encode_invocation(
        call, model=engine.record.model, version=engine.record.version, outputs=_wanted(call.output_names, outputs)
    )


def _wanted(names: tuple[str, ...], outputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    if not names:
        return outputs
    by_name = {tensor.name: tensor for tensor in outputs}
    return tuple([by_name[name] for name in names])


def _body(exchange: Exchange) -> bytes:
    if "content-encoding" not in exchange.headers:
        return exchange.body
    return HttpRequest(method="POST", path="", arrival_at_s=0.0, headers=exchange.headers, raw_body=exchange.body).body()


def _timeout_s(text: str) -> float:
    if not (text.isascii() and text.isdecimal() and 0 < len(text) <= 9 and 0 < int(text) <= MAX_TIMEOUT_S * 1000):
        raise InvalidRequest(
            f"{text[:32]!r} is not a whole number of milliseconds from 1 to {MAX_TIMEOUT_S * 1000:.0f}", field=TIMEOUT_HEADER
        )
    return int(text) / 1000


def _send_failure(exchange: Exchange, error: Exception) -> None:
    if isinstance(error, InvalidRequest):
        _send_error(exchange, error.status, str(error))
    elif isinstance(error, Overloaded):
        _send_error(exchange, error.status, str(error), {"retry-after": retry_after_text(error.retry_after_s)})
    elif isinstance(error, ModelFailed):
        _send_error(exchange, 500, str(error))
    else:
        logger.error("%s %s", exchange.method, exchange.url[:200], exc_info=error)
        _send_error(exchange, 500, "internal error")


def _send_error(exchange: Exchange, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
    if exchange.url.startswith(b"/endpoints/"):
        status, body, own = sagemaker.encode_error(status, message)
        exchange.reply(status, body, {**own, **(headers or {})})
    else:
        exchange.reply(status, oip.encode_error(message), {**JSON, **(headers or {})})


def _send_json(exchange: Exchange, status: int, content: object) -> None:
    exchange.reply(status, msgspec.json.encode(content), JSON)


async def sweep_forever(app: App, every_s: float = 1.0) -> None:
    """Look after connections and engines until cancelled."""
    while True:
        await asyncio.sleep(every_s)
        app.sweep()
