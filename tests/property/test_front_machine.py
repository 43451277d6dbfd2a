"""Keys under any order of attempts, answers, failures and expiries: one answer each, for the client and the body that it is of.

The front is the one that ships, on ports in memory. Around it: workers that answer, late, never, or again days later; spill-over that
computes, is slow, at its limit, broken or off; fronts that ask at once; a table that forgets.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from markserve.attempt import KEPT_TTL_S
from markserve.core.tunables import Tunables
from markserve.errors import ConfigurationError, DependencyUnavailable
from markserve.messages import StoredResult
from tests.builders import worker_stats
from tests.functions.test_api import ASYNC, Reply, World, a_triton_event, an_image

CLIENTS, KEYS, BODIES = ("alice", "bob"), ("k-1", "k-2"), (0, 1)
REFUSED, GAVE_UP = 422, {429, 503, 504}
SPILLING = {
    "works": (0.03, None),
    "slow": (0.3, None),
    "fails": (0.03, DependencyUnavailable("the spillover function crashed")),
    "misconfigured": (0.03, ConfigurationError("no right to invoke it")),
    "off": (0.03, None),
}
LIMITS = Tunables(rt_max_s=0.2)
POSITIONS = st.integers(0, 10_000)
ATTEMPTS: dict[str, st.SearchStrategy[Any]] = {
    "client": st.sampled_from(CLIENTS),
    "key": st.sampled_from(KEYS),
    "body": st.sampled_from(BODIES),
    "front": st.sampled_from([0, 1]),
    "deferred": st.booleans(),
}


def value_of(client: str, body: int) -> float:
    """Input of a client's body, which its right answer repeats: nobody else's answer looks like it."""
    return 10.0 * (1 + CLIENTS.index(client)) + body


@dataclass
class Use:
    """A key of a client from its first attempt until the table forgets it."""

    sent: set[int] = field(default_factory=set)
    """Bodies."""
    taken: set[int] = field(default_factory=set)
    """Bodies that were answered, or accepted for later."""
    refused: set[int] = field(default_factory=set)
    answers: list[tuple[str, float]] = field(default_factory=list)
    """Every answer that was given out: the tier, and the first score, which tells input and tier."""
    location: str = ""
    request_ids: set[str] = field(default_factory=set)


class FrontMachine(RuleBasedStateMachine):
    """Any order of attempts under keys."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.world.parameters.tunables = LIMITS
        self.fronts = [self.world.front, self.world.new_front()]
        self.uses: dict[tuple[str, str], Use] = {}
        self.held: dict[str, StoredResult] = {}

    # --- around the front --------------------------------------------------------------------------------------

    @rule(takes_s=st.sampled_from([None, 0.02, 0.09, 0.1, 0.11, 0.12, 0.6, 3.0]))
    def workers_become(self, takes_s: float | None) -> None:
        self.world.worker_takes_s = takes_s

    @rule(state=st.sampled_from(sorted(SPILLING)))
    def spillover_becomes(self, state: str) -> None:
        self.world.spill_takes_s, self.world.spillover.failure = SPILLING[state]
        self.world.parameters.tunables = Tunables(rt_max_s=0.2, spillover_max_concurrency=0) if state == "off" else LIMITS

    @rule(elapsed_s=st.sampled_from([0.05, 1.0, 20.0, 3600.0]), alive=st.booleans())
    def time_passes(self, elapsed_s: float, alive: bool) -> None:
        self.world.clock.sleep(elapsed_s)
        if alive:
            self.world.instances.heartbeat("i-0", at_s=self.world.clock(), stats=worker_stats())

    @precondition(lambda self: self.world.sent)
    @rule(position=POSITIONS)
    def message_is_answered_again(self, position: int) -> None:
        """A copy of a message, a slow worker, a dead letter that is driven back."""
        self.world.worker_answers(self.world.sent[position % len(self.world.sent)], finished_at_s=self.world.clock())

    @rule()
    def a_day_passes_and_the_table_forgets(self) -> None:
        self.world.clock.sleep(KEPT_TTL_S + 60.0)
        for request_id, expires_at_s in list(self.world.results.expiries_at_s.items()):
            if expires_at_s <= self.world.clock():
                self.world.results._results.pop(request_id, None)
                del self.world.results.expiries_at_s[request_id]
        gone = {key for key, use in self.uses.items() if not any(self.world.results.get(name) for name in use.request_ids)}
        for key in gone:
            del self.uses[key]
        self.held = {name: stored for name, stored in self.held.items() if self.world.results.get(name)}

    # --- attempts ----------------------------------------------------------------------------------------------

    def ask(self, client: str, key: str, body: int, front: int, deferred: bool) -> None:
        use = self.uses.setdefault((client, key), Use())
        use.sent.add(body)
        headers = {"Idempotency-Key": key, **(ASYNC if deferred else {})}
        event = a_triton_event(image=an_image(value_of(client, body)), headers=headers, client=client)
        self.judge(self.world.ask(event, front=self.fronts[front]), use, client=client, body=body)

    @rule(**ATTEMPTS)
    def request_is_sent(self, client: str, key: str, body: int, front: int, deferred: bool) -> None:
        self.ask(client, key, body, front, deferred)

    @rule(other=st.fixed_dictionaries(ATTEMPTS), delay_s=st.sampled_from([0.0, 0.01, 0.09, 0.15, 1.0]), **ATTEMPTS)
    def request_is_sent_while_another_is_under_way(
        self, other: dict[str, Any], delay_s: float, client: str, key: str, body: int, front: int, deferred: bool
    ) -> None:
        other["front"] = 1 - front  # an environment serves one request at a time
        self.world.clock.after(delay_s, lambda: self.ask(**other))
        self.ask(client, key, body, front, deferred)
        self.world.clock.sleep(delay_s)

    @precondition(lambda self: any(use.location for use in self.uses.values()))
    @rule(position=POSITIONS, client=st.sampled_from(CLIENTS))
    def result_is_asked_for(self, position: int, client: str) -> None:
        known = [(owner, use) for (owner, _), use in self.uses.items() if use.location]
        owner, use = known[position % len(known)]
        reply = self.world.get(use.location, client=client)
        if client != owner:
            assert reply.status == 404
        elif reply.status == 200:
            use.answers.append(self.answer_of(reply))
        else:
            assert reply.status == 202

    # --- what holds --------------------------------------------------------------------------------------------

    def judge(self, reply: Reply, use: Use, *, client: str, body: int) -> None:
        assert reply.status in {200, 202, REFUSED, *GAVE_UP}, (reply.status, reply.body)
        if "x-markserve-request-id" in reply.headers:
            use.request_ids.add(reply.headers["x-markserve-request-id"])
        if reply.status == REFUSED:
            assert use.sent - {body}, "refused as another body, and there is no other"
            use.refused.add(body)
        if reply.status in (200, 202):
            use.taken.add(body)
        if reply.status == 202:
            use.location = reply.headers["location"]
        if reply.status == 200:
            use.answers.append(self.answer_of(reply))
            assert use.answers[-1][1] % 100 == value_of(client, body)
            stored = self.world.results.get(reply.headers["x-markserve-request-id"])
            assert stored is not None
            assert stored.answer is not None
            assert stored.answer.tier == reply.tier, "given out, and another one stands under the key"

    @staticmethod
    def answer_of(reply: Reply) -> tuple[str, float]:
        return reply.tier, reply.scores()[0][0]

    @invariant()
    def key_is_of_one_body_and_answered_by_one_answer(self) -> None:
        for (client, key), use in self.uses.items():
            assert len(use.taken) <= 1, (client, key, use)
            assert not use.taken & use.refused, (client, key, use)
            assert len(set(use.answers)) <= 1, (client, key, use)
            assert len(use.request_ids) <= 1, (client, key, use)

    @invariant()
    def request_is_of_one_client(self) -> None:
        owners = [(name, client) for (client, _), use in self.uses.items() for name in use.request_ids]
        assert len({name for name, _ in owners}) == len(set(owners))

    @invariant()
    def what_the_table_holds_is_whose_it_was_and_stays(self) -> None:
        for use in self.uses.values():
            for name in use.request_ids:
                stored = self.world.results.get(name)
                if stored is None:
                    continue
                assert stored.owner, "an answer that nobody may ask for stands under a key"
                before = self.held.get(name)
                assert before is None or before.answer is None or before.answer == stored.answer
                self.held[name] = stored


TestFrontMachine = FrontMachine.TestCase
TestFrontMachine.settings = settings(deadline=None, max_examples=100, stateful_step_count=30, suppress_health_check=[HealthCheck.too_slow])
