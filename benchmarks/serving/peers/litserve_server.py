"""LitServe: FastAPI front and a model process, a queue between them."""

from __future__ import annotations

import os

import litserve
import numpy as np
from model import Model, load, settings

given = settings()


class Classifier(litserve.LitAPI):
    """Scores batches of `{"tokens": [...]}`."""

    model: Model

    def setup(self, device: str) -> None:  # noqa: ARG002 - LitServe calls it so
        """Load the model in the worker process."""
        self.model = load()

    def decode_request(self, request: dict[str, list[int]]) -> np.ndarray:
        """Take the tokens out of one request."""
        return np.array(request["tokens"], dtype=np.int64)

    def predict(self, inputs: np.ndarray) -> list[list[float]]:
        """Run one batch, which LitServe has stacked; one row where it does not batch."""
        scores = self.model(inputs if inputs.ndim == 2 else inputs[None])
        return scores if inputs.ndim == 2 else scores[0]

    def encode_response(self, output: list[float]) -> dict[str, list[float]]:
        """Wrap one result."""
        return {"scores": [float(score) for score in output]}


if __name__ == "__main__":
    api = Classifier(max_batch_size=given.batch, batch_timeout=given.wait_s, api_path="/infer")
    fast_queue = os.environ.get("BENCH_MODE") == "fast-queue"
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1, timeout=10, fast_queue=fast_queue)
    server.run(host="127.0.0.1", port=given.port, generate_client_file=False, log_level="warning", access_log=False, timeout_keep_alive=120)
