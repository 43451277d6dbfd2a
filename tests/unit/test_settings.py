from __future__ import annotations

import pytest

from markserve.errors import ConfigurationError
from markserve.settings import Settings, is_tracing, service_name


def test_settings_read_text_and_numbers() -> None:
    settings = Settings.from_env(
        {
            "MARKSERVE_STACK_NAME": " demo ",
            "MARKSERVE_MODELS_TABLE": "demo-models",
            "MARKSERVE_WINDOW_S": "0.5",
            "MARKSERVE_HORIZON_STEPS": "30",
            "UNRELATED": "1",
        }
    )

    assert (settings.stack_name, settings.models_table) == ("demo", "demo-models")
    assert (settings.window_s, settings.horizon_steps) == (0.5, 30)


def test_settings_keep_defaults_when_variables_are_absent_or_empty() -> None:
    settings = Settings.from_env({"MARKSERVE_STACK_NAME": "demo", "MARKSERVE_WINDOW_S": ""})

    assert settings == Settings(stack_name="demo")
    assert settings.models_table == ""


def test_settings_name_every_problem_at_once() -> None:
    with pytest.raises(ConfigurationError) as raised:
        Settings.from_env({"MARKSERVE_STEP_S": "soon", "MARKSERVE_RECEIVERS": "2.5"}, require=("models_table", "metrics_queue_url"))

    assert str(raised.value) == (
        "MARKSERVE_STACK_NAME is not set; MARKSERVE_MODELS_TABLE is not set; MARKSERVE_METRICS_QUEUE_URL is not set; "
        "MARKSERVE_STEP_S='soon' is not a number; MARKSERVE_RECEIVERS='2.5' is not a number"
    )


def test_settings_are_complete_when_what_is_required_is_set() -> None:
    environ = {"MARKSERVE_STACK_NAME": "demo", "MARKSERVE_CONTROL_TABLE": "demo-control"}

    assert Settings.from_env(environ, require=("control_table",)).control_table == "demo-control"


@pytest.mark.parametrize(
    ("field", "own", "sdk", "default"),
    [
        ("region", "MARKSERVE_REGION", "AWS_REGION", "us-east-1"),
        ("metadata_url", "MARKSERVE_METADATA_URL", "AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://169.254.169.254"),
    ],
)
def test_settings_prefer_their_own_variable_to_the_sdks(field: str, own: str, sdk: str, default: str) -> None:
    stack = {"MARKSERVE_STACK_NAME": "demo"}

    assert getattr(Settings.from_env(stack), field) == default
    assert getattr(Settings.from_env({**stack, sdk: "from-sdk"}), field) == "from-sdk"
    assert getattr(Settings.from_env({**stack, sdk: "from-sdk", own: "own"}), field) == "own"


def test_service_name_is_markserve_when_powertools_names_none() -> None:
    assert service_name({}) == "markserve"
    assert service_name({"POWERTOOLS_SERVICE_NAME": "plan"}) == "plan"


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, False),
        ({"MARKSERVE_TRACING": "true"}, False),
        ({"AWS_LAMBDA_FUNCTION_NAME": "f"}, False),
        ({"AWS_LAMBDA_FUNCTION_NAME": "f", "MARKSERVE_TRACING": "false"}, False),
        ({"AWS_LAMBDA_FUNCTION_NAME": "f", "MARKSERVE_TRACING": "True"}, True),
    ],
)
def test_tracing_needs_lambda_and_the_template_to_say_so(environ: dict[str, str], expected: bool) -> None:
    assert is_tracing(environ) is expected
