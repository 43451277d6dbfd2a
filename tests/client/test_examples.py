"""The examples for clients, and the tour, run as programs against the real routes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from markserve.messages import TensorSpec
from tests.client.socket_server import served
from tests.functions.test_api import World

REPOSITORY = Path(__file__).resolve().parents[2]
EXAMPLES = REPOSITORY / "examples"


@pytest.fixture
def url() -> Iterator[str]:
    """The API with a model that takes digits; its scores rise from class to class, so that the answer is always 9."""
    world = World()
    image, logits = (
        TensorSpec(name="image", datatype="FP32", shape=(-1, 1, 8, 8)),
        TensorSpec(name="logits", datatype="FP32", shape=(-1, 10)),
    )
    world.models.put(msgspec.structs.replace(world.models.get("digits"), inputs=(image,), outputs=(logits,)))
    world.front = world.new_front()
    with served(world) as url:
        yield url


def ran(*command: str) -> str:
    keys = {"AWS_ACCESS_KEY_ID": "none", "AWS_SECRET_ACCESS_KEY": "none", "AWS_DEFAULT_REGION": "us-east-1", "PYTHON": sys.executable}
    environment = {**os.environ, **keys, "PYTHONPATH": f"{REPOSITORY / 'clients/python'}"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=REPOSITORY, timeout=120)  # noqa: S603
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("with_client.py", ["digit 9, version 1, computed by a worker: enqueued", "digit 9, as standard", "digit 9, fetched later as"]),
        ("with_tritonclient.py", ["digit 9, version 1"]),
        ("with_boto3.py", ["digit 9, variant 1"]),
    ],
)
def test_example_in_python_prints_the_models_answer(url: str, name: str, lines: list[str]) -> None:
    said = ran(sys.executable, str(EXAMPLES / "clients" / name), url).splitlines()

    assert len(said) == len(lines)
    assert all(found.startswith(expected) for found, expected in zip(said, lines, strict=True))


def test_example_with_curl_shows_how_the_answer_came_about(url: str) -> None:
    said = ran(str(EXAMPLES / "clients/with_curl.sh"), url)

    assert "x-markserve-slo: standard" in said
    assert "x-markserve-model-version: 1" in said
    assert '"outputs":[{"name":"logits"' in said


def test_tour_of_a_client_developer_runs_to_its_end(url: str) -> None:
    said = ran(str(EXAMPLES / "tours/client.sh"), url)

    assert said.count("\n## ") == 10
    assert "answered before under the same idempotency key" in said
    assert "'urgent' is not one of interactive, standard, batch" in said
    assert "no model 'nonesuch'" in said
