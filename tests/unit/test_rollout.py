"""Promote, try out, roll back, remove: what becomes of traffic, what is waited for, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest

from markserve.adapters.memory import MemoryControlStore, MemoryInstanceRegistry, MemoryModelStore, MemoryWindowStore, MemoryWorkQueue
from markserve.core.traffic import Served
from markserve.core.types import InstanceState
from markserve.errors import DependencyUnavailable, InvalidRequest, UnknownModel
from markserve.rollout import (
    RolloutPorts,
    delete_model,
    delete_version,
    promote,
    rollback,
    served_by_class,
    served_by_version,
)
from tests.builders import NOW_S, a_metrics_batch, a_model_record, a_request, an_instance, some_outcomes, worker_stats


class Scene:
    """Versions 1 (live), 2 and 3, one worker that has loaded 1, and a clock that passes in `sleep`, running `each_second`."""

    def __init__(self) -> None:
        self.now_s = NOW_S
        self.models = MemoryModelStore(a_model_record())
        for version in ("2", "3"):
            self.models.store(a_model_record(version=version, created_at_s=NOW_S))
        self.instances = MemoryInstanceRegistry(an_instance(stats=worker_stats(versions=("1",))))
        self.control = MemoryControlStore()
        self.windows = MemoryWindowStore()
        self.queue = MemoryWorkQueue(now=lambda: self.now_s)
        self.slept: list[float] = []
        self.loads = True
        self.told: list[str] = []
        self.ports = RolloutPorts(
            models=self.models,
            instances=self.instances,
            control=self.control,
            windows=self.windows,
            work_queue=lambda _: self.queue,
            now_s=lambda: self.now_s,
            sleep=self.sleep,
        )

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds
        self.slept.append(seconds)
        if self.loads:  # as a worker does: what traffic names, a second later
            self.report(versions=self.models.traffic("digits").versions)

    def report(self, **stats: object) -> None:
        (instance,) = self.instances.list()
        self.instances.heartbeat(instance.instance_id, at_s=self.now_s, stats=replace(instance.stats, **stats))

    def events(self) -> list[str]:
        return [d.event for d in self.control.decisions(since_s=0, until_s=self.now_s + 1)]


def test_promotion_in_full_waits_until_every_worker_has_loaded_the_version() -> None:
    scene = Scene()

    traffic = promote("digits", "2", scene.ports, tell=scene.told.append)

    assert (traffic.live, traffic.canary, traffic.previous, traffic.number) == ("2", None, "1", 2)
    assert scene.models.traffic("digits") == traffic
    assert scene.told == ["0 of 1 workers have loaded version 2"]
    assert scene.slept == [1.0]
    assert scene.events() == ["version_promoted"]


def test_promotion_leaves_traffic_as_it_was_when_a_worker_does_not_load_the_version() -> None:
    scene = Scene()
    scene.loads = False

    with pytest.raises(DependencyUnavailable, match="version 2 was not loaded within 120 s by i-0001"):
        promote("digits", "2", scene.ports)

    traffic = scene.models.traffic("digits")
    assert (traffic.live, traffic.canary) == ("1", None)


def test_promotion_waits_for_nobody_when_nothing_serves() -> None:
    scene = Scene()
    scene.instances.transition("i-0001", expected=[InstanceState.SERVING], state=InstanceState.DRAINING, at_s=NOW_S, reason="test")

    assert promote("digits", "2", scene.ports).live == "2"
    assert scene.slept == []


def test_canary_is_promoted_in_full_or_rolled_back() -> None:
    scene = Scene()

    canary = promote("digits", "2", scene.ports, canary=0.1)
    assert (canary.live, canary.canary, canary.canary_weight) == ("1", "2", 0.1)
    wider = promote("digits", "2", scene.ports, canary=0.5)
    assert wider.canary_weight == 0.5
    ended = rollback("digits", scene.ports)
    assert (ended.live, ended.canary, ended.canary_weight) == ("1", None, 0.0)

    promote("digits", "2", scene.ports, canary=0.1)
    full = promote("digits", "2", scene.ports)
    assert (full.live, full.canary, full.canary_weight, full.previous) == ("2", None, 0.0, "1")
    assert scene.events() == ["canary_started", "canary_started", "canary_ended", "canary_started", "version_promoted"]


def test_rollback_returns_to_the_version_before_and_back_again() -> None:
    scene = Scene()
    promote("digits", "2", scene.ports)

    assert rollback("digits", scene.ports).live == "1"
    assert rollback("digits", scene.ports).live == "2"
    assert rollback("digits", scene.ports, to="3").live == "3"


def test_rollback_is_refused_when_there_is_nothing_to_return_to() -> None:
    with pytest.raises(InvalidRequest, match="version: 1 of model 'digits' is live, and no version was before it"):
        rollback("digits", Scene().ports)


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, 1.5])
def test_share_that_is_none_is_refused(share: float) -> None:
    with pytest.raises(InvalidRequest, match=r"canary: .* is not a share between 0 and 1"):
        promote("digits", "2", Scene().ports, canary=share)


def test_version_that_is_live_or_unknown_is_not_promoted() -> None:
    scene = Scene()

    with pytest.raises(InvalidRequest, match="version: 1 of model 'digits' is live already"):
        promote("digits", "1", scene.ports)
    with pytest.raises(UnknownModel, match="no version '9'"):
        promote("digits", "9", scene.ports)


def test_version_without_traffic_is_removed_at_once() -> None:
    scene = Scene()

    delete_version("digits", "2", scene.ports)

    assert "2" not in scene.models.versions("digits")
    assert scene.slept == []


def test_version_with_traffic_is_removed_by_force_only_and_after_what_was_accepted_is_answered() -> None:
    scene = Scene()
    promote("digits", "2", scene.ports, canary=0.1)
    scene.queue.send(a_request(model_version="2"))
    answered_at_s = NOW_S + 15.0
    left: list[int] = []

    def worker(seconds: float) -> None:
        scene.now_s += seconds
        if scene.now_s >= answered_at_s:
            scene.queue.delete([one.receipt for one in scene.queue.receive(max_messages=1, wait_s=0)])
        left.append(scene.queue.depth())

    ports = replace(scene.ports, sleep=worker)
    with pytest.raises(InvalidRequest, match="2 of model 'digits' is a canary with 10% of requests; roll back first, or force it"):
        delete_version("digits", "2", ports)
    delete_version("digits", "2", ports, force=True)

    assert (left[0], left[-1]) == (1, 0)
    assert scene.now_s >= answered_at_s
    assert scene.models.versions("digits") == ["1", "3"]
    assert scene.models.traffic("digits").canary is None


def test_live_version_is_removed_by_force_only_when_another_can_take_over() -> None:
    scene = Scene()

    with pytest.raises(InvalidRequest, match="no version was before it"):
        delete_version("digits", "1", scene.ports, force=True)
    promote("digits", "2", scene.ports)
    delete_version("digits", "2", scene.ports, force=True)

    assert scene.models.traffic("digits").live == "1"
    assert scene.models.versions("digits") == ["1", "3"]


def test_model_that_is_asked_for_or_served_is_removed_by_force_only() -> None:
    scene = Scene()
    scene.loads = False
    with pytest.raises(InvalidRequest, match=r"model: model 'digits' is served by 1 instance\(s\); force it"):
        delete_model("digits", scene.ports)
    scene.windows.apply([a_metrics_batch()], expires_at_s=NOW_S + 60)
    with pytest.raises(InvalidRequest, match="was asked 10 times in the last 15 minutes"):
        delete_model("digits", scene.ports)

    delete_model("digits", scene.ports, force=True)

    assert scene.models.list() == []
    assert scene.models.versions("digits") == []
    assert scene.events() == ["model_deleted"]


def test_removal_gives_up_on_requests_that_nobody_answers() -> None:
    scene = Scene()
    scene.loads = False
    scene.report(in_flight=2)

    with pytest.raises(DependencyUnavailable, match="2 requests of model 'digits' still wait after 120 s"):
        delete_model("digits", scene.ports, force=True)

    assert scene.models.versions("digits") == ["1", "2", "3"]


def test_outcomes_are_told_apart_by_version_and_by_class() -> None:
    scene = Scene()
    counted = (
        some_outcomes(model_version="1", slo_class="interactive", ok=90, errors=0, within_slo=88),
        some_outcomes(model_version="2", slo_class="interactive", ok=5, errors=5, within_slo=5),
        some_outcomes(model_version="1", slo_class="standard", ok=10, errors=0, within_slo=10),
    )
    scene.windows.apply([a_metrics_batch(outcomes=counted)], expires_at_s=NOW_S + 60)

    assert served_by_version("digits", scene.windows, now_s=NOW_S + 10) == {
        "1": Served(ok=100, errors=0, within_slo=98),
        "2": Served(ok=5, errors=5, within_slo=5),
    }
    assert served_by_class("digits", scene.windows, now_s=NOW_S + 10)["standard"] == Served(ok=10, within_slo=10)
