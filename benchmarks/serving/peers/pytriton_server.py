"""PyTriton: Triton's C++ front and dynamic batcher, the model in a Python process."""

from __future__ import annotations

import logging

import numpy as np
import torch
from model import TOKENS, load, settings
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

given = settings()
model = load()


@batch
def infer(tokens: np.ndarray) -> dict[str, np.ndarray]:
    """Run one batch, (batch, 48)."""
    return {"scores": model.run(torch.from_numpy(np.ascontiguousarray(tokens))).numpy()}


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    front = TritonConfig(http_address="127.0.0.1", http_port=given.port, allow_grpc=False, allow_metrics=False, log_verbose=0)
    with Triton(config=front) as triton:
        triton.bind(
            model_name="lstm",
            infer_func=infer,
            inputs=[Tensor(name="tokens", dtype=np.int64, shape=(TOKENS,))],
            outputs=[Tensor(name="scores", dtype=np.float32, shape=(-1,))],
            config=ModelConfig(max_batch_size=given.batch, batcher=DynamicBatcher(max_queue_delay_microseconds=round(given.wait_s * 1e6))),
        )
        triton.serve()
