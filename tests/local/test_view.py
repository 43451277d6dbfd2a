"""The live view: a moment of a run in words."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from local.load import RequestRecord
from local.view import Snapshot, figures, panel, plain_line
from markserve.core.types import InstanceState
from tests.builders import a_decision, a_forecast_record, a_plan_record, an_instance, an_slo

NOW_S = 1_000.0


def a_snapshot(**overrides: Any) -> Snapshot:
    answered = [
        RequestRecord(
            index=i,
            request_id=str(i),
            phase="ramp",
            scheduled_at_s=NOW_S - 4,
            sent_at_s=NOW_S - 4,
            finished_at_s=NOW_S - 4 + latency_s,
            status=200,
            tier=tier,
        )
        for i, (latency_s, tier) in enumerate([(0.1, "worker"), (0.1, "worker"), (0.1, "lambda"), (0.5, "worker")])
    ]
    open_one = RequestRecord(index=4, request_id="4", phase="ramp", scheduled_at_s=NOW_S, sent_at_s=NOW_S)
    values: dict[str, Any] = {
        "now_s": NOW_S,
        "phase": "ramp",
        "elapsed_s": 20.0,
        "total_s": 100.0,
        "slo": an_slo(latency_s=0.2),
        "records": (*answered, open_one),
    }
    return Snapshot(**{**values, **overrides})


def drawn(snapshot: Snapshot) -> str:
    console = Console(file=io.StringIO(), width=160)
    console.print(panel(snapshot))
    output = console.file
    assert isinstance(output, io.StringIO)
    return output.getvalue()


def test_figures_count_what_has_ended() -> None:
    now = figures(a_snapshot())

    assert (now.sent, now.answered, now.rate_rps, now.attainment) == (5, 4, 1.0, 0.75)
    assert now.tiers == {"worker": 3, "lambda": 1}


def test_line_says_what_a_terminal_would_show() -> None:
    line = plain_line(a_snapshot(queue_depth=7, instances=[an_instance(state=InstanceState.SERVING)], forecast=a_forecast_record()))

    for text in ("ramp", "sent     5", "answered     4", "rate   1.0/s", "1 serving", "queue   7", "75.0%", "lambda 25% worker 75%"):
        assert text in line


def test_panel_shows_fleet_plan_forecast_and_decisions() -> None:
    forecast, plan, decision = a_forecast_record(), a_plan_record(), a_decision()

    shown = drawn(a_snapshot(forecast=forecast, plan=plan, decisions=[decision], instances=[an_instance(state=InstanceState.WARMING)]))

    for text in (
        "20 of 100 s",
        "5 sent, 4 answered",
        forecast.forecaster,
        plan.trigger,
        decision.reason,
        "1 warming",
        "c5.large/on_demand/us-east-1a",
        "objective 98.0%",
    ):
        assert text in shown


def test_panel_can_be_drawn_before_anything_happened() -> None:
    shown = drawn(a_snapshot(records=(), elapsed_s=0.0))

    assert "none yet" in shown
    assert "nobody yet" in shown
