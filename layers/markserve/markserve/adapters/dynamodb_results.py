"""`ResultStore` on DynamoDB: one item per request, the first answer wins by a conditional update."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from markserve.adapters.dynamodb import Table, expiry, new_write_id, number, text
from markserve.errors import PayloadTooLarge
from markserve.messages import Answer, StoredResult, decode, encode

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

MAX_ANSWER_BYTES = 390 * 1024
"""An item holds 400 KiB, its other attributes included; larger outputs travel by reference."""


class DynamoResultStore:
    """One answer per request: an answer costs one write, a poll one consistent read."""

    def __init__(self, client: DynamoDBClient, table_name: str) -> None:
        self._table = Table(client, table_name)

    def put_pending(
        self,
        request_id: str,
        *,
        body_sha256: str,
        accepted_at_s: float,
        deadline_at_s: float | None,
        expires_at_s: float,
        owner: str = "",
        model: str = "",
        model_version: str = "",
    ) -> bool:
        write_id = text(new_write_id())
        item = {
            "request_id": text(request_id),
            "body_sha256": text(body_sha256),
            "accepted_at_s": number(accepted_at_s),
            "expires_at_s": expiry(expires_at_s),
            "owner": text(owner),
            "model": text(model),
            "model_version": text(model_version),
            "write_id": write_id,
        }
        if deadline_at_s is not None:
            item["deadline_at_s"] = number(deadline_at_s)
        return self._table.put(item, condition="attribute_not_exists(request_id) OR write_id = :write_id", write_id=write_id)

    def put_answer(self, answer: Answer, *, expires_at_s: float, accepted_as: str = "") -> bool:
        payload = encode(answer)
        if len(payload) > MAX_ANSWER_BYTES:
            raise PayloadTooLarge(f"answer of {len(payload)} bytes exceeds the results table's {MAX_ANSWER_BYTES}", field="outputs")
        condition = "(attribute_not_exists(answer) OR answer = :answer)"
        values: dict[str, Any] = {"answer": {"B": payload}}
        if accepted_as:
            condition, values = f"{condition} AND body_sha256 = :body_sha256", {**values, "body_sha256": text(accepted_as)}
        item = self._table.update(
            {"request_id": answer.request_id},
            "SET answer = :answer, expires_at_s = :expires_at_s",
            condition=condition,
            expires_at_s=expiry(expires_at_s),
            **values,
        )
        return item is not None

    def get(self, request_id: str) -> StoredResult | None:
        item = self._table.get({"request_id": request_id})
        if item is None:
            return None
        return StoredResult(
            request_id=request_id,
            answer=decode(item["answer"]["B"], Answer) if "answer" in item else None,
            accepted_at_s=float(item["accepted_at_s"]["N"]) if "accepted_at_s" in item else 0.0,
            deadline_at_s=float(item["deadline_at_s"]["N"]) if "deadline_at_s" in item else None,
            **{name: item[name]["S"] for name in ("body_sha256", "owner", "model", "model_version") if name in item},
        )
