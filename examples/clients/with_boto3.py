"""Ask with boto3's sagemaker-runtime; only the endpoint's URL is ours: `python examples/clients/with_boto3.py URL`."""

from __future__ import annotations

import json
import sys

import boto3
from sklearn.datasets import load_digits

image = (load_digits().images[:1, None] / 16).tolist()

client = boto3.client("sagemaker-runtime", endpoint_url=sys.argv[1])
answer = client.invoke_endpoint(EndpointName="digits", ContentType="application/json", Body=json.dumps({"instances": image}))
scores = json.load(answer["Body"])["predictions"][0]
print(f"digit {scores.index(max(scores))}, variant {answer['InvokedProductionVariant']}")
