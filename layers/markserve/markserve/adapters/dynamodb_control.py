"""`ControlStore` on DynamoDB: forecasts, plans, the decision log and claims.

Keys: `forecast#<model>` / origin; `plan` / zero-padded version; `decisions` / instant#id; `claims` / name. Each is a
partition that a Query reads in order. The control cycle writes a handful of items a minute, far below the 1,000
writes/s of one partition.
"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

from markserve.adapters.dynamodb import Item, Table, expiry, instant_key, new_write_id, number, text
from markserve.errors import StaleWrite
from markserve.messages import DecisionRecord, ForecastRecord, PlanRecord, decode, encode

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

RETENTION_S = 30 * 86_400.0
"""Decisions stay a month, so that last month's bill can be explained."""


class DynamoControlStore:
    """Forecasts, plans, decisions and claims."""

    def __init__(self, client: DynamoDBClient, table_name: str, *, retention_s: float = RETENTION_S) -> None:
        self._table = Table(client, table_name)
        self._retention_s = retention_s

    def put_forecast(self, forecast: ForecastRecord) -> None:
        at_s = forecast.origin_at_s
        self._table.put(self._item(f"forecast#{forecast.model}", instant_key(at_s), encode(forecast), at_s=at_s))

    def latest_forecast(self, model: str) -> ForecastRecord | None:
        for item in self._table.query(f"forecast#{model}", newest_first=True, page=1):
            return decode(item["record"]["B"], ForecastRecord)
        return None

    def forecasts(self, model: str, *, since_s: float, until_s: float) -> list[ForecastRecord]:
        items = self._between(f"forecast#{model}", since_s, until_s)
        return [decode(item["record"]["B"], ForecastRecord) for item in items]

    def put_plan(self, plan: PlanRecord) -> None:
        item = self._item("plan", _version_key(plan.version), encode(plan), at_s=plan.created_at_s)
        operations = [self._table.put_operation(item, condition="attribute_not_exists(pk)")]
        if plan.version > 1:
            predecessor = {"pk": "plan", "sk": _version_key(plan.version - 1)}
            operations.append(self._table.check_operation(predecessor, "attribute_exists(pk)"))
        if not self._table.transact(operations):
            raise StaleWrite(f"plan version {plan.version} does not follow the latest version: re-plan from the latest")

    def latest_plan(self) -> PlanRecord | None:
        for item in self._table.query("plan", newest_first=True, page=1):
            return decode(item["record"]["B"], PlanRecord)
        return None

    def plans(self, *, since_s: float, until_s: float) -> list[PlanRecord]:
        # Versions rise with time, so the newest come first and the first one too old ends the search.
        found: list[PlanRecord] = []
        for item in self._table.query("plan", newest_first=True):
            at_s = float(item["at_s"]["N"])
            if at_s < since_s:
                break
            if at_s < until_s:
                found.append(decode(item["record"]["B"], PlanRecord))
        return found[::-1]

    def log(self, record: DecisionRecord) -> None:
        key = f"{instant_key(record.at_s)}#{uuid.uuid4().hex}"
        self._table.put(self._item("decisions", key, encode(record), at_s=record.at_s))

    def decisions(self, *, since_s: float, until_s: float) -> list[DecisionRecord]:
        return [decode(item["record"]["B"], DecisionRecord) for item in self._between("decisions", since_s, until_s)]

    def claim(self, name: str, *, now_s: float, for_s: float) -> bool:
        write_id = text(new_write_id())
        item = {
            "pk": text("claims"),
            "sk": text(name),
            "held_until_s": number(now_s + for_s),
            "expires_at_s": expiry(now_s + for_s),
            "write_id": write_id,
        }
        condition = "attribute_not_exists(pk) OR held_until_s <= :now_s OR write_id = :write_id"
        return self._table.put(item, condition=condition, now_s=number(now_s), write_id=write_id)

    def claims(self, prefix: str, *, now_s: float) -> list[str]:
        items = self._table.query("claims", prefix=prefix) if prefix else self._table.query("claims")
        return [item["sk"]["S"] for item in items if float(item["held_until_s"]["N"]) > now_s]

    def _item(self, pk: str, sk: str, record: bytes, *, at_s: float) -> Item:
        return {
            "pk": text(pk),
            "sk": text(sk),
            "at_s": number(at_s),
            "record": {"B": record},
            "expires_at_s": expiry(at_s + self._retention_s),
        }

    def _between(self, pk: str, since_s: float, until_s: float) -> list[Item]:
        # Keys are rounded to microseconds and `until_s` is exclusive: the stored instant decides at the edges.
        # `~` sorts after `#`, so that decisions of the very last microsecond are within the range.
        items = self._table.query(pk, low=instant_key(since_s), high=instant_key(until_s) + "~")
        return [item for item in items if since_s <= float(item["at_s"]["N"]) < until_s]


def _version_key(version: int) -> str:
    return f"{version:012d}"
