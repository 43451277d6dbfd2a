"""Which versions a worker holds: those that get traffic, ahead of it, and nobody waits for another one's load."""

from __future__ import annotations

import threading

import pytest

from markserve.adapters.memory import MemoryModelRunner, MemoryModelStore
from markserve.errors import ConfigurationError, DependencyUnavailable, InferenceFailed, UnknownModel
from markserve.messages import ModelRecord, Traffic
from markserve.ports import ModelRunner
from tests.builders import MODEL, a_model_record
from tests.worker.rig import Rig
from worker.versions import Versions


class Scene:
    """Versions 1 to 3 registered, 1 live."""

    def __init__(self) -> None:
        self.models = MemoryModelStore(a_model_record(version="1"))
        for version in ("2", "3"):
            self.models.store(a_model_record(version=version))
        self.loads: list[str] = []
        self.failures: dict[str, Exception] = {}
        self.runners: dict[str, MemoryModelRunner] = {}
        self.versions = Versions(MODEL, models=self.models, load=self.load)

    def load(self, record: ModelRecord) -> ModelRunner:
        self.loads.append(record.version)
        if record.version in self.failures:
            raise self.failures[record.version]
        return self.runners.setdefault(record.version, MemoryModelRunner())

    def route(self, live: str, *, canary: str | None = None, previous: str | None = None) -> None:
        number = self.models.traffic(MODEL).number + 1
        self.models.route(Traffic(model=MODEL, live=live, canary=canary, previous=previous, number=number))


def test_worker_loads_a_canary_before_it_gets_traffic() -> None:
    scene = Scene()
    scene.versions.get("1")
    scene.route("1", canary="2")

    scene.versions.follow_traffic()

    assert scene.versions.loaded() == ("1", "2")
    assert scene.versions.get("2") is scene.runners["2"]
    assert scene.loads == ["1", "2"]


def test_worker_keeps_what_a_rollback_returns_to_and_lets_go_of_the_rest() -> None:
    scene = Scene()
    for version in ("1", "2", "3"):
        scene.versions.get(version)
    scene.route("3", previous="2")

    scene.versions.follow_traffic()

    assert scene.versions.loaded() == ("2", "3")
    scene.versions.get("1")  # a request that was accepted for it is still answered
    assert scene.loads == ["1", "2", "3", "1"]


@pytest.mark.parametrize("failure", [ConfigurationError("not TorchScript"), DependencyUnavailable("S3 does not answer")])
def test_version_that_cannot_be_loaded_is_not_reported_and_tried_again(failure: Exception) -> None:
    scene = Scene()
    scene.failures["2"] = failure
    scene.route("1", canary="2")

    scene.versions.follow_traffic()
    before = scene.versions.loaded()
    scene.failures.clear()
    scene.versions.follow_traffic()

    assert (before, scene.versions.loaded()) == (("1",), ("1", "2"))


def test_version_that_fails_on_its_first_run_is_not_reported() -> None:
    scene = Scene()
    scene.runners["2"] = MemoryModelRunner(failures={"sample-1": InferenceFailed("boom")})
    scene.route("1", canary="2")

    scene.versions.follow_traffic()

    assert scene.versions.loaded() == ("1",)


def test_worker_keeps_everything_while_traffic_cannot_be_read() -> None:
    scene = Scene()
    scene.versions.get("1")
    scene.models.withdraw(MODEL)

    scene.versions.follow_traffic()

    assert scene.versions.loaded() == ("1",)
    with pytest.raises(UnknownModel):
        scene.versions.get("9")


def test_loaded_version_is_handed_out_while_another_one_loads() -> None:
    scene = Scene()
    scene.versions.get("1")
    began, go_on = threading.Event(), threading.Event()

    def load_slowly(record: ModelRecord) -> ModelRunner:
        began.set()
        assert go_on.wait(10)
        return MemoryModelRunner()

    slow = Versions(MODEL, models=scene.models, load=lambda r: load_slowly(r) if r.version == "2" else MemoryModelRunner())
    live = slow.get("1")
    scene.route("1", canary="2")
    loading = threading.Thread(target=slow.follow_traffic)
    loading.start()
    try:
        assert began.wait(10)
        assert slow.get("1") is live
        assert slow.loaded() == ("1",)
    finally:
        go_on.set()
        loading.join(10)
    assert slow.loaded() == ("1", "2")


def test_heartbeat_reports_what_is_loaded() -> None:
    rig = Rig(versions=("1", "2"))

    rig.lifeline.beat()

    (instance,) = rig.instances.list()
    assert instance.stats.versions == ("1", "2")
