"""`ModelStore` on DynamoDB.

Keys: `model#<name>` / `LIVE` and `v#<version>`; the partition `models` holds a copy of every live record, so that
listing is one Query and fronts that read one model do not share an item. `LIVE` is a copy of the live record with who
else gets traffic beside it: they change together, or not at all. `removed#<version>` stays when a version goes.
"""

from __future__ import annotations

import builtins
from typing import TYPE_CHECKING

import msgspec

from markserve.adapters.dynamodb import Item, Table, number, text
from markserve.errors import StaleWrite, UnknownModel
from markserve.messages import ModelRecord, Traffic, decode, encode

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient


class DynamoModelStore:
    """Registered models and their versions."""

    def __init__(self, client: DynamoDBClient, table_name: str) -> None:
        self._table = Table(client, table_name)

    def get(self, model: str, version: str | None = None) -> ModelRecord:
        item = self._table.get({"pk": f"model#{model}", "sk": "LIVE" if version is None else f"v#{version}"})
        if item is None:
            raise UnknownModel(f"no model {model!r}" if version is None else f"no version {version!r} of model {model!r}", field="model")
        return _record(item)

    def versions(self, model: str) -> list[str]:
        records = [_record(item) for item in self._table.query(f"model#{model}", prefix="v#")]
        return [record.version for record in sorted(records, key=lambda r: (r.created_at_s, r.version))]

    def removed(self, model: str) -> list[str]:
        return [item["sk"]["S"].removeprefix("removed#") for item in self._table.query(f"model#{model}", prefix="removed#")]

    def list(self) -> builtins.list[ModelRecord]:
        return [_record(item) for item in self._table.query("models")]

    def put(self, record: ModelRecord) -> None:
        document = {"record": {"B": encode(record)}}
        keys = ((f"model#{record.model}", f"v#{record.version}"), (f"model#{record.model}", "LIVE"), ("models", record.model))
        self._table.transact([self._table.put_operation({"pk": text(pk), "sk": text(sk)} | document) for pk, sk in keys])

    def store(self, record: ModelRecord) -> None:
        traffic = self._traffic(record.model)
        if traffic is None or traffic.live != record.version:
            self._table.put(_version_item(record))
            return
        if not self._table.transact([self._table.put_operation(_version_item(record)), *self._live_operations(record, traffic, traffic)]):
            raise StaleWrite(f"version {record.version} of model '{record.model}' was not stored: traffic changed meanwhile")

    def traffic(self, model: str) -> Traffic:
        traffic = self._traffic(model)
        if traffic is None:
            raise UnknownModel(f"no model {model!r}", field="model")
        return traffic

    def route(self, traffic: Traffic) -> None:
        now = self.traffic(traffic.model)
        record, *_ = [self.get(traffic.model, version) for version in traffic.versions]
        checks = [
            self._table.check_operation({"pk": f"model#{traffic.model}", "sk": f"v#{version}"}, "attribute_exists(pk)")
            for version in traffic.versions
        ]
        if traffic.number != now.number + 1 or not self._table.transact([*checks, *self._live_operations(record, now, traffic)]):
            raise StaleWrite(f"traffic of model '{traffic.model}' was changed by somebody else meanwhile")

    def delete_version(self, model: str, version: str) -> None:
        traffic = self._traffic(model)
        if traffic is not None and version in (traffic.live, traffic.canary):
            raise StaleWrite(f"version {version} of model '{model}' gets traffic")
        key = {"pk": f"model#{model}", "sk": f"v#{version}"}
        if self._table.get(key) is None:
            return
        removed = {"pk": text(f"model#{model}"), "sk": text(f"removed#{version}")}
        operations = [self._table.delete_operation(key), self._table.put_operation(removed)]
        if traffic is not None:
            without = msgspec.structs.replace(traffic, previous=None if traffic.previous == version else traffic.previous)
            operations += self._live_operations(self.get(model, traffic.live), traffic, without)
        if not self._table.transact(operations):
            raise StaleWrite(f"version {version} of model '{model}' was not removed: traffic changed meanwhile")

    def withdraw(self, model: str) -> None:
        keys = ((f"model#{model}", "LIVE"), ("models", model))
        self._table.transact([self._table.delete_operation({"pk": pk, "sk": sk}) for pk, sk in keys])

    def _traffic(self, model: str) -> Traffic | None:
        item = self._table.get({"pk": f"model#{model}", "sk": "LIVE"})
        if item is None:
            return None
        return decode(item["traffic"]["B"], Traffic) if "traffic" in item else Traffic(model=model, live=_record(item).version)

    def _live_operations(self, record: ModelRecord, before: Traffic, after: Traffic) -> builtins.list[Item]:
        """Write the live copies, unless traffic is not `before` any more."""
        document = {"record": {"B": encode(record)}}
        live = {"pk": text(f"model#{record.model}"), "sk": text("LIVE"), "traffic": {"B": encode(after)}, "number": number(after.number)}
        # An item that `put` wrote has no number: it is the first.
        condition = (
            "#number = :number" if before.number else "attribute_exists(pk) AND (attribute_not_exists(#number) OR #number = :number)"
        )
        names = {"#number": "number"}  # a reserved word
        return [
            self._table.put_operation(live | document, condition=condition, names=names, number=number(before.number)),
            self._table.put_operation({"pk": text("models"), "sk": text(record.model)} | document),
        ]

    def delete(self, model: str) -> None:
        # The live pointer goes first: from then on the model is unknown, whatever becomes of the rest.
        self.withdraw(model)
        for version in self.versions(model):
            self.delete_version(model, version)


def _version_item(record: ModelRecord) -> Item:
    return {"pk": text(f"model#{record.model}"), "sk": text(f"v#{record.version}"), "record": {"B": encode(record)}}


def _record(item: Item) -> ModelRecord:
    return decode(item["record"]["B"], ModelRecord)
