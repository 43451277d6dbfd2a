"""Clients that know nothing of this system work against it, and get what the model itself answers."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import Any

import boto3
import numpy as np
import pytest
import tritonclient.http as triton
from botocore.config import Config
from botocore.exceptions import ClientError
from tritonclient.utils import InferenceServerException

from local.system import LocalSystem
from tests.system.live import Array, expected_logits

pytestmark = pytest.mark.system

CLOSE = {"rtol": 1e-4, "atol": 1e-4}
"""Batching changes the order of float additions."""


@pytest.fixture
def triton_client(system: LocalSystem) -> Iterator[Any]:
    with triton.InferenceServerClient(system.deployment.api_url.removeprefix("http://"), network_timeout=60.0) as client:
        yield client


@pytest.fixture
def sagemaker_client(system: LocalSystem) -> Any:
    return boto3.client("sagemaker-runtime", endpoint_url=system.deployment.api_url, config=Config(retries={"total_max_attempts": 1}))


def some_rows(system: LocalSystem, count: int = 3) -> Array:
    return system.model.images[:count]


def test_triton_client_reads_health_and_metadata(triton_client: Any, system: LocalSystem) -> None:
    assert triton_client.is_server_live()
    assert triton_client.is_server_ready()
    assert triton_client.is_model_ready("digits")
    assert not triton_client.is_model_ready("nonesuch")
    assert triton_client.get_server_metadata()["name"] == "markserve"
    metadata = triton_client.get_model_metadata("digits")
    assert metadata["inputs"] == [{"name": "image", "datatype": "FP32", "shape": [-1, 1, 8, 8]}]
    assert metadata["outputs"] == [{"name": "logits", "datatype": "FP32", "shape": [-1, 10]}]
    assert metadata["versions"] == [system.record.version]


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("outputs", ["all", "requested"])
def test_triton_client_gets_the_models_answer(triton_client: Any, system: LocalSystem, binary: bool, outputs: str) -> None:
    rows = some_rows(system)
    given = triton.InferInput("image", list(rows.shape), "FP32")
    given.set_data_from_numpy(rows, binary_data=binary)
    wanted = [triton.InferRequestedOutput("logits", binary_data=binary)] if outputs == "requested" else None

    answer = triton_client.infer("digits", [given], outputs=wanted, request_id="mine")

    np.testing.assert_allclose(answer.as_numpy("logits"), expected_logits(system, rows), **CLOSE)
    assert answer.get_response()["id"] == "mine"


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_triton_client_gets_the_models_answer_when_it_compresses(triton_client: Any, system: LocalSystem, algorithm: str) -> None:
    rows = some_rows(system)
    given = triton.InferInput("image", list(rows.shape), "FP32")
    given.set_data_from_numpy(rows)

    answer = triton_client.infer("digits", [given], request_compression_algorithm=algorithm)

    np.testing.assert_allclose(answer.as_numpy("logits"), expected_logits(system, rows), **CLOSE)


def test_triton_client_raises_with_the_reason_when_an_input_is_wrong(triton_client: Any, system: LocalSystem) -> None:
    given = triton.InferInput("image", [1, 64], "FP32")
    given.set_data_from_numpy(np.zeros((1, 64), np.float32))

    with pytest.raises(InferenceServerException, match="input 'image'"):
        triton_client.infer("digits", [given])


def test_sagemaker_client_gets_the_models_answer_for_instances(sagemaker_client: Any, system: LocalSystem) -> None:
    rows = some_rows(system)

    response = sagemaker_client.invoke_endpoint(
        EndpointName="digits", ContentType="application/json", Body=json.dumps({"instances": rows.tolist()})
    )

    np.testing.assert_allclose(json.load(response["Body"])["predictions"], expected_logits(system, rows), **CLOSE)
    assert response["InvokedProductionVariant"] == system.record.version


def test_sagemaker_client_gets_the_models_answer_for_an_open_inference_request(sagemaker_client: Any, system: LocalSystem) -> None:
    rows = some_rows(system)
    body = {"inputs": [{"name": "image", "datatype": "FP32", "shape": list(rows.shape), "data": rows.ravel().tolist()}]}

    response = sagemaker_client.invoke_endpoint(EndpointName="digits", ContentType="application/json", Body=json.dumps(body))

    (output,) = json.load(response["Body"])["outputs"]
    np.testing.assert_allclose(np.reshape(output["data"], output["shape"]), expected_logits(system, rows), **CLOSE)


def test_sagemaker_client_gets_the_models_answer_for_csv(sagemaker_client: Any, system: LocalSystem) -> None:
    rows = some_rows(system)
    text = io.StringIO()
    np.savetxt(text, rows.reshape(len(rows), -1), delimiter=",", fmt="%.9g")

    response = sagemaker_client.invoke_endpoint(EndpointName="digits", ContentType="text/csv", Body=text.getvalue())

    np.testing.assert_allclose(json.load(response["Body"])["predictions"], expected_logits(system, rows), **CLOSE)


def test_sagemaker_client_raises_its_own_error_when_the_endpoint_is_unknown(sagemaker_client: Any) -> None:
    with pytest.raises(ClientError, match="nonesuch") as raised:
        sagemaker_client.invoke_endpoint(EndpointName="nonesuch", ContentType="application/json", Body=b'{"instances": [[0]]}')

    assert raised.value.response["Error"]["Code"] == "ValidationError"
