"""The local fleet: EC2 records become processes, and their ends are followed and reported."""

from __future__ import annotations

import http.client
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import boto3
import psutil
import pytest
from moto import mock_aws

from local.ec2_events import Ec2Events
from local.fleet import LocalFleet, LocalInstance
from local.imds import InstanceMetadata
from local.processes import Child, ProcessLedger, reap

STACK = "markserve"
# Stand-ins for the worker program: what matters here is how a process is started, asked to end, and missed.
OBEDIENT = (sys.executable, "-c", "import os, signal; print(sorted(os.environ.items()), flush=True); signal.pause()")
STUBBORN = (
    sys.executable,
    "-c",
    "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); signal.pause()",
)
FINISHED = (sys.executable, "-c", "raise SystemExit(3)")
BROKEN = (sys.executable, "-c", "raise SystemExit(1)")


class Cloud:
    """An emulated EC2 and event bus, and the fleet that follows them."""

    def __init__(self, tmp_path: Path, worker_command: tuple[str, ...]) -> None:
        region = {"region_name": "us-east-1"}
        self.ec2 = boto3.client("ec2", **region)
        self.sqs = boto3.client("sqs", **region)
        events = boto3.client("events", **region)
        self.queue_url = self.sqs.create_queue(QueueName="events")["QueueUrl"]
        arn = self.sqs.get_queue_attributes(QueueUrl=self.queue_url, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
        events.put_rule(Name="ec2", EventPattern=json.dumps({"source": ["aws.ec2"]}))
        events.put_targets(Rule="ec2", Targets=[{"Id": "queue", "Arn": arn}])
        self.image = self.ec2.describe_images(Owners=["amazon"])["Images"][0]["ImageId"]
        self.log_dir = tmp_path / "logs"
        self.ledger_path = tmp_path / "workers.json"
        ledger = ProcessLedger(self.ledger_path)
        self.fleet = LocalFleet(
            ec2=self.ec2,
            events=Ec2Events(client=events, region="us-east-1", account="123456789012"),
            stack_name=STACK,
            worker_env={"MARKSERVE_STACK_NAME": STACK},
            processes=ledger,
            log_dir=self.log_dir,
            launch_delay_s=3.0,
            stop_grace_s=2.0,
            start_worker=ledger.starter(worker_command),
        )

    def launch(self, *, spot: bool = False, stack: str = STACK) -> str:
        tags = [{"Key": "markserve:stack", "Value": stack}, {"Key": "markserve:model", "Value": "digits"}]
        market: dict[str, Any] = {"InstanceMarketOptions": {"MarketType": "spot"}} if spot else {}
        reservation = self.ec2.run_instances(
            ImageId=self.image,
            InstanceType="c5.large",
            MinCount=1,
            MaxCount=1,
            TagSpecifications=[{"ResourceType": "instance", "Tags": tags}],
            **market,
        )
        return str(reservation["Instances"][0]["InstanceId"])

    def only(self) -> LocalInstance:
        (instance,) = self.fleet.instances()
        return instance

    def reported(self) -> list[dict[str, Any]]:
        messages = self.sqs.receive_message(QueueUrl=self.queue_url, MaxNumberOfMessages=10).get("Messages", [])
        return [json.loads(message["Body"]) for message in messages]

    def states_reported(self) -> list[str]:
        return [event["detail"]["state"] for event in self.reported() if "State-change" in event["detail-type"]]


def eventually(condition: Callable[[], bool]) -> None:
    for _ in range(500):
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError("did not come true")


def log_is_written(cloud: Cloud, instance_id: str) -> Callable[[], bool]:
    path = cloud.log_dir / f"worker-{instance_id}.log"
    return lambda: path.exists() and path.stat().st_size > 0


@pytest.fixture
def make_cloud(tmp_path: Path) -> Iterator[Callable[[tuple[str, ...]], Cloud]]:
    made: list[Cloud] = []

    def make(command: tuple[str, ...]) -> Cloud:
        made.append(Cloud(tmp_path, command))
        return made[-1]

    with mock_aws():
        yield make
        for cloud in made:
            cloud.fleet.stop()


def test_machine_that_does_not_boot_runs_until_it_is_terminated(make_cloud: Callable[[tuple[str, ...]], Cloud]) -> None:
    cloud = make_cloud(OBEDIENT)
    starter = cloud.fleet.start_worker

    def fail(name: str, env: Mapping[str, str], log_path: Path) -> Child:
        raise RuntimeError("no worker can boot")

    cloud.fleet.start_worker = fail
    instance_id = cloud.launch()
    cloud.fleet.step(100.0)
    cloud.fleet.step(103.0)
    cloud.fleet.start_worker = starter
    other_id = cloud.launch()
    cloud.fleet.step(104.0)
    cloud.fleet.step(107.0)

    states = {instance.instance_id: (instance.state, instance.process is not None) for instance in cloud.fleet.instances()}
    assert states == {instance_id: ("exited", False), other_id: ("running", True)}
    cloud.ec2.terminate_instances(InstanceIds=[instance_id])
    cloud.fleet.step(108.0)
    assert cloud.fleet.instances()[0].state == "terminated"


def test_worker_starts_with_its_identity_when_the_launch_delay_is_over(make_cloud: Callable[[tuple[str, ...]], Cloud]) -> None:
    cloud = make_cloud(OBEDIENT)
    instance_id = cloud.launch()

    cloud.fleet.step(100.0)
    cloud.fleet.step(102.9)
    assert cloud.only().state == "booting"
    cloud.fleet.step(103.0)

    assert cloud.only().state == "running"
    eventually(log_is_written(cloud, instance_id))
    environment = (cloud.log_dir / f"worker-{instance_id}.log").read_text()
    assert f"('MARKSERVE_INSTANCE_ID', '{instance_id}')" in environment
    assert "('MARKSERVE_INSTANCE_TYPE', 'c5.large')" in environment
    assert "('MARKSERVE_MODEL', 'digits')" in environment
    assert "('MARKSERVE_STACK_NAME', 'markserve')" in environment
    assert "AWS_EC2_METADATA_SERVICE_ENDPOINT" in environment


def test_instance_of_another_stack_is_left_alone(make_cloud: Callable[[tuple[str, ...]], Cloud]) -> None:
    cloud = make_cloud(OBEDIENT)
    cloud.launch(stack="somebody-elses")

    cloud.fleet.step(100.0)

    assert cloud.fleet.instances() == []


def test_events_have_ec2s_shape_when_an_instance_comes_and_goes(make_cloud: Callable[[tuple[str, ...]], Cloud]) -> None:
    cloud = make_cloud(OBEDIENT)
    instance_id = cloud.launch()
    cloud.fleet.step(100.0)
    cloud.ec2.terminate_instances(InstanceIds=[instance_id])
    cloud.fleet.step(101.0)

    events = cloud.reported()

    assert [event["detail"] for event in events] == [
        {"instance-id": instance_id, "state": state} for state in ("pending", "running", "terminated")
    ]
    assert {event["source"] for event in events} == {"aws.ec2"}
    assert {event["detail-type"] for event in events} == {"EC2 Instance State-change Notification"}
    assert events[0]["resources"] == [f"arn:aws:ec2:us-east-1:123456789012:instance/{instance_id}"]


def test_worker_is_asked_to_end_when_its_instance_is_terminated(make_cloud: Callable[[tuple[str, ...]], Cloud]) -> None:
    cloud = make_cloud(OBEDIENT)
    instance_id = cloud.launch()
    cloud.fleet.step(100.0)
    cloud.fleet.step(103.0)
    eventually(log_is_written(cloud, instance_id))
    process = cloud.only().process
    assert process is not None

    cloud.ec2.terminate_instances(InstanceIds=[instance_id])
    cloud.fleet.step(104.0)
    assert cloud.only().state == "stopping"
    process.wait(timeout=10)
    cloud.fleet.step(104.5)

    assert (cloud.only().state, cloud.only().exit_code) == ("terminated", -15)
    assert cloud.states_reported() == ["pending", "running", "shutting-down", "terminated"]


def test_worker_is_killed_when_it_ignores_the_request_to_end(make_cloud: Callable[[tuple[str, ...]], Cloud]) -> None:
    cloud = make_cloud(STUBBORN)
    instance_id = cloud.launch()
    cloud.fleet.step(100.0)
    cloud.fleet.step(103.0)
    eventually(log_is_written(cloud, instance_id))

    cloud.ec2.terminate_instances(InstanceIds=[instance_id])
    cloud.fleet.step(104.0)
    cloud.fleet.step(105.9)
    assert cloud.only().state == "stopping"
    cloud.fleet.step(106.0)

    assert (cloud.only().state, cloud.only().exit_code) == ("terminated", -9)


def test_exit_is_reflected_when_a_worker_ends_by_itself(make_cloud: Callable[[tuple[str, ...]], Cloud]) -> None:
    cloud = make_cloud(FINISHED)
    instance_id = cloud.launch()
    cloud.fleet.step(100.0)
    cloud.fleet.step(103.0)
    process = cloud.only().process
    assert process is not None
    process.wait(timeout=10)

    cloud.fleet.step(104.0)

    assert (cloud.only().state, cloud.only().exit_code) == ("exited", 3)
    state = cloud.ec2.describe_instances(InstanceIds=[instance_id])["Reservations"][0]["Instances"][0]["State"]["Name"]
    assert state == "running"  # the machine outlives its program, and costs on, until the control path ends it


def test_machine_of_a_worker_that_failed_is_powered_off_as_its_service_unit_does(make_cloud: Callable[[tuple[str, ...]], Cloud]) -> None:
    cloud = make_cloud(BROKEN)
    instance_id = cloud.launch()
    cloud.fleet.step(100.0)
    cloud.fleet.step(103.0)
    process = cloud.only().process
    assert process is not None
    process.wait(timeout=10)

    cloud.fleet.step(104.0)

    assert (cloud.only().state, cloud.only().exit_code) == ("terminated", 1)
    state = cloud.ec2.describe_instances(InstanceIds=[instance_id])["Reservations"][0]["Instances"][0]["State"]["Name"]
    assert state == "terminated"
    assert cloud.states_reported()[-2:] == ["shutting-down", "terminated"]


def test_instance_taken_back_without_notice_is_told_of_only_afterwards(make_cloud: Callable[[tuple[str, ...]], Cloud]) -> None:
    cloud = make_cloud(OBEDIENT)
    instance_id = cloud.launch(spot=True)
    cloud.fleet.step(100.0)
    cloud.fleet.step(103.0)

    cloud.fleet.take_back(instance_id)

    assert (cloud.only().state, cloud.only().exit_code) == ("interrupted", -9)
    assert [event["detail-type"] for event in cloud.reported() if "State-change" not in event["detail-type"]] == []


def test_spot_worker_gets_notice_and_is_then_killed_when_interrupted(make_cloud: Callable[[tuple[str, ...]], Cloud]) -> None:
    cloud = make_cloud(STUBBORN)
    instance_id = cloud.launch(spot=True)
    cloud.fleet.step(100.0)
    cloud.fleet.step(103.0)
    metadata = cloud.only().metadata
    assert metadata is not None
    assert read_metadata(metadata, "spot/instance-action")[0] == 404

    cloud.fleet.interrupt(instance_id, notice_s=120.0, now_s=110.0)
    cloud.fleet.step(229.9)

    assert json.loads(read_metadata(metadata, "spot/instance-action")[1]) == {"action": "terminate", "time": "1970-01-01T00:03:50Z"}
    warning = next(event for event in cloud.reported() if event["detail-type"] == "EC2 Spot Instance Interruption Warning")
    assert warning["detail"] == {"instance-id": instance_id, "instance-action": "terminate"}
    assert warning["resources"] == [f"arn:aws:ec2:{cloud.only().zone}:instance/{instance_id}"]
    assert cloud.only().state == "running"

    cloud.fleet.step(230.0)

    assert (cloud.only().state, cloud.only().exit_code) == ("interrupted", -9)
    state = cloud.ec2.describe_instances(InstanceIds=[instance_id])["Reservations"][0]["Instances"][0]["State"]["Name"]
    assert state == "terminated"


def test_interruption_is_refused_when_the_instance_is_on_demand(make_cloud: Callable[[tuple[str, ...]], Cloud]) -> None:
    cloud = make_cloud(OBEDIENT)
    instance_id = cloud.launch()
    cloud.fleet.step(100.0)
    cloud.fleet.step(103.0)

    with pytest.raises(ValueError, match="only spot instances are interrupted"):
        cloud.fleet.interrupt(instance_id, notice_s=2.0, now_s=104.0)


def test_no_process_is_left_when_the_fleet_stops(make_cloud: Callable[[tuple[str, ...]], Cloud]) -> None:
    cloud = make_cloud(STUBBORN)
    cloud.launch()
    cloud.launch(spot=True)
    cloud.fleet.step(100.0)
    cloud.fleet.step(103.0)
    pids = [instance.process.pid for instance in cloud.fleet.instances() if instance.process is not None]
    assert len(pids) == 2

    cloud.fleet.stop()

    assert not any(psutil.pid_exists(pid) for pid in pids)
    assert reap(cloud.ledger_path) == []


def test_leftover_worker_is_killed_when_the_last_run_crashed(tmp_path: Path) -> None:
    process = ProcessLedger(tmp_path / "workers.json").spawn(
        "i-1", STUBBORN, env={}, log_path=tmp_path / "i-1.log"
    )  # and then the run crashes: nobody stops it

    assert [record.name for record in reap(tmp_path / "workers.json")] == ["i-1"]

    assert not psutil.pid_exists(process.pid)
    process.wait()
    assert reap(tmp_path / "workers.json") == []


def ask_metadata(metadata: InstanceMetadata, method: str, path: str, headers: dict[str, str]) -> tuple[int, str]:
    connection = http.client.HTTPConnection(metadata.base_url.removeprefix("http://"), timeout=5)
    try:
        connection.request(method, path, headers=headers)
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


def read_metadata(metadata: InstanceMetadata, path: str) -> tuple[int, str]:
    """Read as an IMDSv2 client does."""
    status, token = ask_metadata(metadata, "PUT", "/latest/api/token", {"X-aws-ec2-metadata-token-ttl-seconds": "60"})
    assert status == 200
    return ask_metadata(metadata, "GET", f"/latest/meta-data/{path}", {"X-aws-ec2-metadata-token": token})


def test_metadata_is_refused_without_a_session_token() -> None:
    metadata = InstanceMetadata({"instance-id": "i-1"})
    try:
        assert ask_metadata(metadata, "GET", "/latest/meta-data/instance-id", {}) == (401, "")
        assert ask_metadata(metadata, "PUT", "/latest/api/token", {}) == (400, "")
        assert read_metadata(metadata, "instance-id") == (200, "i-1")
    finally:
        metadata.stop()
