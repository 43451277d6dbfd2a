"""The demo's model is real: trained here, exported safely, and read back by the same runner that serves it."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from local.digits import INPUTS, OUTPUTS, DigitsModel, request_for, train_digits
from markserve.adapters.torch_runner import TorchScriptRunner
from markserve.messages import Answer
from tests.builders import a_model_record


@pytest.fixture(scope="module")
def digits() -> DigitsModel:
    return train_digits(seed=0)


def test_held_out_digits_are_read_well(digits: DigitsModel) -> None:
    assert digits.images.shape == (360, 1, 8, 8)
    assert sorted(set(digits.labels.tolist())) == list(range(10))
    assert digits.accuracy >= 0.97


def test_served_answers_are_as_accurate_as_the_export(digits: DigitsModel) -> None:
    record = a_model_record(inputs=INPUTS, outputs=OUTPUTS, artefact_sha256=hashlib.sha256(digits.artefact).hexdigest())
    runner = TorchScriptRunner.load(record, digits.artefact, threads=1, device="cpu")
    requests = [request_for(image, request_id=str(n), model="digits", version="1") for n, image in enumerate(digits.images)]

    results = [result for start in range(0, 360, 8) for result in runner.run(requests[start : start + 8])]

    logits = [np.frombuffer(result.outputs[0].data, "<f4") for result in results if isinstance(result, Answer)]
    assert len(logits) == 360
    correct = np.argmax(np.stack(logits), axis=1) == digits.labels
    assert correct.mean() == pytest.approx(digits.accuracy, abs=1 / 360)
