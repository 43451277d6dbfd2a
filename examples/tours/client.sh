#!/usr/bin/env bash
# A client developer's first ten minutes: examples/tours/client.sh URL (of `markserve status`, or of a deployed stack)
set -euo pipefail
url=$1
cd "$(dirname "$0")/../.."
export PYTHONPATH=clients/python${PYTHONPATH:+:$PYTHONPATH} AWS_ACCESS_KEY_ID=${AWS_ACCESS_KEY_ID:-none} AWS_SECRET_ACCESS_KEY=${AWS_SECRET_ACCESS_KEY:-none}
export AWS_DEFAULT_REGION=${AWS_DEFAULT_REGION:-us-east-1}
python=${PYTHON:-python3}

step() { printf '\n## %s\n\n$ %s\n' "$1" "$2"; eval "$2"; }

step "Is it there?" "curl -s $url/v2/health/ready; echo"
step "What does the model take?" "curl -s $url/v2/models/digits; echo"
step "Ask with curl" "examples/clients/with_curl.sh $url"
step "The same key again: the first answer, not computed twice" "examples/clients/with_curl.sh $url | grep -i -E 'request-id|reason'"
step "Ask with the Python client" "$python examples/clients/with_client.py $url"
step "Ask with tritonclient" "$python examples/clients/with_tritonclient.py $url"
step "Ask with boto3, as if it were SageMaker" "$python examples/clients/with_boto3.py $url"
step "A class that there is not" "curl -s -X POST $url/v2/models/digits/infer -H 'x-markserve-slo: urgent' -d '{}'; echo"
step "An input that does not fit" "curl -s -X POST $url/v2/models/digits/infer -d '{\"inputs\": [{\"name\": \"image\", \"datatype\": \"FP32\", \"shape\": [1, 3], \"data\": [1, 2, 3]}]}'; echo"
step "A model that there is not" "curl -s $url/v2/models/nonesuch; echo"
