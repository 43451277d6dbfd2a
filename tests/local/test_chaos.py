"""What judges a fault: the ledger's rules, recovery, the page; the faults themselves are system tests."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from chaos.attainment import shortfall
from chaos.ledger import GONE, Entry, Ledger, Question
from chaos.report import BEGIN, END, write_page
from chaos.runner import Outcome, is_quiet, judge
from chaos.scenario import FAMILIES, Scenario, load_scenarios, scenario
from chaos.session import Report
from cli.main import app

RIGHT = np.asarray([[0.0, 2.0, 1.0]], np.float32)
QUESTION = Question(body=b"{}", logits={"1": RIGHT, "2": 2 * RIGHT})


def a_ledger() -> Ledger:
    return Ledger(endpoint="http://127.0.0.1:1", model="digits", questions=[QUESTION], rate_rps=3.0, seed=1)


def an_entry(**overrides: Any) -> Entry:
    return Entry(**{"index": 0, "kind": "sync", "scheduled_at_s": 100.0, "finished_at_s": 100.5, "status": 200, **overrides})


def a_body(logits: Any, version: str) -> dict[str, Any]:
    return {"model_version": version, "outputs": [{"name": "logits", "shape": list(logits.shape), "data": logits.ravel().tolist()}]}


@pytest.mark.parametrize(
    ("logits", "version", "right"),
    [(RIGHT, "1", True), (2 * RIGHT, "2", True), (2 * RIGHT, "1", False), (RIGHT, "3", False), (RIGHT[:, :2], "1", False)],
)
def test_answer_is_right_for_the_version_that_it_names(logits: Any, version: str, right: bool) -> None:
    entry = an_entry()

    a_ledger()._judge(entry, a_body(logits, version), QUESTION)

    assert entry.right is right


@pytest.mark.parametrize(
    ("status", "lost"), [(200, False), (429, False), (503, False), (504, False), (202, True), (500, True), (404, True), (0, True)]
)
def test_lost_is_what_got_neither_a_result_nor_an_explicit_refusal(status: int, lost: bool) -> None:
    assert a_ledger().is_lost(an_entry(status=status)) is lost


def test_closed_api_refuses_once_the_scenario_has_closed_it() -> None:
    ledger = a_ledger()

    ledger.refusals |= GONE

    assert not ledger.is_lost(an_entry(status=404))


def test_request_late_from_its_schedule_is_not_in_time_though_its_call_was_short() -> None:
    assert an_entry(scheduled_at_s=100.0, finished_at_s=101.9).in_time(2.0)
    assert not an_entry(scheduled_at_s=100.0, finished_at_s=102.1).in_time(2.0)
    assert not an_entry(status=503).in_time(2.0)


def test_quiet_means_enough_requests_and_none_missed() -> None:
    entries = [an_entry(scheduled_at_s=96.0 + n / 2, finished_at_s=96.5 + n / 2) for n in range(5)]

    assert is_quiet(entries, now_s=100.0)
    assert not is_quiet(entries[:3], now_s=100.0)
    assert not is_quiet([*entries, an_entry(scheduled_at_s=97.0, status=503)], now_s=100.0)
    assert is_quiet([*entries, an_entry(kind="async", scheduled_at_s=97.0, status=202)], now_s=100.0)


def test_every_family_has_scenarios_and_each_says_what_happens() -> None:
    known = load_scenarios()

    assert {s.family for s in known.values()} == set(FAMILIES)
    assert all(s.summary.endswith(".") and len(s.summary) > 20 for s in known.values())


def test_two_scenarios_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="two scenarios called 'worker-killed'"):
        scenario("worker-killed", family=1, floor=0.98)(next(iter(load_scenarios().values())).act)


@pytest.mark.parametrize("said", [{}, {"floor": 0.98, "unjudged": "overload"}])
def test_scenario_without_a_floor_says_why_and_one_with_it_does_not(said: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="needs a floor, or else the reason"):
        scenario("new", family=1, **said)(next(iter(load_scenarios().values())).act)


FLOORS = {
    0.98: "worker-killed worker-hangs worker-slow spot-one planner-fails forecast-fails queue-duplicates queue-delays",
    0.95: "workers-killed all-pools-dry partial-fulfilment spot-all",
    None: "spot-all-in-burst results-throttled results-slow aws-restarted lambda-limit spillover-slow spillover-fails "
    "front-times-out clock-skew stack-destroyed forecast-slow",
}


@pytest.mark.parametrize(("floor", "names"), FLOORS.items())
def test_floor_is_what_the_fault_leaves_of_the_objective(floor: float | None, names: str) -> None:
    known = load_scenarios()

    assert {known[name].floor for name in names.split()} == {floor}
    if floor is None:
        assert {name for name, s in known.items() if s.floor is None} == set(names.split())


@pytest.mark.parametrize(
    ("in_time", "judged", "floor", "is_chance"),
    [
        (0, 0, 0.98, True),
        (30, 30, 0.98, True),
        (33 - 3, 33, 0.98, True),
        (33 - 4, 33, 0.98, False),
        (70, 74, 0.98, True),
        (950, 1000, 0.98, False),
        (72 - 9, 72, 0.95, False),
        (72 - 8, 72, 0.95, True),
    ],
)
def test_floor_allows_for_chance_and_for_no_more(in_time: int, judged: int, floor: float, is_chance: bool) -> None:
    said = shortfall(in_time=in_time, judged=judged, floor=floor)

    assert (said is None) is is_chance
    assert said is None or said.startswith(f"{in_time} of {judged} requests in time, ")


def judged(entries: list[Entry], **options: Any) -> Outcome:
    """Judge a scenario of which nothing but its ledger is known."""
    ledger = a_ledger()
    ledger.entries = entries
    stage: Any = SimpleNamespace(ledger=ledger, is_gone=False, notes=[])
    watch: Any = SimpleNamespace(short_until_s=lambda: 0.0)
    told = Scenario(name="new", family=1, summary="Something happens.", act=lambda _: iter(()), hold_s=0, recover_within_s=0, **options)
    return judge(told, stage, watch, [], fault_at_s=100.0, started_at_s=97.0)


def late(count: int, *, of: int, **fields: Any) -> list[Entry]:
    return [an_entry(index=n, finished_at_s=103.0 if n < count else 100.5, **fields) for n in range(of)]


def test_scenario_is_failed_by_attainment_below_its_floor_alone() -> None:
    assert judged(late(3, of=33), floor=0.98).passed
    assert judged(late(4, of=33), floor=0.98).breaches == ("29 of 33 requests in time, 87.9%: below the floor of 98%, a chance of 0.004",)
    assert judged(late(33, of=33), unjudged="overload").passed


def test_request_without_an_objective_is_not_judged_by_it() -> None:
    outcome = judged([*late(0, of=30), *late(30, of=30, kind="async")], floor=0.98)

    assert (outcome.attainment, outcome.passed) == (1.0, True)


def an_outcome(**overrides: Any) -> Outcome:
    values: dict[str, Any] = {
        "name": "worker-killed",
        "family": 1,
        "summary": "One worker is killed.",
        "requests": 60,
        "answered": 59,
        "refused": 1,
        "lost": 0,
        "doubled": 0,
        "wrong": 0,
        "attainment": 0.95,
        "floor": 0.98,
        "unjudged": "",
        "recovery_s": 12.3,
        "seconds": 30.0,
        "breaches": (),
        "notes": ("it went well",),
    }
    return Outcome(**{**values, **overrides})


def test_page_keeps_its_prose_and_replaces_its_tables(tmp_path: Path) -> None:
    page = tmp_path / "reliability.md"
    page.write_text(f"# Title\n\n{BEGIN}\nold\n{END}\n\n## Bugs\n")

    for name in ("first", "second"):
        write_page(Report(seed=1, seconds=90.0, outcomes=(an_outcome(name=name),), not_run=("spot-all",)), page)

    text = page.read_text()
    assert text.startswith("# Title")
    assert text.endswith("## Bugs\n")
    assert "| `second` | 60 | 1 | 0 | 0 | 0 | 95.0% | 98% | 12 s | ok |" in text
    assert "`markserve chaos second`: One worker is killed. Found: it went well." in text
    assert "Not run, for lack of time: spot-all." in text
    assert "first" not in text
    assert "old" not in text


def test_run_with_something_not_run_or_not_held_has_not_passed() -> None:
    def a_report(*outcomes: Outcome, not_run: tuple[str, ...] = ()) -> Report:
        return Report(seed=1, seconds=1.0, outcomes=outcomes, not_run=not_run)

    assert a_report(an_outcome()).passed
    assert not a_report(an_outcome(), not_run=("spot-all",)).passed
    assert not a_report(an_outcome(breaches=("a request was lost",))).passed


def test_command_lists_scenarios_and_refuses_unknown_ones() -> None:
    listed = CliRunner().invoke(app, ["chaos", "list", "--json"])
    unknown = CliRunner().invoke(app, ["chaos", "worker-kiled"])

    assert listed.exit_code == 0
    assert '"worker-killed"' in listed.stdout
    assert unknown.exit_code == 2
    assert "there is no scenario worker-kiled" in unknown.stderr
