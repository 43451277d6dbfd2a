"""The only reader of the environment: what the template tells a process, checked once at start.

Resource names have no defaults; every problem is reported at once.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields

from markserve.errors import ConfigurationError


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """Names of the stack's resources. A field that a process does not need stays empty (see `require`)."""

    stack_name: str
    models_table: str = ""
    windows_table: str = ""
    control_table: str = ""
    instances_table: str = ""
    results_table: str = ""
    clients_table: str = ""
    metrics_queue_url: str = ""
    dead_letter_queue_url: str = ""
    event_bus_name: str = ""
    artefacts_bucket: str = ""
    spillover_function: str = ""
    control_state_machine_arn: str = ""
    characterize_state_machine_arn: str = ""
    launch_template_id: str = ""
    arm_image_id: str = ""
    gpu_image_id: str = ""
    """Images for instance types that the launch template's does not run on."""
    subnet_ids: str = ""
    """Comma-separated."""
    instance_types: str = ""
    """Comma-separated instance types the planner may buy."""
    # Worker identity; on EC2 user data writes these from the instance's tags and metadata.
    model: str = ""
    instance_id: str = ""
    instance_type: str = ""
    purpose: str = ""
    """`serve` or empty; else the measurement that this instance makes instead."""
    metadata_url: str = "http://169.254.169.254"
    """Instance metadata service; the SDKs' AWS_EC2_METADATA_SERVICE_ENDPOINT is honoured."""
    region: str = "us-east-1"
    tracing: str = "false"
    """`true` when requests are traced; see `is_tracing` for what Lambda needs to know earlier."""
    parameter_refresh_s: float = 15.0
    """A changed SSM parameter takes effect within this time; operators are promised 30 s."""
    window_s: float = 5.0
    """Counting window of arrivals (MArk's prototype: 5 s)."""
    step_s: float = 60.0
    """Planning step; a control cycle runs once per step."""
    horizon_steps: int = 60
    launch_overhead_s: float = 180.0
    """Request to first answer, until measured (MArk's prototype: 180 s)."""
    spillover_memory_mb: int = 1769
    """Memory of the spillover function, which its price goes by; 1769 MB buy one vCPU."""
    shards: int = 1
    """Partitions that a model's counters and its instances are spread over; 1 does for about 2,000 requests/s and model."""
    heartbeat_s: float = 1.0
    heartbeat_timeout_s: float = 15.0
    """Silence that counts as evidence against a worker: 15 missed heartbeats."""
    receive_wait_s: float = 5.0
    """SQS long poll; short against the embedded AWS, whose long polls wake on a 100 ms tick."""
    receivers: int = 2
    """Parallel SQS receivers of a worker."""

    @classmethod
    def from_env(cls, environ: Mapping[str, str], *, require: tuple[str, ...] = ()) -> Settings:
        """Read `MARKSERVE_<FIELD>` variables.

        Raises
        ------
        ConfigurationError
            Listing every required variable that is missing and every value that does not parse.
        """
        problems: list[str] = []
        values: dict[str, str | float | int] = {}
        for spec in fields(cls):
            name = f"MARKSERVE_{spec.name.upper()}"
            text = environ.get(name, "").strip()
            if not text:
                if spec.name == "stack_name" or spec.name in require:
                    problems.append(f"{name} is not set")
                continue
            try:
                values[spec.name] = {"float": float, "int": int}.get(str(spec.type), str)(text)
            except ValueError:
                problems.append(f"{name}={text!r} is not a number")
        if problems:
            raise ConfigurationError("; ".join(problems))
        for name, alias in (("region", "AWS_REGION"), ("metadata_url", "AWS_EC2_METADATA_SERVICE_ENDPOINT")):
            if name not in values and environ.get(alias):
                values[name] = environ[alias]
        return cls(**values)  # type: ignore[arg-type]  # each value was parsed to its field's type above


def service_name(environ: Mapping[str, str] = os.environ) -> str:
    """Return the name that logs, metrics and traces carry; Powertools' own variable, so that its tools agree."""
    return environ.get("POWERTOOLS_SERVICE_NAME", "") or "markserve"


def is_tracing(environ: Mapping[str, str] = os.environ) -> bool:
    """Tell whether this process is a Lambda environment whose function has active tracing.

    The template sets `MARKSERVE_TRACING=true` together with `Tracing: Active`: Lambda itself does not tell.
    """
    return bool(environ.get("AWS_LAMBDA_FUNCTION_NAME")) and environ.get("MARKSERVE_TRACING", "").lower() == "true"


def trace_header(environ: Mapping[str, str] = os.environ) -> str | None:
    """Return the running invocation's trace, whether it is recorded, and what to call its children's parent.

    Lambda writes it for each invocation; None in a process that is not traced.
    """
    return environ.get("_X_AMZN_TRACE_ID") or None if is_tracing(environ) else None
