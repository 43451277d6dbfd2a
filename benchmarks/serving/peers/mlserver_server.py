"""MLServer: FastAPI front speaking the Open Inference Protocol, adaptive batching, the model in the same process."""

from __future__ import annotations

import asyncio

import numpy as np
from mlserver import MLModel, MLServer
from mlserver import Settings as ServerSettings
from mlserver.codecs import NumpyCodec
from mlserver.settings import ModelSettings
from mlserver.types import InferenceRequest, InferenceResponse
from model import load, settings

given = settings()


class Classifier(MLModel):
    """Scores an INT64 tensor `tokens`, (batch, 48)."""

    async def load(self) -> bool:
        """Load the model."""
        self.model = load()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Run one batch on the event loop, as MLServer's own runtimes do."""
        scores = self.model(NumpyCodec.decode_input(payload.inputs[0]))
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output("scores", np.array(scores, dtype=np.float32))])


async def main() -> None:
    """Serve one model until told to stop."""
    server = MLServer(
        ServerSettings(
            host="127.0.0.1",
            http_port=given.port,
            grpc_port=given.port + 1,
            metrics_endpoint=None,
            parallel_workers=0,
            debug=False,
            use_structured_logging=False,
        )
    )
    batching = {"max_batch_size": given.batch, "max_batch_time": given.wait_s}
    await server.start([ModelSettings(name="lstm", implementation=Classifier, **batching)])


if __name__ == "__main__":
    asyncio.run(main())
