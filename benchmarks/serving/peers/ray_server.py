"""Ray Serve: a proxy process in front of one replica that batches."""

from __future__ import annotations

import logging
import signal
import threading

import msgspec
import ray
from model import load, settings
from ray import serve
from starlette.requests import Request
from starlette.responses import Response

given = settings()


@serve.deployment(
    num_replicas=1, max_ongoing_requests=4096, ray_actor_options={"num_cpus": 0.5}, logging_config={"enable_access_log": False}
)
class Classifier:
    """Scores `{"tokens": [...]}`; requests wait in the replica for their batch."""

    def __init__(self) -> None:
        self.model = load()

    @serve.batch(max_batch_size=given.batch, batch_wait_timeout_s=given.wait_s)
    async def score(self, rows: list[list[int]]) -> list[list[float]]:
        """Run one batch."""
        return self.model(rows)

    async def __call__(self, request: Request) -> Response:
        """Queue one text and wait for its scores."""
        tokens = msgspec.json.decode(await request.body())["tokens"]
        return Response(msgspec.json.encode({"scores": await self.score(tokens)}), media_type="application/json")


if __name__ == "__main__":
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=100 * 2**20, logging_level=logging.WARNING)
    serve.start(http_options={"host": "127.0.0.1", "port": given.port, "keep_alive_timeout_s": 120})
    serve.run(Classifier.bind(), route_prefix="/infer")
    stopped.wait()
    serve.shutdown()
    ray.shutdown()
