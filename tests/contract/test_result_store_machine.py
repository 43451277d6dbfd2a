"""Any order of acceptances, answers and expiries: one answer each, in memory and on DynamoDB as moto emulates it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from moto import mock_aws

from markserve.adapters.dynamodb_results import DynamoResultStore
from markserve.adapters.memory import MemoryResultStore
from markserve.core.types import Tier
from markserve.messages import Answer
from markserve.ports import ResultStore
from tests.builders import NOW_S, a_failed_answer, a_tensor, an_answer
from tests.contract.conftest import create_table, session

IDS = st.sampled_from(["r-0", "r-1", "r-2"])
TABLE = "results"


@dataclass
class Expected:
    """What has to stand under one id."""

    owner: str = ""
    body_sha256: str = ""
    answer: Answer | None = None
    given: list[Answer] = field(default_factory=list)
    """What readers were given since the item was made."""


class ResultStoreMachine(RuleBasedStateMachine):
    """Fronts accept, workers and spill-over answer, early, late and again; items expire."""

    def __init__(self) -> None:
        super().__init__()
        self.store: ResultStore = self.make_store()
        self.expected: dict[str, Expected] = {}

    def make_store(self) -> ResultStore:
        return MemoryResultStore()

    def expire(self, request_id: str) -> None:
        """Do what the table's TTL does, at some time after the expiry."""
        assert isinstance(self.store, MemoryResultStore)
        self.store._results.pop(request_id, None)

    @rule(request_id=IDS, owner=st.sampled_from(["alice", "bob"]), body=st.sampled_from(["a", "b"]))
    def request_is_accepted(self, request_id: str, owner: str, body: str) -> None:
        is_new = self.store.put_pending(
            request_id, body_sha256=body, accepted_at_s=NOW_S, deadline_at_s=None, expires_at_s=NOW_S + 60.0, owner=owner
        )
        assert is_new == (request_id not in self.expected)
        if is_new:
            self.expected[request_id] = Expected(owner=owner, body_sha256=body)

    @rule(
        request_id=IDS,
        tier=st.sampled_from([Tier.WORKER, Tier.LAMBDA]),
        value=st.integers(0, 2),
        failed=st.booleans(),
        accepted_as=st.sampled_from(["", "a", "b"]),
    )
    def answer_comes(self, request_id: str, tier: Tier, value: int, failed: bool, accepted_as: str) -> None:
        outputs = {} if failed else {"outputs": (a_tensor("scores", (float(value),)),)}
        answer = (a_failed_answer if failed else an_answer)(request_id=request_id, tier=tier, **outputs)
        is_the_answer = self.store.put_answer(answer, expires_at_s=NOW_S + 60.0, accepted_as=accepted_as)
        if accepted_as and (request_id not in self.expected or self.expected[request_id].body_sha256 != accepted_as):
            assert not is_the_answer
            return
        known = self.expected.setdefault(request_id, Expected())
        assert is_the_answer == (known.answer in (None, answer))
        known.answer = known.answer or answer

    @rule(request_id=IDS)
    def answer_is_read(self, request_id: str) -> None:
        stored = self.store.get(request_id)
        if stored is not None and stored.answer is not None:
            given = self.expected[request_id].given
            given.append(stored.answer)
            assert all(answer == given[0] for answer in given)

    @rule(request_id=IDS)
    def item_expires(self, request_id: str) -> None:
        self.expire(request_id)
        self.expected.pop(request_id, None)

    @invariant()
    def store_holds_what_came_first(self) -> None:
        for request_id in ("r-0", "r-1", "r-2"):
            stored, known = self.store.get(request_id), self.expected.get(request_id)
            found: Any = None if stored is None else (stored.owner, stored.body_sha256, stored.answer)
            assert found == (None if known is None else (known.owner, known.body_sha256, known.answer))


class DynamoResultStoreMachine(ResultStoreMachine):
    """The same on DynamoDB."""

    def make_store(self) -> ResultStore:
        self.aws = mock_aws()
        self.aws.start()
        self.client = session().client("dynamodb")
        return DynamoResultStore(self.client, create_table(self.client, TABLE, keys=("request_id",)))

    def expire(self, request_id: str) -> None:
        self.client.delete_item(TableName=TABLE, Key={"request_id": {"S": request_id}})

    def teardown(self) -> None:
        self.aws.stop()


TestResultStoreMachine = ResultStoreMachine.TestCase
TestResultStoreMachine.settings = settings(deadline=None, max_examples=100, stateful_step_count=30)
TestDynamoResultStoreMachine = DynamoResultStoreMachine.TestCase
TestDynamoResultStoreMachine.settings = settings(
    deadline=None, max_examples=6, stateful_step_count=15, suppress_health_check=[HealthCheck.too_slow]
)
