"""One summary of a fleet a second, made by metric ingestion and read by every front of a stack with shards.

A front that reads all workers once a second is the simplest, and the cheapest for a fleet of tens. But fronts and workers both grow
with the load, so reads grow with its square. Ingestion runs whenever fronts report, and nobody waits for it.
"""

from __future__ import annotations

from collections.abc import Iterable, MutableMapping

from markserve.core.spillover import fleet_view
from markserve.ports import ControlStore, InstanceRegistry

SUMMARY_EVERY_S = 1.0
"""Workers report once a second."""


def summarise_fleets(
    models: Iterable[str],
    *,
    instances: InstanceRegistry,
    control: ControlStore,
    tried_at_s: MutableMapping[str, float],
    heartbeat_timeout_s: float,
    now_s: float,
) -> list[str]:
    """Publish what fronts need to know of each model's fleet; return those that it fell to this process to summarise.

    Of all environments one does it each second, whichever claims it first.

    Parameters
    ----------
    tried_at_s
        When this environment last tried to claim a model, so that it does not try at every delivery.
    """
    published = []
    for model in sorted(models):
        if now_s - tried_at_s.get(model, 0.0) < SUMMARY_EVERY_S:
            continue
        tried_at_s[model] = now_s
        if control.claim(f"fleet-view#{model}", now_s=now_s, for_s=SUMMARY_EVERY_S):
            fleet = instances.list(model, up_to_date=False)
            instances.publish_view(model, fleet_view(fleet, now_s, heartbeat_timeout_s), at_s=now_s)
            published.append(model)
    return published
