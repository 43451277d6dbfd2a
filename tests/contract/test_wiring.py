from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from markserve import wiring
from markserve.errors import ConfigurationError
from markserve.telemetry import tracer
from tests.builders import NOW_S, a_model_record
from tests.contract.conftest import create_table

ENVIRONMENT = {
    "MARKSERVE_STACK_NAME": "demo",
    "MARKSERVE_MODELS_TABLE": "demo-models",
    "MARKSERVE_WINDOWS_TABLE": "demo-windows",
    "MARKSERVE_CONTROL_TABLE": "demo-control",
    "MARKSERVE_INSTANCES_TABLE": "demo-instances",
    "MARKSERVE_RESULTS_TABLE": "demo-results",
    "MARKSERVE_METRICS_QUEUE_URL": "https://queue/demo-metrics",
    "MARKSERVE_DEAD_LETTER_QUEUE_URL": "https://queue/demo-work-dlq",
    "MARKSERVE_EVENT_BUS_NAME": "demo-bus",
    "MARKSERVE_ARTEFACTS_BUCKET": "demo-artefacts",
    "MARKSERVE_SPILLOVER_FUNCTION": "demo-spillover",
    "MARKSERVE_LAUNCH_TEMPLATE_ID": "lt-1",
    "MARKSERVE_SUBNET_IDS": "subnet-1, subnet-2",
}

BUILDERS: dict[str, Callable[[], object]] = {
    "DynamoModelStore": wiring.models,
    "DynamoResultStore": wiring.results,
    "DynamoWindowStore": wiring.windows,
    "DynamoControlStore": wiring.control,
    "DynamoInstanceRegistry": wiring.instances,
    "SqsWorkQueue": lambda: wiring.work_queue("https://queue/demo-work-digits"),
    "SqsMetricsSink": wiring.metrics_sink,
    "Ec2Fleet": wiring.fleet,
    "LambdaSpilloverInvoker": wiring.spillover,
    "EventBridgePublisher": wiring.events,
    "SsmParameterSource": wiring.parameters,
    "S3BlobStore": wiring.blobs,
    "ImdsInterruptionNotice": wiring.interruption_notice,
}


@pytest.fixture(autouse=True)
def _fresh_process() -> Iterator[None]:
    """Forget what the builders keep per process, before and after."""
    forget()
    yield
    forget()


def forget() -> None:
    for member in vars(wiring).values():
        if hasattr(member, "cache_clear"):
            member.cache_clear()


@pytest.fixture
def stack(monkeypatch: pytest.MonkeyPatch, aws: Callable[[str], Any]) -> Callable[[str], Any]:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    return aws


@pytest.mark.parametrize(("adapter", "build"), BUILDERS.items())
def test_wiring_builds_each_port_once(stack: object, adapter: str, build: Callable[[], object]) -> None:
    assert type(build()).__name__ == adapter
    assert build() is build()


def test_wiring_names_the_variable_when_a_port_cannot_be_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MARKSERVE_STACK_NAME", "demo")

    with pytest.raises(ConfigurationError, match="MARKSERVE_RESULTS_TABLE is not set"):
        wiring.results()


def test_wired_stores_work(stack: Callable[[str], Any]) -> None:
    create_table(stack("dynamodb"), "demo-models")

    wiring.models().put(a_model_record())

    assert wiring.models().get("digits") == a_model_record()


def test_a_refused_parameter_is_recorded_once_for_the_stack(stack: Callable[[str], Any]) -> None:
    create_table(stack("dynamodb"), "demo-control")
    stack("ssm").put_parameter(Name="/demo/max-instances", Value="many", Type="String")

    for _ in range(2):  # two processes
        wiring.parameters.cache_clear()
        assert wiring.parameters().get().max_instances == 4

    recorded = wiring.control().decisions(since_s=0.0, until_s=4e9)
    assert [(record.subject, record.event) for record in recorded] == [("/demo/max-instances", "parameter_refused")]


def test_parameters_are_served_when_the_refusal_cannot_be_recorded(stack: Callable[[str], Any]) -> None:
    stack("ssm").put_parameter(Name="/demo/max-instances", Value="many", Type="String")  # there is no control table

    assert wiring.parameters().get().max_instances == 4


def test_wiring_loads_neither_torch_nor_the_xray_sdk() -> None:
    program = (
        "import sys; from markserve import wiring; wiring.models(); wiring.work_queue('https://queue/work'); "
        "sys.exit(', '.join(name for name in ('torch', 'numpy', 'aws_xray_sdk.core') if name in sys.modules) or None)"
    )
    environment = {**ENVIRONMENT, "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "PYTHONPATH": ":".join(sys.path)}

    finished = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)  # noqa: S603

    assert (finished.returncode, finished.stderr) == (0, "")


def test_tracer_runs_the_handler_when_tracing_is_off() -> None:
    @tracer.capture_lambda_handler
    def handler(event: dict[str, int], context: object) -> int:
        tracer.put_annotation("model", "digits")
        with tracer.provider.in_subsegment("plan") as segment:
            segment.put_metadata("at_s", NOW_S)
        return event["value"]

    assert handler({"value": 7}, None) == 7


@pytest.mark.parametrize(
    ("instance_type", "image"), [("c5.large", None), ("t4g.large", "ami-arm"), ("g4dn.xlarge", "ami-gpu"), ("z9.none", None)]
)
def test_image_goes_by_processor_and_gpu(monkeypatch: pytest.MonkeyPatch, instance_type: str, image: str | None) -> None:
    for name, value in (("STACK_NAME", "markserve"), ("ARM_IMAGE_ID", "ami-arm"), ("GPU_IMAGE_ID", "ami-gpu")):
        monkeypatch.setenv(f"MARKSERVE_{name}", value)
    wiring.settings.cache_clear()

    assert wiring._image_for(instance_type) == image
