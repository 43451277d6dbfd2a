from __future__ import annotations

from dataclasses import fields

import pytest

from markserve.core.tunables import Tunables, apply_overrides, parse_tunable, tunable_names
from markserve.core.types import Slo


def test_tunables_launch_nothing_until_told_to() -> None:
    assert Tunables().launches_enabled is False


def test_tunables_have_defaults_within_their_own_bounds() -> None:
    defaults = Tunables()
    for name, spec in zip(tunable_names(), fields(Tunables), strict=True):
        default = getattr(defaults, spec.name)
        text = str(default).lower() if isinstance(default, bool) else str(default)

        assert parse_tunable(name, text) == (spec.name, default)


def test_tunables_are_all_documented() -> None:
    assert all(spec.metadata["doc"] for spec in fields(Tunables))


def test_tunables_state_the_objective() -> None:
    assert Tunables(rt_max_s=0.5, sl_min=0.9).slo == Slo(latency_s=0.5, percentile=0.9)


def test_tunable_names_are_fields_with_hyphens() -> None:
    assert [name.replace("-", "_") for name in tunable_names()] == [spec.name for spec in fields(Tunables)]
    assert "max-hourly-cost-usd" in tunable_names()


@pytest.mark.parametrize(
    ("name", "text", "parsed"),
    [
        ("rt-max-s", "0.01", ("rt_max_s", 0.01)),
        ("rt-max-s", " 29 ", ("rt_max_s", 29.0)),
        ("max-instances", "0", ("max_instances", 0)),
        ("launches-enabled", "TRUE", ("launches_enabled", True)),
        ("spot-enabled", "false", ("spot_enabled", False)),
    ],
)
def test_parse_tunable_accepts_a_value_within_bounds(name: str, text: str, parsed: tuple[str, object]) -> None:
    value = parse_tunable(name, text)

    assert value == parsed
    assert type(value[1]) is type(parsed[1])


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("rt-max-s", "30", "rt-max-s: 30 is above the highest allowed value 29"),
        ("rt-max-s", "0", "rt-max-s: 0 is below the lowest allowed value 0.01"),
        ("rt-max-s", "-0.2", "rt-max-s: -0.2 is below the lowest allowed value 0.01"),
        ("rt-max-s", "nan", "rt-max-s: 'nan' is not a number"),
        ("rt-max-s", "inf", "rt-max-s: inf is above the highest allowed value 29"),
        ("rt-max-s", "200ms", "rt-max-s: '200ms' is not a number"),
        ("max-instances", "2.5", "max-instances: '2.5' is not a whole number"),
        ("max-instances", "", "max-instances: '' is not a whole number"),
        ("spot-enabled", "1", "spot-enabled: '1' must be true or false"),
    ],
)
def test_parse_tunable_says_which_rule_a_value_breaks(name: str, text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=r".") as raised:
        parse_tunable(name, text)

    assert str(raised.value) == reason


def test_parse_tunable_names_the_known_parameters_when_one_is_unknown() -> None:
    with pytest.raises(ValueError, match=r"^rt-max: no such parameter; known: rt-max-s, sl-min, "):
        parse_tunable("rt-max", "1")


def test_apply_overrides_keeps_the_current_value_of_every_bad_one() -> None:
    current = Tunables(rt_max_s=0.3, max_instances=7)

    tunables, refusals = apply_overrides(current, {"rt-max-s": "60", "sl-min": "0.9", "max-instances": "x", "unknown": "1"})

    assert tunables == Tunables(rt_max_s=0.3, max_instances=7, sl_min=0.9)
    assert [refusal.split(":")[0] for refusal in refusals] == ["max-instances", "rt-max-s", "unknown"]


def test_apply_overrides_changes_nothing_when_there_are_none() -> None:
    assert apply_overrides(Tunables(), {}) == (Tunables(), ())
