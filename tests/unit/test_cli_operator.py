"""The operator's commands against an emulated stack: what they say is what the stack holds, and what they must not change stays."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto import mock_aws
from moto.core.utils import utcnow
from typer.testing import CliRunner, Result

from cli import aws_checks, checks, dead_letters, log_lines
from cli.instant import instant
from cli.main import app
from cli.preview import ReadOnly
from markserve import wiring
from markserve.core.types import InstanceState, Tier, WorkerStats
from markserve.messages import Answer, AnswerError, InferenceRequest, encode
from tests.builders import (
    a_decision,
    a_metrics_batch,
    a_model_record,
    a_plan_record,
    a_request,
    an_answer,
    an_instance,
    an_offering,
    some_outcomes,
)
from tests.contract.conftest import create_table

Stack = Callable[[str], Any]
TABLES = ("models", "control", "instances", "windows")


def markserve(*arguments: str, stdin: str | None = None) -> Result:
    result = CliRunner().invoke(app, arguments, input=stdin)
    assert "Traceback" not in result.output
    return result


def printed(*arguments: str) -> Any:
    result = markserve(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.fixture
def stack(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Stack]:
    """An empty stack that the environment names."""
    monkeypatch.setenv("MARKSERVE_LOCAL_DIR", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "220")
    monkeypatch.setenv("MARKSERVE_STACK_NAME", "demo")
    _forget()
    with mock_aws():
        for name in TABLES:
            monkeypatch.setenv(f"MARKSERVE_{name.upper()}_TABLE", create_table(boto3.client("dynamodb"), f"demo-{name}"))
        results = create_table(boto3.client("dynamodb"), "demo-results", keys=("request_id",))
        monkeypatch.setenv("MARKSERVE_RESULTS_TABLE", results)
        ec2 = boto3.client("ec2")
        subnet = ec2.describe_subnets()["Subnets"][0]["SubnetId"]
        template = ec2.create_launch_template(LaunchTemplateName="demo", LaunchTemplateData={"ImageId": "ami-12c6146b"})
        monkeypatch.setenv("MARKSERVE_LAUNCH_TEMPLATE_ID", template["LaunchTemplate"]["LaunchTemplateId"])
        monkeypatch.setenv("MARKSERVE_SUBNET_IDS", subnet)
        monkeypatch.setenv("MARKSERVE_INSTANCE_TYPES", "c5.large")
        sqs = boto3.client("sqs")
        monkeypatch.setenv("MARKSERVE_DEAD_LETTER_QUEUE_URL", sqs.create_queue(QueueName="demo-work-dlq")["QueueUrl"])
        yield lambda service: boto3.client(service)  # type: ignore[call-overload]
    _forget()


def _forget() -> None:
    for member in vars(wiring).values():
        if hasattr(member, "cache_clear"):
            member.cache_clear()


def contents() -> list[Any]:
    """Everything that the tables hold."""
    client = boto3.client("dynamodb")
    found = [item for name in TABLES for item in client.scan(TableName=f"demo-{name}")["Items"]]
    return sorted(found, key=str)


# --- plan -------------------------------------------------------------------------------------------------


def test_dry_run_says_what_would_be_bought_and_changes_nothing(stack: Stack) -> None:
    wiring.models().put(a_model_record(model="digits", queue_url="https://sqs/demo-work-digits"))
    wiring.parameter_writer().put("launches-enabled", "true")
    wiring.parameter_writer().put("min-instances", "1")
    wiring.instances().put(an_instance(state=InstanceState.REQUESTED, model="digits"))
    before = contents()

    plan = printed("plan", "--dry-run")

    assert plan["trigger"] == "manual"
    assert "digits" in plan["reason"]
    assert contents() == before
    assert boto3.client("ec2").describe_instances()["Reservations"] == []
    assert "dry run: nothing was changed" in markserve("plan").stdout


def test_dry_run_takes_a_trigger_and_refuses_another(stack: Stack) -> None:
    wiring.models().put(a_model_record(model="digits"))

    assert printed("plan", "--trigger", "slo_at_risk")["trigger"] == "slo_at_risk"
    assert markserve("plan", "--trigger", "boredom").exit_code == 2


def test_a_port_that_is_read_only_writes_nothing_whatever_it_is_asked() -> None:
    class Store:
        written = False

        def list(self) -> list[int]:
            return [1]

        def put(self, value: int) -> None:
            self.written = bool(value)

    store = Store()
    held = ReadOnly(store, ("list",))

    assert held.list() == [1]
    assert held.put(2) is None
    assert not store.written


# --- explain ----------------------------------------------------------------------------------------------


def test_explain_at_a_time_shows_the_plan_then_in_force(stack: Stack) -> None:
    now_s = time.time()
    for version, age_s in ((1, 1200.0), (2, 300.0)):
        wiring.control().put_plan(a_plan_record(plan_id=f"plan-{version}", version=version, created_at_s=now_s - age_s))
    wiring.control().log(a_decision(at_s=now_s - 650.0, event="instance_launched"))

    then = printed("explain", "--at", "10m")

    assert then["plan"]["plan_id"] == "plan-1"
    assert [decision["event"] for decision in then["decisions"]] == ["instance_launched"]
    assert markserve("explain", "--at", "10m").exit_code == 0
    assert markserve("explain", "--at", "5h").exit_code == 1
    assert markserve("explain", "--at", "soon").exit_code == 2
    assert markserve("explain", "--at", "5m", "--instance", "i-1").exit_code == 2


def test_explain_a_request_tells_the_reason_and_what_each_way_costs(stack: Stack) -> None:
    now_s = time.time()
    wiring.models().put(a_model_record(model="digits"))
    serving = an_instance(
        model="digits",
        state=InstanceState.REQUESTED,
        requested_at_s=now_s - 600,
        offering=an_offering(price_usd_per_hour=0.36),
    )
    wiring.instances().put(serving)
    wiring.instances().transition(
        serving.instance_id, expected=[InstanceState.REQUESTED], state=InstanceState.SERVING, at_s=now_s - 500, reason="ready"
    )
    wiring.instances().heartbeat(serving.instance_id, at_s=now_s, stats=WorkerStats(service_rate_rps=100.0))
    answer = an_answer(request_id="r-1", tier=Tier.LAMBDA, compute_s=0.1, finished_at_s=now_s)
    wiring.results().put_answer(answer, expires_at_s=now_s + 3600)
    line = {"message": "request", "request_id": "r-1", "model": "digits", "tier": "lambda", "status": 200, "latency_s": 0.2}
    _log(stack, "api", json.dumps({**line, "reason": "spilled: 3 requests ahead", "timings_ms": {"compute": 100.0}}), at_s=now_s)

    story = printed("explain", "--request", "r-1")

    assert (story["tier"], story["reason"], story["model"]) == ("lambda", "spilled: 3 requests ahead", "digits")
    ways = {way["way"]: way["usd"] for way in story["ways"]}
    assert ways[f"worker {serving.instance_id}"] == pytest.approx(1e-6)
    assert ways["Lambda"] == pytest.approx(0.1 * 1769 / 1024 * 1.66667e-5 + 0.2e-6)
    assert "spilled: 3 requests ahead" in markserve("explain", "--request", "r-1").stdout
    assert markserve("explain", "--request", "r-nope").exit_code == 2


def _log(stack: Stack, function: str, text: str, *, at_s: float) -> None:
    logs, group = stack("logs"), f"/aws/lambda/demo-{function}"
    if not logs.describe_log_groups(logGroupNamePrefix=group)["logGroups"]:
        logs.create_log_group(logGroupName=group)
        logs.create_log_stream(logGroupName=group, logStreamName="s")
    logs.put_log_events(logGroupName=group, logStreamName="s", logEvents=[{"timestamp": int(at_s * 1000), "message": text}])


# --- status -----------------------------------------------------------------------------------------------


def test_status_of_a_named_stack_tells_of_each_model(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = time.time()
    queue_url = stack("sqs").create_queue(QueueName="demo-work-digits")["QueueUrl"]
    wiring.models().put(a_model_record(model="digits", version="7", queue_url=queue_url))
    wiring.instances().put(an_instance(model="digits", state=InstanceState.SERVING))
    counted = some_outcomes(model="digits", window_at_s=now_s - 60, tier=Tier.WORKER, ok=9, errors=1)
    wiring.windows().apply([a_metrics_batch(arrivals=(), outcomes=(counted,))], expires_at_s=now_s + 3600)
    monkeypatch.setenv("MARKSERVE_API_URL", "https://api.example.org")

    found = printed("status")

    assert (found["api_url"], list(found["models"])) == ("https://api.example.org", ["digits"])
    assert found["models"]["digits"]["versions"]["live"] == "7"
    assert found["models"]["digits"]["service"]["by_tier"] == {"worker": 10, "lambda": 0, "rejected": 0}
    assert [i["state"] for i in found["instances"]] == ["serving"]
    assert "messages waiting" in markserve("status", "digits").stdout


# --- cost -------------------------------------------------------------------------------------------------


def test_cost_adds_tiers_and_plumbing_and_compares(stack: Stack) -> None:
    now_s = time.time()
    wiring.models().put(a_model_record(model="digits"))
    wiring.instances().put(
        an_instance(
            model="digits", state=InstanceState.REQUESTED, requested_at_s=now_s - 1800, offering=an_offering(price_usd_per_hour=0.1)
        )
    )
    counted = [
        some_outcomes(model="digits", window_at_s=now_s - 60, tier=tier, ok=number, errors=0)
        for tier, number in ((Tier.WORKER, 90), (Tier.LAMBDA, 10))
    ]
    wiring.windows().apply([a_metrics_batch(arrivals=(), outcomes=tuple(counted))], expires_at_s=now_s + 3600)

    found = printed("cost", "--since", "1h")

    cost = found["models"]["digits"]
    here, *others = cost["ways"]
    assert cost["fleet_usd_per_hour"] == pytest.approx(0.1)
    assert here["total_usd_per_hour"] == pytest.approx(
        sum(cost[f"{part}_usd_per_hour"] for part in ("workers", "lambda", "plumbing")), rel=1e-6
    )
    assert found["usd_per_month"] == pytest.approx(730 * here["total_usd_per_hour"])
    assert cost["workers_usd_per_hour"] == pytest.approx(0.05, rel=0.01)  # it lives for half of the hour
    assert cost["lambda_usd_per_hour"] > 0
    assert sum(cost["plumbing_by_kind_usd_per_hour"].values()) == pytest.approx(cost["plumbing_usd_per_hour"])
    assert ([way["name"] for way in others], cost["missing"]) == (["lambda", "sagemaker"], [])
    assert "per million" in markserve("cost").stdout


# --- dlq --------------------------------------------------------------------------------------------------


@pytest.fixture
def given_up(stack: Stack) -> Any:
    """A model with its queue, and a client to put requests aside with."""
    sqs = stack("sqs")
    wiring.models().put(a_model_record(model="digits", version="1", queue_url=sqs.create_queue(QueueName="demo-work-digits")["QueueUrl"]))
    return sqs


def set_aside(sqs: Any, request: InferenceRequest | str, reason: str = "its worker died twice") -> None:
    body = request if isinstance(request, str) else encode(request).decode()
    sqs.send_message(
        QueueUrl=wiring.settings().dead_letter_queue_url,
        MessageBody=body,
        MessageAttributes={"reason": {"DataType": "String", "StringValue": reason}},
    )


def waiting(sqs: Any, name: str) -> int:
    url = sqs.get_queue_url(QueueName=name)["QueueUrl"]
    return int(
        sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["ApproximateNumberOfMessages"])["Attributes"]["ApproximateNumberOfMessages"]
    )


def an_async_request(request_id: str) -> InferenceRequest:
    return a_request(request_id=request_id, model="digits", model_version="1", deadline_at_s=None)


def test_listing_shows_the_reason_and_leaves_the_queue_as_it_was(given_up: Any) -> None:
    set_aside(given_up, an_async_request("r-1"))
    given_up.send_message(QueueUrl=wiring.settings().dead_letter_queue_url, MessageBody="not a request")

    listed = {letter["model"]: letter for letter in printed("dlq", "list")}

    assert listed["digits"]["reason"] == "its worker died twice"
    assert "not a valid InferenceRequest" in listed["unreadable"]["reason"]
    assert waiting(given_up, "demo-work-dlq") == 2
    assert json.loads(printed("dlq", "show", "r-1")["body"])["request_id"] == "r-1"
    assert markserve("dlq", "show", "r-nope").exit_code == 2
    assert "its worker died twice" in markserve("dlq", "list").stdout


def test_redrive_sends_what_somebody_waits_for_alone_and_once(given_up: Any) -> None:
    set_aside(given_up, an_async_request("r-waits"))
    set_aside(given_up, an_async_request("r-answered"))
    set_aside(given_up, a_request(request_id="r-late", model="digits", model_version="1", deadline_at_s=time.time() - 5))
    failed = Answer(request_id="r-answered", tier=Tier.WORKER, error=AnswerError(status=500, message="inference failed"))
    wiring.results().put_answer(failed, expires_at_s=time.time() + 60)

    done = {one["request_id"]: one for one in printed("dlq", "redrive", "--all")}
    again = printed("dlq", "redrive", "--all")

    assert {name for name, one in done.items() if one["sent"]} == {"r-waits"}
    assert "error 500" in done["r-answered"]["why"]
    assert "nobody waits" in done["r-late"]["why"]
    assert not any(one["sent"] for one in again)
    assert waiting(given_up, "demo-work-dlq") == 2
    url = given_up.get_queue_url(QueueName="demo-work-digits")["QueueUrl"]
    (message,) = given_up.receive_message(QueueUrl=url, MaxNumberOfMessages=10)["Messages"]
    assert json.loads(message["Body"])["suspect"] is True


def test_redrive_wants_to_be_told_which(given_up: Any) -> None:
    assert markserve("dlq", "redrive").exit_code == 2
    assert markserve("dlq", "redrive", "r-1", "--all").exit_code == 2
    set_aside(given_up, an_async_request("r-1"))
    assert [letter["request_id"] for letter in printed("dlq", "redrive", "r-1", "--dry-run")] == ["r-1"]
    assert waiting(given_up, "demo-work-digits") == 0


def test_purge_asks_first(given_up: Any) -> None:
    set_aside(given_up, an_async_request("r-1"))

    refused = markserve("dlq", "purge", stdin="n\n")
    assert (refused.exit_code, waiting(given_up, "demo-work-dlq")) == (2, 1)
    assert printed("dlq", "purge", "--yes") == {"deleted": ["r-1"]}
    assert waiting(given_up, "demo-work-dlq") == 0


def test_a_request_that_sqs_itself_gave_up_has_a_reason(given_up: Any) -> None:
    given_up.send_message(QueueUrl=wiring.settings().dead_letter_queue_url, MessageBody=encode(an_async_request("r-1")).decode())

    (letter,) = dead_letters.read(given_up, wiring.settings().dead_letter_queue_url)

    assert letter.reason == dead_letters.GIVEN_UP


# --- logs -------------------------------------------------------------------------------------------------


def test_logs_are_shown_by_time_without_lambdas_own_lines(stack: Stack) -> None:
    now_s = time.time()
    _log(stack, "plan", json.dumps({"level": "INFO", "message": "planned", "plan_id": "plan-7"}), at_s=now_s - 5)
    _log(stack, "plan", "REPORT RequestId: x", at_s=now_s - 4)
    _log(stack, "api", json.dumps({"level": "ERROR", "message": "request failed"}), at_s=now_s - 9)

    shown = [(line["source"], json.loads(line["text"])["message"]) for line in printed("logs", "--since", "1m")]

    assert shown == [("api", "request failed"), ("plan", "planned")]
    assert "planned plan_id=plan-7" in markserve("logs", "--function", "plan").stdout
    assert "REPORT" in markserve("logs", "--all").stdout
    assert markserve("logs", "--function", "nope").exit_code == 2
    assert "no lines" in markserve("logs", "--function", "ingest").stdout


def test_local_files_are_read_with_their_times(tmp_path: Path) -> None:
    stamp = datetime.fromtimestamp(1000.5, UTC).strftime("%Y-%m-%d %H:%M:%S,%f%z")
    text = json.dumps({"timestamp": stamp, "message": "serving"}) + "\nTraceback\n"
    (tmp_path / "worker-i-1.log").write_text("starting\n" + text)

    lines = log_lines.of_files(tmp_path, "demo", ["i-1"], since_s=1000.0, until_s=1001.0)

    assert [(line.at_s, line.text[:9]) for line in lines] == [(1000.5, '{"timesta'), (1000.5, "Traceback")]
    assert log_lines.workers_with_files(tmp_path) == ["i-1"]


# --- params history, doctor, times, target -------------------------------------------------------------------


def test_history_tells_who_changed_what(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    written_at = utcnow()
    monkeypatch.setattr("moto.ssm.models.utcnow", lambda: written_at)  # both versions within one millisecond
    for value in ("1.1", "1.2"):
        wiring.parameter_writer().put("headroom", value)

    newest, first = printed("params", "history", "headroom")

    assert (newest["old"], newest["new"], first["old"], first["new"]) == ("1.1", "1.2", None, "1.1")
    assert newest["who"]
    assert printed("params", "history", "sl-min") == []
    assert markserve("params", "history", "nope").exit_code == 2
    assert "1.1" in markserve("params", "history").stdout


def test_doctor_fails_with_a_next_step_where_there_is_no_stack(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MARKSERVE_CONTROL_TABLE")

    result = markserve("doctor", "--json")

    found = {one["name"]: one for one in json.loads(result.stdout)}
    assert result.exit_code == 1
    assert "there is no stack demo" in found["stack"]["found"]
    assert found["stack"]["next_step"]
    assert found["python"]["result"] == "ok"


def test_doctor_checks_what_the_account_lets_it_see(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aws_checks, "_permissions", lambda: iter(()))  # moto has no policy simulation
    wiring.parameter_writer().put("max-instances", "0")

    found = {one.name: one for one in aws_checks.stack_checks({"DeadLetterQueueUrl": wiring.settings().dead_letter_queue_url})}

    assert found["account"].result == "ok"
    assert found["launches"].result == "warn"
    assert found["ceilings"].result == "warn"
    assert found["function api"].result == "fail"
    assert found["worker image"].result == "ok"
    assert found["instance types"].result == "ok"
    assert found["DeadLetterQueue"].result == "ok"
    assert all(one.next_step for one in found.values() if one.result != "ok")


@pytest.mark.parametrize(("decision", "result"), [("allowed", "ok"), ("implicitDeny", "warn")])
def test_doctor_simulates_the_policies_of_the_callers_role(monkeypatch: pytest.MonkeyPatch, decision: str, result: str) -> None:
    asked: list[dict[str, Any]] = []

    class Aws:
        def get_caller_identity(self) -> dict[str, str]:
            return {"Arn": "arn:aws:sts::123456789012:assumed-role/operator/ann"}

        def simulate_principal_policy(self, **request: Any) -> dict[str, Any]:
            asked.append(request)
            return {"EvaluationResults": [{"EvalActionName": name, "EvalDecision": decision} for name in request["ActionNames"]]}

    monkeypatch.setattr(aws_checks, "client", lambda _: Aws())

    (found,) = aws_checks._permissions()

    assert found.result == result
    assert asked[0]["PolicySourceArn"] == "arn:aws:iam::123456789012:role/operator"
    assert ("ssm:PutParameter" in found.found) == (result == "warn")


def test_a_check_that_cannot_be_made_is_a_warning() -> None:
    def refused() -> Iterator[checks.Check]:
        yield checks.check("first", True, "fine", "")
        raise ValueError("AccessDenied")

    found = checks.guarded("quotas", refused, (ValueError,))

    assert [(one.name, one.result) for one in found] == [("first", "ok"), ("quotas", "warn")]


def test_pins_of_the_doctor_are_those_of_the_project() -> None:
    pins = (Path(__file__).resolve().parents[2] / "pyproject.toml").read_text()

    assert all(f"{name}=={version}" in pins.replace("[ec2,server]", "") for name, version in checks.PINNED.items())


def test_times_of_the_day_are_of_the_last_24_hours() -> None:
    now = datetime(2026, 1, 31, 12, 0, tzinfo=UTC).astimezone()

    assert now.timestamp() - instant((now.replace(hour=now.hour)).strftime("%H:%M"), now_s=now.timestamp()) == 0
    later = datetime.fromtimestamp(now.timestamp() + 60).astimezone()
    assert now.timestamp() - instant(later.strftime("%H:%M"), now_s=now.timestamp()) == pytest.approx(86_340)


def test_a_stack_is_reached_by_its_name_alone(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MARKSERVE_CONTROL_TABLE")
    result = markserve("explain")
    assert (result.exit_code, "there is no stack demo" in result.stderr) == (3, True)
    _lambda_with(stack, {"MARKSERVE_CONTROL_TABLE": "demo-control", "MARKSERVE_STACK_NAME": "demo", "OTHER": "x"})

    monkeypatch.setenv("OTHER", "mine")
    assert "nothing was planned yet" in markserve("explain").stderr
    monkeypatch.delenv("MARKSERVE_CONTROL_TABLE")


def _lambda_with(stack: Stack, variables: dict[str, str]) -> None:
    iam = stack("iam")
    role = iam.create_role(RoleName="r", AssumeRolePolicyDocument="{}")["Role"]["Arn"]
    stack("lambda").create_function(
        FunctionName="demo-lifecycle",
        Runtime="python3.12",
        Role=role,
        Handler="app.handler",
        Code={"ZipFile": b"PK\x05\x06" + 18 * b"\0"},
        Environment={"Variables": variables},
    )


def test_version_and_completion_are_there() -> None:
    assert markserve("--version").stdout.startswith("markserve ")
    assert "--install-completion" in markserve("--help").stdout
