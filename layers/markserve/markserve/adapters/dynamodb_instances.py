"""`InstanceRegistry` on DynamoDB.

Keys: `model#<name>` / instance id holds the instance; `instance#<id>` / `model` says whose it is; `models` / name
lists the models that ever had one; `view#<name>` / `view` is the published summary of a fleet. A front reads its own model's
partition only, and a heartbeat is one write of less than 1 KiB; one partition takes 1,000 of them a second.

Where that is not enough, a model's instances are spread over shards, each a partition of its own. `instance#<id>` also says
in which one an instance is, and `models` / name which ones a model ever had, so that nobody needs to know how many there are to be.
The summary has a copy in each shard, and a reader keeps to one of them: 3,000 of the smallest reads a second and partition are a limit too.
"""

from __future__ import annotations

import builtins
import random
import time
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

import msgspec

from markserve.adapters.dynamodb import Item, Table, expiry, new_write_id, number, shard_key, text
from markserve.core.spillover import FleetView, PublishedView
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
SHARDS_KNOWN_S = 30.0
"""How long a reader that need not be up to date keeps a model's shards: a new instance takes longer to serve."""
PARALLEL_CALLS = 16
"""Shards read, or written, at once."""
VIEW_RETENTION_S = 3600.0
"""Who reads a summary refuses one that is seconds old; the rest is for people who look."""


class DynamoInstanceRegistry:
    """What this system knows of its instances.

    An item holds the instance as it was put (`instance`) and, as attributes of their own, what changes since.

    Parameters
    ----------
    shards
        Partitions that a model's new instances are put into; those that are there stay where they are.
    """

    def __init__(
        self, client: DynamoDBClient, table_name: str, *, shards: int = 1, monotonic_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._table = Table(client, table_name)
        self._shards = shards
        self._own_shard = random.randrange(shards)  # noqa: S311  # spreads readers, no secret
        self._monotonic_s = monotonic_s
        self._partition_of: dict[str, str] = {}
        """An instance never changes its model or shard, so what was looked up once stays true."""
        self._shards_of: dict[str, tuple[float, builtins.list[int]]] = {}
        """A model's shards, and when they were read."""

    def put(self, instance: Instance) -> None:
        shard = zlib.crc32(instance.instance_id.encode()) % self._shards
        partition = shard_key(f"model#{instance.model}", shard)
        item = {"pk": text(partition), "sk": text(instance.instance_id), "state": text(instance.state)}
        item["instance"] = {"B": msgspec.json.encode(_told(instance))}
        pointer = {
            "pk": text(f"instance#{instance.instance_id}"),
            "sk": text("model"),
            "model": text(instance.model),
            "shard": number(shard),
        }
        # False means that it was put before: nothing to change.
        self._table.transact(
            [
                self._table.put_operation(item, condition="attribute_not_exists(pk)"),
                self._table.put_operation(pointer, condition="attribute_not_exists(pk)"),
                self._table.update_operation({"pk": "models", "sk": instance.model}, "ADD shards :shard", shard={"NS": [str(shard)]}),
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

    def list(self, model: str | None = None, *, up_to_date: bool = True) -> builtins.list[Instance]:
        keys = self._partitions(model, up_to_date)
        if len(keys) == 1:
            found = [self._read(keys[0], up_to_date)]
        else:
            with ThreadPoolExecutor(max(1, min(len(keys), PARALLEL_CALLS))) as readers:
                found = builtins.list(readers.map(lambda key: self._read(key, up_to_date), keys))
        return sorted((i for instances in found for i in instances), key=lambda i: (i.requested_at_s, i.instance_id))

    def publish_view(self, model: str, view: FleetView, *, at_s: float) -> None:
        body = {"sk": text("view"), "at_s": number(at_s), "view": {"B": encode(view)}, "expires_at_s": expiry(at_s + VIEW_RETENTION_S)}
        items = [{"pk": text(shard_key(f"view#{model}", shard))} | body for shard in range(self._shards)]
        with ThreadPoolExecutor(min(len(items), PARALLEL_CALLS)) as writers:
            builtins.list(writers.map(self._table.put, items))

    def published_view(self, model: str) -> PublishedView | None:
        item = self._table.get({"pk": shard_key(f"view#{model}", self._own_shard), "sk": "view"}, consistent=False)
        return PublishedView(at_s=float(item["at_s"]["N"]), view=msgspec.json.decode(item["view"]["B"], type=FleetView)) if item else None

    def _read(self, partition: str, up_to_date: bool) -> builtins.list[Instance]:
        return [_instance(item) for item in self._table.query(partition, consistent=up_to_date)]

    def _partitions(self, model: str | None, up_to_date: bool) -> builtins.list[str]:
        """List the partitions of a model, or of all."""
        if model is None:
            return [key for item in self._table.query("models") for key in _keys(item["sk"]["S"], _shards(item))]
        read_at_s, shards = self._shards_of.get(model, (0.0, []))
        if up_to_date or not shards or self._monotonic_s() - read_at_s >= SHARDS_KNOWN_S:
            item = next(self._table.query("models", low=model, high=model), None)
            shards = _shards(item) if item else []
            self._shards_of[model] = self._monotonic_s(), shards
        return _keys(model, shards)

    def _key(self, instance_id: str) -> dict[str, str]:
        if instance_id not in self._partition_of:
            pointer = self._table.get({"pk": f"instance#{instance_id}", "sk": "model"})
            if pointer is None:
                raise StaleWrite(f"{instance_id} is not registered")
            shard = int(pointer["shard"]["N"]) if "shard" in pointer else 0
            self._partition_of[instance_id] = shard_key(f"model#{pointer['model']['S']}", shard)
        return {"pk": self._partition_of[instance_id], "sk": instance_id}


def _shards(index: Item) -> list[int]:
    """Read the shards that a model ever had; one that was listed before there were shards has the first."""
    return sorted({0, *map(int, index["shards"]["NS"])} if "shards" in index else {0})


def _keys(model: str, shards: Sequence[int]) -> list[str]:
    return [shard_key(f"model#{model}", shard) for shard in shards]


def _told(instance: Instance) -> dict[str, Any]:
    """Return what differs from an instance's defaults: the rest of it would make a heartbeat a write of 2 KiB."""
    defaults = {spec.name: spec.default for spec in fields(Instance)} | {"stats": WorkerStats()}
    return {name: value for name in defaults if (value := getattr(instance, name)) != defaults[name]}


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
