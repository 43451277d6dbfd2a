"""`markserve serve` end to end: a real process on loopback, real clients, real failures."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import boto3
import numpy as np
import pytest
import tritonclient.http as triton
from botocore.config import Config
from botocore.exceptions import ClientError

from server.http1 import MAX_HEADER_BYTES
from tests.server.rig import REPOSITORY, Doubler, Picky, Running, Slow, save, serving


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("models")
    models = save(Doubler(), folder / "doubler.pt"), save(Picky(), folder / "picky.pt", version="7")
    with serving(*models, options=["--rt-max", "2", "--max-payload", "1", "--request-timeout", "1.5"]) as running:
        yield running


def test_server_is_live_ready_and_describes_its_models(server: Running) -> None:
    assert server.ask("GET", "/v2/health/live")[0] == 200
    assert server.ask("GET", "/v2/health/ready")[0] == 200
    status, metadata, _ = server.ask("GET", "/v2/models/picky/versions/7")

    assert status == 200
    assert metadata["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]
    assert metadata["outputs"] == [{"name": "output_0", "datatype": "FP32", "shape": [-1, 4]}]


def test_answer_is_the_model_s(server: Running) -> None:
    status, answer, headers = server.infer([[1, 2, 3, 4], [5, 6, 7, 8]])

    assert status == 200
    assert answer["outputs"] == [{"name": "output_0", "datatype": "FP32", "shape": [2, 4], "data": [2, 4, 6, 8, 10, 12, 14, 16]}]
    assert int(headers["x-markserve-batch-size"]) >= 2


def test_triton_client_gets_binary_tensors(server: Running) -> None:
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    client = triton.InferenceServerClient(f"{server.host}:{server.port}")
    try:
        given = triton.InferInput("x", list(values.shape), "FP32")
        given.set_data_from_numpy(values, binary_data=True)
        result = client.infer("doubler", [given], outputs=[triton.InferRequestedOutput("output_0", binary_data=True)])
    finally:
        client.close()

    np.testing.assert_array_equal(result.as_numpy("output_0"), values * 2)


def test_sagemaker_client_works_by_changing_its_endpoint_url(server: Running) -> None:
    client = boto3.client(
        "sagemaker-runtime",
        endpoint_url=f"http://{server.host}:{server.port}",
        region_name="us-east-1",
        aws_access_key_id="x",
        aws_secret_access_key="x",
        config=Config(retries={"total_max_attempts": 1}),
    )
    answer = client.invoke_endpoint(EndpointName="doubler", ContentType="application/json", Body=b'{"instances": [[1, 2, 3, 4]]}')

    assert json.loads(answer["Body"].read()) == {"predictions": [[2, 4, 6, 8]]}
    with pytest.raises(ClientError, match="ValidationError"):
        client.invoke_endpoint(EndpointName="doubler", ContentType="application/json", Body=b'{"instances": [[1, 2]]}')
    client.close()


def test_request_that_the_model_raises_on_fails_alone(server: Running) -> None:
    outcomes: dict[int, tuple[int, object]] = {}

    def ask(number: int) -> None:
        value = -1.0 if number == 3 else float(number)
        status, answer, _ = server.infer([[value] * 4], "picky")
        outcomes[number] = (status, answer["outputs"][0]["data"] if status == 200 else answer["error"])

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert outcomes.pop(3) == (500, "the model raised Error: builtins.ValueError: negative input")
    assert outcomes == {number: (200, [number + 1.0] * 4) for number in (0, 1, 2, 4, 5, 6, 7)}


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v2/models/nobody", 404),
        ("GET", "/nowhere", 404),
        ("GET", "/v2/models/doubler/versions/9", 404),
        ("GET", "/v2/models/doubler/infer", 405),
        ("POST", "/v2/models/doubler/infer", 400),
        ("GET", "/v2/models/%64oubler?x=1", 200),
    ],
)
def test_paths_and_methods_are_answered_with_the_right_status(server: Running, method: str, path: str, status: int) -> None:
    assert server.ask(method, path)[0] == status


def test_timeout_header_is_this_request_s_objective(server: Running) -> None:
    assert server.infer([[1, 2, 3, 4]], x_markserve_timeout_ms="1500")[0] == 200
    status, answer, _ = server.infer([[1, 2, 3, 4]], x_markserve_timeout_ms="soon")
    assert (status, "x-markserve-timeout-ms" in answer["error"]) == (400, True)


def test_payload_above_the_limit_is_413_announced_or_not(server: Running) -> None:
    big = b" " * (1024 * 1024 + 1)

    assert server.ask("POST", "/v2/models/doubler/infer", big)[0] == 413
    with socket.create_connection((server.host, server.port), timeout=10) as client:
        client.sendall(b"POST /v2/models/doubler/infer HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
        client.sendall(b"%x\r\n" % len(big) + big + b"\r\n0\r\n\r\n")
        assert client.recv(4096).startswith(b"HTTP/1.1 413 ")


def test_headers_above_the_limit_are_431(server: Running) -> None:
    with socket.create_connection((server.host, server.port), timeout=10) as client:
        client.sendall(b"GET /v2 HTTP/1.1\r\nx: " + b"a" * MAX_HEADER_BYTES + b"\r\n\r\n")
        assert client.recv(4096).startswith(b"HTTP/1.1 431 ")


def test_request_that_dribbles_in_is_ended_with_408(server: Running) -> None:
    with socket.create_connection((server.host, server.port), timeout=10) as client:
        client.sendall(b"POST /v2/models/doubler/infer HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{")
        received = client.recv(4096)

    assert received.startswith(b"HTTP/1.1 408 ")


def test_pipelined_requests_are_answered_in_their_order(server: Running) -> None:
    request = b"GET /v2/models/%s HTTP/1.1\r\nhost: x\r\n\r\n"
    names = [b"doubler", b"picky"] * 15
    with socket.create_connection((server.host, server.port), timeout=10) as client:
        client.sendall(b"".join(request % name for name in names))
        received = b""
        while received.count(b'"platform"') < len(names):
            received += client.recv(65536)

    assert [part.split(b'"')[1] for part in received.split(b'{"name":')[1:] if part.startswith((b'"doubler"', b'"picky"'))] == names


def test_metrics_are_prometheus_text_and_count_what_happened(server: Running) -> None:
    def answered() -> float:
        _, text, headers = server.ask("GET", "/metrics")
        assert headers["content-type"].startswith("text/plain; version=0.0.4")
        return float(text.decode().split('markserve_requests_total{model="doubler",outcome="answered"} ')[1].split("\n")[0])

    before = answered()
    server.infer([[1, 2, 3, 4]])

    assert answered() == before + 1


def test_model_process_that_dies_takes_no_other_model_with_it_and_comes_back(server: Running) -> None:
    children = [int(pid) for pid in Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()]
    doubler = children[0]  # models start in the order given

    os.kill(doubler, signal.SIGKILL)
    deadline = time.monotonic() + 60
    while server.ask("GET", "/v2/models/doubler/ready")[0] == 200 and time.monotonic() < deadline:
        time.sleep(0.01)

    assert server.infer([[1, 1, 1, 1]], "picky")[0] == 200
    status, _, headers = server.infer([[1, 1, 1, 1]], "doubler")
    assert status in (200, 503)  # 200 when it is back already
    assert status == 200 or int(headers["retry-after"]) >= 1
    while server.ask("GET", "/v2/models/doubler/ready")[0] != 200:
        assert time.monotonic() < deadline, "the model did not come back"
        time.sleep(0.1)
    assert server.infer([[1, 1, 1, 1]], "doubler")[0] == 200


def test_overload_is_shed_with_retry_after_and_what_is_answered_is_right(tmp_path: Path) -> None:
    statuses: list[int] = []
    with serving(save(Slow(), tmp_path / "slow.pt", max_batch_size=2), options=["--rt-max", "0.5"]) as running:

        def ask() -> None:
            for _ in range(6):
                status, answer, headers = running.infer([[1, 2, 3, 4]], "slow")
                statuses.append(status)
                assert status != 200 or answer["outputs"][0]["data"] == [1, 2, 3, 4]
                assert status == 200 or headers["retry-after"] == "1"

        threads = [threading.Thread(target=ask) for _ in range(64)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert running.ask("GET", "/v2/health/live")[0] == 200

    assert set(statuses) == {200, 503}
    assert len(statuses) == 64 * 6


def test_sigterm_finishes_what_is_held_and_exits_with_0(tmp_path: Path) -> None:
    statuses: list[int] = []
    with serving(save(Slow(), tmp_path / "slow.pt", max_batch_size=2), options=["--rt-max", "30"]) as running:
        threads = [threading.Thread(target=lambda: statuses.append(running.infer([[1, 2, 3, 4]], "slow")[0])) for _ in range(12)]
        for thread in threads:
            thread.start()
        held = 0.0
        while held < 6:
            text = running.ask("GET", "/metrics")[1].decode()
            held = float(text.split('markserve_held_requests{model="slow"} ')[1].split("\n")[0]) + len(statuses)
        running.terminate()
        for thread in threads:
            thread.join()
        code = running.process.wait(30)

    assert code == 0
    assert len(statuses) == 12
    assert statuses.count(200) >= 6
    assert set(statuses) <= {200, 503}


def test_model_that_cannot_be_loaded_leaves_the_others_served(tmp_path: Path) -> None:
    broken = tmp_path / "broken.pt"
    broken.write_bytes(b"not a model")
    broken.with_suffix(".json").write_text('{"inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]}')
    with serving(broken, save(Doubler(), tmp_path / "doubler.pt")) as running:
        assert running.infer([[1, 2, 3, 4]], "doubler", x_markserve_timeout_ms="5000")[0] == 200
        status, answer, _ = running.infer([[1, 2, 3, 4]], "broken")
        assert (status, "not a TorchScript archive" in answer["error"]) == (503, True)
        assert running.ask("GET", "/v2/health/ready")[0] == 200
        assert running.ask("GET", "/v2/models/broken/ready")[0] == 503


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere.pt"], "there is no file nowhere.pt"),
        (["{folder}/bare.pt"], "give --input NAME:DATATYPE:SHAPE"),
        (["{folder}/bare.pt", "--input", "x:FP99:-1"], "datatype FP99"),
    ],
)
def test_bad_arguments_are_one_line_and_exit_2(tmp_path: Path, arguments: list[str], said: str) -> None:
    save(Doubler(), tmp_path / "bare.pt").with_suffix(".json").unlink()
    done = subprocess.run(  # noqa: S603  # our own command
        [sys.executable, "-m", "cli.main", "serve", *(argument.format(folder=tmp_path) for argument in arguments)],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(REPOSITORY / "layers/markserve"), str(REPOSITORY)])},
    )

    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
