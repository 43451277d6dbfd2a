"""`ClientStore` on DynamoDB: keys by their digest, and one counter per client and quota window."""

from __future__ import annotations

from typing import TYPE_CHECKING

from markserve.adapters.dynamodb import Table, expiry, instant_key, number, text
from markserve.messages import ClientRecord, decode, encode

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

COUNTER_RETENTION_S = 3600.0


class DynamoClientStore:
    """Clients of the API. A client's counter is one item: 1,000 requests/s of one client are its limit."""

    def __init__(self, client: DynamoDBClient, table_name: str) -> None:
        self._table = Table(client, table_name)

    def find(self, key_sha256: str) -> ClientRecord | None:
        item = self._table.get({"pk": f"key#{key_sha256}", "sk": "client"})
        return decode(item["document"]["B"], ClientRecord) if item else None

    def count(self, client: str, *, window_at_s: float) -> int:
        item = self._table.update(
            {"pk": f"used#{client}", "sk": instant_key(window_at_s)},
            "ADD requests :one SET expires_at_s = :expires_at_s",
            one=number(1),
            expires_at_s=expiry(window_at_s + COUNTER_RETENTION_S),
        )
        return int(item["requests"]["N"]) if item else 0

    def put(self, record: ClientRecord) -> bool:
        document = {"document": {"B": encode(record)}}
        # The name first: it must not be taken, and a name without a key lets nobody in.
        named = {"pk": text("clients"), "sk": text(record.client), **document}
        if not self._table.put(named, condition="attribute_not_exists(pk)"):
            return False
        self._table.put({"pk": text(f"key#{record.key_sha256}"), "sk": text("client"), **document})
        return True

    def list(self) -> list[ClientRecord]:
        return [decode(item["document"]["B"], ClientRecord) for item in self._table.query("clients")]

    def remove(self, client: str) -> bool:
        item = self._table.get({"pk": "clients", "sk": client})
        if item is None:
            return False
        record = decode(item["document"]["B"], ClientRecord)
        # The key first: whatever happens then, it lets nobody in.
        self._table.delete({"pk": f"key#{record.key_sha256}", "sk": "client"})
        self._table.delete({"pk": "clients", "sk": client})
        return True
