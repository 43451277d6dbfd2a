"""Ask with markserve's own client: `python examples/clients/with_client.py URL`."""

from __future__ import annotations

import sys

import numpy as np
from sklearn.datasets import load_digits

from markserve_client import Client

image = (load_digits().images[:1, None] / 16).astype(np.float32)

with Client(sys.argv[1], timeout_s=30) as client:
    now = client.infer("digits", {"image": image})
    print(f"digit {now['logits'].argmax()}, version {now.model_version}, computed by a {now.tier}: {now.reason}")
    unhurried = client.infer("digits", {"image": image}, slo="standard")
    print(f"digit {unhurried['logits'].argmax()}, as standard: {unhurried.reason}")
    job = client.submit("digits", {"image": image})
    print(f"digit {client.fetch(job)['logits'].argmax()}, fetched later as {job.request_id}")
