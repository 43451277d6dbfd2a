"""Ask with NVIDIA's tritonclient, unchanged: `python examples/clients/with_tritonclient.py URL`."""

from __future__ import annotations

import sys

import numpy as np
import tritonclient.http as triton
from sklearn.datasets import load_digits

image = (load_digits().images[:1, None] / 16).astype(np.float32)

with triton.InferenceServerClient(sys.argv[1].removeprefix("http://")) as client:
    given = triton.InferInput("image", list(image.shape), "FP32").set_data_from_numpy(image)
    answer = client.infer("digits", [given], headers={"x-markserve-slo": "interactive"})
    print(f"digit {answer.as_numpy('logits').argmax()}, version {answer.get_response()['model_version']}")
