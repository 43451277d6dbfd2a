"""`ModelStore` on DynamoDB.

Keys: `model#<name>` / `LIVE` and `v#<version>`; the partition `models` holds a copy of every live record, so that
listing is one Query and fronts that read one model do not share an item.
"""

from __future__ import annotations

import builtins
from typing import TYPE_CHECKING

from markserve.adapters.dynamodb import Item, Table, text
from markserve.errors import UnknownModel
from markserve.messages import ModelRecord, decode, encode

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

    def list(self) -> builtins.list[ModelRecord]:
        return [_record(item) for item in self._table.query("models")]

    def put(self, record: ModelRecord) -> None:
        document = {"record": {"B": encode(record)}}
        keys = ((f"model#{record.model}", f"v#{record.version}"), (f"model#{record.model}", "LIVE"), ("models", record.model))
        self._table.transact([self._table.put_operation({"pk": text(pk), "sk": text(sk)} | document) for pk, sk in keys])

    def delete(self, model: str) -> None:
        # The live pointer goes first: from then on the model is unknown, whatever becomes of the rest.
        keys = ((f"model#{model}", "LIVE"), ("models", model))
        self._table.transact([self._table.delete_operation({"pk": pk, "sk": sk}) for pk, sk in keys])
        for item in builtins.list(self._table.query(f"model#{model}", prefix="v#")):
            self._table.delete({"pk": item["pk"]["S"], "sk": item["sk"]["S"]})


def _record(item: Item) -> ModelRecord:
    return decode(item["record"]["B"], ModelRecord)
