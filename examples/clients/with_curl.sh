#!/usr/bin/env bash
# Ask with curl: examples/clients/with_curl.sh URL
set -euo pipefail
body='{"inputs": [{"name": "image", "datatype": "FP32", "shape": [1, 1, 8, 8], "data": [
  0, 0, 0.31, 0.81, 0.56, 0.06, 0, 0,   0, 0, 0.81, 0.94, 0.62, 0.94, 0.31, 0,   0, 0.19, 0.94, 0.12, 0, 0.69, 0.5, 0,
  0, 0.25, 0.75, 0, 0, 0.5, 0.5, 0,     0, 0.31, 0.5, 0, 0, 0.56, 0.5, 0,        0, 0.25, 0.69, 0, 0.06, 0.75, 0.44, 0,
  0, 0.12, 0.88, 0.31, 0.62, 0.75, 0, 0,   0, 0, 0.38, 0.81, 0.62, 0, 0, 0]}]}'
curl --silent --show-error --fail-with-body --dump-header - "$1/v2/models/digits/infer" \
  --header 'Content-Type: application/json' --header 'Idempotency-Key: order-17' --header 'x-markserve-slo: standard' --data "$body"
echo
