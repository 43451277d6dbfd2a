"""The thresholds operators tune at run time: names, bounds, defaults and meaning.

One table drives the SSM parameters in the template, validation, the documentation and the CLI. A value out of
bounds is refused with a reason; the caller keeps the last good one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

from markserve.core.types import Slo, require

ValueT = TypeVar("ValueT", float, int, bool, str)


def _tunable(default: ValueT, *, doc: str, low: float | None = None, high: float | None = None) -> ValueT:
    value: ValueT = field(default=default, metadata={"doc": doc, "low": low, "high": high})
    return value


@dataclass(frozen=True, kw_only=True, slots=True)
class Tunables:
    """Operator parameters; each field is one SSM parameter, `rt_max_s` being `/<stack>/rt-max-s`."""

    rt_max_s: float = _tunable(0.2, low=0.01, high=29.0, doc="Latency objective RT_max in seconds; an HTTP API ends at 30 s.")
    sl_min: float = _tunable(0.98, low=0.5, high=0.9999, doc="Share of requests that must be answered within rt_max_s.")
    standard_deadline_factor: float = _tunable(
        4.0, low=1.0, high=100.0, doc="Deadline of requests of class `standard`, in multiples of rt-max-s; at most 29 s."
    )
    headroom: float = _tunable(1.0, low=0.5, high=3.0, doc="Factor on the planned demand; 1 trusts the forecast quantile.")
    demand_quantile: float = _tunable(
        0.0, low=0.0, high=0.99, doc="Forecast quantile to buy for; 0 derives it from live prices (newsvendor)."
    )
    launches_enabled: bool = _tunable(False, doc="Whether the controller may buy instances. Nothing launches until this is true.")
    max_instances: int = _tunable(4, low=0, high=10_000, doc="Ceiling on instances that cost money, all models together.")
    max_hourly_cost_usd: float = _tunable(2.0, low=0.0, high=10_000.0, doc="Ceiling on the fleet's price per hour, all models together.")
    spot_enabled: bool = _tunable(True, doc="Whether spot offerings may be bought.")
    spot_max_share: float = _tunable(
        1.0, low=0.0, high=1.0, doc="Largest share of capacity on spot; at most 0.7 where an interruption could not spill in time."
    )
    scale_in_cycles: int = _tunable(2, low=1, high=60, doc="Consecutive plans that must not want an instance before it drains.")
    min_instances: int = _tunable(0, low=0, high=100, doc="Instances kept per model even when idle.")
    warm_environments_max: int = _tunable(10, low=0, high=1000, doc="Most spillover environments kept warm per model.")
    spillover_max_concurrency: int = _tunable(100, low=0, high=10_000, doc="Spillover invocations allowed at once; 0 turns spill-over off.")
    spill_reserve_cost_max: float = _tunable(
        0.4, low=0.0, high=1.0, doc="Share of a worker's rate given up, at most, to leave time for spilling what it has not answered."
    )
    canary_rollback_enabled: bool = _tunable(
        True, doc="Whether a canary that does worse than the live version loses its traffic by itself."
    )
    canary_false_alarm_rate: float = _tunable(
        0.001, low=1e-6, high=0.2, doc="Chance per hour that a canary as good as the live version is rolled back all the same."
    )
    canary_error_margin: float = _tunable(
        0.01, low=0.0, high=0.5, doc="Least excess of a canary's share of errors over the live version's that ends it."
    )

    @property
    def slo(self) -> Slo:
        """The objective these parameters state."""
        return Slo(latency_s=self.rt_max_s, percentile=self.sl_min)


def tunable_names() -> tuple[str, ...]:
    """Parameter names as operators write them, in declaration order.

    >>> tunable_names()[:2]
    ('rt-max-s', 'sl-min')
    """
    return tuple(spec.name.replace("_", "-") for spec in fields(Tunables))


def parse_tunable(name: str, text: str) -> tuple[str, float | int | bool]:
    """Parse and bound one parameter.

    Returns
    -------
    (field name, value)

    Raises
    ------
    ValueError
        Naming the parameter, the value, and the rule it breaks.

    Examples
    --------
    >>> parse_tunable("sl-min", "0.99")
    ('sl_min', 0.99)
    >>> parse_tunable("sl-min", "98")
    Traceback (most recent call last):
    ...
    ValueError: sl-min: 98 is above the highest allowed value 0.9999
    """
    by_name = {spec.name.replace("_", "-"): spec for spec in fields(Tunables)}
    require(name in by_name, f"{name}: no such parameter; known: {', '.join(by_name)}")
    spec = by_name[name]
    value = _parse(name, text.strip(), type(spec.default))
    low, high = spec.metadata["low"], spec.metadata["high"]
    if not isinstance(value, bool):
        require(value == value, f"{name}: {text!r} is not a number")
        require(low is None or value >= low, f"{name}: {value:g} is below the lowest allowed value {low:g}" if low is not None else "")
        require(high is None or value <= high, f"{name}: {value:g} is above the highest allowed value {high:g}" if high is not None else "")
    return spec.name, value


def _parse(name: str, text: str, kind: type[Any]) -> float | int | bool:
    if kind is bool:
        require(text.lower() in ("true", "false"), f"{name}: {text!r} must be true or false")
        return text.lower() == "true"
    try:
        return int(text) if kind is int else float(text)
    except ValueError:
        raise ValueError(f"{name}: {text!r} is not {'a whole number' if kind is int else 'a number'}") from None


def apply_overrides(current: Tunables, raw: Mapping[str, str]) -> tuple[Tunables, tuple[str, ...]]:
    """Apply raw parameter values, keeping the current value of every bad one.

    Returns
    -------
    (tunables, refusals)
        The new parameters, and one sentence per refused value.

    Examples
    --------
    >>> tunables, refused = apply_overrides(Tunables(), {"rt-max-s": "0.5", "max-instances": "many"})
    >>> tunables.rt_max_s, tunables.max_instances, refused
    (0.5, 4, ("max-instances: 'many' is not a whole number",))
    """
    refusals: list[str] = []
    accepted: dict[str, Any] = {}
    for name, text in sorted(raw.items()):
        try:
            field_name, value = parse_tunable(name, text)
        except ValueError as error:
            refusals.append(str(error))
        else:
            accepted[field_name] = value
    return replace(current, **accepted), tuple(refusals)


def parameter_table() -> str:
    """Write the operators' table of parameters, as Markdown.

    >>> parameter_table().splitlines()[2]
    '| `rt-max-s` | number | 0.2 | 0.01 to 29 | Latency objective RT_max in seconds; an HTTP API ends at 30 s. |'
    """
    lines = ["| parameter | type | default | allowed | meaning |", "|---|---|---|---|---|"]
    for spec in fields(Tunables):
        kind = {bool: "true or false", int: "whole number"}.get(type(spec.default), "number")
        low, high = spec.metadata["low"], spec.metadata["high"]
        allowed = "true, false" if low is None or high is None else f"{low:g} to {high:g}"
        default = str(spec.default).lower() if isinstance(spec.default, bool) else f"{spec.default:g}"
        lines.append(f"| `{spec.name.replace('_', '-')}` | {kind} | {default} | {allowed} | {spec.metadata['doc']} |")
    return "\n".join(lines) + "\n"
