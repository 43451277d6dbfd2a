"""The composition root: settings to ports, each built once per process.

Adapters are imported inside the builders, so that a process loads what it uses: a zip Lambda never sees torch.
Endpoints come from the SDK's own `AWS_ENDPOINT_URL` variables; without them this is AWS.
"""

from __future__ import annotations

import os
import time
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import boto3
from botocore.config import Config

from markserve.core.types import Tier
from markserve.errors import MarkserveError
from markserve.messages import DecisionRecord, ModelRecord
from markserve.ports import (
    BlobStore,
    ClientStore,
    ControlStore,
    EventPublisher,
    Fleet,
    InstanceRegistry,
    InterruptionNotice,
    LearnedForecaster,
    MetricsSink,
    ModelRunner,
    ModelStore,
    ParameterSource,
    ParameterWriter,
    ResultStore,
    SpilloverInvoker,
    TraceSink,
    WindowStore,
    WorkQueue,
    WorkQueueAdmin,
)
from markserve.settings import Settings
from markserve.telemetry import PARAMETERS_REFUSED, logger

if TYPE_CHECKING:
    from markserve.console_view import Console

CONNECT_TIMEOUT_S = 1.0
READ_TIMEOUT_S = 3.0
"""DynamoDB, SQS sends and EventBridge answer in milliseconds. Beyond 3 s a request has missed its objective anyway."""
ATTEMPTS = 3
"""One slow or failed attempt is common enough to retry at once; more would outlast the caller's patience."""
BULK_READ_TIMEOUT_S = 20.0
"""Artefacts are tens of megabytes, and EC2's control plane takes seconds."""
INVOKE_READ_TIMEOUT_S = 29.0
"""An HTTP API gives up at 30 s."""
POLL_MARGIN_S = 3.0
"""A long poll's answer may come this much after its wait."""
CONNECTIONS = 64
"""A worker writes a whole batch of answers at once, one connection each."""
REFUSAL_REPORTED_S = 3600.0
"""A refused parameter is seen by every process; one of them reports it, once an hour."""

CHANGE_REPORTED_S = 60.0
"""A changed parameter is seen by every process within its refresh interval; one of them reports it."""


@lru_cache(maxsize=1)
def settings() -> Settings:
    """Read this process's settings."""
    return Settings.from_env(os.environ)


@lru_cache(maxsize=1)
def models() -> ModelStore:
    """Build the store of registered models."""
    from markserve.adapters.dynamodb_models import DynamoModelStore

    return DynamoModelStore(_client("dynamodb"), _named("models_table"))


@lru_cache(maxsize=1)
def results() -> ResultStore:
    """Build the store of answers."""
    from markserve.adapters.dynamodb_results import DynamoResultStore

    return DynamoResultStore(_client("dynamodb"), _named("results_table"))


@lru_cache(maxsize=1)
def clients() -> ClientStore:
    """Build the store of the API's clients."""
    from markserve.adapters.dynamodb_clients import DynamoClientStore

    return DynamoClientStore(_client("dynamodb"), _named("clients_table"))


@lru_cache(maxsize=1)
def windows() -> WindowStore:
    """Build the store of arrival and outcome windows."""
    from markserve.adapters.dynamodb_windows import DynamoWindowStore

    return DynamoWindowStore(_client("dynamodb"), _named("windows_table"), shards=settings().shards)


@lru_cache(maxsize=1)
def control() -> ControlStore:
    """Build the store of forecasts, plans and decisions."""
    from markserve.adapters.dynamodb_control import DynamoControlStore

    return DynamoControlStore(_client("dynamodb"), _named("control_table"))


@lru_cache(maxsize=1)
def instances() -> InstanceRegistry:
    """Build the registry of instances."""
    from markserve.adapters.dynamodb_instances import DynamoInstanceRegistry

    return DynamoInstanceRegistry(_client("dynamodb"), _named("instances_table"), shards=settings().shards)


@lru_cache
def work_queue(queue_url: str) -> WorkQueue:
    """Build the work queue at `queue_url`. A worker polls it and waits; a front only sends, and must not."""
    from markserve.adapters.sqs import SqsWorkQueue

    is_worker = bool(settings().instance_id)
    read_timeout_s = settings().receive_wait_s + POLL_MARGIN_S if is_worker else READ_TIMEOUT_S
    client = _client("sqs", read_timeout_s=read_timeout_s)
    return SqsWorkQueue(client, queue_url, dead_letter_queue_url=settings().dead_letter_queue_url)


@lru_cache(maxsize=1)
def work_queue_admin() -> WorkQueueAdmin:
    """Build the maker of work queues, for registration."""
    from markserve.adapters.sqs_admin import SqsWorkQueueAdmin

    return SqsWorkQueueAdmin(_client("sqs"), settings().stack_name, dead_letter_queue_url=_named("dead_letter_queue_url"))


@lru_cache(maxsize=1)
def metrics_sink() -> MetricsSink:
    """Build the queue of reports to the ingest function."""
    from markserve.adapters.sqs import SqsMetricsSink

    return SqsMetricsSink(_client("sqs"), _named("metrics_queue_url"))


@lru_cache(maxsize=1)
def fleet() -> Fleet:
    """Build the fleet of EC2 instances."""
    from markserve.adapters.ec2 import Ec2Fleet

    return Ec2Fleet(
        _client("ec2", read_timeout_s=BULK_READ_TIMEOUT_S),
        stack_name=settings().stack_name,
        launch_template_id=_named("launch_template_id"),
        subnet_ids=[subnet.strip() for subnet in _named("subnet_ids").split(",")],
        image_for=_image_for,
        now=time.time,
    )


@lru_cache(maxsize=1)
def console() -> Console:
    """Build what answers an operator's questions."""
    from markserve.console_view import Console, ConsoleGrid, ConsolePorts

    ports = ConsolePorts(
        models=models(), windows=windows(), control=control(), instances=instances(), parameters=parameters(), writer=parameter_writer()
    )
    grid = ConsoleGrid(
        stack_name=settings().stack_name,
        window_s=settings().window_s,
        step_s=settings().step_s,
        heartbeat_s=settings().heartbeat_s,
        spillover_memory_mb=settings().spillover_memory_mb,
    )
    return Console(ports, grid, now_s=time.time)


def _image_for(instance_type: str) -> str | None:
    """Choose the image of an instance type; None for the launch template's own."""
    from markserve.catalog import load_catalog

    entry = next((e for e in load_catalog().entries if e.instance_type == instance_type), None)
    if entry is None:
        return None
    if entry.gpu is not None:
        return settings().gpu_image_id or None
    return settings().arm_image_id or None if entry.arch == "arm64" else None


@lru_cache(maxsize=1)
def spillover() -> SpilloverInvoker:
    """Build the invoker of the spillover function."""
    from markserve.adapters.lambda_ import LambdaSpilloverInvoker

    # No retry: a second run would end after the deadline, and the first may still be running.
    client = _client("lambda", read_timeout_s=INVOKE_READ_TIMEOUT_S, attempts=1)
    return LambdaSpilloverInvoker(client, _named("spillover_function"))


@lru_cache(maxsize=1)
def events() -> EventPublisher:
    """Build the publisher to the event bus."""
    from markserve.adapters.eventbridge import EventBridgePublisher

    return EventBridgePublisher(_client("events"), _named("event_bus_name"))


@lru_cache(maxsize=1)
def parameters() -> ParameterSource:
    """Build the source of operator parameters."""
    from markserve.adapters.ssm import SsmParameterSource

    return SsmParameterSource(
        _client("ssm"), settings().stack_name, refresh_s=settings().parameter_refresh_s, now=time.time, log=_report_parameter
    )


@lru_cache(maxsize=1)
def parameter_writer() -> ParameterWriter:
    """Build the writer of operator parameters, for operators' tools."""
    from markserve.adapters.ssm_writer import SsmParameterWriter

    return SsmParameterWriter(_client("ssm"), settings().stack_name)


@lru_cache(maxsize=1)
def blobs() -> BlobStore:
    """Build the store of artefacts and large payloads."""
    from markserve.adapters.s3 import S3BlobStore

    return S3BlobStore(_client("s3", read_timeout_s=BULK_READ_TIMEOUT_S), _named("artefacts_bucket"))


@lru_cache(maxsize=1)
def interruption_notice() -> InterruptionNotice:
    """Build the reader of this instance's spot interruption notice."""
    from markserve.adapters.imds import ImdsInterruptionNotice

    return ImdsInterruptionNotice(settings().metadata_url)


@lru_cache(maxsize=1)
def traces() -> TraceSink | None:
    """Build the sink of trace segments; None when nothing is traced."""
    from markserve.adapters.xray import XRayTraceSink

    return XRayTraceSink(_client("xray")) if settings().tracing == "true" else None


@lru_cache(maxsize=1)
def learned_forecaster() -> LearnedForecaster:
    """Build the forecaster with weights; needs torch."""
    from markserve.adapters.lstm import LstmForecaster

    return LstmForecaster(step_s=settings().step_s)


def model_runner(record: ModelRecord, *, tier: Tier, threads: int = 1) -> ModelRunner:
    """Load a registered model from its artefact; needs torch. Not cached: whoever runs a model keeps it."""
    return load_runner(record, blobs().get(record.artefact_key), tier=tier, threads=threads)


def load_runner(record: ModelRecord, artefact: bytes, *, tier: Tier = Tier.WORKER, threads: int = 1) -> ModelRunner:
    """Load a model from bytes at hand, which need not be registered yet; needs torch."""
    from markserve import runners

    return runners.load_runner(record, artefact, tier=tier, threads=threads)


@lru_cache
def _client(service: str, *, read_timeout_s: float = READ_TIMEOUT_S, attempts: int = ATTEMPTS) -> Any:
    # boto3.client's overloads want a literal service name; each adapter's constructor states the type it gets.
    config = Config(
        connect_timeout=CONNECT_TIMEOUT_S,
        read_timeout=read_timeout_s,
        retries={"mode": "standard", "total_max_attempts": attempts},
        max_pool_connections=CONNECTIONS,
        tcp_keepalive=True,
    )
    return boto3.client(service, region_name=settings().region, config=config)  # type: ignore[call-overload]


def _named(field: str) -> str:
    """Return a setting that the port cannot do without; raises `ConfigurationError` naming the variable."""
    return str(getattr(Settings.from_env(os.environ, require=(field,)), field))


def _report_parameter(record: DecisionRecord) -> None:
    """Report a changed or refused parameter once for the whole stack; a process without the control table only logs it."""
    refused = {"metric": PARAMETERS_REFUSED} if record.event == "parameter_refused" else {}
    logger.warning(record.reason, extra={"event": record.event, "subject": record.subject, **refused})
    if not settings().control_table:
        return
    try:
        for_s = REFUSAL_REPORTED_S if record.event == "parameter_refused" else CHANGE_REPORTED_S
        if control().claim(f"report#{record.event}#{record.subject}#{record.reason}", now_s=record.at_s, for_s=for_s):
            control().log(record)
    except MarkserveError as error:
        logger.warning("decision not recorded: %s", error)
