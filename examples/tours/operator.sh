#!/usr/bin/env bash
# An operator's first hour with markserve, in two minutes: what runs, what it costs, why it did what it did, and how to turn its knobs.
# Works on the local system that runs, or starts one and stops it again. Nothing leaves this machine.
#
#   examples/tours/operator.sh          (`make tours` records it into docs/tour-operator.md)
set -euo pipefail
cd "$(dirname "$0")/../.."
PATH="$(cd "${VENV:-.venv}" && pwd)/bin:$PATH"
export COLUMNS="${COLUMNS:-132}"
seconds="${SECONDS_OF_LOAD:-15}"

say() { printf '\n## %s\n\n' "$*"; }
run() {
  printf '$ markserve %s\n' "$*"
  markserve "$@"
}

if ! markserve status > /dev/null 2>&1; then
  trap 'markserve down > /dev/null' EXIT
  say "Start everything: an embedded AWS, the stack, a model, a fleet"
  run up --rt-max 2 --max-instances 3
fi

say "Is all fit to run?"
run doctor

say "What runs?"
run status

say "Load on a system that has scaled to zero: Lambda answers while instances start"
run load digits --rate 4 --seconds "$seconds" --rt-max 2

for _ in $(seq 30); do # the planner has launched some: wait until one serves
  markserve status --json | grep -q '"state": "serving"' && break
  sleep 1
done
say "The same again, now that a worker serves"
run load digits --rate 4 --seconds "$seconds" --rt-max 2

say "What would the planner do now?"
run plan --dry-run

say "What did it decide, and what did it reject?"
run explain

say "Why did one request go where it went?"
body="${MARKSERVE_LOCAL_DIR:-.markserve}/up/digit.json"
request=$(markserve infer digits "$body" --json | python3 -c 'import json, sys; print(json.load(sys.stdin)["parameters"]["request_id"])')
sleep 1 # its log line is written after the answer
run explain --request "$request"

say "What does it cost, and what would SageMaker?"
run cost --since 10m

say "Turn a knob, and see who did"
run params set headroom 1.1
run params history headroom
run params set headroom 1

say "Did anything fail for good?"
run dlq list

say "What did the planner log?"
run logs --function plan --since 30s
