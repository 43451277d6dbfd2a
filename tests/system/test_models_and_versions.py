"""Several models with their own objectives, a canary, classes and the client, on the whole system."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from examples.models.text_encoder import make as text_encoder
from local.model_setup import profile_on
from local.system import LocalSystem
from markserve import rollout, wiring
from markserve.core.tunables import Tunables
from markserve.messages import ModelRecord, TensorSpec
from markserve.profiling import sample_request
from markserve.registration import ModelSpec, register_model
from markserve_client import Client, InferResult
from tests.system.live import CLIENTS, Reply, eventually, infer, infer_all, serving

pytestmark = [pytest.mark.system, pytest.mark.long]

TEXT = text_encoder.MODEL
REPOSITORY = Path(__file__).resolve().parents[2]
TEXT_INPUTS = (TensorSpec(name="text", datatype="UINT8", shape=(-1, text_encoder.MAX_BYTES)),)
TEXT_OUTPUTS = (TensorSpec(name="embedding", datatype="FP32", shape=(-1, 48)), TensorSpec(name="intent", datatype="FP32", shape=(-1, 3)))


def register(artefact: bytes, *, hold: bool = False, model: str = TEXT) -> ModelRecord:
    inputs, outputs = TEXT_INPUTS, TEXT_OUTPUTS
    if model != TEXT:
        record = wiring.models().get(model)
        inputs, outputs = record.inputs, record.outputs
    spec = ModelSpec(model=model, artefact=artefact, inputs=inputs, outputs=outputs, hold=hold, rt_max_s=4.0 if model == TEXT else None)
    return register_model(
        spec,
        models=wiring.models(),
        blobs=wiring.blobs(),
        queues=wiring.work_queue_admin(),
        parameters=wiring.parameter_writer(),
        load=wiring.load_runner,
        now_s=time.time(),
    )


@pytest.fixture
def ports() -> rollout.RolloutPorts:
    return rollout.RolloutPorts(
        models=wiring.models(),
        instances=wiring.instances(),
        control=wiring.control(),
        windows=wiring.windows(),
        work_queue=wiring.work_queue,
        now_s=time.time,
        sleep=time.sleep,
    )


@pytest.fixture
def client(system: LocalSystem) -> Iterator[Client]:
    with Client(system.deployment.api_url, timeout_s=60.0) as client:
        yield client


def ask_digits(client: Client, system: LocalSystem, count: int) -> list[InferResult]:
    images = system.model.images
    with ThreadPoolExecutor(CLIENTS) as pool:
        return list(pool.map(lambda n: client.infer("digits", {"image": images[n : n + 1]}, slo="standard"), range(count)))


def answering(system: LocalSystem) -> set[str]:
    """Versions that answer now, asked so often that each front that serves is; empty text for a refusal."""
    images = [image[None] for image in system.model.images[: 3 * CLIENTS]]
    return {reply.headers.get("x-markserve-model-version", "") for reply in infer_all(system, images)}


def test_second_model_is_planned_served_and_removed_beside_the_first_under_its_own_objective(
    system: LocalSystem, client: Client, ports: rollout.RolloutPorts, tmp_path: Path
) -> None:
    text_encoder.main(tmp_path)
    record = register((tmp_path / f"{TEXT}.pt").read_bytes())
    profile_on(record, [sample_request(record)], instance_type="c5.large", batch_sizes=(1, 4), samples=5)
    texts, labels = text_encoder.sentences(12, seed=5)
    bytes_of = text_encoder.as_bytes(texts).numpy()

    first = client.infer(TEXT, {"text": bytes_of[:1]}, slo="standard")
    worker = eventually("a worker of the second model serves", lambda: serving(TEXT), within_s=120.0)
    then = [client.infer(TEXT, {"text": bytes_of[n : n + 1]}, slo="standard") for n in range(len(texts))]
    beside = ask_digits(client, system, 12)

    assert first.tier == "lambda"  # nothing served it yet
    assert [int(result["intent"].argmax()) for result in then] == labels.tolist()
    assert {result.tier for result in then} == {"worker"}
    accuracy = np.mean([result["logits"].argmax() == system.model.labels[n] for n, result in enumerate(beside)])
    assert accuracy >= 0.9
    plan = eventually(
        "a plan for both", lambda: p if (p := wiring.control().latest_plan()) and {"digits", TEXT} <= set(p.demand_rps) else None
    )
    stack: Tunables = wiring.parameters().get()
    assert plan.hourly_cost_usd <= stack.max_hourly_cost_usd
    assert len([i for i in wiring.instances().list() if i.is_alive]) <= stack.max_instances
    assert (wiring.parameters().get(TEXT).rt_max_s, wiring.parameters().get("digits").rt_max_s) == (4.0, 2.0)
    assert {i.instance_id for i in worker}.isdisjoint(i.instance_id for i in serving())

    rollout.delete_model(TEXT, ports, force=True)

    # This system is slow to scale in: 60 plans; that the plan no longer wants the worker is what counts.
    eventually("no plan wants its worker", lambda: all(i.unwanted_cycles > 0 for i in serving(TEXT)))


def test_canary_gets_its_share_and_a_rollback_under_load_loses_nothing(
    system: LocalSystem, client: Client, ports: rollout.RolloutPorts
) -> None:
    live = wiring.models().traffic("digits").live
    # The same network under another digest: an artefact may carry what follows its archive.
    canary = register(_another(system.model.artefact), hold=True, model="digits").version
    rollout.promote("digits", canary, ports, canary=0.5)
    eventually("every worker has loaded it", lambda: all(canary in i.stats.versions for i in serving()))
    eventually("the canary answers", lambda: canary in answering(system))

    shared = Counter(result.model_version for result in ask_digits(client, system, 40))
    with ThreadPoolExecutor(1) as background:
        loaded = background.submit(ask_digits, client, system, 60)
        rollout.rollback("digits", ports)
        answered = loaded.result()
    eventually("the live version alone answers", lambda: answering(system) == {live})
    after = Counter(result.model_version for result in ask_digits(client, system, 10))

    assert set(shared) == {live, canary}
    assert len(answered) == 60
    assert after == {live: 10}
    rollout.delete_version("digits", canary, ports)
    assert wiring.models().versions("digits") == [live]


def test_tour_of_a_client_developer_runs(system: LocalSystem) -> None:
    environment = {**os.environ, "PYTHON": sys.executable}
    tour = subprocess.run(  # noqa: S603
        [str(REPOSITORY / "examples/tours/client.sh"), system.deployment.api_url],
        capture_output=True,
        text=True,
        env=environment,
        timeout=180,
    )

    assert tour.returncode == 0, tour.stderr
    assert "digit 0, version 1, computed by a" in tour.stdout
    assert "answered before under the same idempotency key" in tour.stdout


def _another(artefact: bytes) -> bytes:
    """The same module, saved again with a file beside it."""
    import io
    import warnings

    import torch

    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        torch.jit.save(torch.jit.load(io.BytesIO(artefact)), buffer, _extra_files={"note": "canary"})
    return buffer.getvalue()


class Broken(torch.nn.Module):  # type: ignore[misc]  # torch is untyped here
    """Runs on zeros, as registration and loading try it, and raises on every picture."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        if bool((image != 0).any()):
            raise ValueError("this version is broken")
        return image.flatten(1)[:, :10]


def test_canary_that_raises_for_every_request_is_rolled_back_under_load(
    system: LocalSystem, client: Client, ports: rollout.RolloutPorts
) -> None:
    live = wiring.models().traffic("digits").live
    broken = register(_saved(Broken()), hold=True, model="digits").version
    rollout.promote("digits", broken, ports, canary=0.3)
    eventually("every worker has loaded it", lambda: all(broken in i.stats.versions for i in serving()), within_s=120.0)
    replies: list[tuple[int, Reply]] = []

    def ended() -> bool:
        images = system.model.images
        with ThreadPoolExecutor(CLIENTS) as pool:
            asked = [
                (n % len(images), pool.submit(infer, system, images[n % len(images)][None])) for n in range(len(replies), len(replies) + 16)
            ]
            replies.extend((n, reply.result()) for n, reply in asked)
        return wiring.models().traffic("digits").canary is None

    began_s = time.time()
    eventually("its traffic is gone", ended, within_s=120.0)
    (decision,) = (d for d in wiring.control().decisions(since_s=began_s, until_s=time.time() + 1) if d.event == "canary_rolled_back")
    plans = wiring.control().plans(since_s=began_s, until_s=decision.at_s + 1)
    eventually("the live version alone answers", lambda: answering(system) == {live})
    after = ask_digits(client, system, 10)

    by_version = {version: [(n, r) for n, r in replies if r.headers["x-markserve-model-version"] == version] for version in (live, broken)}
    assert "errors against" in decision.reason
    assert len(plans) <= 15
    # Every request got its one answer: an error from the broken version, and the live one's was right.
    assert sum(map(len, by_version.values())) == len(replies)
    assert {reply.status for _, reply in by_version[broken]} == {500}
    assert {reply.status for _, reply in by_version[live]} == {200}
    right = [reply.logits().argmax() == system.model.labels[n] for n, reply in by_version[live]]
    assert np.mean(right) >= 0.9
    assert {result.model_version for result in after} == {live}
    rollout.delete_version("digits", broken, ports)


def _saved(module: torch.nn.Module) -> bytes:
    import io
    import warnings

    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        torch.jit.save(torch.jit.script(module.eval()), buffer)
    return buffer.getvalue()
