"""BentoML: adaptive batching within one service process."""

from __future__ import annotations

import bentoml
from model import load, settings

given = settings()


@bentoml.service(workers=1, traffic={"timeout": 10, "max_concurrency": 8192}, metrics={"enabled": False})
class Classifier:
    """Scores rows of tokens; BentoML joins the rows of several requests."""

    def __init__(self) -> None:
        self.model = load()

    @bentoml.api(batchable=True, batch_dim=0, max_batch_size=given.batch, max_latency_ms=round(given.wait_s * 1000))
    def infer(self, rows: list[list[int]]) -> list[list[float]]:
        """Run one batch."""
        return self.model(rows)
