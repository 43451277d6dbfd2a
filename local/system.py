"""The whole system on this machine: embedded AWS, the repository's own template, a model, a fleet, a clock.

`LocalSystem` starts everything in order and stops it in reverse. The demo, `markserve up` and the system tests are
all this, with different settings.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import boto3
import numpy as np
from botocore.config import Config

from local.connection import connect, connecting_variables
from local.cpu_share import emulate_sizes
from local.deployer import REPOSITORY, Clients, Deployment, deploy
from local.digits import DigitsModel, measure_digit_cpu_s, train_digits
from local.ec2_events import Ec2Events
from local.embedded_aws import ACCOUNT_ID, REGION, WARM_LAMBDA_TTL_S, EmbeddedAws, start_embedded_aws
from local.fleet import LocalFleet
from local.image_host import start_image_host
from local.model_setup import profile_digits, profile_digits_spillover, register_digits, sample_body
from local.processes import ProcessLedger, reap
from local.roles import role_environment
from local.ticker import ControlTicker
from local.worker_image import WorkerImage
from markserve import wiring
from markserve.messages import ModelRecord

if TYPE_CHECKING:
    from mypy_boto3_lambda import LambdaClient

logger = logging.getLogger(__name__)

IMAGES = Path(__file__).resolve().parent / "images"
IMAGE_FUNCTIONS = {"forecast": REPOSITORY / "functions", "spillover": IMAGES}
"""Image functions and where the folders with their code are: spillover has a local composition."""
READY_TIMEOUT_S = 120.0
LEAST_API_CONCURRENCY = 32
COLD_STARTS_BEARABLE = 8
"""Environments of the api function that may start under load; each takes about half a second of a core."""
WARM_UP_HOLD_S = 2.0
"""Long enough that no environment is free again before the last one was asked for."""
CONTROL_WARM_UP: Mapping[str, tuple[Mapping[str, Any], int]] = {
    "IngestFunctionName": ({"Records": []}, 5),
    "LifecycleFunctionName": (
        {
            "source": "aws.ec2",
            "detail-type": "EC2 Instance State-change Notification",
            "detail": {"instance-id": "i-00000000000000000", "state": "running"},
        },
        4,
    ),
}
"""By output of the stack: an event that changes nothing, and as many environments as an interruption has under way at once. They
would start then, each for a second of a core; in AWS these are not the front's."""
LOCAL_PARAMETERS = {"spill-reserve-cost-max": "0.2"}
"""Where this machine differs from AWS. A reserve's cost is reckoned with AWS's transport of 20 ms; here it takes longer, and a
reserve that is reckoned at two fifths of a worker's rate takes more than half of it, which this machine's Lambda cannot take over."""
HELD_OUT_FILE = "held_out.npz"
"""The digits that the model has not seen, for load generators in other processes."""
SAMPLE_REQUEST_FILE = "digit.json"
"""A request to try the endpoint with."""

Note = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class SystemConfig:
    """How a local system differs from one in AWS: smaller, faster-paced, on one machine."""

    work_dir: Path
    stack_name: str = "markserve"
    rt_max_s: float = 1.0
    sl_min: float = 0.98
    max_instances: int = 6
    max_hourly_cost_usd: float = 2.0
    instance_types: str = "c5.large,c5.xlarge"
    cycle_s: float = 5.0
    """Interval of the control cycle, and planning step; a minute in AWS."""
    window_s: float = 2.5
    horizon_steps: int = 6
    launch_delay_s: float = 3.0
    """From a running EC2 record to a started worker process; minutes in AWS."""
    worker_start_s: float = 4.0
    """From a started worker process to readiness: Python, torch and the model."""
    warm_api_environments: int = 24
    warm_lambda_ttl_s: float = WARM_LAMBDA_TTL_S
    """How long an idle environment of a zip function is kept. Starting one takes seconds of the cores that everything shares."""
    parameters: Mapping[str, str] = field(default_factory=dict)
    """Operator parameters set after deployment, by their operators' names."""
    keep_state: bool = False
    """Have the embedded AWS write its state down when it stops, so that it can be restarted."""
    enforce_iam: bool = False
    """Hold every function and worker to its own role, as AWS does. EC2's calls are not checked: its emulator knows no policies."""

    def template_parameters(self) -> dict[str, str]:
        """Parameters of template.yaml."""
        return {
            "LaunchesEnabled": "true",
            "RtMaxS": f"{self.rt_max_s:g}",
            "SlMin": f"{self.sl_min:g}",
            "MaxInstances": str(self.max_instances),
            "MaxHourlyCostUsd": f"{self.max_hourly_cost_usd:g}",
            "InstanceTypes": self.instance_types,
            "WindowS": f"{self.window_s:g}",
            "StepS": f"{self.cycle_s:g}",
            "HorizonSteps": str(self.horizon_steps),
            "LaunchOverheadS": f"{self.launch_delay_s + self.worker_start_s:g}",
            "HeartbeatTimeoutS": "5",
            "ParameterRefreshS": "5",
            # The embedded AWS's long polls wake on a 100 ms tick: short ones find messages sooner.
            "ReceiveWaitS": "1",
        }


@dataclass(kw_only=True)
class LocalSystem:
    """A running local system; usable as a context manager."""

    config: SystemConfig
    note: Note
    """Told of each step of the start."""
    _parts: ExitStack = field(default_factory=ExitStack, init=False)
    aws: EmbeddedAws = field(init=False)
    deployment: Deployment = field(init=False)
    model: DigitsModel = field(init=False)
    record: ModelRecord = field(init=False)
    fleet: LocalFleet = field(init=False)
    ticker: ControlTicker = field(init=False)

    def __enter__(self) -> LocalSystem:
        try:
            self._start()
        except BaseException:
            self._parts.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._parts.close()

    def connecting_env(self) -> dict[str, str]:
        """Variables with which another process reaches this system."""
        return connecting_variables(self.deployment.settings_env())

    def reconnect(self) -> None:
        """Have this process's `wiring` reach this system, whatever it was connected to meanwhile."""
        connect(self.deployment.settings_env())

    def client(self, service: str) -> Any:
        """Open a boto3 client on this system, as an observer."""
        return boto3.client(service)  # type: ignore[call-overload]  # connected by environment; callers know the service

    def _start(self) -> None:
        config = self.config
        config.work_dir.mkdir(parents=True, exist_ok=True)
        ledger_path = config.work_dir / "processes.json"
        for left in reap(ledger_path):
            self.note(f"ended {left.name}, which an earlier run had left behind")
        self._parts.callback(emulate_sizes(measure_digit_cpu_s()))
        ledger = ProcessLedger(ledger_path)
        with ThreadPoolExecutor(max_workers=1) as aside:
            training = aside.submit(train_digits)
            self._deploy(ledger)
            self.note("training a CNN on scikit-learn's digits")
            self.model = training.result()
        np.savez(config.work_dir / HELD_OUT_FILE, images=self.model.images, labels=self.model.labels)
        (config.work_dir / SAMPLE_REQUEST_FILE).write_text(json.dumps(sample_body(self.model)), encoding="utf-8")
        self.note(f"the model reads {self.model.accuracy:.1%} of {len(self.model.labels)} held-out digits correctly")
        self._parts.callback(connect(self.deployment.settings_env()))
        for name, text in {**LOCAL_PARAMETERS, **config.parameters}.items():
            wiring.parameter_writer().put(name, text)
        self.record = register_digits(self.model)
        self.note("measuring T(b) on the emulated instance sizes and on Lambda")
        self.record = profile_digits(self.record, self.model)
        self.record = profile_digits_spillover(self.record, self.model)
        self._start_fleet(ledger)
        self.note(f"warming {config.warm_api_environments} environments of the api function")
        patient = Config(read_timeout=READY_TIMEOUT_S, max_pool_connections=config.warm_api_environments, retries={"total_max_attempts": 1})
        lambda_, api = boto3.client("lambda", config=patient), self.deployment.outputs["ApiFunctionName"]
        warm(lambda_, api, {"warmup": True, "hold_s": WARM_UP_HOLD_S}, environments=config.warm_api_environments)
        for output, (event, environments) in CONTROL_WARM_UP.items():
            warm(lambda_, self.deployment.outputs[output], event, environments=environments)
        # Beyond this an explicit 429 is kinder than one more cold start: enough of them at once would starve every request.
        limit = max(LEAST_API_CONCURRENCY, config.warm_api_environments + COLD_STARTS_BEARABLE)
        lambda_.put_function_concurrency(FunctionName=api, ReservedConcurrentExecutions=limit)

    def _deploy(self, ledger: ProcessLedger) -> None:
        config = self.config
        self.note("starting the embedded AWS")
        names = {f"{config.stack_name}-{function}": None for function in IMAGE_FUNCTIONS}
        self.aws = start_embedded_aws(
            ledger=ledger,
            work_dir=config.work_dir,
            image_functions=names,
            enforce_iam=config.enforce_iam,
            keep_state=config.keep_state,
            warm_lambda_ttl_s=config.warm_lambda_ttl_s,
        )
        self._parts.callback(self.aws.stop)
        self.note("deploying template.yaml through CloudFormation")
        endpoint_url, ec2_endpoint_url = self.aws.endpoint_url, self.aws.ec2_endpoint_url
        self.deployment = deploy(
            clients=Clients.connect(endpoint_url=endpoint_url, ec2_endpoint_url=ec2_endpoint_url),
            endpoint_url=endpoint_url,
            ec2_endpoint_url=ec2_endpoint_url,
            stack_name=config.stack_name,
            parameters=config.template_parameters(),
        )
        for function, functions in IMAGE_FUNCTIONS.items():
            host = start_image_host(
                ledger=ledger,
                work_dir=config.work_dir,
                deployment=self.deployment,
                function=function,
                functions=functions,
                port=self.aws.image_ports[f"{config.stack_name}-{function}"],
                enforce_iam=config.enforce_iam,
            )
            self._parts.callback(host.stop)

    def _worker_credentials(self) -> dict[str, str]:
        if not self.config.enforce_iam:
            return {}
        return role_environment(boto3.client("sts"), f"arn:aws:iam::{ACCOUNT_ID}:role/{self.deployment.roles['WorkerRole']}")

    def _start_fleet(self, ledger: ProcessLedger) -> None:
        config = self.config
        worker_env = {**self.deployment.worker_env(), **self._worker_credentials()}
        image = WorkerImage.start(ledger=ledger, env=worker_env, log_path=config.work_dir / "worker-image.log")
        self._parts.callback(image.close)
        self.fleet = LocalFleet(
            ec2=self.client("ec2"),
            events=Ec2Events(client=self.client("events"), region=REGION, account=ACCOUNT_ID),
            stack_name=config.stack_name,
            worker_env=worker_env,
            processes=ledger,
            log_dir=config.work_dir,
            launch_delay_s=config.launch_delay_s,
            start_worker=image.boot,
        )
        self.fleet.start()
        self._parts.callback(self.fleet.stop)
        self.ticker = ControlTicker(
            states=self.client("stepfunctions"),
            state_machine_arn=self.deployment.outputs["ControlStateMachineArn"],
            cycle_s=config.cycle_s,
        )
        self.ticker.start()
        self._parts.callback(self.ticker.stop)


def warm(lambda_: LambdaClient, function_name: str, event: Mapping[str, Any], *, environments: int) -> None:
    """Start environments of a function, as provisioned concurrency would: they start when asked all at once.

    Raises
    ------
    RuntimeError
        If one does not start.
    """

    def start(_: int) -> str:
        response = lambda_.invoke(FunctionName=function_name, Payload=json.dumps(event))
        return response.get("FunctionError", "")

    with ThreadPoolExecutor(max_workers=environments) as callers:
        failures = [failure for failure in callers.map(start, range(environments)) if failure]
    if failures:
        raise RuntimeError(f"{len(failures)} of {environments} environments of {function_name} did not start: {failures[0]}")
