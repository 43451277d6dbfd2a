"""What the DynamoDB stores share: table access, key formats and the translation of failures.

Key attributes, for whoever defines the tables. Every table has TTL on `expires_at_s` (Number); no index is needed.

============  ==================  ========  ===========================================================
Table         Partition key       Sort key  Partition key values
============  ==================  ========  ===========================================================
models        `pk` (String)       `sk` (S)  `model#<name>`, `models`
windows       `pk` (String)       `sk` (S)  `<model>#arrivals`, `<model>#outcomes`, `ticks`, `batch#<id>`, `shards`
control       `pk` (String)       `sk` (S)  `forecast#<model>`, `plan`, `decisions`, `claims`
instances     `pk` (String)       `sk` (S)  `model#<name>`, `instance#<id>`, `models`, `view#...`
results       `request_id` (S)    none      the request's id
============  ==================  ========  ===========================================================

Where the stack has more than one shard, `<model>#arrivals`, `<model>#outcomes`, `model#<name>` and `view#<name>` are followed
by `#<shard>`, except in shard 0: a stack that never had more reads and writes what it always did.

A conditional write whose response is lost is retried by the SDK and then fails its own condition. Every such write
here carries a fresh `write_id`, and accepts the item that holds it, so that a retry reports the truth.
"""

from __future__ import annotations

import math
import random
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from botocore.exceptions import BotoCoreError, ClientError

from markserve.errors import ConfigurationError, DependencyUnavailable, MarkserveError, Throttled, Transient

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient
    from mypy_boto3_dynamodb.literals import ReturnValueType

Item = dict[str, Any]
"""Attributes in DynamoDB's typed form, `{"at_s": {"N": "5.0"}}`."""

THROTTLED = frozenset(
    {
        "LimitExceededException",
        "ProvisionedThroughputExceeded",
        "ProvisionedThroughputExceededException",
        "RequestLimitExceeded",
        "ThrottlingError",
        "ThrottlingException",
        "TransactionConflict",
        "TransactionConflictException",
        "TransactionInProgressException",
    }
)
UNAVAILABLE = frozenset({"InternalServerError", "ServiceUnavailable", "ReplicatedWriteConflictException"})
NOT_HELD = frozenset({"ConditionalCheckFailed", "DuplicateItem"})
CONFLICT = frozenset({"TransactionConflict", "ThrottlingError", "ProvisionedThroughputExceeded"})
CONFLICT_ATTEMPTS = 6
CONFLICT_BACKOFF_S = 0.02
"""First pause after a conflict; doubles, with full jitter. A transaction holds its items for some 10 ms."""


def number(value: float) -> Item:
    """Make a Number attribute that reads back as the very same float."""
    return {"N": repr(value)}


def text(value: str) -> Item:
    """Make a String attribute."""
    return {"S": value}


def expiry(at_s: float) -> Item:
    """Make a TTL attribute: whole seconds, never early."""
    return {"N": str(math.ceil(at_s))}


def instant_key(at_s: float) -> str:
    """Make a sort key that orders like the instant: zero-padded, microseconds.

    >>> instant_key(5.0) < instant_key(60.25) < instant_key(1_700_000_000.0)
    True
    """
    return f"{at_s:018.6f}"


def shard_key(pk: str, shard: int) -> str:
    """Make the partition key of a shard; the first is the key itself.

    >>> shard_key("digits#arrivals", 0), shard_key("digits#arrivals", 3)
    ('digits#arrivals', 'digits#arrivals#3')
    """
    return f"{pk}#{shard}" if shard else pk


def new_write_id() -> str:
    """Make the identity of one write, the same over its retries."""
    return uuid.uuid4().hex


class Table:
    """One table: reads are consistent, a failed condition is a result and not an exception."""

    def __init__(self, client: DynamoDBClient, name: str, *, sleep: Callable[[float], None] = time.sleep) -> None:
        self._client = client
        self.name = name
        self._sleep = sleep

    def get(self, key: Mapping[str, str], *, consistent: bool = True) -> Item | None:
        """Return the item, or None. A read that need not be `consistent` costs half, and may be some milliseconds behind."""
        try:
            response = self._client.get_item(TableName=self.name, Key=_key(key), ConsistentRead=consistent)
        except (ClientError, BotoCoreError) as error:
            raise _translate(error, self.name) from error
        return response.get("Item")

    def put(self, item: Item, *, condition: str | None = None, names: Mapping[str, str] | None = None, **values: Item) -> bool:
        """Write an item; False when `condition` does not hold. `values` are the condition's `:name`s."""
        try:
            self._client.put_item(TableName=self.name, Item=item, **_expressions(condition, names, values))
        except (ClientError, BotoCoreError) as error:
            if _code(error) == "ConditionalCheckFailedException":
                return False
            raise _translate(error, self.name) from error
        return True

    def update(
        self, key: Mapping[str, str], update: str, *, condition: str | None = None, names: Mapping[str, str] | None = None, **values: Item
    ) -> Item | None:
        """Update an item and return all of it; None when `condition` does not hold."""
        return self._update(key, update, "ALL_NEW", _expressions(condition, names, values))

    def change(self, key: Mapping[str, str], update: str, *, condition: str, **values: Item) -> bool:
        """Update an item without having it sent back; False when `condition` does not hold."""
        return self._update(key, update, "NONE", _expressions(condition, None, values)) is not None

    def _update(self, key: Mapping[str, str], update: str, returned: ReturnValueType, expressions: Item) -> Item | None:
        try:
            response = self._client.update_item(
                TableName=self.name, Key=_key(key), UpdateExpression=update, ReturnValues=returned, **expressions
            )
        except (ClientError, BotoCoreError) as error:
            if _code(error) == "ConditionalCheckFailedException":
                return None
            raise _translate(error, self.name) from error
        return response.get("Attributes", {})

    def delete(self, key: Mapping[str, str]) -> None:
        """Delete an item; a missing one is fine."""
        try:
            self._client.delete_item(TableName=self.name, Key=_key(key))
        except (ClientError, BotoCoreError) as error:
            raise _translate(error, self.name) from error

    def query(
        self,
        pk: str,
        *,
        low: str | None = None,
        high: str | None = None,
        prefix: str | None = None,
        newest_first: bool = False,
        page: int = 0,
        consistent: bool = True,
    ) -> Iterator[Item]:
        """Read items of a partition by sort key, `low <= sk <= high` or starting with `prefix`; lazily, page by page.

        A read that need not be `consistent` costs half, and may be some milliseconds behind.
        """
        condition, values = "pk = :pk", {":pk": text(pk)}
        if low is not None and high is not None:
            condition, values = condition + " AND sk BETWEEN :low AND :high", values | {":low": text(low), ":high": text(high)}
        elif prefix is not None:
            condition, values = condition + " AND begins_with(sk, :prefix)", values | {":prefix": text(prefix)}
        arguments: dict[str, Any] = {"TableName": self.name, "KeyConditionExpression": condition, "ExpressionAttributeValues": values}
        arguments |= {"ConsistentRead": consistent, "ScanIndexForward": not newest_first} | ({"Limit": page} if page else {})
        while True:
            try:
                response = self._client.query(**arguments)
            except (ClientError, BotoCoreError) as error:
                raise _translate(error, self.name) from error
            yield from response["Items"]
            if not (last_key := response.get("LastEvaluatedKey")):
                return
            arguments["ExclusiveStartKey"] = last_key

    def transact(self, operations: Sequence[Any]) -> bool:
        """Apply all operations or none; False when a condition does not hold."""
        return not self.refused(operations)

    def refused(self, operations: Sequence[Any]) -> list[int]:
        """Apply all operations or none; return the places of those whose condition does not hold, none when all was applied.

        Another transaction on the same item cancels this one. That is normal when fronts report the same window
        at once, so it is tried again a few times; the queue's redelivery (30 s) would delay the windows too much.
        """
        for attempt in range(CONFLICT_ATTEMPTS):
            try:
                # The SDK adds a ClientRequestToken per call: its own retries after a lost response apply it once.
                self._client.transact_write_items(TransactItems=operations)
            except (ClientError, BotoCoreError) as error:
                reasons = _cancellation_reasons(error)
                if places := [place for place, reason in enumerate(reasons) if reason == "ConditionalCheckFailed"]:
                    return places
                if attempt + 1 == CONFLICT_ATTEMPTS or CONFLICT.isdisjoint(reasons):
                    raise _translate(error, self.name) from error
                self._sleep(random.uniform(0, CONFLICT_BACKOFF_S * 2**attempt))  # noqa: S311  # jitter, not a secret
            else:
                return []
        raise AssertionError("unreachable: the last attempt returns or raises")

    def execute(self, statements: Sequence[tuple[str, Sequence[Item]]]) -> list[bool | Transient]:
        """Run up to 25 PartiQL writes, each by itself; for each True, False when its condition does not hold, or why it was not done."""
        request: Any = [{"Statement": statement, "Parameters": list(parameters)} for statement, parameters in statements]
        try:
            response = self._client.batch_execute_statement(Statements=request)
        except (ClientError, BotoCoreError) as error:
            raise _translate(error, self.name) from error
        return [self._outcome(one.get("Error")) for one in response["Responses"]]

    def _outcome(self, error: Any) -> bool | Transient:
        code = None if error is None else error.get("Code")
        if code is None or code in NOT_HELD:
            return code is None
        if code in THROTTLED:
            return Throttled(f"DynamoDB throttled table {self.name}: {code}")
        if code in UNAVAILABLE:
            return DependencyUnavailable(f"DynamoDB failed on table {self.name}: {code}")
        raise ConfigurationError(f"DynamoDB refused a statement on table {self.name}: {code}: {error.get('Message')}")

    def put_operation(self, item: Item, *, condition: str | None = None, names: Mapping[str, str] | None = None, **values: Item) -> Item:
        """Build a put within a transaction."""
        return {"Put": {"TableName": self.name, "Item": item} | _expressions(condition, names, values)}

    def update_operation(self, key: Mapping[str, str], update: str, *, names: Mapping[str, str] | None = None, **values: Item) -> Item:
        """Build an update within a transaction."""
        operation = {"TableName": self.name, "Key": _key(key), "UpdateExpression": update}
        return {"Update": operation | _expressions(None, names, values)}

    def check_operation(self, key: Mapping[str, str], condition: str) -> Item:
        """Build a condition on another item within a transaction."""
        return {"ConditionCheck": {"TableName": self.name, "Key": _key(key), "ConditionExpression": condition}}

    def delete_operation(self, key: Mapping[str, str]) -> Item:
        """Build a delete within a transaction."""
        return {"Delete": {"TableName": self.name, "Key": _key(key)}}


def _key(key: Mapping[str, str]) -> Item:
    return {name: text(value) for name, value in key.items()}


def _expressions(condition: str | None, names: Mapping[str, str] | None, values: Mapping[str, Item]) -> Item:
    expressions: Item = {}
    if condition is not None:
        expressions["ConditionExpression"] = condition
    if names:
        expressions["ExpressionAttributeNames"] = dict(names)
    if values:
        expressions["ExpressionAttributeValues"] = {f":{name}": value for name, value in values.items()}
    return expressions


def _code(error: ClientError | BotoCoreError) -> str:
    return str(error.response.get("Error", {}).get("Code", "")) if isinstance(error, ClientError) else ""


def _cancellation_reasons(error: ClientError | BotoCoreError) -> list[str]:
    """Return one reason per operation, in their order; empty for what is no cancelled transaction."""
    if not isinstance(error, ClientError):
        return []
    reasons: Any = error.response.get("CancellationReasons", ())
    return [str(reason.get("Code")) for reason in reasons]


def _translate(error: ClientError | BotoCoreError, table: str) -> MarkserveError:
    if not isinstance(error, ClientError):
        return DependencyUnavailable(f"DynamoDB table {table} did not answer: {error}")
    code, status = _code(error), error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if code in THROTTLED or not THROTTLED.isdisjoint(_cancellation_reasons(error)):
        return Throttled(f"DynamoDB throttled table {table}: {code}")
    if code in UNAVAILABLE or status >= 500:
        return DependencyUnavailable(f"DynamoDB failed on table {table}: {code}")
    return ConfigurationError(f"DynamoDB refused an operation on table {table}: {error}")
