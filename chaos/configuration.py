"""Family 7: parameters, versions and deployments change under load."""

from __future__ import annotations

import io
import threading
import time
import warnings
from collections.abc import Generator

import torch
from botocore.exceptions import ClientError

from chaos.scenario import FLOOR_ONE, scenario
from chaos.stage import Stage, questions_for
from local.deployer import Clients, DeploymentError, deploy
from local.digits import INPUTS, OUTPUTS
from local.model_setup import MODEL
from local.system import LocalSystem
from markserve import wiring
from markserve.messages import ModelRecord
from markserve.registration import ModelSpec, register_model

GARBAGE = {
    "rt-max-s": "soon",
    "sl-min": "98",
    "max-instances": "-3",
    "max-hourly-cost-usd": "NaN",
    "spot-enabled": "perhaps",
    "spillover-max-concurrency": "lots",
    "min-instances": "1e9",
}
SETTLED_S = 33.0
"""Longer than fronts keep model records, which is 30 s."""


@scenario("parameters-garbage", family=7, hold_s=10.0, floor=FLOOR_ONE)
def parameters_garbage(stage: Stage) -> Generator[None, None, None]:
    """Seven parameters are set to garbage; the last good values stay in force, and each refusal is logged."""
    since_s = time.time()
    stage.put_parameters(GARBAGE)
    yield
    stage.wait(
        "every refusal is in the decision log",
        lambda: {d.subject.rsplit("/", 1)[-1] for d in stage.events("parameter_refused", since_s=since_s - 1)} >= set(GARBAGE),
        within_s=30.0,
    )


class Doubled(torch.nn.Module):  # type: ignore[misc]  # torch is not followed by mypy here
    """The model with its logits doubled: the same digits, told apart from the first version's by its figures."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Double."""
        logits: torch.Tensor = self.inner(image)
        return 2 * logits


def second_version(artefact: bytes) -> bytes:
    """Make another artefact of a model."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        inner = torch.jit.load(io.BytesIO(artefact))
        torch.jit.save(torch.jit.trace(Doubled(inner), torch.zeros(2, 1, 8, 8)), buffer)
    return buffer.getvalue()


def register_version(system: LocalSystem, artefact: bytes, version: str) -> ModelRecord:
    """Make a version live, whether it is new or was before: registering the same one again is how to roll back."""
    return register_model(
        ModelSpec(
            model=MODEL, artefact=artefact, inputs=INPUTS, outputs=OUTPUTS, version=version, max_batch_size=system.record.max_batch_size
        ),
        models=wiring.models(),
        blobs=wiring.blobs(),
        queues=wiring.work_queue_admin(),
        parameters=wiring.parameter_writer(),
        load=wiring.load_runner,
        now_s=time.time(),
    )


@scenario("version-rolled-out-and-back", family=7, floor=FLOOR_ONE)
def version_rolled_out_and_back(stage: Stage) -> Generator[None, None, None]:
    """A second version goes live under load and is rolled back half a minute later; every answer is right for the version that it names."""
    system = stage.system
    artefact = second_version(system.model.artefact)
    second = register_version(system, artefact, "second")
    stage.ledger.questions = questions_for(system, second, artefact, known=stage.ledger.questions)
    time.sleep(SETTLED_S)
    register_version(system, system.model.artefact, system.record.version)
    time.sleep(SETTLED_S)
    versions = {version for entry in stage.ledger.entries if (version := entry.version)}
    stage.note(f"versions {', '.join(sorted(versions))} answered")
    yield


@scenario("two-deployments", family=7, floor=FLOOR_ONE)
def two_deployments(stage: Stage) -> Generator[None, None, None]:
    """The stack is deployed twice at once, unchanged, under load; the second is refused or changes nothing, and nobody notices."""
    system = stage.system
    said: list[str] = []

    def deploy_again() -> None:
        deployment = system.deployment
        clients = Clients.connect(endpoint_url=deployment.endpoint_url, ec2_endpoint_url=deployment.ec2_endpoint_url)
        try:
            deploy(
                clients=clients,
                endpoint_url=deployment.endpoint_url,
                ec2_endpoint_url=deployment.ec2_endpoint_url,
                stack_name=deployment.stack_name,
                parameters=system.config.template_parameters(),
            )
            said.append("deployed")
        except (DeploymentError, ClientError) as error:
            said.append(f"refused: {str(error)[:80]}")

    threads = [threading.Thread(target=deploy_again) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stage.note(f"deployments: {', '.join(said)}")
    yield
