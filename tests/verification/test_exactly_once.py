"""Every interleaving of small scenarios keeps the invariants, and a broken part is found: the check can fail."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from markserve.adapters.memory import MemoryResultStore
from markserve.attempt import Attempt
from markserve.errors import Transient
from markserve.front import Front
from markserve.messages import Answer, StoredResult
from verification.exactly_once import QUICK, check, main
from verification.explorer import Explored, explore
from verification.parts import Parts, coarse_polls
from verification.protocol import Ask, Protocol, Scenario
from worker.mailbox import Finished, Mailbox


@pytest.mark.parametrize("scenario", QUICK, ids=lambda scenario: scenario.name)
def test_every_request_is_answered_once_whatever_happens(scenario: Scenario) -> None:
    result = check(scenario, max_states=10_000)

    assert (result.violation, result.complete, result.trace) == (None, True, [])
    assert result.quiet > 0


# --- what is broken is found ------------------------------------------------------------------------------


class DeletesFirst(Mailbox):
    """Lets go of a message before its answer is stored."""

    def deliver(self, parcel: Sequence[Finished]) -> list[bool]:
        self.forget(finished.received for finished in parcel)
        self.flush()
        return super().deliver(parcel)


class LastWriterWins(MemoryResultStore):
    """Writes without a condition."""

    def put_answer(self, answer: Answer, **_: Any) -> bool:
        known = self._results.get(answer.request_id, StoredResult(request_id=answer.request_id, answer=None))
        self._results[answer.request_id] = msgspec.structs.replace(known, answer=answer)
        return True


class KeysForAll(Front):
    """Takes a key for the same whoever sends it."""

    def _request_id(self, model: str, _client: str, key: str | None) -> str:
        return super()._request_id(model, "anybody", key)


def broken(scenario: Scenario, **parts: Any) -> Explored:
    with coarse_polls():
        return explore(lambda: Protocol(scenario, **parts), max_states=5_000)


def test_deleting_before_storing_is_found() -> None:
    result = broken(Scenario(name="async", asks=(Ask(asynchronous=True),), worker_crashes=1), mailbox_type=DeletesFirst)

    assert "was deleted before its answer was stored" in str(result.violation)
    assert result.trace[0] == ("start", "0")


def test_writing_without_a_condition_is_found() -> None:
    assert "was replaced" in str(broken(Scenario(name="one"), results_type=LastWriterWins).violation)


def test_sharing_keys_between_clients_is_found() -> None:
    asks = (Ask(), Ask(client="bob"))

    result = broken(Scenario(name="two clients", asks=asks, spill=False), parts=Parts(front_type=KeysForAll))

    assert "bob was given 'alice" in str(result.violation) or "alice was given 'bob" in str(result.violation)


def test_an_answer_given_out_unrecorded_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def claim(self: Attempt, answer: Answer) -> Answer:
        try:
            self.results.put_answer(answer, expires_at_s=0.0)
        except Transient:
            return answer
        return self._read() or answer

    monkeypatch.setattr(Attempt, "_claim", claim)

    assert "the results table holds None" in str(broken(Scenario(name="fails", faults=1)).violation)


class BuriesWhatWasAnswered(Mailbox):
    """Moves a message that looks like poison to the dead-letter queue, whatever its answer."""

    def _store(self, answers: Sequence[Answer], accepted_as: Sequence[str]) -> list[bool | None]:
        return [None if outcome is None else True for outcome in super()._store(answers, accepted_as)]


def test_burying_what_was_answered_is_found() -> None:
    result = broken(Scenario(name="async", asks=(Ask(asynchronous=True),), worker_crashes=2), mailbox_type=BuriesWhatWasAnswered)

    assert "dead-letter queue without an error as its answer" in str(result.violation)


# --- the command --------------------------------------------------------------------------------------------


def test_command_says_what_it_explored(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--only", "async, workers die twice", "--json"]) == 0

    (found,) = json.loads(capsys.readouterr().out)
    assert found["complete"]
    assert found["states"] > 40


def test_command_stops_at_its_bound_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--only", "async, workers die twice", "--max-states", "10"]) == 0

    assert "bounded, no violation" in capsys.readouterr().out


def test_command_names_the_scenarios_when_there_is_none_of_that_name(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--only", "nothing"])

    assert stopped.value.code == 2
    assert "async retried" in capsys.readouterr().err
