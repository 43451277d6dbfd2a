from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from botocore.stub import Stubber

from markserve.adapters.memory import MemoryParameterSource
from markserve.adapters.ssm import SsmParameterSource
from markserve.core.tunables import Tunables
from markserve.messages import DecisionRecord
from markserve.ports import ParameterSource
from tests.builders import NOW_S
from tests.contract.conftest import BACKENDS

REFRESH_S = 15.0


@dataclass
class Scene:
    """Parameter Store, the clock, and what the source logged."""

    client: Any
    now_s: float = NOW_S
    logged: list[DecisionRecord] = field(default_factory=list)
    source: SsmParameterSource = field(init=False)

    def __post_init__(self) -> None:
        self.source = SsmParameterSource(self.client, "markserve", refresh_s=REFRESH_S, now=lambda: self.now_s, log=self.logged.append)

    def put(self, name: str, value: str) -> None:
        self.client.put_parameter(Name=f"/markserve/{name}", Value=value, Type="String", Overwrite=True)

    def after(self, seconds: float = REFRESH_S) -> Tunables:
        self.now_s += seconds
        return self.source.get()


@pytest.fixture
def scene(aws: Callable[[str], Any]) -> Scene:
    return Scene(client=aws("ssm"))


@pytest.fixture(params=BACKENDS)
def overridden(request: pytest.FixtureRequest) -> ParameterSource:
    if request.param == "memory":
        return MemoryParameterSource(Tunables(rt_max_s=0.5), {"digits": Tunables(rt_max_s=1.5)})
    scene: Scene = request.getfixturevalue("scene")
    scene.put("rt-max-s", "0.5")
    scene.put("models/digits/rt-max-s", "1.5")
    return scene.source


def test_parameters_of_a_model_override_those_of_the_stack(overridden: ParameterSource) -> None:
    assert [overridden.get().rt_max_s, overridden.get("digits").rt_max_s, overridden.get("other").rt_max_s] == [0.5, 1.5, 0.5]


def test_parameters_are_defaults_when_none_is_set(scene: Scene) -> None:
    assert scene.source.get() == Tunables()
    assert scene.source.get().launches_enabled is False


def test_parameters_are_read_from_every_page(scene: Scene) -> None:
    names = ("rt-max-s", "headroom", "max-hourly-cost-usd", "spot-max-share", "sl-min")
    for name in names:
        scene.put(name, "0.9")
        for model in ("a", "b"):
            scene.put(f"models/{model}/{name}", "0.8")

    assert scene.source.get().spot_max_share == 0.9
    assert scene.source.get("b").spot_max_share == 0.8


def test_a_changed_parameter_takes_effect_at_the_next_refresh(scene: Scene) -> None:
    scene.put("max-instances", "2")
    assert scene.source.get().max_instances == 2

    scene.put("max-instances", "3")

    assert scene.after(REFRESH_S - 0.1).max_instances == 2
    assert scene.after(0.1).max_instances == 3


def test_a_bad_value_is_refused_and_the_last_good_one_kept(scene: Scene) -> None:
    scene.put("sl-min", "0.95")
    scene.source.get()

    scene.put("sl-min", "98")

    assert [scene.after().sl_min, scene.after().sl_min] == [0.95, 0.95]
    assert [(record.subject, record.event, record.reason) for record in scene.logged] == [
        (
            "/markserve/sl-min",
            "parameter_refused",
            "sl-min: 98 is above the highest allowed value 0.9999; keeping the last good value 0.95",
        )
    ]


def test_a_bad_value_leaves_the_default_when_there_was_no_good_one(scene: Scene) -> None:
    scene.put("models/digits/max-instances", "many")

    assert scene.source.get("digits").max_instances == Tunables().max_instances
    assert [(record.model, record.reason) for record in scene.logged] == [
        ("digits", "max-instances: 'many' is not a whole number; keeping its default")
    ]


def test_a_refused_value_is_logged_again_when_it_comes_back_after_a_good_one(scene: Scene) -> None:
    for value, in_force in (("many", 4), ("3", 3), ("many", 3)):
        scene.put("max-instances", value)
        assert scene.after().max_instances == in_force

    assert [record.event for record in scene.logged] == ["parameter_refused", "parameter_changed", "parameter_refused"]


def test_a_change_is_logged_once_with_both_values_and_the_first_reading_is_none(scene: Scene) -> None:
    scene.put("max-instances", "9")
    assert scene.source.get().max_instances == 9
    assert scene.logged == []

    scene.put("max-instances", "8")
    scene.after()
    scene.after()
    scene.client.delete_parameter(Name="/markserve/max-instances")
    scene.after()

    assert [(record.event, record.subject, record.reason) for record in scene.logged] == [
        ("parameter_changed", "/markserve/max-instances", "9 became 8"),
        ("parameter_changed", "/markserve/max-instances", "8 became unset"),
    ]


def test_an_unknown_parameter_is_refused(scene: Scene) -> None:
    scene.put("rt-max", "0.5")

    assert scene.source.get() == Tunables()
    assert [record.subject for record in scene.logged] == ["/markserve/rt-max"]


def test_a_deleted_parameter_returns_to_its_default(scene: Scene) -> None:
    scene.put("max-instances", "9")
    assert scene.source.get().max_instances == 9

    scene.client.delete_parameter(Name="/markserve/max-instances")

    assert scene.after().max_instances == Tunables().max_instances


def test_parameters_keep_their_values_and_log_once_when_parameter_store_fails(scene: Scene) -> None:
    scene.put("max-instances", "9")
    scene.source.get()

    with Stubber(scene.client) as stub:
        for _ in range(2):
            stub.add_client_error("get_parameters_by_path", service_error_code="ThrottlingException")
        assert [scene.after().max_instances, scene.after().max_instances] == [9, 9]
        assert scene.after(1.0).max_instances == 9
    scene.put("max-instances", "8")

    assert scene.after().max_instances == 8
    assert [record.event for record in scene.logged] == ["parameters_unreadable", "parameter_changed"]
