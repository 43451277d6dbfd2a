"""The example models: made by their script, registered by the command it prints, computed by the real runner."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import boto3
import numpy as np
import numpy.typing as npt
import pytest
from moto import mock_aws
from typer.testing import CliRunner

from cli.main import app
from examples.models.digits_cnn import make as digits_cnn
from examples.models.gradient_boosted_onnx import make as gradient_boosted
from examples.models.text_encoder import make as text_encoder
from markserve import wiring
from markserve.core.types import Tier
from markserve.messages import Answer, InferenceRequest, Tensor
from tests.contract.conftest import create_table

PADDED_TEXT_ENCODER = Path(__file__).resolve().parents[2] / "docs/models.md"
"""Whose first JSON block is the manifest of the text encoder with padding."""
DATATYPES = {"UINT8": "u1", "INT64": "<i8", "FP32": "<f4"}
Arrays = dict[str, npt.NDArray[Any]]


@pytest.fixture
def stack(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """An empty stack in moto that the environment names."""
    monkeypatch.setenv("MARKSERVE_LOCAL_DIR", str(tmp_path / "local"))
    monkeypatch.setenv("MARKSERVE_STACK_NAME", "demo")
    monkeypatch.setenv("MARKSERVE_ARTEFACTS_BUCKET", "demo-artefacts")
    forget()
    with mock_aws():
        for name in ("models", "control", "instances", "windows"):
            monkeypatch.setenv(f"MARKSERVE_{name.upper()}_TABLE", create_table(boto3.client("dynamodb"), f"demo-{name}"))
        boto3.client("s3").create_bucket(Bucket="demo-artefacts")
        monkeypatch.setenv("MARKSERVE_DEAD_LETTER_QUEUE_URL", boto3.client("sqs").create_queue(QueueName="demo-dead")["QueueUrl"])
        yield
    forget()


def forget() -> None:
    for member in vars(wiring).values():
        if hasattr(member, "cache_clear"):
            member.cache_clear()


def markserve(command: str) -> str:
    result = CliRunner().invoke(app, shlex.split(command)[1:])
    assert result.exit_code == 0, result.output
    return result.stdout


def made(example: ModuleType, folder: Path) -> None:
    """Make the model and register it as the script says."""
    said = markserve(example.main(folder))
    assert f"{example.MODEL} version 1 is live" in said


def computed(model: str, *requests: Arrays) -> list[Arrays]:
    """Compute requests in one batch with the runner that workers use."""
    record = wiring.models().get(model)
    runner = wiring.model_runner(record, tier=Tier.WORKER)
    batch = [
        InferenceRequest(
            request_id=f"r-{number}",
            model=model,
            model_version="1",
            arrival_at_s=0.0,
            inputs=tuple(
                Tensor(name=name, datatype=datatype_of(array), shape=array.shape, data=array.tobytes()) for name, array in inputs.items()
            ),
        )
        for number, inputs in enumerate(requests)
    ]
    return [arrays(answer) for answer in runner.run(batch)]


def datatype_of(array: npt.NDArray[Any]) -> str:
    return next(name for name, code in DATATYPES.items() if np.dtype(code) == array.dtype)


def arrays(answer: Answer | Exception) -> Arrays:
    assert isinstance(answer, Answer), answer
    return {t.name: np.frombuffer(t.data, DATATYPES[t.datatype]).reshape(t.shape) for t in answer.outputs}


@pytest.mark.usefixtures("stack")
def test_digit_reader_resizes_and_scales_images_by_itself(tmp_path: Path) -> None:
    made(digits_cnn, tmp_path)
    images, labels = (part[-digits_cnn.HELD_OUT :].numpy() for part in digits_cnn.digits())
    enlarged = images.repeat(4, axis=1).repeat(3, axis=2)

    small, large = computed("digits-cnn", {"image": images}, {"image": enlarged})

    assert (small["digit"] == labels).mean() > 0.9
    assert (large["digit"] == labels).mean() > 0.85
    np.testing.assert_allclose(large["probabilities"].sum(1), 1, rtol=1e-5)


@pytest.mark.usefixtures("stack")
def test_text_encoder_tokenizes_by_itself_and_tells_intents_apart(tmp_path: Path) -> None:
    made(text_encoder, tmp_path)
    texts, labels = text_encoder.sentences(200, seed=9)

    (found,) = computed("text-encoder", {"text": text_encoder.as_bytes(texts).numpy()})
    same, empty = computed(
        "text-encoder",
        {"text": text_encoder.as_bytes(["Play a SONG by Ana!", "play a song   by ana"]).numpy()},
        {"text": text_encoder.as_bytes([""]).numpy()},
    )

    assert (found["intent"].argmax(1) == labels.numpy()).mean() > 0.95
    np.testing.assert_allclose(np.linalg.norm(found["embedding"], axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(same["embedding"][0], same["embedding"][1], rtol=1e-4, atol=1e-6)
    assert np.isfinite(empty["embedding"]).all()


@pytest.mark.usefixtures("stack")
def test_text_encoder_registered_with_padding_takes_text_of_any_length(tmp_path: Path) -> None:
    text_encoder.main(tmp_path)
    declared = json.loads(PADDED_TEXT_ENCODER.read_text().split("```json\n")[1].split("```")[0])
    (tmp_path / "text-encoder.json").write_text(json.dumps(declared))
    texts = ["play a song by ana", "why was the office charged twice", "rain"]

    assert "text-encoder version 1 is live" in markserve(f"markserve models register text-encoder {tmp_path / 'text-encoder.pt'}")
    found = computed("text-encoder", *[{"text": np.frombuffer(text.encode(), "u1")[None, :]} for text in texts])

    registered = wiring.models().get("text-encoder").inputs[0]
    assert registered.pad is not None
    assert registered.pad.buckets == tuple(declared["inputs"][0]["pad"]["buckets"])
    full = tmp_path / "full.pt"
    (tmp_path / "text-encoder.pt").rename(full)
    markserve(f"markserve models register fixed {full} --input text:UINT8:-1,96 --output embedding:FP32:-1,48 --output intent:FP32:-1,3")
    (fixed,) = computed("fixed", {"text": text_encoder.as_bytes(texts).numpy()})
    np.testing.assert_allclose(np.concatenate([one["embedding"] for one in found]), fixed["embedding"], rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("stack")
def test_gradient_boosted_onnx_model_answers_as_scikit_learn_does(tmp_path: Path) -> None:
    made(gradient_boosted, tmp_path)
    features, labels = (part[-gradient_boosted.HELD_OUT :] for part in gradient_boosted.data())

    first, second = computed("gradient-boosted", {"features": features[:100]}, {"features": features[100:]})

    found = np.concatenate([first["label"], second["label"]])
    probabilities = np.concatenate([first["probabilities"], second["probabilities"]])
    assert (found == labels).mean() > 0.9
    np.testing.assert_allclose(probabilities, gradient_boosted.train().predict_proba(features), atol=1e-4)
    assert wiring.models().get("gradient-boosted").format == "onnx"


@pytest.mark.parametrize(
    ("text", "words"), [("", 0), ("  ,; ", 0), ("one", 1), ("Hello, hello", 2), ("a b c", 3), ("x " * 60, text_encoder.MAX_WORDS)]
)
def test_tokenizer_counts_words(text: str, words: int) -> None:
    ids = text_encoder.Tokenizer()(text_encoder.as_bytes([text]))

    assert int((ids > 0).sum()) == words


def test_tokenizer_gives_a_word_the_same_id_wherever_and_however_it_is_written() -> None:
    first, second = text_encoder.Tokenizer()(text_encoder.as_bytes(["Hello world", "world, HELLO!"])).tolist()

    assert first[:2] == second[1::-1]
    assert first[0] != first[1]


@pytest.mark.usefixtures("stack")
def test_next_version_is_held_tried_out_promoted_and_removed_by_the_commands_of_the_tutorial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(text_encoder, tmp_path)
    again: Callable[[], str] = lambda: text_encoder.register_command(  # noqa: E731
        text_encoder.MODEL, tmp_path / "next.pt", inputs=text_encoder.INPUTS, outputs=text_encoder.OUTPUTS
    )
    text_encoder.export(text_encoder.TextEncoder(), tmp_path / "next.pt")

    assert "text-encoder version 2 is stored, 1 is live" in markserve(f"{again()} --hold")
    assert "version 1 answers 90% of requests, version 2 10%" in markserve("markserve models promote text-encoder 2 --canary 0.1")
    assert json.loads(markserve("markserve models rollback text-encoder --json"))["canary"] is None
    assert "version 2 answers" in markserve("markserve models promote text-encoder 2")
    shown = markserve("markserve models show text-encoder")
    assert "Versions, and how they did" in shown
    assert json.loads(markserve("markserve models rollback text-encoder --json"))["live"] == "1"
    assert "removed text-encoder version 2" in markserve("markserve models delete text-encoder --version 2")
    refused = CliRunner().invoke(app, ["models", "promote", "text-encoder", "2"])
    assert refused.exit_code == 2
    assert "error: model: no version '2' of model 'text-encoder'" in refused.stderr
    refused = CliRunner().invoke(app, ["models", "delete", "text-encoder", "--version", "1"])
    assert refused.exit_code == 2
    assert "is live; roll back first, or force it" in refused.stderr
