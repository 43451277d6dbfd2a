from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
import pytest
from moto import mock_aws

from functions.ingest.app import Ingested, handler, run
from markserve import wiring
from markserve.adapters.memory import MemoryControlStore, MemoryEventPublisher, MemoryParameterSource, MemoryWindowStore
from markserve.core.tunables import Tunables
from markserve.core.types import Tier
from markserve.errors import DependencyUnavailable, Throttled, Transient
from markserve.messages import ArrivalCounts, MetricsBatch, OutcomeCounts, SloAtRisk, encode
from markserve.triggers import QueueMessage
from tests.builders import MODEL, NOW_S, a_metrics_batch, an_instance, some_outcomes

EVENTS = Path(__file__).resolve().parents[2] / "events"


class Stack:
    """Memory ports and a delivery."""

    def __init__(self, windows: MemoryWindowStore | None = None, events: MemoryEventPublisher | None = None) -> None:
        self.windows = windows or MemoryWindowStore()
        self.control = MemoryControlStore()
        self.events = events or MemoryEventPublisher()
        self.judged_at_s: dict[str, float] = {}
        self.parameters = MemoryParameterSource(Tunables(rt_max_s=0.2, sl_min=0.98))

    def ingest(self, *reports: QueueMessage, now_s: float = NOW_S + 10.0) -> Ingested:
        return run(
            reports,
            windows=self.windows,
            control=self.control,
            events=self.events,
            parameters=self.parameters,
            judged_at_s=self.judged_at_s,
            judge_every_s=1.0,
            window_s=5.0,
            step_s=60.0,
            now_s=now_s,
        )

    def arrivals(self, model: str = MODEL) -> dict[float, int]:
        return self.windows.arrivals(model, since_s=0.0, until_s=2 * NOW_S)

    def decisions(self) -> list[tuple[str, str]]:
        return [(decision.model, decision.event) for decision in self.control.decisions(since_s=0.0, until_s=2 * NOW_S)]


class FailingWindows(MemoryWindowStore):
    """Windows that cannot be written for the batches named."""

    def __init__(self, *batch_ids: str) -> None:
        super().__init__()
        self.failing = set(batch_ids)

    def apply(self, batches: Sequence[MetricsBatch], *, expires_at_s: float) -> list[bool | Transient]:
        applied = iter(super().apply([batch for batch in batches if batch.batch_id not in self.failing], expires_at_s=expires_at_s))
        return [Throttled("windows: throttled") if batch.batch_id in self.failing else next(applied) for batch in batches]


class UnreadableOutcomes(MemoryWindowStore):
    """Windows whose outcomes cannot be read."""

    def outcomes(self, *_: Any, **__: Any) -> list[OutcomeCounts]:
        raise DependencyUnavailable("windows: no answer")


def a_report(message_id: str = "m-1", **overrides: Any) -> QueueMessage:
    return QueueMessage(message_id=message_id, body=encode(a_metrics_batch(**overrides)).decode())


def a_failing_report(batch_id: str, *, model: str = MODEL, within_slo: int = 50) -> QueueMessage:
    outcomes = some_outcomes(model=model, ok=100, within_slo=within_slo)
    return a_report(batch_id, batch_id=batch_id, arrivals=(), outcomes=(outcomes,))


def test_ingest_adds_up_when_several_fronts_report_the_same_window() -> None:
    stack = Stack()

    result = stack.ingest(a_report("m-1"), a_report("m-2", batch_id="batch-2"))

    assert (result.applied, result.repeated, result.failed_ids) == (2, 0, [])
    assert stack.arrivals() == {NOW_S: 20}
    assert result.arrivals == {MODEL: 20}


def test_ingest_counts_once_when_a_report_is_delivered_again() -> None:
    stack = Stack()
    stack.ingest(a_report("m-1"))

    result = stack.ingest(a_report("m-1"))

    assert (result.applied, result.repeated, result.failed_ids) == (0, 1, [])
    assert stack.arrivals() == {NOW_S: 10}
    assert result.arrivals == {}


def test_ingest_adds_up_arrivals_when_a_report_names_a_model_twice() -> None:
    arrivals = tuple(ArrivalCounts(model=MODEL, window_at_s=NOW_S + 5.0 * index, count=3) for index in range(2))

    result = Stack().ingest(a_report(arrivals=arrivals))

    assert result.arrivals == {MODEL: 6}


@pytest.mark.parametrize(
    "body",
    [
        "not json",
        "{}",
        '{"schema_version": 2, "batch_id": "b", "sent_at_s": 1.0}',
        '{"batch_id": "b", "sent_at_s": 1.0, "arrivals": [{"model": "digits", "window_at_s": 0.0, "count": -5}]}',
        '{"batch_id": "b", "sent_at_s": 1.0, "arrivals": [{"model": "digits", "window_at_s": NaN, "count": 5}]}',
    ],
)
def test_ingest_leaves_a_report_to_the_dead_letter_queue_when_it_cannot_be_read(body: str) -> None:
    stack = Stack()

    result = stack.ingest(QueueMessage(message_id="bad", body=body), a_report("good"))

    assert (result.failed_ids, result.unreadable, result.applied) == (["bad"], 1, 1)
    assert stack.arrivals() == {NOW_S: 10}


def test_ingest_retries_only_the_report_when_its_write_fails() -> None:
    windows = FailingWindows("batch-2")
    stack = Stack(windows)
    reports = [a_report("m-1"), a_report("m-2", batch_id="batch-2"), a_report("m-3", batch_id="batch-3")]

    first = stack.ingest(*reports)
    windows.failing.clear()
    second = stack.ingest(reports[1])

    assert (first.failed_ids, first.unreadable) == (["m-2"], 0)
    assert second.failed_ids == []
    assert stack.arrivals() == {NOW_S: 30}


def test_ingest_keeps_a_tick_when_the_control_cycle_sends_one() -> None:
    stack = Stack()

    result = stack.ingest(a_report(batch_id="tick", arrivals=(), outcomes=(), tick_at_s=NOW_S))

    assert stack.windows.ticks(since_s=0.0, until_s=2 * NOW_S) == [NOW_S]
    assert result.assessments == {}


def test_ingest_raises_the_alarm_when_the_objective_is_missed() -> None:
    stack = Stack()

    result = stack.ingest(a_failing_report("b-1"))

    (event,) = stack.events.events
    assert isinstance(event, SloAtRisk)
    assert (event.model, event.attainment, event.objective, event.requests, event.at_s) == (MODEL, 0.5, 0.98, 100, NOW_S + 10.0)
    assert event.reason == result.assessments[MODEL].reason
    assert stack.decisions() == [(MODEL, "slo_at_risk")]


def test_ingest_stays_quiet_when_the_objective_is_met() -> None:
    stack = Stack()

    result = stack.ingest(a_failing_report("b-1", within_slo=100))

    assert result.assessments[MODEL].attainment == 1.0
    assert stack.events.events == []
    assert stack.decisions() == []


def test_ingest_judges_by_the_models_own_objective_when_it_has_one() -> None:
    stack = Stack()
    stack.parameters.by_model["relaxed"] = Tunables(sl_min=0.5)

    stack.ingest(a_failing_report("b-1", model="relaxed", within_slo=60))

    assert stack.events.events == []


@pytest.mark.parametrize(("after_s", "events"), [(29.0, 1), (31.0, 2)])
def test_ingest_raises_the_alarm_again_only_when_the_interval_has_passed(after_s: float, events: int) -> None:
    stack = Stack()
    stack.ingest(a_failing_report("b-1"))

    stack.ingest(a_failing_report("b-2"), now_s=NOW_S + 10.0 + after_s)

    assert len(stack.events.events) == events


def test_ingest_raises_an_alarm_for_each_model_when_two_are_at_risk() -> None:
    stack = Stack()

    stack.ingest(a_failing_report("b-1", model="one"), a_failing_report("b-2", model="two"))

    assert [event.model for event in stack.events.events if isinstance(event, SloAtRisk)] == ["one", "two"]


def test_ingest_judges_again_when_the_first_delivery_ended_before_it_could() -> None:
    stack = Stack()
    stack.windows.apply([a_metrics_batch(outcomes=(some_outcomes(ok=100, within_slo=0),))], expires_at_s=2 * NOW_S)

    stack.ingest(a_report(outcomes=(some_outcomes(ok=100, within_slo=0),)))

    assert len(stack.events.events) == 1


@pytest.mark.parametrize(
    "stack", [Stack(UnreadableOutcomes()), Stack(events=MemoryEventPublisher(faults={"publish": Throttled("events: throttled")}))]
)
def test_ingest_keeps_the_counts_when_the_objective_cannot_be_judged(stack: Stack) -> None:
    result = stack.ingest(a_report(outcomes=(some_outcomes(ok=100, within_slo=0),)))

    assert result.failed_ids == []
    assert stack.arrivals() == {NOW_S: 10}


def test_ingest_refuses_no_report_when_more_were_within_the_objective_than_answered() -> None:
    result = Stack().ingest(a_report(outcomes=(some_outcomes(ok=10, within_slo=12),)))

    assert result.assessments[MODEL].attainment == 1.0


def test_ingest_judges_a_model_again_only_when_the_interval_has_passed_and_counts_meanwhile() -> None:
    stack = Stack()

    first = stack.ingest(a_failing_report("b-1"))
    soon = stack.ingest(a_failing_report("b-2"), a_failing_report("b-3", model="other"), now_s=NOW_S + 10.5)
    later = stack.ingest(a_failing_report("b-4"), now_s=NOW_S + 11.0)

    assert [set(done.assessments) for done in (first, soon, later)] == [{MODEL}, {"other"}, {MODEL}]
    assert (first.assessments[MODEL].requests, soon.applied, later.assessments[MODEL].requests) == (100, 2, 300)


def test_ingest_judges_at_the_next_report_when_it_could_not_at_this_one() -> None:
    stack = Stack(UnreadableOutcomes())
    stack.ingest(a_failing_report("b-1"))
    stack.windows = MemoryWindowStore()

    assert set(stack.ingest(a_failing_report("b-2")).assessments) == {MODEL}


@pytest.fixture
def stack_in_aws(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Serve the handler's tables from an emulated account."""
    for name, value in {
        "STACK_NAME": "markserve",
        "WINDOWS_TABLE": "windows",
        "CONTROL_TABLE": "control",
        "INSTANCES_TABLE": "instances",
        "EVENT_BUS_NAME": "bus",
    }.items():
        monkeypatch.setenv(f"MARKSERVE_{name}", value)
    # What an environment remembers between deliveries: each test is a new environment.
    monkeypatch.setattr("functions.ingest.app._judged_at_s", {})
    monkeypatch.setattr("functions.ingest.app._summary_tried_at_s", {})
    with mock_aws():
        _create_tables(["windows", "control", "instances"])
        boto3.client("events").create_event_bus(Name="bus")
        _forget_ports()
        yield
        _forget_ports()


def _create_tables(names: Sequence[str]) -> None:
    for name in names:
        boto3.client("dynamodb").create_table(
            TableName=name,
            KeySchema=[{"AttributeName": "pk", "KeyType": "HASH"}, {"AttributeName": "sk", "KeyType": "RANGE"}],
            AttributeDefinitions=[{"AttributeName": key, "AttributeType": "S"} for key in ("pk", "sk")],
            BillingMode="PAY_PER_REQUEST",
        )


def _forget_ports() -> None:
    for builder in vars(wiring).values():
        if hasattr(builder, "cache_clear"):
            builder.cache_clear()


@pytest.mark.usefixtures("stack_in_aws")
def test_ingest_handler_reports_failed_messages_when_the_queue_delivers() -> None:
    records = [
        {"messageId": "good", "body": encode(a_metrics_batch()).decode()},
        {"messageId": "bad", "body": "not json"},
    ]
    context = SimpleNamespace(
        function_name="markserve-ingest", memory_limit_in_mb=128, invoked_function_arn="arn:aws:lambda:::function", aws_request_id="r-1"
    )

    answer = handler({"Records": records}, context)  # type: ignore[arg-type]

    assert answer == {"batchItemFailures": [{"itemIdentifier": "bad"}]}
    assert wiring.windows().arrivals(MODEL, since_s=NOW_S - 1, until_s=NOW_S + 1) == {NOW_S: 10}


@pytest.mark.usefixtures("stack_in_aws")
def test_ingest_handler_emits_attainment_and_burn_rate_when_it_has_judged_a_model(capsys: pytest.CaptureFixture[str]) -> None:
    batch = a_metrics_batch(outcomes=(OutcomeCounts(model=MODEL, window_at_s=NOW_S, tier=Tier.WORKER, ok=10, within_slo=9),))
    context = SimpleNamespace(
        function_name="markserve-ingest", memory_limit_in_mb=128, invoked_function_arn="arn:aws:lambda:::function", aws_request_id="r-1"
    )

    handler({"Records": [{"messageId": "m", "body": encode(batch).decode()}]}, context)  # type: ignore[arg-type]

    names = {name for line in capsys.readouterr().out.splitlines() if '"_aws"' in line for name in json.loads(line)}
    assert {"SloAttainment", "SloBurnRate"} <= names


@pytest.mark.usefixtures("stack_in_aws")
def test_ingest_handler_counts_the_recorded_delivery() -> None:
    event = json.loads((EVENTS / "ingest_sqs.json").read_text())
    context = SimpleNamespace(
        function_name="markserve-ingest", memory_limit_in_mb=128, invoked_function_arn="arn:aws:lambda:::function", aws_request_id="r-1"
    )

    assert handler(event, context) == {"batchItemFailures": []}  # type: ignore[arg-type]
    assert wiring.windows().arrivals("digits", since_s=0.0, until_s=1e11) == {1767225600.0: 12}
    assert wiring.windows().ticks(since_s=0.0, until_s=1e11) == [1767225606.25]
    assert len(wiring.windows().outcomes("digits", since_s=0.0, until_s=1e11)) == 3


@pytest.mark.usefixtures("stack_in_aws")
def test_ingest_handler_does_nothing_when_an_event_holds_no_messages() -> None:
    context = SimpleNamespace(
        function_name="markserve-ingest", memory_limit_in_mb=128, invoked_function_arn="arn:aws:lambda:::function", aws_request_id="r-1"
    )

    assert handler({}, context) == {"batchItemFailures": []}  # type: ignore[arg-type]


@pytest.mark.usefixtures("stack_in_aws")
@pytest.mark.parametrize(("shards", "is_summarised"), [("1", False), ("4", True)])
def test_ingest_handler_summarises_the_fleet_where_the_stack_has_shards(
    shards: str, is_summarised: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MARKSERVE_SHARDS", shards)
    _forget_ports()
    now_s = time.time()
    wiring.instances().put(an_instance(heartbeat_at_s=now_s))

    deliver_one()

    published = wiring.instances().published_view(MODEL)
    assert (published is not None) is is_summarised
    assert published is None or (published.view.serving_instances, published.at_s >= now_s) == (1, True)


@pytest.mark.usefixtures("stack_in_aws")
def test_ingest_handler_counts_a_delivery_when_the_fleet_cannot_be_read(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MARKSERVE_SHARDS", "4")
    monkeypatch.setenv("MARKSERVE_INSTANCES_TABLE", "not-there")
    _forget_ports()

    answer = deliver_one()

    assert answer == {"batchItemFailures": []}
    assert wiring.windows().arrivals(MODEL, since_s=NOW_S - 1, until_s=NOW_S + 1) == {NOW_S: 10}
    assert "fleet not summarised" in caplog.text


def deliver_one() -> dict[str, Any]:
    context = SimpleNamespace(
        function_name="markserve-ingest", memory_limit_in_mb=128, invoked_function_arn="arn:aws:lambda:::function", aws_request_id="r-1"
    )
    return handler({"Records": [{"messageId": "m", "body": encode(a_metrics_batch()).decode()}]}, context)  # type: ignore[arg-type]
