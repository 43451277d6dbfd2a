"""`WindowStore` on DynamoDB: counters per window, each batch applied once.

A batch's counters and its marker are written in one transaction; a redelivered batch fails on the marker. A batch
with more windows than a transaction takes is split in a fixed order, each part with its own marker, so that a
redelivery applies just the parts that are missing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from markserve.adapters.dynamodb import Item, Table, expiry, instant_key, number, text
from markserve.core.types import Tier
from markserve.messages import MetricsBatch, OutcomeCounts

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

MAX_WINDOWS_PER_PART = 90
"""A transaction takes 100 operations; the marker is one, the rest is left for what may join later."""

NO_TIER = "none"


@dataclass(kw_only=True)
class _Window:
    """What a batch adds to one item."""

    at_s: float
    tier: str = ""
    slo_class: str = ""
    model_version: str = ""
    counters: dict[str, int] = field(default_factory=dict)

    def add(self, counters: Mapping[str, int]) -> None:
        for name, count in counters.items():
            self.counters[name] = self.counters.get(name, 0) + count


class DynamoWindowStore:
    """Arrival windows, outcome windows and liveness ticks."""

    def __init__(self, client: DynamoDBClient, table_name: str) -> None:
        self._table = Table(client, table_name)

    def apply(self, batch: MetricsBatch, *, expires_at_s: float) -> bool:
        windows = sorted(_windows(batch).items())
        # An empty batch still has one part: its marker makes the second delivery known.
        starts = range(0, max(len(windows), 1), MAX_WINDOWS_PER_PART)
        parts = [windows[start : start + MAX_WINDOWS_PER_PART] for start in starts]
        applied = [self._apply_part(batch.batch_id, index, part, expires_at_s) for index, part in enumerate(parts)]
        return any(applied)

    def _apply_part(self, batch_id: str, index: int, part: Sequence[tuple[tuple[str, str], _Window]], expires_at_s: float) -> bool:
        marker = {"pk": text(f"batch#{batch_id}"), "sk": text(f"part#{index:04d}"), "expires_at_s": expiry(expires_at_s)}
        operations = [self._table.put_operation(marker, condition="attribute_not_exists(pk)")]
        operations += [self._add(key, window, expires_at_s) for key, window in part]
        return self._table.transact(operations)

    def _add(self, key: tuple[str, str], window: _Window, expires_at_s: float) -> Item:
        update = "SET at_s = :at_s, tier = :tier, expires_at_s = :expires_at_s"
        values = {"at_s": number(window.at_s), "tier": text(window.tier), "expires_at_s": expiry(expires_at_s)}
        if window.tier:
            update += ", slo_class = :slo_class, model_version = :model_version"
            values |= {"slo_class": text(window.slo_class), "model_version": text(window.model_version)}
        counters = [(name, count) for name, count in sorted(window.counters.items()) if count]
        if counters:
            update += " ADD " + ", ".join(f"#c{i} :c{i}" for i in range(len(counters)))
            values |= {f"c{i}": number(count) for i, (_, count) in enumerate(counters)}
        names = {f"#c{i}": name for i, (name, _) in enumerate(counters)}
        return self._table.update_operation({"pk": key[0], "sk": key[1]}, update, names=names, **values)

    def arrivals(self, model: str, *, since_s: float, until_s: float) -> dict[float, int]:
        return {
            float(i["at_s"]["N"]): int(i["arrivals"]["N"]) for i in self._between(f"{model}#arrivals", since_s, until_s) if "arrivals" in i
        }

    def ticks(self, *, since_s: float, until_s: float) -> list[float]:
        return [float(item["at_s"]["N"]) for item in self._between("ticks", since_s, until_s)]

    def outcomes(self, model: str, *, since_s: float, until_s: float) -> list[OutcomeCounts]:
        counted = [_outcomes(model, item) for item in self._between(f"{model}#outcomes", since_s, until_s)]
        return sorted(counted, key=lambda counts: (counts.window_at_s, counts.tier or "", counts.slo_class, counts.model_version))

    def _between(self, pk: str, since_s: float, until_s: float) -> list[Item]:
        # Keys are rounded to microseconds and `until_s` is exclusive: the stored instant decides at the edges.
        items = self._table.query(pk, low=instant_key(since_s), high=instant_key(until_s))
        return [item for item in items if since_s <= float(item["at_s"]["N"]) < until_s]


def _windows(batch: MetricsBatch) -> dict[tuple[str, str], _Window]:
    """Sum what the batch adds, by item key: a transaction must not name an item twice."""
    windows: dict[tuple[str, str], _Window] = {}
    for arrival in batch.arrivals:
        key = (f"{arrival.model}#arrivals", instant_key(arrival.window_at_s))
        windows.setdefault(key, _Window(at_s=arrival.window_at_s)).add({"arrivals": arrival.count})
    for counts in batch.outcomes:
        tier = counts.tier or NO_TIER
        key = (f"{counts.model}#outcomes", f"{instant_key(counts.window_at_s)}#{tier}#{counts.slo_class}#{counts.model_version}")
        window = windows.setdefault(
            key, _Window(at_s=counts.window_at_s, tier=tier, slo_class=counts.slo_class, model_version=counts.model_version)
        )
        window.add({"ok": counts.ok, "errors": counts.errors, "within_slo": counts.within_slo})
        window.add({f"h{bucket}": count for bucket, count in counts.latency_histogram.items()})
    if batch.tick_at_s is not None:
        windows["ticks", instant_key(batch.tick_at_s)] = _Window(at_s=batch.tick_at_s)
    return windows


def _outcomes(model: str, item: Item) -> OutcomeCounts:
    tier = item["tier"]["S"]
    return OutcomeCounts(
        model=model,
        window_at_s=float(item["at_s"]["N"]),
        tier=None if tier == NO_TIER else Tier(tier),
        slo_class=item["slo_class"]["S"] if "slo_class" in item else "",
        model_version=item["model_version"]["S"] if "model_version" in item else "",
        ok=_count(item, "ok"),
        errors=_count(item, "errors"),
        within_slo=_count(item, "within_slo"),
        latency_histogram={name[1:]: int(value["N"]) for name, value in item.items() if name[0] == "h"},
    )


def _count(item: Item, name: str) -> int:
    return int(item[name]["N"]) if name in item else 0
