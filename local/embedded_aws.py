"""Starts and stops the embedded AWS: ministack for everything, a moto server for EC2.

Both listen on loopback only, and a stop forgets the whole account.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from local.embedded_server import LAMBDA_PYTHON
from local.processes import ProcessLedger

REGION = "us-east-1"
ACCOUNT_ID = "000000000000"
# Importing both takes 2-4 s on an idle machine; a busy laptop gets ten times that.
START_TIMEOUT_S = 60.0
STOP_GRACE_S = 5.0
SAVE_TIMEOUT_S = 20.0
HEALTH_PATH = "/_ministack/health"
# The emulator keeps one process per Lambda function and reaps the rest when they were idle for this long. AWS keeps them for
# 5-15 minutes; a laptop wants its memory back, and a demo's quiet phases are not to be all cold starts.
WARM_LAMBDA_TTL_S = 300.0
# Every running Lambda holds one of the embedded AWS's threads and needs another for each AWS call that it makes: with its
# default of 64, 64 requests at once would wait for one another for ever.
WORKER_THREADS = 512
_HEALTH_POLL_S = 0.1


class EmbeddedAwsError(RuntimeError):
    """A service of the embedded AWS did not start; the message ends with what it logged last."""


def free_port() -> int:
    """Pick a port that nobody listens on right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _free(port: int | None) -> int:
    """Choose a port, or check the chosen one: whoever listens there would pass for the service we start."""
    if port is None:
        return free_port()
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            raise EmbeddedAwsError(f"port {port} is already in use; stop what listens there, or choose another port")
    return port


@dataclass(frozen=True, kw_only=True)
class EmbeddedAws:
    """A running embedded AWS."""

    endpoint_url: str
    ec2_endpoint_url: str
    work_dir: Path
    ledger: ProcessLedger
    processes: list[subprocess.Popen[bytes]]
    """The embedded AWS, then EC2."""
    relaunch: Callable[[], subprocess.Popen[bytes]]
    """Starts the embedded AWS as it was started, on the same port."""
    image_ports: Mapping[str, int]
    """Port of each image function's host, by function name; ministack forwards its invocations there."""

    def env(self) -> dict[str, str]:
        """Environment that makes a plain boto3 client, or any of our processes, use this AWS."""
        return client_env(endpoint_url=self.endpoint_url, ec2_endpoint_url=self.ec2_endpoint_url)

    def restart(self) -> None:
        """Stop the embedded AWS, EC2 aside, and start it again; what it was started to keep is there again.

        Raises
        ------
        EmbeddedAwsError
            If it does not answer in time.
        """
        (old, *_) = self.processes
        old.terminate()  # itself alone: it saves its state while its Lambda processes are there
        with suppress(subprocess.TimeoutExpired):
            old.wait(timeout=SAVE_TIMEOUT_S)
        stop_group(old)
        self.ledger.forget(old)
        self.processes[0] = self.relaunch()
        log_path = self.work_dir / "embedded-aws.log"
        await_health(self.processes[0], name="embedded-aws", url=f"{self.endpoint_url}{HEALTH_PATH}", log_path=log_path)

    def stop(self) -> None:
        """End both services and every Lambda process they started."""
        for process in reversed(self.processes):
            stop_group(process)
            self.ledger.forget(process)
        shutil.rmtree(self.work_dir / "tmp", ignore_errors=True)


def client_env(*, endpoint_url: str, ec2_endpoint_url: str) -> dict[str, str]:
    """Environment of a process that is to talk to these endpoints and can reach no real account."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    return {
        **inherited,
        "AWS_ENDPOINT_URL": endpoint_url,
        "AWS_ENDPOINT_URL_EC2": ec2_endpoint_url,
        "AWS_ACCESS_KEY_ID": ACCOUNT_ID,
        "AWS_SECRET_ACCESS_KEY": "local",
        "AWS_REGION": REGION,
        "AWS_DEFAULT_REGION": REGION,
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def start_embedded_aws(
    *,
    ledger: ProcessLedger,
    work_dir: Path,
    port: int | None = None,
    ec2_port: int | None = None,
    image_functions: Mapping[str, int | None] | None = None,
    enforce_iam: bool = False,
    lambda_python: Path | None = None,
    keep_state: bool = False,
    warm_lambda_ttl_s: float = WARM_LAMBDA_TTL_S,
) -> EmbeddedAws:
    """Start both services and return once they answer.

    Parameters
    ----------
    image_functions
        Names of functions that ship as container images, with the port of their host (None picks one). The hosts
        themselves start after the deployment, since they take their settings from it.
    enforce_iam
        Have ministack hold every function to its own role.
    lambda_python
        Interpreter of the zip functions; default: this process's. One of the template's runtime can load what `sam build`
        made for it, compiled modules included.
    keep_state
        Have ministack write its state down when it stops, so that `restart` finds it again. A kill loses it.

    Raises
    ------
    EmbeddedAwsError
        If a port is taken, or a service ends or does not answer in time.
    """
    port, ec2_port = _free(port), _free(ec2_port)
    image_ports = {name: image_port or free_port() for name, image_port in (image_functions or {}).items()}
    endpoint_url, ec2_endpoint_url = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{ec2_port}"
    scratch = work_dir / "tmp"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    env = {
        **client_env(endpoint_url=endpoint_url, ec2_endpoint_url=ec2_endpoint_url),
        # Lambda processes run under the interpreter found first, which must be the one with our dependencies.
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
        "TMPDIR": str(scratch),
        "PYTHONUNBUFFERED": "1",
    }
    aws_env = {
        **env,
        "BIND_HOST": "127.0.0.1",
        "GATEWAY_PORT": str(port),
        "MINISTACK_ACCOUNT_ID": ACCOUNT_ID,
        "MINISTACK_REGION": REGION,
        "PERSIST_STATE": str(int(keep_state)),
        "STATE_DIR": str(scratch / "state"),
        "S3_PERSIST": str(int(keep_state)),
        "S3_DATA_DIR": str(scratch / "s3"),
        "LAMBDA_EXECUTOR": "local",
        "LAMBDA_WARM_TTL_SECONDS": str(round(warm_lambda_ttl_s)),
        "MINISTACK_WORKER_THREADS": str(WORKER_THREADS),
        "LOG_LEVEL": "WARNING",
        # Functions inherit the environment, and would take the emulator's own level for theirs.
        "POWERTOOLS_LOG_LEVEL": "INFO",
        "AUTH": str(enforce_iam).lower(),
        **({LAMBDA_PYTHON: str(lambda_python)} if lambda_python else {}),
        **{f"MINISTACK_LAMBDA_PROXY_{name}": f"http://127.0.0.1:{image_port}/" for name, image_port in image_ports.items()},
    }
    moto_command = [sys.executable, "-m", "local.embedded_ec2", "-H", "127.0.0.1", "-p", str(ec2_port)]
    services = (
        ("embedded-aws", [sys.executable, "-m", "local.embedded_server"], aws_env, f"{endpoint_url}{HEALTH_PATH}"),
        ("embedded-ec2", moto_command, env, f"{ec2_endpoint_url}/moto-api/"),
    )
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for name, command, service_env, _ in services:
            processes.append(ledger.spawn(name, command, env=service_env, log_path=work_dir / f"{name}.log"))
        for process, (name, _, _, health_url) in zip(processes, services, strict=True):
            await_health(process, name=name, url=health_url, log_path=work_dir / f"{name}.log")
    except BaseException:
        for process in processes:
            stop_group(process)
            ledger.forget(process)
        raise
    return EmbeddedAws(
        endpoint_url=endpoint_url,
        ec2_endpoint_url=ec2_endpoint_url,
        work_dir=work_dir,
        ledger=ledger,
        processes=processes,
        relaunch=partial(ledger.spawn, services[0][0], services[0][1], env=aws_env, log_path=work_dir / "embedded-aws.log"),
        image_ports=image_ports,
    )


def await_health(process: subprocess.Popen[bytes], *, name: str, url: str, log_path: Path, timeout_s: float = START_TIMEOUT_S) -> None:
    """Return once `url` answers 200.

    Raises
    ------
    EmbeddedAwsError
        If the process ends first, or `timeout_s` passes.
    """
    give_up_at_s = time.monotonic() + timeout_s
    while time.monotonic() < give_up_at_s:
        if process.poll() is not None:
            raise EmbeddedAwsError(f"{name} ended with code {process.returncode} while starting; {_tail(log_path)}")
        with suppress(URLError, TimeoutError, ConnectionError), urlopen(url, timeout=2.0) as response:  # noqa: S310  # our own loopback URL
            if response.status == 200:
                return
        time.sleep(_HEALTH_POLL_S)
    raise EmbeddedAwsError(f"{name} did not answer at {url} within {timeout_s:g} s; {_tail(log_path)}")


def stop_group(process: subprocess.Popen[bytes]) -> None:
    """End a process started by `ProcessLedger` and whatever it started in turn."""
    _signal_group(process.pid, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=STOP_GRACE_S)
    # The leader may be gone while others of its group linger.
    _signal_group(process.pid, signal.SIGKILL)
    process.wait()


def _signal_group(group_id: int, sent: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group_id, sent)


def _tail(log_path: Path, lines: int = 15) -> str:
    if not log_path.exists():
        return "it logged nothing"
    text = log_path.read_text(errors="replace").splitlines()[-lines:]
    return f"the last lines of {log_path}:\n" + "\n".join(text)
