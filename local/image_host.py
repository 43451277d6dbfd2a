"""Hosts one container-image function without containers: real processes stand for Lambda's execution environments.

    python -m local.image_host --function spillover --function-name markserve-spillover --port 45003

The embedded AWS forwards the function's invocations here. As in Lambda, an environment handles one request at a time;
a request that finds none idle starts another one (a cold start: fork of a process that has torch loaded, then the
handler's own init), up to `--limit`; idle ones are reaped. `GET /stats` tells what Lambda would have billed.
`PUT /_markserve/faults` has invocations fail or wait (`local.faults`), for rehearsals.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import boto3
import msgspec

from local.deployer import Deployment
from local.embedded_aws import await_health, stop_group
from local.environments import HostStats, ImageHost, start_context
from local.faults import FAULTS_PATH, FaultBoard
from local.processes import ProcessLedger
from local.roles import ENFORCED, role_environment

FUNCTIONS = Path(__file__).resolve().parent.parent / "functions"
# Lambda gives one full vCPU per this much memory.
MEMORY_PER_VCPU_MB = 1769
REAP_INTERVAL_S = 5.0


def handler_for(host: ImageHost) -> type[BaseHTTPRequestHandler]:
    """Build the HTTP side: `POST /` invokes, `GET /stats` and `GET /health` tell, `PUT` of faults has the next ones fail."""
    board = FaultBoard()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_PUT(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
            if self.path == FAULTS_PATH:
                board.put(body)
            self._reply(200 if self.path == FAULTS_PATH else 404, b"{}")

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
            self._reply(*(_struck(board, body) or host.invoke(self.headers.get("X-Amzn-Lambda-Request-Id", ""), body)))

        def do_GET(self) -> None:
            if self.path == "/stats":
                self._reply(200, msgspec.json.encode(host.snapshot()))
            elif self.path == "/health":
                self._reply(200, b"{}")
            else:
                self._reply(404, b"{}")

        def _reply(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Stay silent: Lambda's own log is the embedded AWS's."""

    return Handler


def _struck(board: FaultBoard, body: bytes) -> tuple[int, bytes] | None:
    """Let a fault on purpose happen to an invocation: the answer of one that fails, None for one that goes on."""
    fault = board.strike("lambda:Invoke", body)
    if fault is None:
        return None
    if fault.effect == "error":
        return 500, msgspec.json.encode({"errorType": fault.code, "errorMessage": "a fault on purpose"})
    time.sleep(fault.delay_s)
    return None


def deployed_environment(function_name: str) -> tuple[dict[str, str], int, float]:
    """Environment variables, memory in MB and timeout in seconds of the deployed function."""
    configuration = boto3.client("lambda").get_function_configuration(FunctionName=function_name)
    memory_mb, timeout_s = configuration["MemorySize"], float(configuration["Timeout"])
    variables = {
        **configuration.get("Environment", {}).get("Variables", {}),
        "AWS_LAMBDA_FUNCTION_NAME": function_name,
        "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": str(memory_mb),
        "AWS_LAMBDA_FUNCTION_VERSION": "$LATEST",
        "OMP_NUM_THREADS": str(max(1, round(memory_mb / MEMORY_PER_VCPU_MB))),
    }
    if os.environ.get(ENFORCED) == "true":
        variables |= role_environment(boto3.client("sts"), configuration["Role"])
    return variables, memory_mb, timeout_s


@dataclass(frozen=True, kw_only=True)
class RunningImageHost:
    """A started image host."""

    url: str
    process: subprocess.Popen[bytes]
    ledger: ProcessLedger

    def stats(self) -> HostStats:
        """Fetch what the host has counted so far."""
        with urlopen(f"{self.url}/stats", timeout=5.0) as response:  # noqa: S310  # our own loopback URL
            return msgspec.json.decode(response.read(), type=HostStats)

    def stop(self) -> None:
        """End the host and its environments."""
        stop_group(self.process)
        self.ledger.forget(self.process)


def start_image_host(
    *,
    ledger: ProcessLedger,
    work_dir: Path,
    deployment: Deployment,
    function: str,
    port: int,
    limit: int = 10,
    functions: Path = FUNCTIONS,
    enforce_iam: bool = False,
) -> RunningImageHost:
    """Start the host of a deployed image function in a process of its own, and return once it serves."""
    env = {**deployment.client_env(), ENFORCED: str(enforce_iam).lower()}
    name = f"{deployment.stack_name}-{function}"
    command = [sys.executable, "-m", "local.image_host", "--function", function, "--function-name", name, "--functions", str(functions)]
    log_path = work_dir / f"{name}.log"
    process = ledger.spawn(name, [*command, "--port", str(port), "--limit", str(limit)], env=env, log_path=log_path)
    host = RunningImageHost(url=f"http://127.0.0.1:{port}", process=process, ledger=ledger)
    try:
        await_health(process, name=name, url=f"{host.url}/health", log_path=log_path)
    except BaseException:
        host.stop()
        raise
    return host


def main() -> None:
    """Serve until told to stop."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--function", required=True, help="the function's folder")
    parser.add_argument("--functions", type=Path, default=FUNCTIONS, help="where the folders of all functions are")
    parser.add_argument("--function-name", required=True, help="name of the deployed function, whose settings it runs with")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--limit", type=int, default=10, help="most environments at once")
    parser.add_argument("--idle-ttl-s", type=float, default=120.0, help="idle time after which an environment is reaped")
    arguments = parser.parse_args()
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(name)s %(message)s")

    variables, memory_mb, timeout_s = deployed_environment(arguments.function_name)
    host = ImageHost(
        folder=arguments.functions / arguments.function,
        memory_mb=memory_mb,
        timeout_s=timeout_s,
        limit=arguments.limit,
        idle_ttl_s=arguments.idle_ttl_s,
        context=start_context(variables),
    )
    server = ThreadingHTTPServer(("127.0.0.1", arguments.port), handler_for(host))
    server.daemon_threads = True
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    signal.signal(signal.SIGINT, lambda *_: stopping.set())
    threading.Thread(target=server.serve_forever, name="http", daemon=True).start()
    while not stopping.wait(REAP_INTERVAL_S):
        host.reap(time.monotonic())
    server.shutdown()
    host.close()


if __name__ == "__main__":
    main()
