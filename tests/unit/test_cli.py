"""The command line: what it says, and with which exit code, when things are right and when they are not."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import psutil
import pytest
from moto import mock_aws
from PIL import Image
from typer.testing import CliRunner, Result

from cli.console import Problem
from cli.main import app
from cli.model_input import read_picture
from cli.reference import commands
from local.processes import ProcessRecord
from local.supervisor import SystemState, UpOptions, write_state
from markserve import wiring
from markserve.core.types import InstanceState
from tests.builders import a_forecast_record, a_model_record, a_plan_record, an_instance
from tests.contract.conftest import create_table

COMMANDS = [command.name.split() for command in commands()]
METADATA = {
    "name": "digits",
    "inputs": [{"name": "image", "datatype": "FP32", "shape": [-1, 1, 2, 2]}],
    "outputs": [{"name": "logits", "datatype": "FP32", "shape": [-1, 2]}],
}


@pytest.fixture(autouse=True)
def state_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MARKSERVE_LOCAL_DIR", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


def markserve(*arguments: str, stdin: str | None = None) -> Result:
    result = CliRunner().invoke(app, arguments, input=stdin)
    assert "Traceback" not in result.output
    return result


def assert_fails(result: Result, code: int, *said: str) -> None:
    assert result.exit_code == code, result.output
    for text in said:
        assert text in result.stderr
    assert result.stderr.count("error:") == 1
    assert result.stdout == ""


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_shows_an_example_for_every_command(command: list[str]) -> None:
    result = markserve(*command, "--help")

    assert result.exit_code == 0
    assert f"Example: markserve {' '.join(command)}" in result.stdout
    assert "--json" in result.stdout


@pytest.mark.parametrize(
    "command", [["status"], ["explain"], ["models", "list"], ["params", "get"], ["infer", "digits", "-"], ["load", "digits"]], ids=" ".join
)
def test_command_names_the_next_step_when_nothing_runs(command: list[str]) -> None:
    assert_fails(markserve(*command, stdin="[1]"), 3, "no local system is running", "next:  start one with `markserve up`")


def test_down_is_content_when_nothing_runs() -> None:
    result = markserve("down", "--json")

    assert (result.exit_code, json.loads(result.stdout)) == (0, {"stopped": False})


def test_status_says_how_far_when_the_system_is_starting() -> None:
    own = psutil.Process()
    process = ProcessRecord(name="supervisor", pid=own.pid, created_at_s=own.create_time())
    write_state(SystemState(process=process, options=UpOptions(), steps=["deploying template.yaml"]))

    assert_fails(markserve("status"), 1, "not ready yet: deploying template.yaml")


def test_status_says_why_when_the_system_did_not_start() -> None:
    process = ProcessRecord(name="supervisor", pid=1, created_at_s=0.0)
    write_state(SystemState(process=process, options=UpOptions(), phase="failed", failure="DeploymentError: no room"))

    assert_fails(markserve("status"), 1, "did not start: DeploymentError: no room", "supervisor.log")


def test_state_of_a_dead_system_counts_as_nothing_running() -> None:
    process = ProcessRecord(name="supervisor", pid=psutil.Process().pid, created_at_s=0.0)  # the id was given to somebody else since
    write_state(SystemState(process=process, options=UpOptions(), phase="ready"))

    assert_fails(markserve("status"), 3, "no local system is running")


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["infer", "digits", "missing.npy"], "there is no file missing.npy"),
        (["infer", "digits", "-", "--endpoint", "ftp://x"], "'ftp://x' is not a URL"),
        (["load", "digits", "--endpoint", "http://192.0.2.1"], "not on this machine"),
        (["params", "set", "rt-max", "1"], "there is no parameter 'rt-max'"),
        (["params", "set", "sl-min", "98"], "98 is above the highest allowed value 0.9999"),
        (["params", "get", "nope"], "there is no parameter 'nope'"),
        (["models", "register", "m", "missing.pt", "--input", "x:FP32:-1", "--output", "y:FP32:-1"], "there is no file missing.pt"),
        (["profile", "digits", "--batch-sizes", "1,two"], "is not a list of whole numbers"),
    ],
)
def test_bad_usage_exits_2_with_the_reason(command: list[str], said: str) -> None:
    if command[0] == "infer":
        command = [*command, *([] if "--endpoint" in command else ["--endpoint", "http://127.0.0.1:9"])]

    assert_fails(markserve(*command, stdin="[]"), 2, said)


def test_unknown_option_exits_2() -> None:
    assert markserve("up", "--no-such-thing").exit_code == 2


def test_tensor_spec_is_refused_when_malformed(tmp_path: Path) -> None:
    (tmp_path / "m.pt").write_bytes(b"x")

    result = markserve("models", "register", "m", str(tmp_path / "m.pt"), "--input", "image:FP32", "--output", "y:FP32:-1")

    assert_fails(result, 2, "'image:FP32' is not NAME:DATATYPE:SHAPE")


def test_model_without_declared_tensors_is_not_registered(tmp_path: Path) -> None:
    (tmp_path / "m.pt").write_bytes(b"x")

    assert_fails(markserve("models", "register", "m", str(tmp_path / "m.pt")), 2, "inputs and outputs are not declared", "write m.json")


def test_manifest_that_is_named_must_be_there(tmp_path: Path) -> None:
    (tmp_path / "m.pt").write_bytes(b"x")

    assert_fails(markserve("models", "register", "m", str(tmp_path / "m.pt"), "--manifest", "nope.json"), 2, "there is no file nope.json")


# --- infer, against an HTTP server ------------------------------------------------------------------------


class Api:
    """Answers metadata, and inference as told; keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.answer: tuple[int, dict[str, Any]] = (
            200,
            {"outputs": [{"name": "logits", "datatype": "FP32", "shape": [1, 2], "data": [0.25, 0.75]}]},
        )
        api = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.reply(
                    200 if self.path.endswith("/digits") else 404, METADATA if self.path.endswith("/digits") else {"error": "no model"}
                )

            def do_POST(self) -> None:
                api.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.reply(*api.answer)

            def reply(self, status: int, value: dict[str, Any]) -> None:
                body = json.dumps(value).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                """Stay silent."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"


@pytest.fixture
def api() -> Iterator[Api]:
    served = Api()
    yield served
    served.server.shutdown()
    served.server.server_close()


def test_infer_wraps_a_bare_row_by_the_models_metadata(api: Api) -> None:
    result = markserve("infer", "digits", "-", "--endpoint", api.url, stdin="[[[0, 1], [2, 3]]]")

    assert result.exit_code == 0, result.output
    assert api.asked == [{"inputs": [{"name": "image", "datatype": "FP32", "shape": [1, 1, 2, 2], "data": [[[[0, 1], [2, 3]]]]}]}]
    assert "0.25 0.75" in result.stdout


def test_infer_takes_an_array_file_and_prints_json(api: Api, tmp_path: Path) -> None:
    np.save(tmp_path / "two.npy", np.zeros((2, 1, 2, 2), dtype=np.float32))

    result = markserve("infer", "digits", str(tmp_path / "two.npy"), "--endpoint", api.url, "--json")

    assert api.asked[0]["inputs"][0]["shape"] == [2, 1, 2, 2]
    assert json.loads(result.stdout)["outputs"][0]["data"] == [0.25, 0.75]


def test_infer_passes_a_whole_request_on_unchanged(api: Api) -> None:
    request = {"id": "7", "inputs": [{"name": "image", "datatype": "FP32", "shape": [1, 1, 2, 2], "data": [0, 1, 2, 3]}]}

    assert markserve("infer", "digits", "-", "--endpoint", api.url, stdin=json.dumps(request)).exit_code == 0
    assert api.asked == [request]


@pytest.mark.parametrize(("status", "code"), [(400, 2), (404, 2), (429, 1), (503, 1)])
def test_infer_gives_the_servers_reason_when_it_refuses(api: Api, status: int, code: int) -> None:
    api.answer = (status, {"error": "input 'image': shape [1] does not fit"})

    assert_fails(markserve("infer", "digits", "-", "--endpoint", api.url, stdin="[[[0, 1], [2, 3]]]"), code, f"{status}: input 'image'")


def test_infer_says_so_when_the_model_is_unknown(api: Api) -> None:
    assert_fails(markserve("infer", "nope", "-", "--endpoint", api.url, stdin="[1]"), 2, "404: no model")


@pytest.mark.parametrize(("name", "content", "said"), [("x.json", b"{", "is not JSON"), ("x.npy", b"junk", "is not a NumPy array")])
def test_infer_refuses_an_unreadable_file(api: Api, tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)

    assert_fails(markserve("infer", "digits", str(tmp_path / name), "--endpoint", api.url), 2, said)


def test_infer_fails_when_nobody_listens() -> None:
    assert_fails(markserve("infer", "digits", "-", "--endpoint", "http://127.0.0.1:9", stdin="[1]"), 1, "does not answer")


# --- operators' commands, against an emulated stack --------------------------------------------------------


@pytest.fixture
def stack(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Any]]:
    """An empty stack that the environment names."""
    monkeypatch.setenv("MARKSERVE_STACK_NAME", "demo")
    _forget()
    with mock_aws():
        for name in ("models", "control", "instances", "windows"):
            monkeypatch.setenv(f"MARKSERVE_{name.upper()}_TABLE", create_table(boto3.client("dynamodb"), f"demo-{name}"))
        yield lambda service: boto3.client(service)  # type: ignore[call-overload]
    _forget()


def _forget() -> None:
    for member in vars(wiring).values():
        if hasattr(member, "cache_clear"):
            member.cache_clear()


def test_parameter_is_in_force_after_it_was_set(stack: Callable[[str], Any]) -> None:
    assert markserve("params", "set", "rt-max-s", "0.5").exit_code == 0
    assert markserve("params", "set", "rt-max-s", "0.7", "--model", "digits").exit_code == 0
    _forget()

    assert stack("ssm").get_parameter(Name="/demo/rt-max-s")["Parameter"]["Value"] == "0.5"
    assert json.loads(markserve("params", "get", "rt-max-s", "--json").stdout) == {"rt-max-s": 0.5}
    assert json.loads(markserve("params", "get", "rt-max-s", "--model", "digits", "--json").stdout) == {"rt-max-s": 0.7}
    assert "Latency objective" in markserve("params", "get").stdout


def test_models_are_listed_and_shown(stack: Callable[[str], Any]) -> None:
    wiring.models().put(a_model_record(model="digits", version="3"))

    assert "digits" in markserve("models", "list").stdout
    assert json.loads(markserve("models", "show", "digits", "--json").stdout)["version"] == "3"
    assert "Batch latency T(b)" in markserve("models", "show", "digits").stdout
    assert_fails(markserve("models", "show", "nope"), 2, "nope")


def test_explain_shows_the_plan_and_what_it_rejected(stack: Callable[[str], Any]) -> None:
    assert_fails(markserve("explain"), 1, "nothing was planned yet")
    plan = a_plan_record()
    wiring.control().put_plan(plan)
    forecast = a_forecast_record(model=next(iter(plan.demand_rps)), reason="linear costs least")
    wiring.control().put_forecast(forecast)

    shown = markserve("explain")

    assert shown.exit_code == 0
    assert plan.reason in shown.stdout
    assert forecast.reason in shown.stdout
    assert json.loads(markserve("explain", "--json").stdout)["plan_id"] == plan.plan_id


def test_explain_tells_the_story_of_an_instance(stack: Callable[[str], Any]) -> None:
    instance = an_instance(state=InstanceState.REQUESTED, reason="unmet demand of 12 rps")
    wiring.instances().put(instance)

    told = markserve("explain", "--instance", instance.instance_id)

    assert told.exit_code == 0, told.output
    assert "unmet demand of 12 rps" in told.stdout
    assert_fails(markserve("explain", "--instance", "i-nope"), 2, "there is no instance i-nope")


def test_report_is_printed_again(tmp_path: Path) -> None:
    assert_fails(markserve("report"), 1, "there is no report")
    (tmp_path / "bad.json").write_text("{}")

    assert_fails(markserve("report", str(tmp_path / "bad.json")), 2, "is not a report")


# --- pictures ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "datatype", "expected"),
    [
        ([-1, 1, 2, 2], "FP32", [[[[1.0, 0.0], [1.0, 0.0]]]]),
        ([-1, 2, 2, 1], "UINT8", [[[[255], [0]], [[255], [0]]]]),
    ],
)
def test_picture_is_fitted_to_the_declared_tensor(tmp_path: Path, shape: list[int], datatype: str, expected: list[Any]) -> None:
    Image.fromarray(np.array([[255, 255, 0, 0]] * 4, dtype=np.uint8)).resize((2, 2), Image.Resampling.NEAREST).save(tmp_path / "x.png")

    assert read_picture(tmp_path / "x.png", {"name": "image", "shape": shape, "datatype": datatype}, white=None) == expected


def test_infer_takes_a_picture(api: Api, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), "white").save(tmp_path / "white.jpg")

    result = markserve("infer", "digits", str(tmp_path / "white.jpg"), "--endpoint", api.url, "--white", "16", "--json")

    assert result.exit_code == 0, result.output
    (sent,) = api.asked[0]["inputs"]
    assert (sent["shape"], sent["data"]) == ([1, 1, 2, 2], [[[[16.0, 16.0], [16.0, 16.0]]]])


def test_infer_refuses_what_is_no_picture_or_takes_none(api: Api, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"junk")

    assert_fails(markserve("infer", "digits", str(tmp_path / "x.png"), "--endpoint", api.url), 2, "is not a picture")
    with pytest.raises(Problem, match="does not take pictures"):
        read_picture(tmp_path / "x.png", {"name": "text", "shape": [-1, 7], "datatype": "INT64"}, white=None)


WAITING = """
import time
from cli.console import explained
from cli.main import app

@app.command()
@explained()
def wait() -> None:
    try:
        print("ready", flush=True)
        time.sleep(60)
    finally:
        print("cleaned up", flush=True)

app(["wait"])
"""


def test_a_command_that_is_terminated_from_outside_cleans_up_first() -> None:
    process = subprocess.Popen(  # noqa: S603  # the text above
        [sys.executable, "-c", WAITING], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"

    process.send_signal(signal.SIGTERM)
    stdout, stderr = process.communicate(timeout=30)

    assert (stdout, process.returncode) == ("cleaned up\n", 130)
    assert "interrupted" in stderr
