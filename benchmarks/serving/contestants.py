"""Who is compared: how each server is installed, started and asked, and the grid over which each one's knobs are searched.

Every peer gets one core for all its processes, one torch thread, and a model that is warm. A grid's first entry is what its users
commonly start from; `python -m benchmarks.serving --tune` measures every entry and keeps the best in `tuned.json`.
"""

from __future__ import annotations

import itertools
import sysconfig
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.serving.protocols import Protocol, open_inference, plain, rows

HERE = Path(__file__).parent
PEERS = HERE / "peers"
PYTHON = "{python}"
"""Replaced by the interpreter of the contestant's venv."""


@dataclass(frozen=True, kw_only=True)
class Knobs:
    """What a team sets by hand; markserve has none."""

    batch: int = 1
    wait_s: float = 0.0
    mode: str = ""

    @property
    def label(self) -> str:
        """Short text for tables and progress."""
        return " ".join(filter(None, [self.mode, f"batch {self.batch}", f"wait {self.wait_s * 1000:g} ms" if self.batch > 1 else ""]))

    @property
    def environment(self) -> dict[str, str]:
        """As `peers/model.py` reads them."""
        return {"BENCH_BATCH": str(self.batch), "BENCH_WAIT_S": str(self.wait_s), "BENCH_MODE": self.mode}


def grid(batches: tuple[int, ...], waits_s: tuple[float, ...], modes: tuple[str, ...] = ("",)) -> tuple[Knobs, ...]:
    """Return every combination."""
    return tuple(Knobs(batch=b, wait_s=w, mode=m) for m, b, w in itertools.product(modes, batches, waits_s))


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """One server."""

    name: str
    title: str
    front: str
    """`python`, or what else reads the sockets."""
    command: tuple[str, ...]
    protocol: Protocol
    grid: tuple[Knobs, ...]
    requirements: tuple[str, ...] = ()
    """Of its venv, beside torch; none: the project's own environment."""
    hint_rps: float
    """Where the first search begins."""
    environment: dict[str, str] = field(default_factory=dict)
    mode_environment: dict[str, dict[str, str]] = field(default_factory=dict)
    """Variables that a mode sets beside BENCH_MODE."""


def _peer(file: str) -> tuple[str, ...]:
    return (PYTHON, str(PEERS / file))


FASTAPI = ("fastapi==0.165.0", "uvicorn==0.54.0", "uvloop==0.23.0", "httptools==0.9.0", "msgspec==0.22.0")

MARKSERVE = Contestant(
    name="markserve",
    title="markserve",
    front="python",
    command=(
        PYTHON,
        "-c",
        "from cli.main import app; app()",
        "serve",
        "{model}",
        "--rt-max",
        "0.2",
        "--host",
        "127.0.0.1",
        "--port",
        "{port}",
    ),
    protocol=open_inference("/v2/models/lstm/infer", "tokens"),
    grid=(Knobs(),),
    hint_rps=900,
)

RIVALS: tuple[Contestant, ...] = (
    Contestant(
        name="mosec",
        title="mosec",
        front="Rust",
        command=_peer("mosec_server.py"),
        protocol=plain("/inference"),
        grid=grid((64, 32, 128), (0.010, 0.001, 0.030)),
        requirements=("mosec==0.9.8", "msgspec==0.22.0"),
        hint_rps=900,
    ),
    Contestant(
        name="fastapi-batcher",
        title="FastAPI, hand-written micro-batcher",
        front="python",
        command=_peer("fastapi_batcher.py"),
        protocol=plain("/infer"),
        grid=grid((64, 32, 128), (0.010, 0.0, 0.030)),
        requirements=FASTAPI,
        hint_rps=500,
    ),
    Contestant(
        name="pytriton",
        title="PyTriton",
        front="C++",
        command=_peer("pytriton_server.py"),
        protocol=open_inference("/v2/models/lstm/infer", "tokens"),
        grid=grid((64, 32), (0.010, 0.0, 0.030)),
        requirements=("nvidia-pytriton==0.7.0",),
        hint_rps=500,
        # Triton's stub embeds libpython, and must find the one of the interpreter whose standard library it will use.
        environment={"LD_LIBRARY_PATH": str(sysconfig.get_config_var("LIBDIR"))},
    ),
    Contestant(
        name="mlserver",
        title="MLServer",
        front="python",
        command=_peer("mlserver_server.py"),
        protocol=open_inference("/v2/models/lstm/infer", "tokens"),
        grid=grid((32, 64), (0.010, 0.050)),
        requirements=("mlserver==1.7.1",),
        hint_rps=300,
    ),
    Contestant(
        name="litserve",
        title="LitServe",
        front="python",
        command=_peer("litserve_server.py"),
        protocol=plain("/infer"),
        grid=grid((32, 64), (0.010, 0.050), ("", "fast-queue")),
        requirements=("litserve==0.2.19",),
        hint_rps=250,
    ),
    Contestant(
        name="ray",
        title="Ray Serve, @serve.batch",
        front="python or HAProxy",
        command=_peer("ray_server.py"),
        protocol=plain("/infer"),
        grid=grid((32,), (0.010, 0.050), ("haproxy", "")),
        requirements=("ray[serve]==2.60.0", "msgspec==0.22.0"),
        hint_rps=200,
        mode_environment={"haproxy": {"RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_SERVE_HAPROXY_NBTHREAD": "1"}},
    ),
    Contestant(
        name="bentoml",
        title="BentoML, adaptive batching",
        front="python",
        command=(
            PYTHON,
            "-m",
            "bentoml",
            "serve",
            "bentoml_server:Classifier",
            "--working-dir",
            str(PEERS),
            "--port",
            "{port}",
            "--host",
            "127.0.0.1",
        ),
        protocol=rows("/infer"),
        grid=grid((32, 64), (0.1, 0.05, 0.2)),
        requirements=("bentoml==1.4.40",),
        hint_rps=150,
    ),
    Contestant(
        name="fastapi",
        title="FastAPI, no batching",
        front="python",
        command=_peer("fastapi_plain.py"),
        protocol=plain("/infer"),
        grid=grid((1,), (0.0,), ("loop", "thread")),
        requirements=FASTAPI,
        hint_rps=180,
    ),
)

CONTESTANTS = {contestant.name: contestant for contestant in (MARKSERVE, *RIVALS)}
