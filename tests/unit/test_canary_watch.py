"""A canary that does worse loses its traffic: what is read for it, changed, logged, and left alone."""

from __future__ import annotations

from dataclasses import replace

import pytest

from markserve.adapters.memory import MemoryControlStore, MemoryModelStore, MemoryParameterSource, MemoryWindowStore
from markserve.canary_watch import roll_back_worse_canaries
from markserve.core.canary import EPOCH_S
from markserve.core.tunables import Tunables
from markserve.core.types import Tier
from markserve.errors import DependencyUnavailable, StaleWrite
from markserve.messages import DecisionRecord, Traffic
from tests.builders import NOW_S, a_metrics_batch, a_model_record, some_outcomes

WINDOW_S = 5.0
STARTED_S = NOW_S - 600.0


class Scene:
    """Version 1 is live, version 2 gets a tenth since ten minutes, and all requests of both are answered in time."""

    def __init__(self) -> None:
        self.models = MemoryModelStore(a_model_record())
        self.models.store(a_model_record(version="2"))
        self.models.route(Traffic(model="digits", live="1", canary="2", canary_weight=0.1, number=1, changed_at_s=STARTED_S))
        self.control, self.windows = MemoryControlStore(), MemoryWindowStore()
        self.parameters = MemoryParameterSource(Tunables(rt_max_s=2.0))
        self.batches = 0

    def count(self, version: str, *, requests: int, errors: int = 0, from_s: float = STARTED_S, seconds: float = 60.0) -> None:
        """Count outcomes in each window of a stretch of time, half of them by Lambda."""
        for index in range(int(seconds / WINDOW_S)):
            for tier in (Tier.WORKER, Tier.LAMBDA):
                ok = (requests - errors) // 2
                counts = some_outcomes(
                    window_at_s=from_s + index * WINDOW_S, tier=tier, ok=ok, errors=errors // 2, within_slo=ok, model_version=version
                )
                self.batches += 1
                batch = a_metrics_batch(batch_id=f"batch-{self.batches}", arrivals=(), outcomes=(counts,))
                self.windows.apply([batch], expires_at_s=NOW_S + 1e6)

    def cycle(self, *, now_s: float = NOW_S) -> list[str]:
        return roll_back_worse_canaries(
            ["digits"],
            models=self.models,
            windows=self.windows,
            control=self.control,
            parameters=self.parameters,
            window_s=WINDOW_S,
            now_s=now_s,
        )

    def canary(self) -> str | None:
        return self.models.traffic("digits").canary

    def log(self) -> list[tuple[str, str]]:
        return [(d.event, d.reason) for d in self.control.decisions(since_s=0, until_s=NOW_S + 1)]


@pytest.fixture
def scene() -> Scene:
    """The canary fails half of its requests."""
    made = Scene()
    made.count("1", requests=36)
    made.count("2", requests=4, errors=2)
    return made


def test_worse_canary_loses_its_traffic_and_the_log_says_why(scene: Scene) -> None:
    assert scene.cycle() == ["digits"]

    traffic = scene.models.traffic("digits")
    assert (traffic.live, traffic.canary, traffic.canary_weight, traffic.number, traffic.changed_at_s) == ("1", None, 0.0, 2, NOW_S)
    ((event, reason),) = scene.log()
    assert event == "canary_rolled_back"
    assert reason.startswith("canary 2 had 10% of requests and gets none any more: 50.00% errors against 0.00% in 48 requests against 432")


def test_it_is_done_once(scene: Scene) -> None:
    scene.cycle()

    assert scene.cycle(now_s=NOW_S + 60) == []
    assert len(scene.log()) == 1


def test_good_canary_goes_on() -> None:
    scene = Scene()
    scene.count("1", requests=36)
    scene.count("2", requests=4)

    assert scene.cycle() == []
    assert (scene.canary(), scene.log()) == ("2", [])


def test_switch_leaves_the_decision_to_people(scene: Scene) -> None:
    scene.parameters.tunables = replace(scene.parameters.tunables, canary_rollback_enabled=False)

    assert scene.cycle() == []
    assert scene.canary() == "2"


def test_switch_can_be_set_for_one_model(scene: Scene) -> None:
    scene.parameters.by_model = {"digits": replace(scene.parameters.tunables, canary_rollback_enabled=False)}

    assert scene.cycle() == []


def test_what_was_before_the_canary_got_its_share_does_not_count() -> None:
    scene = Scene()
    scene.count("1", requests=36, from_s=STARTED_S - 120)
    scene.count("2", requests=4, errors=4, from_s=STARTED_S - 120)

    assert scene.cycle() == []


def test_windows_that_may_still_be_reported_on_do_not_count() -> None:
    scene = Scene()
    for version, requests, errors in (("1", 36, 0), ("2", 4, 4)):
        scene.count(version, requests=requests, errors=errors, from_s=NOW_S - 10, seconds=10)

    assert scene.cycle() == []


def test_evidence_starts_anew_each_hour(scene: Scene) -> None:
    assert scene.cycle(now_s=STARTED_S + EPOCH_S + 60) == []
    assert scene.cycle(now_s=STARTED_S + EPOCH_S - 60) == ["digits"]


def test_a_third_version_that_is_asked_for_by_name_decides_nothing() -> None:
    scene = Scene()
    scene.count("1", requests=36)
    scene.count("2", requests=4)
    scene.count("3", requests=40, errors=40)

    assert scene.cycle() == []


def test_version_that_is_loaded_ahead_of_its_promotion_is_not_judged(scene: Scene) -> None:
    scene.models.route(Traffic(model="digits", live="1", canary="2", canary_weight=0.0, number=2, changed_at_s=STARTED_S))

    assert scene.cycle() == []
    assert scene.canary() == "2"


@pytest.mark.parametrize("error", [StaleWrite("somebody was faster"), DependencyUnavailable("no table")])
def test_change_that_fails_is_left_to_the_next_cycle(scene: Scene, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def refuse(_: Traffic) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(scene.models, "route", refuse)
        assert scene.cycle() == []
    assert scene.log() == []

    assert scene.cycle() == ["digits"]


def test_record_that_cannot_be_written_stops_neither_the_end_of_the_canary_nor_the_cycle(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: DecisionRecord) -> None:
        raise DependencyUnavailable("no table")

    monkeypatch.setattr(scene.control, "log", refuse)

    assert scene.cycle() == ["digits"]
    assert scene.canary() is None


def test_model_that_is_gone_is_passed_over(scene: Scene) -> None:
    scene.models.delete("digits")

    assert scene.cycle() == []
