"""`sam build` and `sam deploy`, as a user types them, against the embedded AWS.

Only the two image functions are left out of the build: nothing here can build an image. Everything else is what SAM
makes of the repository: the layer with its dependencies for the template's runtime, run by an interpreter of it.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import boto3
import pytest
from typer.testing import CliRunner

from cli.main import app
from local.deployer import REPOSITORY, load_template
from local.embedded_aws import EmbeddedAws, start_embedded_aws
from local.emulator_gaps import Clients, network
from local.processes import ProcessLedger
from local.zip_template import without_images
from tests.system.live import call

pytestmark = pytest.mark.system

SAM_VENV = REPOSITORY / ".venv-sam"
STACK = "by-sam"
TIMEOUT_S = 280


@dataclass(frozen=True, kw_only=True)
class Deployed:
    """A stack that SAM deployed."""

    aws: EmbeddedAws
    outputs: dict[str, str]
    said: str


def sam(*arguments: str, env: dict[str, str], cwd: Path) -> str:
    path = os.pathsep.join([str(SAM_VENV / "bin"), env.get("PATH", os.defpath)])
    env = {**env, "PATH": path, "SAM_CLI_TELEMETRY": "0", "PYTHONPATH": ""}
    command = [str(SAM_VENV / "bin/sam"), *arguments]
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)  # noqa: S603
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    if not (SAM_VENV / ".installed").exists():
        pytest.skip("SAM is not installed: `make build-zip` does that where there is a Python 3.12")
    work_dir = tmp_path_factory.mktemp("sam")
    # Beside the sources, as CodeUri and its companions are relative to the template.
    template = REPOSITORY / f"template-{os.getpid()}.json"
    template.write_text(json.dumps(without_images(load_template(REPOSITORY / "template.yaml"))))
    aws = start_embedded_aws(
        ledger=ProcessLedger(work_dir / "processes.json"), work_dir=work_dir, lambda_python=SAM_VENV / "bin/python3.12"
    )
    try:
        env = aws.env()
        sam("build", "--template-file", str(template), "--build-dir", str(work_dir / "build"), "--no-cached", env=env, cwd=REPOSITORY)
        place = network(Clients.connect(endpoint_url=aws.endpoint_url, ec2_endpoint_url=aws.ec2_endpoint_url))
        said = sam(
            "deploy",
            "--template-file",
            str(work_dir / "build/template.yaml"),
            "--stack-name",
            STACK,
            "--config-env",
            "dev",
            "--config-file",
            str(REPOSITORY / "samconfig.toml"),
            "--parameter-overrides",
            *(f"{name}={value}" for name, value in {**place, "ApiAuth": "api-key"}.items()),
            env=env,
            cwd=REPOSITORY,
        )
        stack = Clients.connect(endpoint_url=aws.endpoint_url, ec2_endpoint_url=aws.ec2_endpoint_url).cloudformation.describe_stacks(
            StackName=STACK
        )["Stacks"][0]
        assert stack["StackStatus"] == "CREATE_COMPLETE"
        yield Deployed(aws=aws, outputs={o["OutputKey"]: o["OutputValue"] for o in stack["Outputs"]}, said=said)
    finally:
        aws.stop()
        template.unlink()


def test_sam_builds_and_deploys_every_zip_function_with_its_layer(deployed: Deployed) -> None:
    client = boto3.client("lambda", endpoint_url=deployed.aws.endpoint_url, aws_access_key_id="000000000000", aws_secret_access_key="local")
    for folder in ("authorizer", "api", "console", "ingest", "plan", "lifecycle"):
        configuration = client.get_function_configuration(FunctionName=f"{STACK}-{folder}")

        assert configuration["Runtime"] == "python3.12"
        assert len(configuration["Layers"]) == 1


def test_api_answers_whoever_has_a_key_until_the_quota_is_used_up(deployed: Deployed, monkeypatch: pytest.MonkeyPatch) -> None:
    """The authoriser and the api function as SAM built them, under the template's runtime, behind the HTTP API."""
    for name, value in {**deployed.aws.env(), "MARKSERVE_STACK_NAME": STACK, "MARKSERVE_CLIENTS_TABLE": f"{STACK}-clients"}.items():
        monkeypatch.setenv(name, value)
    made = CliRunner().invoke(app, ["clients", "add", "shop", "--per-minute", "3", "--json"])
    assert made.exit_code == 0, made.output
    key = {"x-api-key": json.loads(made.stdout)["key"]}
    url = f"{deployed.aws.endpoint_url}/_aws/execute-api/{deployed.outputs['ApiId']}"

    assert call(f"{url}/v2").status == 401
    assert call(f"{url}/v2", headers={"x-api-key": "guessed"}).status == 403
    if time.time() % 60 > 50:
        time.sleep(11)  # all of what follows within one minute of the quota
    assert call(f"{url}/v2", headers=key).body["name"] == "markserve"
    assert call(f"{url}/v2/health/live", headers=key).status == 200
    unknown = call(f"{url}/v2/models/none/infer", b"{}", key)
    assert (unknown.status, "none" in unknown.body["error"]) == (404, True)
    over = call(f"{url}/v2", headers=key)
    assert (over.status, over.body["error"]) == (429, "quota of 3 requests a minute is used up")
    assert 1 <= int(over.headers["retry-after"]) <= 60

    assert CliRunner().invoke(app, ["clients", "remove", "shop"]).exit_code == 0
    assert call(f"{url}/v2", headers=key).status == 403
