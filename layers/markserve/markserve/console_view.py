"""What the console shows, gathered from the stores; and the one thing it may change, operator parameters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Any

from markserve.console_cost import cost_view, costed_since_s
from markserve.console_load import AHEAD_SHARE, load_view
from markserve.console_messages import (
    Decisions,
    FleetMember,
    Freshness,
    Overview,
    ParameterChange,
    ParameterChanged,
    Parameters,
    ParameterView,
)
from markserve.console_service import SLIDING_STEPS, service_view
from markserve.core.arrivals import ArrivalCount, series, window_start
from markserve.core.tunables import Tunables, parse_tunable, tunable_names
from markserve.core.types import Instance, InstanceState
from markserve.errors import InvalidRequest, StaleWrite
from markserve.history import REPORT_DELAY_S, TICK_GAP_STEPS
from markserve.messages import DecisionRecord
from markserve.ports import ControlStore, InstanceRegistry, ModelStore, ParameterSource, ParameterWriter, WindowStore

STALE_STEPS = 3.0
"""Steps without a forecast, a plan or a sign of life after which the page says so."""
DECISIONS_MOST = 200
"""Newest lines of the log that are sent."""
FORECAST_PAST_STEPS = 3.0
"""Forecasts are read from this far before the interval, for its first step."""
ENDED_SHOWN_S = 900.0
"""Ended instances are listed this long."""
PARAMETER_IN_FORCE_S = 30.0
"""What operators are promised: every process reads parameters again within this time."""
VALUE_MAX_CHARACTERS = 64
KINDS = {float: "number", int: "integer", bool: "boolean"}


@dataclass(frozen=True, kw_only=True)
class ConsolePorts:
    """The outside world as the console needs it."""

    models: ModelStore
    windows: WindowStore
    control: ControlStore
    instances: InstanceRegistry
    parameters: ParameterSource
    writer: ParameterWriter


@dataclass(frozen=True, kw_only=True)
class ConsoleGrid:
    """What this stack is set to."""

    stack_name: str
    window_s: float
    step_s: float
    heartbeat_s: float
    spillover_memory_mb: int


class Console:
    """Answers the console's questions as of now."""

    def __init__(self, ports: ConsolePorts, grid: ConsoleGrid, *, now_s: Callable[[], float]) -> None:
        self._ports = ports
        self._grid = grid
        self._now_s = now_s

    def overview(self, model: str | None, *, minutes: int) -> Overview:
        """Everything about one model (default: the first by name) over the last minutes.

        Raises
        ------
        UnknownModel
            If there is no such model.
        """
        now_s, grid = self._now_s(), self._grid
        records = {record.model: record for record in self._ports.models.list()}
        record = self._ports.models.get(model) if model is not None else next(iter(records.values()), None)
        until_s = window_start(now_s - REPORT_DELAY_S, grid.window_s)
        since_s = until_s - 60.0 * minutes
        head: dict[str, Any] = {"at_s": now_s, "stack": grid.stack_name, "models": list(records), "since_s": since_s, "until_s": until_s}
        if record is None:
            return Overview(**head, model=None)
        name, ports = record.model, self._ports
        tunables = ports.parameters.get(name)
        instances = ports.instances.list(name)
        counts = ports.windows.arrivals(name, since_s=since_s, until_s=until_s)
        ticks = ports.windows.ticks(since_s=since_s, until_s=now_s)
        outcomes = ports.windows.outcomes(name, since_s=min(since_s, now_s - SLIDING_STEPS * grid.step_s), until_s=now_s)
        shown = [o for o in outcomes if o.window_at_s >= since_s]
        forecasts = ports.control.forecasts(
            name, since_s=since_s - FORECAST_PAST_STEPS * grid.step_s, until_s=now_s + AHEAD_SHARE * (until_s - since_s)
        )
        plans = ports.control.plans(since_s=since_s, until_s=now_s + 1.0)
        windows = series(
            counts,
            ticks,
            since_s=since_s,
            until_s=until_s,
            window_s=grid.window_s,
            max_tick_gap_s=TICK_GAP_STEPS * grid.step_s,
        )
        cost_since_s = costed_since_s(windows, since_s=since_s, until_s=until_s)
        return Overview(
            **head,
            model=name,
            load=load_view(
                name,
                windows=windows,
                window_s=grid.window_s,
                forecasts=forecasts,
                plans=plans,
                instances=instances,
                since_s=since_s,
                until_s=until_s,
            ),
            service=service_view(outcomes, slo=tunables.slo, since_s=since_s, now_s=now_s, window_s=grid.window_s, step_s=grid.step_s),
            fleet=tuple(_member(i) for i in instances if i.is_alive or (i.terminated_at_s or 0.0) > now_s - ENDED_SHOWN_S),
            cost=cost_view(
                record,
                outcomes=shown,
                arrivals=counts,
                instances=instances,
                tunables=tunables,
                cycles=sum(plan.created_at_s >= cost_since_s for plan in plans) / max(1, len(records)),
                since_s=cost_since_s,
                until_s=until_s,
                spillover_memory_mb=grid.spillover_memory_mb,
                heartbeat_s=grid.heartbeat_s,
            ),
            freshness=self._freshness(
                windows,
                last_tick_at_s=ticks[-1] if ticks else None,
                forecast_at_s=forecasts[-1].origin_at_s if forecasts else None,
                plan_at_s=plans[-1].created_at_s if plans else None,
                now_s=now_s,
            ),
        )

    def _freshness(
        self,
        windows: list[ArrivalCount],
        *,
        last_tick_at_s: float | None,
        forecast_at_s: float | None,
        plan_at_s: float | None,
        now_s: float,
    ) -> Freshness:
        counted = [w.at_s + self._grid.window_s for w in windows if w.count]
        reported = max([*counted[-1:], *([] if last_tick_at_s is None else [last_tick_at_s])], default=None)
        limit_s = STALE_STEPS * self._grid.step_s
        stale = [
            f"no {what} for {limit_s:.0f} s" if at_s is None else f"the last {what} is {now_s - at_s:.0f} s old"
            for what, at_s in (("report of arrivals", reported), ("forecast", forecast_at_s), ("plan", plan_at_s))
            if at_s is None or now_s - at_s > limit_s
        ]
        return Freshness(reported_at_s=reported, forecast_at_s=forecast_at_s, plan_at_s=plan_at_s, step_s=self._grid.step_s, stale=stale)

    def decisions(self, *, minutes: int) -> Decisions:
        """Return the latest plan with its rejected alternatives, and the decision log."""
        now_s = self._now_s()
        log = self._ports.control.decisions(since_s=now_s - 60.0 * minutes, until_s=now_s + 1.0)
        return Decisions(at_s=now_s, plan=self._ports.control.latest_plan(), decisions=log[::-1][:DECISIONS_MOST])

    def parameters(self, model: str | None) -> Parameters:
        """Every operator parameter as it is in force for the stack or one model.

        Raises
        ------
        UnknownModel
            If there is no such model.
        """
        if model is not None:
            self._ports.models.get(model)
        of_stack, values = asdict(self._ports.parameters.get()), asdict(self._ports.parameters.get(model))
        defaults = asdict(Tunables())
        return Parameters(
            model=model,
            in_force_within_s=PARAMETER_IN_FORCE_S,
            parameters=[
                ParameterView(
                    name=spec.name.replace("_", "-"),
                    kind=KINDS[type(defaults[spec.name])],
                    value=values[spec.name],
                    default=defaults[spec.name],
                    lowest=spec.metadata["low"],
                    highest=spec.metadata["high"],
                    doc=spec.metadata["doc"],
                    overridden=values[spec.name] != of_stack[spec.name],
                )
                for spec in fields(Tunables)
            ],
        )

    def set_parameter(self, name: str, change: ParameterChange, *, by: str) -> ParameterChanged:
        """Set a parameter and write down who did it; refused like `markserve params set` refuses.

        Raises
        ------
        InvalidRequest
            If there is no such parameter, or the value is not allowed.
        StaleWrite
            If the parameter has not the value that the caller expected.
        """
        if name not in tunable_names():
            raise InvalidRequest(f"there is no parameter {name!r}; known: {', '.join(tunable_names())}", field="name")
        if change.model is not None:
            self._ports.models.get(change.model)
        text = _text(change.value)
        field, new = _parsed(name, text)
        old = getattr(self._ports.parameters.get(change.model), field)
        if change.expected is not None and _parsed(name, _text(change.expected))[1] != old:
            raise StaleWrite(f"{name} is {_text(old)} by now, not {_text(change.expected)}: look at it again")
        self._ports.writer.put(name, text, model=change.model)
        of_model = "" if change.model is None else f" for {change.model}"
        self._ports.control.log(
            DecisionRecord(
                at_s=self._now_s(),
                model=change.model or "",
                subject=name,
                event="parameter_set",
                reason=f"{by} set {name}{of_model} from {_text(old)} to {_text(new)} in the console",
                detail={"by": by, "old": old, "new": new},
            )
        )
        return ParameterChanged(name=name, model=change.model, old=old, new=new, by=by, in_force_within_s=PARAMETER_IN_FORCE_S)


def _text(value: str | float | int | bool) -> str:
    """Write a value as operators do."""
    return str(value).lower() if isinstance(value, bool) else str(value).strip()


def _parsed(name: str, text: str) -> tuple[str, float | int | bool]:
    if len(text) > VALUE_MAX_CHARACTERS:
        raise InvalidRequest(f"{name}: a value has at most {VALUE_MAX_CHARACTERS} characters", field="value")
    try:
        return parse_tunable(name, text)
    except ValueError as error:
        raise InvalidRequest(str(error)) from error


def _member(instance: Instance) -> FleetMember:
    since_s = {
        InstanceState.REQUESTED: instance.requested_at_s,
        InstanceState.WARMING: instance.running_at_s,
        InstanceState.SERVING: instance.serving_at_s,
        InstanceState.DRAINING: instance.drain_at_s,
        InstanceState.TERMINATED: instance.terminated_at_s,
        InstanceState.FAILED: instance.terminated_at_s,
    }[instance.state]
    stats = instance.stats
    return FleetMember(
        instance_id=instance.instance_id,
        offering=instance.offering.key,
        price_usd_per_hour=instance.offering.price_usd_per_hour,
        state=instance.state,
        since_s=instance.requested_at_s if since_s is None else since_s,
        requested_at_s=instance.requested_at_s,
        heartbeat_at_s=instance.heartbeat_at_s,
        capacity_rps=stats.service_rate_rps,
        completed=stats.completed,
        mean_batch_size=stats.completed / stats.batches if stats.batches else None,
        reason=instance.reason,
        end_reason=instance.end_reason,
    )
