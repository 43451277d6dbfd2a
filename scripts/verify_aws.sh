#!/usr/bin/env bash
# What only a real account can prove, as a checklist that runs itself. Reads, sends a handful of requests, and changes nothing
# else; it stops before the first request if the month's bill already exceeds the limit.
#
#   scripts/verify_aws.sh STACK [MODEL BODY.json]
#
# LIMIT_USD (default 5)  refuse to go on when the account's spend this month is above it
# REGION                 default: that of your shell
#
# Reading the bill is one Cost Explorer call, for which AWS charges $0.01. Requests are made only when MODEL and BODY are given.
set -euo pipefail

readonly STACK=${1:?usage: verify_aws.sh STACK [MODEL BODY.json]}
readonly MODEL=${2:-} BODY=${3:-}
readonly LIMIT_USD=${LIMIT_USD:-5} REQUESTS=5
export AWS_PAGER="" AWS_REGION=${REGION:-${AWS_REGION:-us-east-1}}

passed=0 failed=0
ok() { printf '  ok    %s\n' "$1"; passed=$((passed + 1)); }
bad() { printf '  FAIL  %s\n' "$1"; failed=$((failed + 1)); }
check() { # NAME WANTED FOUND
  if [[ $3 == "$2" ]]; then ok "$1"; else bad "$1: wanted $2, found ${3:-nothing}"; fi
}
section() { printf '\n%s\n' "$1"; }
output() {
  aws cloudformation describe-stacks --stack-name "$STACK" --output text \
    --query "Stacks[0].Outputs[?OutputKey=='$1'].OutputValue"
}

section "account and bill"
aws sts get-caller-identity --query Arn --output text
start=$(date -u +%Y-%m-01) end=$(date -u -d tomorrow +%Y-%m-%d 2> /dev/null || date -u -v+1d +%Y-%m-%d)
spent=$(aws ce get-cost-and-usage --time-period "Start=$start,End=$end" --granularity MONTHLY --metrics UnblendedCost \
  --query 'ResultsByTime[0].Total.UnblendedCost.Amount' --output text)
printf '  spent this month: %.2f USD, limit %s USD\n' "$spent" "$LIMIT_USD"
if awk -v spent="$spent" -v limit="$LIMIT_USD" 'BEGIN { exit !(spent > limit) }'; then
  echo "above the limit: nothing else is done; raise it with LIMIT_USD=" >&2
  exit 3
fi

section "stack"
check "stack is complete" COMPLETE "$(aws cloudformation describe-stacks --stack-name "$STACK" \
  --query 'Stacks[0].StackStatus' --output text | grep -o 'COMPLETE$')"
for function in api ingest forecast plan lifecycle spillover; do
  check "function $function is active" Active "$(aws lambda get-function-configuration --function-name "$STACK-$function" \
    --query State --output text)"
done
for alarm in $(aws cloudwatch describe-alarms --alarm-name-prefix "$STACK-" --state-value ALARM --query 'MetricAlarms[].AlarmName' --output text); do
  bad "alarm $alarm is on: see docs/operations.md"
done

section "what the emulators cannot show"
template=$(output LaunchTemplateId)
check "workers require IMDSv2" required "$(aws ec2 describe-launch-template-versions --launch-template-id "$template" --versions '$Latest' \
  --query 'LaunchTemplateVersions[0].LaunchTemplateData.MetadataOptions.HttpTokens' --output text)"
check "worker volumes are encrypted" True "$(aws ec2 describe-launch-template-versions --launch-template-id "$template" --versions '$Latest' \
  --query 'LaunchTemplateVersions[0].LaunchTemplateData.BlockDeviceMappings[0].Ebs.Encrypted' --output text)"
check "nothing may connect to workers" None "$(aws ec2 describe-security-groups --group-ids "$(output WorkerSecurityGroupId)" \
  --query 'SecurityGroups[0].IpPermissions[0]' --output text)"
# DryRun asks EC2 itself whether the template, the subnet and the quota would do; nothing is launched.
said=$(aws ec2 run-instances --dry-run --launch-template "LaunchTemplateId=$template" --instance-type c7i.large 2>&1 || true)
if [[ $said == *DryRunOperation* ]]; then ok "EC2 would launch a worker"; else bad "EC2 would not launch a worker: ${said##*: }"; fi
check "a bundle for workers is in the bucket" yes "$(aws s3api list-objects-v2 --bucket "$(output ArtefactsBucket)" --prefix worker/ \
  --query 'length(Contents || `[]`) > `0`' --output text | sed 's/True/yes/')"
vcpus=$(aws service-quotas get-service-quota --service-code ec2 --quota-code L-1216C47A --query Quota.Value --output text)
printf '  note  on-demand standard vCPUs allowed: %s\n' "$vcpus"
vcpus=$(aws service-quotas get-service-quota --service-code ec2 --quota-code L-34B43A08 --query Quota.Value --output text)
printf '  note  spot standard vCPUs allowed: %s\n' "$vcpus"
concurrency=$(aws lambda get-account-settings --query AccountLimit.ConcurrentExecutions --output text)
printf '  note  Lambda concurrency allowed: %s (docs/scale.md)\n' "$concurrency"

section "control cycle"
machine=$(output ControlStateMachineArn)
last=$(aws stepfunctions list-executions --state-machine-arn "$machine" --max-results 1 --query 'executions[0].status' --output text)
if [[ $last == None ]]; then printf '  note  no cycle has run: ControlEnabled is false\n'; else check "last cycle" SUCCEEDED "$last"; fi

if [[ -n $MODEL && -n $BODY ]]; then
  section "requests ($REQUESTS)"
  url="$(output ApiEndpoint)/v2/models/$MODEL/infer"
  # Signed with the shell's credentials, as ApiAuth=iam wants.
  eval "$(aws configure export-credentials --format env)"
  for number in $(seq "$REQUESTS"); do
    read -r status seconds < <(curl -s -o /dev/null -w '%{http_code} %{time_total}\n' --aws-sigv4 "aws:amz:$AWS_REGION:execute-api" \
      --user "$AWS_ACCESS_KEY_ID:$AWS_SECRET_ACCESS_KEY" ${AWS_SESSION_TOKEN:+-H "x-amz-security-token: $AWS_SESSION_TOKEN"} \
      -H 'Content-Type: application/json' -d @"$BODY" "$url")
    check "request $number (${seconds}s)" 200 "$status"
  done
  unsigned=$(curl -s -o /dev/null -w '%{http_code}' -d @"$BODY" "$url")
  check "an unsigned request is refused" 403 "$unsigned"
fi

section "by hand"
cat << 'LIST'
  [ ] sam build made both images; their sizes are near docs/deploy.md's estimate
  [ ] first launch: request to serving within LaunchOverheadS (markserve explain --instance i-...)
  [ ] a spot interruption (AWS Fault Injection Service: aws:ec2:send-spot-instance-interruptions) loses no request
  [ ] cold start of the spillover function, and its p99: the demo's are a process fork
  [ ] the trace map shows api -> SQS -> worker (Tracing=true)
  [ ] an alarm reaches the topic (aws cloudwatch set-alarm-state ... ALARM)
  [ ] the bill after a day equals what the dashboard said
  [ ] markserve destroy --dry-run, then markserve destroy
LIST
printf '\n%s passed, %s failed\n' "$passed" "$failed"
((failed == 0))
