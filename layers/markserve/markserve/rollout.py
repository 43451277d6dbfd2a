"""Promote a version, try one out on a share of requests, roll back, remove: who answers a model's requests.

Whatever changes here reaches every front within `front_view.TRAFFIC_TTL_S`. Until then both versions answer, and what was
accepted for one is answered by it: a change loses nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import msgspec

from markserve.core.traffic import Served, total
from markserve.core.types import InstanceState
from markserve.errors import DependencyUnavailable, InvalidRequest
from markserve.front_view import TRAFFIC_TTL_S
from markserve.messages import DecisionRecord, Traffic
from markserve.ports import ControlStore, InstanceRegistry, ModelStore, WindowStore, WorkQueue

LOAD_PATIENCE_S = 120.0
"""Until a promotion gives up on workers that do not report the version: a large artefact takes a minute."""
DRAIN_PATIENCE_S = 120.0
POLL_S = 1.0
RECENT_S = 900.0
"""Outcomes of the last quarter of an hour tell how a version does."""

Tell = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutPorts:
    """What changing traffic needs of the outside."""

    models: ModelStore
    instances: InstanceRegistry
    control: ControlStore
    windows: WindowStore
    work_queue: Callable[[str], WorkQueue]
    now_s: Callable[[], float]
    sleep: Callable[[float], None]


def promote(model: str, version: str, ports: RolloutPorts, *, canary: float | None = None, tell: Tell = lambda _: None) -> Traffic:
    """Make a version the live one, or give it a share of requests.

    In full, workers load it first while the present one goes on answering, so that nobody waits for a load. A canary needs
    no waiting: fronts send it nothing before every worker has it.

    Raises
    ------
    UnknownModel
        If there is no such version.
    InvalidRequest
        If the share is not one, or the version is live already.
    DependencyUnavailable
        If workers did not load it in time; the live version stays what it was.
    StaleWrite
        If somebody else changed traffic meanwhile.
    """
    traffic, _ = ports.models.traffic(model), ports.models.get(model, version)
    if version == traffic.live:
        raise InvalidRequest(f"{version} of model '{model}' is live already; `rollback` ends a canary", field="version")
    if canary is not None:
        if not 0 < canary < 1:
            raise InvalidRequest(f"{canary:g} is not a share between 0 and 1", field="canary")
        changed = _route(ports, traffic, canary=version, canary_weight=canary)
        _log(ports, changed, "canary_started", f"version {version} answers {canary:.0%} of requests, version {traffic.live} the rest")
        return changed
    staged = traffic if traffic.canary == version else _route(ports, traffic, canary=version, canary_weight=0.0)
    try:
        _wait_until_loaded(model, version, ports, tell)
    except DependencyUnavailable:
        if staged is not traffic:
            _route(ports, staged, canary=None, canary_weight=0.0)
        raise
    changed = _route(ports, staged, live=version, canary=None, canary_weight=0.0, previous=traffic.live)
    _log(ports, changed, "version_promoted", f"version {version} answers in place of {traffic.live}")
    return changed


def rollback(model: str, ports: RolloutPorts, *, to: str | None = None) -> Traffic:
    """End a canary, else return to the version that was live before, or to the one that is named. At once.

    Raises
    ------
    UnknownModel
        If there is no such model or version.
    InvalidRequest
        If there is nothing to return to.
    StaleWrite
        If somebody else changed traffic meanwhile.
    """
    traffic = ports.models.traffic(model)
    if traffic.canary is not None and to in (None, traffic.live):
        changed = end_canary(traffic, ports.models, now_s=ports.now_s())
        _log(ports, changed, "canary_ended", f"version {traffic.canary} gets no more requests, {traffic.live} answers all")
        return changed
    target = to or traffic.previous
    if target is None or target == traffic.live:
        raise InvalidRequest(f"{traffic.live} of model '{model}' is live, and no version was before it; name one", field="version")
    changed = _route(ports, traffic, live=target, canary=None, canary_weight=0.0, previous=traffic.live)
    _log(ports, changed, "version_rolled_back", f"version {target} answers again in place of {traffic.live}")
    return changed


def end_canary(traffic: Traffic, models: ModelStore, *, now_s: float) -> Traffic:
    """Give a canary's requests back to the live version. Raises `StaleWrite` if traffic is not as given any more."""
    changed = msgspec.structs.replace(traffic, canary=None, canary_weight=0.0, number=traffic.number + 1, changed_at_s=now_s)
    models.route(changed)
    return changed


def delete_version(model: str, version: str, ports: RolloutPorts, *, force: bool = False, tell: Tell = lambda _: None) -> None:
    """Remove a version; the live one and a canary only with `force`, after others took over and what was accepted is answered.

    Raises
    ------
    InvalidRequest
        If it gets traffic and `force` is not given, or nobody could take over.
    UnknownModel, StaleWrite, DependencyUnavailable
        As in `promote`.
    """
    traffic, record = ports.models.traffic(model), ports.models.get(model, version)
    if version in (traffic.live, traffic.canary):
        if not force:
            what = "is live" if version == traffic.live else f"is a canary with {traffic.canary_weight:.0%} of requests"
            raise InvalidRequest(f"{version} of model '{model}' {what}; roll back first, or force it", field="version")
        rollback(model, ports, to=traffic.previous if version == traffic.live else None)
        _wait_until_answered(model, record.queue_url, ports, tell)
    ports.models.delete_version(model, version)
    _log(ports, ports.models.traffic(model), "version_deleted", f"version {version} was removed")


def delete_model(model: str, ports: RolloutPorts, *, force: bool = False, tell: Tell = lambda _: None) -> None:
    """Remove a model with all its versions; while it is asked for or served only with `force`, which drains it.

    New requests are refused first (404), then what was accepted is answered, then the versions go; the planner drains
    its workers. The artefacts stay in the bucket and the queue stays empty: registering it again uses both.

    Raises
    ------
    InvalidRequest
        If it serves and `force` is not given.
    UnknownModel, DependencyUnavailable
        If there is no such model; if its queue does not become empty in time.
    """
    record = ports.models.get(model)
    if not force and (why := _in_use(model, ports)):
        raise InvalidRequest(f"model '{model}' {why}; force it to drain it first", field="model")
    ports.models.withdraw(model)
    _wait_until_answered(model, record.queue_url, ports, tell)
    ports.models.delete(model)
    _log(ports, Traffic(model=model, live=record.version), "model_deleted", f"model '{model}' and its versions were removed")


def served_by_version(model: str, windows: WindowStore, *, now_s: float) -> Mapping[str, Served]:
    """Outcomes of the last minutes by version."""
    return _served(model, windows, now_s, by="model_version")


def served_by_class(model: str, windows: WindowStore, *, now_s: float) -> Mapping[str, Served]:
    """Outcomes of the last minutes by class, each judged by its own objective."""
    return _served(model, windows, now_s, by="slo_class")


def _served(model: str, windows: WindowStore, now_s: float, *, by: str) -> Mapping[str, Served]:
    grouped: dict[str, list[Served]] = defaultdict(list)
    for counts in windows.outcomes(model, since_s=now_s - RECENT_S, until_s=now_s + POLL_S):
        grouped[getattr(counts, by)].append(Served(ok=counts.ok, errors=counts.errors, within_slo=counts.within_slo))
    return {name: total(found) for name, found in sorted(grouped.items())}


def _route(ports: RolloutPorts, traffic: Traffic, **changes: object) -> Traffic:
    changed = msgspec.structs.replace(traffic, **changes, number=traffic.number + 1, changed_at_s=ports.now_s())
    ports.models.route(changed)
    return changed


def _wait_until_loaded(model: str, version: str, ports: RolloutPorts, tell: Tell) -> None:
    give_up_at_s = ports.now_s() + LOAD_PATIENCE_S
    while True:
        serving = [i for i in ports.instances.list(model) if i.state is InstanceState.SERVING]
        # Workers that name no version at all are of an earlier release: they load when asked.
        missing = [i.instance_id for i in serving if i.stats.versions and version not in i.stats.versions]
        if not missing:
            return
        if ports.now_s() >= give_up_at_s:
            raise DependencyUnavailable(f"version {version} was not loaded within {LOAD_PATIENCE_S:.0f} s by {', '.join(missing)}")
        tell(f"{len(serving) - len(missing)} of {len(serving)} workers have loaded version {version}")
        ports.sleep(POLL_S)


def _wait_until_answered(model: str, queue_url: str, ports: RolloutPorts, tell: Tell) -> None:
    """Wait until fronts know, and then until nothing waits or is being computed."""
    tell(f"waiting {TRAFFIC_TTL_S:.0f} s until every front knows")
    ports.sleep(TRAFFIC_TTL_S)
    queue, give_up_at_s = ports.work_queue(queue_url), ports.now_s() + DRAIN_PATIENCE_S
    while True:
        held = sum(i.stats.in_flight for i in ports.instances.list(model) if i.state in (InstanceState.SERVING, InstanceState.DRAINING))
        waiting = queue.depth() + held
        if waiting == 0:
            return
        if ports.now_s() >= give_up_at_s:
            raise DependencyUnavailable(f"{waiting} requests of model '{model}' still wait after {DRAIN_PATIENCE_S:.0f} s")
        tell(f"{waiting} requests are still to be answered")
        ports.sleep(POLL_S)


def _in_use(model: str, ports: RolloutPorts) -> str:
    now_s = ports.now_s()
    arrivals = sum(ports.windows.arrivals(model, since_s=now_s - RECENT_S, until_s=now_s + POLL_S).values())
    if arrivals:
        return f"was asked {arrivals} times in the last {RECENT_S / 60:.0f} minutes"
    serving = sum(i.state is InstanceState.SERVING for i in ports.instances.list(model))
    return f"is served by {serving} instance(s)" if serving else ""


def _log(ports: RolloutPorts, traffic: Traffic, event: str, reason: str) -> None:
    ports.control.log(DecisionRecord(at_s=ports.now_s(), model=traffic.model, subject=traffic.model, event=event, reason=reason))
