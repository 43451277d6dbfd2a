"""The local fleet: makes the emulated EC2's instances real.

The EC2 emulator only keeps records. For every record that runs, this fleet boots a worker process after a launch
delay, serves it instance metadata, and reports what happens to it as EC2 would; a record that ends takes its
process along. It decides nothing: what is bought, drained or given back is the control path's business.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from botocore.exceptions import BotoCoreError, ClientError

from local.ec2_events import Ec2Events
from local.imds import InstanceMetadata
from local.processes import Child, ProcessLedger, Starter

if TYPE_CHECKING:
    from mypy_boto3_ec2 import EC2Client
    from mypy_boto3_ec2.type_defs import InstanceTypeDef

logger = logging.getLogger(__name__)

FAILED_TO_SERVE = 1
"""Exit code of a worker that gave up; see `worker.main.run_process`. One that is killed has a negative one."""
ENDING = ("shutting-down", "terminated", "stopping", "stopped")


@dataclass(kw_only=True)
class LocalInstance:
    """One instance and the process that stands for its machine."""

    instance_id: str
    instance_type: str
    capacity_type: str
    zone: str
    model: str
    purpose: str
    boot_at_s: float
    """When the worker process starts: first seen running, plus the launch delay."""
    state: str = "booting"
    """booting, running, exited (the worker ended by itself), stopping, interrupted or terminated."""
    process: Child | None = None
    metadata: InstanceMetadata | None = None
    exit_code: int | None = None
    kill_at_s: float | None = None
    """When a stopping process is killed."""
    interrupt_at_s: float | None = None
    """When the interruption notice is over."""


@dataclass(kw_only=True)
class LocalFleet:
    """Follows the EC2 records of one stack; `step` is one look, `start` looks until `stop`."""

    ec2: EC2Client
    events: Ec2Events
    stack_name: str
    worker_env: Mapping[str, str]
    processes: ProcessLedger
    log_dir: Path
    launch_delay_s: float
    start_worker: Starter
    poll_interval_s: float = 0.2
    stop_grace_s: float = 5.0
    _instances: dict[str, LocalInstance] = field(default_factory=dict, init=False)
    _lock: threading.RLock = field(default_factory=threading.RLock, init=False)
    _stopping: threading.Event = field(default_factory=threading.Event, init=False)
    _thread: threading.Thread | None = field(default=None, init=False)

    def start(self) -> None:
        """Follow the records in a thread of its own."""
        self._thread = threading.Thread(target=self._follow, name="local-fleet", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop following, and end every worker process."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()
        with self._lock:
            alive = [instance for instance in self._instances.values() if instance.process is not None]
            for instance in alive:  # all at once first, so that the grace is shared
                _running(instance).terminate()
            for instance in alive:
                instance.exit_code = self.processes.stop(_running(instance), grace_s=self.stop_grace_s)
                self._shut_down(instance, "terminated")

    def instances(self) -> list[LocalInstance]:
        """Every instance seen so far, oldest first."""
        with self._lock:
            return list(self._instances.values())

    def interrupt(self, instance_id: str, *, notice_s: float, now_s: float) -> None:
        """Take a spot instance back: notice by metadata and event now, the end when `notice_s` is over.

        Raises
        ------
        ValueError
            If the instance is not a running spot instance.
        """
        with self._lock:
            instance = self._instances.get(instance_id)
            if instance is None or instance.process is None or instance.metadata is None:
                raise ValueError(f"{instance_id} has no running worker to interrupt")
            if instance.capacity_type != "spot":
                raise ValueError(f"{instance_id} is {instance.capacity_type}; only spot instances are interrupted")
            instance.interrupt_at_s = now_s + notice_s
            instance.metadata.announce_interruption(instance.interrupt_at_s)
        logger.info("%s: interruption notice of %.0f s", instance_id, notice_s)
        self.events.interruption_warned(instance_id, zone=instance.zone)

    def take_back(self, instance_id: str) -> None:
        """Take an instance away at once, without any notice: it crashes, and the cloud says so afterwards."""
        with self._lock:
            self._take_back(self._instances[instance_id])

    def recommend_rebalance(self, instance_id: str, *, now_s: float) -> None:
        """Say that a spot instance is at elevated risk, by metadata and event."""
        with self._lock:
            metadata = self._instances[instance_id].metadata
            if metadata is not None:
                metadata.recommend_rebalance(now_s)
        self.events.rebalance_recommended(instance_id)

    def step(self, now_s: float) -> None:
        """Look at the records once and follow them."""
        observed = {str(record["InstanceId"]): record for record in self._records()}
        with self._lock:
            for instance_id, record in observed.items():
                if instance_id not in self._instances and record["State"]["Name"] == "running":
                    self._admit(record, now_s)
            for instance in self._instances.values():
                found = observed.get(instance.instance_id)
                self._follow_one(instance, "terminated" if found is None else str(found["State"]["Name"]), now_s)

    def _follow(self) -> None:
        while not self._stopping.wait(self.poll_interval_s):
            try:
                self.step(time.time())
            except (BotoCoreError, ClientError):
                logger.exception("EC2 did not answer; looking again in %.1f s", self.poll_interval_s)

    def _records(self) -> Iterator[InstanceTypeDef]:
        pages = self.ec2.get_paginator("describe_instances").paginate(
            Filters=[{"Name": "tag:markserve:stack", "Values": [self.stack_name]}]
        )
        for page in pages:
            for reservation in page["Reservations"]:
                yield from reservation["Instances"]

    def _admit(self, record: InstanceTypeDef, now_s: float) -> None:
        tags = {tag["Key"]: tag["Value"] for tag in record.get("Tags", [])}
        instance = LocalInstance(
            instance_id=record["InstanceId"],
            instance_type=record["InstanceType"],
            capacity_type="spot" if record.get("InstanceLifecycle") == "spot" else "on_demand",
            zone=record["Placement"]["AvailabilityZone"],
            model=tags.get("markserve:model", ""),
            purpose=tags.get("markserve:purpose", ""),
            boot_at_s=now_s + self.launch_delay_s,
        )
        self._instances[instance.instance_id] = instance
        self.events.state_changed(instance.instance_id, "pending")
        self.events.state_changed(instance.instance_id, "running")
        logger.info("%s: %s %s, boots in %.1f s", instance.instance_id, instance.instance_type, instance.capacity_type, self.launch_delay_s)

    def _follow_one(self, instance: LocalInstance, cloud_state: str, now_s: float) -> None:
        if instance.state in ("terminated", "interrupted"):
            return
        if instance.interrupt_at_s is not None and now_s >= instance.interrupt_at_s:
            self._take_back(instance)
        elif cloud_state in ENDING:
            self._end(instance, now_s)
        elif instance.process is not None and instance.process.poll() is not None:
            self._record_exit(instance, instance.process)
            if instance.exit_code == FAILED_TO_SERVE:
                self._power_off(instance)
        elif instance.state == "booting" and now_s >= instance.boot_at_s:
            self._boot(instance)

    def _boot(self, instance: LocalInstance) -> None:
        instance.metadata = InstanceMetadata(
            {
                "instance-id": instance.instance_id,
                "instance-type": instance.instance_type,
                "instance-life-cycle": "spot" if instance.capacity_type == "spot" else "on-demand",
                "placement/availability-zone": instance.zone,
            }
        )
        env = {
            **self.worker_env,
            "MARKSERVE_INSTANCE_ID": instance.instance_id,
            "MARKSERVE_INSTANCE_TYPE": instance.instance_type,
            "MARKSERVE_MODEL": instance.model,
            "MARKSERVE_PURPOSE": instance.purpose,
            "AWS_EC2_METADATA_SERVICE_ENDPOINT": instance.metadata.base_url,
        }
        log_path = self.log_dir / f"worker-{instance.instance_id}.log"
        try:
            instance.process = self.start_worker(instance.instance_id, env, log_path)
        except RuntimeError:  # as a machine that does not boot: the control path gives it up
            logger.exception("%s: does not boot", instance.instance_id)
            self._shut_down(instance, "exited")
            return
        instance.state = "running"

    def _record_exit(self, instance: LocalInstance, process: Child) -> None:
        instance.exit_code = process.wait()
        self.processes.forget(process)
        self._shut_down(instance, "exited")
        logger.info(
            "%s: worker ended with exit code %d; the instance runs on until it is terminated", instance.instance_id, instance.exit_code
        )

    def _power_off(self, instance: LocalInstance) -> None:
        """End the machine of a worker that fails by itself: the service unit powers it off, and that terminates it.

        On EC2 after five attempts within five minutes; here after one, since waiting for the others proves nothing.
        """
        self.ec2.terminate_instances(InstanceIds=[instance.instance_id])
        instance.state = "terminated"
        self.events.state_changed(instance.instance_id, "shutting-down")
        self.events.state_changed(instance.instance_id, "terminated")
        logger.info("%s: powered off after its worker failed", instance.instance_id)

    def _end(self, instance: LocalInstance, now_s: float) -> None:
        """Follow a termination: the operating system asks the worker to stop, and takes it along soon after."""
        if instance.process is not None and instance.kill_at_s is None:
            instance.process.terminate()
            instance.kill_at_s = now_s + self.stop_grace_s
            instance.state = "stopping"
            self.events.state_changed(instance.instance_id, "shutting-down")
            return
        if instance.process is not None:
            if instance.process.poll() is None and now_s < (instance.kill_at_s or now_s):
                return
            instance.process.kill()
            instance.exit_code = instance.process.wait()
            self.processes.forget(instance.process)
        self._shut_down(instance, "terminated")
        self.events.state_changed(instance.instance_id, "terminated")

    def _take_back(self, instance: LocalInstance) -> None:
        """End an interrupted instance as EC2 does: no more asking."""
        if instance.process is not None:
            instance.process.kill()
            instance.exit_code = instance.process.wait()
            self.processes.forget(instance.process)
        self._shut_down(instance, "interrupted")
        self.ec2.terminate_instances(InstanceIds=[instance.instance_id])
        self.events.state_changed(instance.instance_id, "terminated")
        logger.info("%s: interrupted", instance.instance_id)

    @staticmethod
    def _shut_down(instance: LocalInstance, state: str) -> None:
        if instance.metadata is not None:
            instance.metadata.stop()
        instance.metadata, instance.process, instance.state = None, None, state


def _running(instance: LocalInstance) -> Child:
    if instance.process is None:
        raise ValueError(f"{instance.instance_id} has no worker process")
    return instance.process
