"""`InstanceRegistry` on DynamoDB.

Keys: `model#<name>` / instance id holds the instance; `instance#<id>` / `model` says whose it is; `models` / name
lists the models that ever had one. A front reads its own model's partition only, and a heartbeat is one write; one
partition takes 1,000 heartbeats/s, so one model can have about 1,000 workers (`max_instances` allows no more).
"""

from __future__ import annotations

import builtins
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec

from markserve.adapters.dynamodb import Item, Table, expiry, new_write_id, number, text
from markserve.core.types import Instance, InstanceState, WorkerStats
from markserve.errors import StaleWrite
from markserve.messages import encode

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

ENDED_RETENTION_S = 86_400.0
"""Ended instances stay listed for a day: the cloud lists them for an hour, reports look back further."""

STAMPS = {
    InstanceState.WARMING: "running_at_s",
    InstanceState.SERVING: "serving_at_s",
    InstanceState.DRAINING: "drain_at_s",
    InstanceState.TERMINATED: "terminated_at_s",
    InstanceState.FAILED: "terminated_at_s",
}
ENDED = (InstanceState.TERMINATED, InstanceState.FAILED)
INSTANTS = ("running_at_s", "serving_at_s", "drain_at_s", "terminated_at_s", "heartbeat_at_s")
COUNTERS = ("missed_cycles", "unwanted_cycles")


class DynamoInstanceRegistry:
    """What this system knows of its instances.

    An item holds the instance as it was put (`instance`) and, as attributes of their own, what changes since.
    """

    def __init__(self, client: DynamoDBClient, table_name: str) -> None:
        self._table = Table(client, table_name)
        self._model_of: dict[str, str] = {}
        """An instance never changes its model, so what was looked up once stays true."""

    def put(self, instance: Instance) -> None:
        item = {"pk": text(f"model#{instance.model}"), "sk": text(instance.instance_id), "state": text(instance.state)}
        item["instance"] = {"B": encode(instance)}
        pointer = {"pk": text(f"instance#{instance.instance_id}"), "sk": text("model"), "model": text(instance.model)}
        index = {"pk": text("models"), "sk": text(instance.model)}
        # False means that it was put before: nothing to change.
        self._table.transact(
            [
                self._table.put_operation(item, condition="attribute_not_exists(pk)"),
                self._table.put_operation(pointer, condition="attribute_not_exists(pk)"),
                self._table.put_operation(index),
            ]
        )

    def transition(
        self, instance_id: str, *, expected: Sequence[InstanceState], state: InstanceState, at_s: float, reason: str
    ) -> Instance:
        update, values = _transition_update(state, at_s=at_s, reason=reason)
        states = {f"expected{i}": text(candidate) for i, candidate in enumerate(expected)}
        item = self._table.update(
            self._key(instance_id),
            update,
            condition=f"#state IN ({', '.join(f':{name}' for name in states)}) OR write_id = :write_id",
            names={"#state": "state"},
            **values,
            **states,
        )
        if item is None:
            raise StaleWrite(f"{instance_id} is not {' or '.join(expected)}: cannot become {state}")
        return _instance(item)

    def heartbeat(self, instance_id: str, *, at_s: float, stats: WorkerStats) -> Instance:
        item = self._table.update(
            self._key(instance_id),
            "SET heartbeat_at_s = :at_s, stats = :stats",
            condition="attribute_exists(pk)",
            at_s=number(at_s),
            stats={"B": encode(stats)},
        )
        if item is None:
            raise StaleWrite(f"{instance_id} is not registered: no heartbeat recorded")
        return _instance(item)

    def count_evidence(self, instance_id: str, *, missed_cycles: int, unwanted_cycles: int) -> None:
        try:
            key = self._key(instance_id)
        except StaleWrite:
            return  # forgotten meanwhile: there is nothing left to count against
        self._table.update(
            key,
            "SET missed_cycles = :missed, unwanted_cycles = :unwanted",
            condition="attribute_exists(pk)",
            missed=number(missed_cycles),
            unwanted=number(unwanted_cycles),
        )

    def list(self, model: str | None = None) -> builtins.list[Instance]:
        models = [item["sk"]["S"] for item in self._table.query("models")] if model is None else [model]
        instances = [_instance(item) for name in models for item in self._table.query(f"model#{name}")]
        return sorted(instances, key=lambda i: (i.requested_at_s, i.instance_id))

    def _key(self, instance_id: str) -> dict[str, str]:
        if instance_id not in self._model_of:
            pointer = self._table.get({"pk": f"instance#{instance_id}", "sk": "model"})
            if pointer is None:
                raise StaleWrite(f"{instance_id} is not registered")
            self._model_of[instance_id] = pointer["model"]["S"]
        return {"pk": f"model#{self._model_of[instance_id]}", "sk": instance_id}


def _transition_update(state: InstanceState, *, at_s: float, reason: str) -> tuple[str, dict[str, Item]]:
    assignments = ["#state = :state", "write_id = :write_id"]
    values = {"state": text(state), "write_id": text(new_write_id())}
    if state in STAMPS:
        assignments.append(f"{STAMPS[state]} = :at_s")
        values["at_s"] = number(at_s)
    if state in (InstanceState.DRAINING, *ENDED):
        # A drain's reason says more than the "drained" that ends it.
        keep_first = state is InstanceState.TERMINATED
        assignments.append("end_reason = if_not_exists(end_reason, :reason)" if keep_first else "end_reason = :reason")
        values["reason"] = text(reason)
    if state in ENDED:
        assignments.append("expires_at_s = :expires_at_s")
        values["expires_at_s"] = expiry(at_s + ENDED_RETENTION_S)
    return "SET " + ", ".join(assignments), values


def _instance(item: Item) -> Instance:
    instance = msgspec.json.decode(item["instance"]["B"], type=Instance)
    changes: dict[str, object] = {name: float(item[name]["N"]) for name in INSTANTS if name in item}
    changes |= {name: int(item[name]["N"]) for name in COUNTERS if name in item}
    if "end_reason" in item:
        changes["end_reason"] = item["end_reason"]["S"]
    if "stats" in item:
        changes["stats"] = msgspec.json.decode(item["stats"]["B"], type=WorkerStats)
    return replace(instance, state=InstanceState(item["state"]["S"]), **changes)  # type: ignore[arg-type]  # names and types match Instance's fields
