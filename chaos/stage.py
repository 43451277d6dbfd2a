"""The system under attack, and what scenarios do to it."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from chaos.ledger import Ledger, Question
from local.digits import request_for
from local.faults import Fault, set_faults
from local.fleet import LocalInstance
from local.model_setup import MODEL
from local.system import LocalSystem, SystemConfig
from markserve import wiring
from markserve.core.types import Instance, InstanceState
from markserve.errors import Transient
from markserve.messages import Answer, ModelRecord

RT_MAX_S = 2.0
WORKERS = 2
MAX_INSTANCES = 4
MAX_HOURLY_COST_USD = 1.0
QUESTIONS = 40
POLL_S = 0.2
HEARD_WITHIN_S = 4.0
PARAMETERS = {
    # Two workers, so that one, half and all of them differ; on spot, so that they can be interrupted.
    "min-instances": str(WORKERS),
    "spot-max-share": "1",
    # Half a minute: what one scenario had bought for its load is gone before it fills the fleet of the next ones.
    "scale-in-cycles": "10",
}

ValueT = TypeVar("ValueT")


class NotInTime(AssertionError):
    """Something that a scenario waits for did not come about."""


def chaos_config(work_dir: Path) -> SystemConfig:
    """Settle the local system that faults are tried on: as fast-paced as two cores allow."""
    return SystemConfig(
        work_dir=work_dir,
        rt_max_s=RT_MAX_S,
        max_instances=MAX_INSTANCES,
        max_hourly_cost_usd=MAX_HOURLY_COST_USD,
        cycle_s=3.0,
        window_s=1.5,
        launch_delay_s=0.5,
        warm_api_environments=20,
        keep_state=True,
        parameters=PARAMETERS,
    )


def questions_for(system: LocalSystem, record: ModelRecord, artefact: bytes, known: Sequence[Question] = ()) -> list[Question]:
    """Ask digits whose answers this version of the model gives here, without anything of the serving path."""
    runner = wiring.load_runner(record, artefact)
    questions: list[Question] = []
    for index in range(QUESTIONS):
        image = np.ascontiguousarray(system.model.images[index : index + 1])
        (answer,) = runner.run([request_for(image, request_id="direct", model=record.model, version=record.version)])
        if not isinstance(answer, Answer):
            raise NotInTime(f"the model fails on its own test data: {answer}")
        (output,) = answer.outputs
        logits = np.frombuffer(output.data, "<f4").reshape(output.shape)
        (spec,) = record.inputs
        entry = {"name": spec.name, "datatype": spec.datatype, "shape": list(image.shape), "data": image.ravel().tolist()}
        before = known[index].logits if known else {}
        questions.append(Question(body=json.dumps({"inputs": [entry]}).encode(), logits={**before, record.version: logits}))
    return questions


@dataclass(kw_only=True)
class Stage:
    """A running local system during one scenario."""

    system: LocalSystem
    ledger: Ledger
    notes: list[str] = field(default_factory=list)
    """What a scenario found out, for the report."""
    explained_dead_letters: int = 0
    """Messages that this scenario sends to the dead-letter queue on purpose."""
    ceilings_checked: bool = True
    is_gone: bool = False
    """Whether the scenario ends with the stack destroyed."""
    victims: set[str] = field(default_factory=set)
    """Instances that will not serve again, whatever the registry still says of them."""

    # --- looking -------------------------------------------------------------------------------------------------

    def serving(self, model: str = MODEL) -> list[Instance]:
        """Instances in service that were heard of lately."""
        heard_since_s = time.time() - HEARD_WITHIN_S
        states = [i for i in wiring.instances().list(model) if i.state is InstanceState.SERVING and i.instance_id not in self.victims]
        return [i for i in states if (i.heartbeat_at_s or i.serving_at_s or 0.0) > heard_since_s]

    def is_whole(self) -> bool:
        """Whether enough workers serve, and those that ended are written off."""
        alive = {i.instance_id for i in wiring.instances().list() if i.is_alive}
        return len(self.serving()) >= WORKERS and not self.victims & alive

    def workers(self) -> list[LocalInstance]:
        """Machines of the instances in service."""
        ids = {i.instance_id for i in self.serving()}
        return [known for known in self.system.fleet.instances() if known.instance_id in ids and known.process is not None]

    def events(self, name: str, *, since_s: float) -> list[Any]:
        """Read the decision log since an instant."""
        return [d for d in wiring.control().decisions(since_s=since_s, until_s=time.time() + 5) if d.event == name]

    def wait(self, what: str, look: Callable[[], ValueT | None], *, within_s: float) -> ValueT:
        """Look until there is something. Raises `NotInTime`."""
        give_up_at_s = time.monotonic() + within_s
        while time.monotonic() < give_up_at_s:
            with suppress(Transient):  # a system under attack may be slow to tell
                found = look()
                if found:
                    return found
            time.sleep(POLL_S)
        raise NotInTime(f"not within {within_s:g} s: {what}")

    def note(self, text: str) -> None:
        """Add to the report."""
        self.notes.append(text)

    # --- doing ---------------------------------------------------------------------------------------------------

    def kill(self, victims: Sequence[LocalInstance]) -> None:
        """Kill workers as the kernel does when memory runs out."""
        for victim in victims:
            self._signal(victim, signal.SIGKILL)
            self.victims.add(victim.instance_id)

    def freeze(self, victims: Sequence[LocalInstance]) -> None:
        """Have workers hang: alive, and doing nothing."""
        for victim in victims:
            self._signal(victim, signal.SIGSTOP)

    def thaw(self, victims: Sequence[LocalInstance]) -> None:
        """Let hanging workers go on."""
        for victim in victims:
            self._signal(victim, signal.SIGCONT)

    @staticmethod
    def _signal(victim: LocalInstance, number: signal.Signals) -> None:
        process = victim.process
        if process is not None:
            with suppress(ProcessLookupError):
                os.kill(process.pid, number)

    def aws_faults(self, *faults: Fault) -> None:
        """Have calls to the embedded AWS go wrong; none heals it."""
        set_faults([self.system.aws.endpoint_url], faults)

    def ec2_faults(self, *faults: Fault) -> None:
        """Have calls to the embedded EC2 go wrong; none heals it."""
        set_faults([self.system.aws.ec2_endpoint_url], faults)

    def function_faults(self, function: str, *faults: Fault) -> None:
        """Have invocations of an image function go wrong; none heals it."""
        port = self.system.aws.image_ports[f"{self.system.config.stack_name}-{function}"]
        set_faults([f"http://127.0.0.1:{port}"], faults)

    def heal(self) -> None:
        """Take back every fault."""
        self.aws_faults()
        self.ec2_faults()
        for function in ("forecast", "spillover"):
            self.function_faults(function)
        self.thaw([i for i in self.system.fleet.instances() if i.process is not None])

    def put_parameters(self, values: Mapping[str, str], *, model: str | None = None) -> None:
        """Set operator parameters by their names."""
        for name, text in values.items():
            wiring.parameter_writer().put(name, text, model=model)

    def make_room(self) -> None:
        """Let one more instance be bought than otherwise: the load may have filled the fleet to its ceiling."""
        self.ceilings_checked = False
        self.put_parameters({"max-instances": str(MAX_INSTANCES + 1)})

    @contextmanager
    def burst(self, factor: float) -> Iterator[None]:
        """Multiply the load for a while."""
        before = self.ledger.rate_rps
        self.ledger.rate_rps = factor * before
        try:
            yield
        finally:
            self.ledger.rate_rps = before

    def publish(self, source: str, detail_type: str, detail: Mapping[str, Any]) -> None:
        """Put an event on the bus that the lifecycle function follows, EC2's own included."""
        name = self.system.deployment.outputs["LifecycleFunctionName"]
        event = {"version": "0", "id": "chaos", "source": source, "detail-type": detail_type, "detail": dict(detail)}
        self.system.client("lambda").invoke(FunctionName=name, Payload=json.dumps(event))
