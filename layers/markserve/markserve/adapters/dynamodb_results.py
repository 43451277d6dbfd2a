"""`ResultStore` on DynamoDB: one item per request, the first answer wins by a conditional update."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from markserve.adapters.dynamodb import Item, Table, expiry, new_write_id, number, text
from markserve.errors import PayloadTooLarge, Transient
from markserve.messages import Answer, StoredResult, decode, encode

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

MAX_ANSWER_BYTES = 390 * 1024
"""An item holds 400 KiB, its other attributes included; larger outputs travel by reference."""

MAX_STATEMENTS = 25
SET_ANSWER = 'SET "answer" = ? SET "expires_at_s" = ? WHERE "request_id" = ? AND "answer" IS MISSING AND "body_sha256" = ?'
NEW_ANSWER = "VALUE {'request_id': ?, 'answer': ?, 'expires_at_s': ?}"


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
        condition, values = "(attribute_not_exists(answer) OR answer = :answer)", {"answer": {"B": _payload(answer)}}
        if accepted_as:
            condition, values = f"{condition} AND body_sha256 = :body_sha256", values | {"body_sha256": text(accepted_as)}
        return self._table.change(
            {"request_id": answer.request_id},
            "SET answer = :answer, expires_at_s = :expires_at_s",
            condition=condition,
            expires_at_s=expiry(expires_at_s),
            **values,
        )

    def put_answers(self, answers: Sequence[Answer], *, expires_at_s: float, accepted_as: Sequence[str] = ()) -> list[bool | Transient]:
        bodies = accepted_as or [""] * len(answers)
        first_of = {answer.request_id: place for place, answer in reversed(list(enumerate(answers)))}
        places = sorted(first_of.values())  # an id twice in a call is left to the second look
        outcomes: dict[int, bool | Transient] = {}
        for start in range(0, len(places), MAX_STATEMENTS) if len(places) > 1 else ():
            part = places[start : start + MAX_STATEMENTS]
            written = self._table.execute([self._statement(answers[place], expires_at_s, bodies[place]) for place in part])
            # A statement whose condition does not hold may have been answered before, by another or by this very call whose response
            # was lost, or have outlived its acceptance: only the conditional update of one item tells which.
            outcomes |= {place: outcome for place, outcome in zip(part, written, strict=True) if outcome is not False}
        return [
            outcomes[place] if place in outcomes else self._outcome(answer, expires_at_s, bodies[place])
            for place, answer in enumerate(answers)
        ]

    def _statement(self, answer: Answer, expires_at_s: float, accepted_as: str) -> tuple[str, list[Item]]:
        """Build the write of an answer: PartiQL has no upsert, so it is an update of what is recorded, or an insert."""
        key, payload, expires = text(answer.request_id), {"B": _payload(answer)}, expiry(expires_at_s)
        if accepted_as:
            return f'UPDATE "{self._table.name}" {SET_ANSWER}', [payload, expires, key, text(accepted_as)]
        return f'INSERT INTO "{self._table.name}" {NEW_ANSWER}', [key, payload, expires]

    def _outcome(self, answer: Answer, expires_at_s: float, accepted_as: str) -> bool | Transient:
        try:
            return self.put_answer(answer, expires_at_s=expires_at_s, accepted_as=accepted_as)
        except Transient as error:
            return error

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


def _payload(answer: Answer) -> bytes:
    payload = encode(answer)
    if len(payload) > MAX_ANSWER_BYTES:
        raise PayloadTooLarge(f"answer of {len(payload)} bytes exceeds the results table's {MAX_ANSWER_BYTES}", field="outputs")
    return payload
