"""mosec: a Rust front batches, one Python process runs the model."""

from __future__ import annotations

import sys

import msgspec
from model import load, settings
from mosec import Server, Worker


class Classifier(Worker):
    """Scores a batch of `{"tokens": [...]}`."""

    def __init__(self) -> None:
        self.model = load()

    def deserialize(self, data: bytes) -> dict[str, list[int]]:
        """Decode faster than the standard library, which is what mosec takes by itself."""
        value: dict[str, list[int]] = msgspec.json.decode(data)
        return value

    def serialize(self, data: object) -> bytes:
        """Encode likewise."""
        return msgspec.json.encode(data)

    def forward(self, data: list[dict[str, list[int]]] | dict[str, list[int]]) -> object:
        """Run one batch; mosec hands over a single request where the largest batch is 1."""
        if isinstance(data, dict):
            return {"scores": self.model([data["tokens"]])[0]}
        return [{"scores": scores} for scores in self.model([one["tokens"] for one in data])]


if __name__ == "__main__":
    given = settings()
    sys.argv[1:] = ["--address", "127.0.0.1", "--port", str(given.port), "--timeout", "10000", "--capacity", "8192"]
    server = Server()
    server.append_worker(Classifier, num=1, max_batch_size=given.batch, max_wait_time=max(1, round(given.wait_s * 1000)))
    server.run()
