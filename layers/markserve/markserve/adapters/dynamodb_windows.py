"""`WindowStore` on DynamoDB: counters per window, each batch applied once.

A batch's counters and its marker are written in one transaction; a redelivered batch fails on the marker. Batches that come
together share a transaction, which adds up what they say of the same window: so many writes of that window's item fewer. A batch
with more windows than a transaction takes is split in a fixed order, each part with its own marker, so that a redelivery applies
just the parts that are missing.

Every report of a model adds to the same few items, those of the current window. Where one item is not enough, they are kept in
several shards that readers add up, each in a partition of its own. Any shard may take any batch: its marker, which is in none, says
whether it was counted. A writer raises the recorded number of shards before it uses one, and readers read that first, so
that a changed number neither loses nor repeats a count.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from markserve.adapters.dynamodb import Item, Table, expiry, instant_key, number, shard_key, text
from markserve.core.types import Tier
from markserve.errors import Transient
from markserve.messages import MetricsBatch, OutcomeCounts

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

MAX_ITEMS_PER_WRITE = 90
"""Markers and windows. A transaction takes 100 operations; the rest is left for what may join later."""
PARALLEL_READS = 16
"""Shards read at once: a read takes some milliseconds, and so do all of 64 shards in four rounds."""

NO_TIER = "none"
TICKS = "ticks"
"""Comes once a step, so it is not spread over shards."""
SHARDS = "shards"
"""Key of the item that says how many shards there ever were."""

Key = tuple[str, str]


@dataclass(kw_only=True)
class _Window:
    """What is added to one item."""

    at_s: float
    tier: str = ""
    slo_class: str = ""
    model_version: str = ""
    counters: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Part:
    """What of a batch is written at once."""

    batch_id: str
    index: int
    windows: Mapping[Key, _Window]

    @property
    def marker(self) -> tuple[str, int]:
        """What tells that it was written."""
        return self.batch_id, self.index


class DynamoWindowStore:
    """Arrival windows, outcome windows and liveness ticks.

    Parameters
    ----------
    shards
        Partitions that a model's counters are written to; what is read does not depend on it.
    """

    def __init__(self, client: DynamoDBClient, table_name: str, *, shards: int = 1) -> None:
        self._table = Table(client, table_name)
        self._shards = shards
        self._is_recorded = shards == 1

    def apply(self, batches: Sequence[MetricsBatch], *, expires_at_s: float) -> list[bool | Transient]:
        # By id: what was delivered twice at once must not stand in one transaction twice.
        unique = {batch.batch_id: batch for batch in batches}
        outcomes: dict[str, bool | Transient] = {}
        for group in _groups(part for batch in unique.values() for part in _parts(batch)):
            try:
                written = self._apply_group(group, expires_at_s)
            except Transient as error:
                outcomes |= {part.batch_id: error for part in group}
                continue
            for part in group:
                known = outcomes.get(part.batch_id, False)
                outcomes[part.batch_id] = known if isinstance(known, Transient) else known or part.marker in written
        # Of a batch that was delivered twice at once, the second is a repetition.
        return [outcomes.pop(batch.batch_id, False) for batch in batches]

    def _apply_group(self, group: Sequence[_Part], expires_at_s: float) -> set[tuple[str, int]]:
        """Write all parts that were not written yet; return their markers."""
        self._record_shards()
        shard = zlib.crc32(group[0].batch_id.encode()) % self._shards
        pending = group
        while pending:
            markers = [self._marker(part, expires_at_s) for part in pending]
            added = [self._add(key, window, shard, expires_at_s) for key, window in sorted(_summed(pending).items(), key=lambda kv: kv[0])]
            repeated = self._table.refused([*markers, *added])
            if not repeated:
                break
            pending = [part for place, part in enumerate(pending) if place not in repeated]
        return {part.marker for part in pending}

    def _marker(self, part: _Part, expires_at_s: float) -> Item:
        item = {"pk": text(f"batch#{part.batch_id}"), "sk": text(f"part#{part.index:04d}"), "expires_at_s": expiry(expires_at_s)}
        return self._table.put_operation(item, condition="attribute_not_exists(pk)")

    def _add(self, key: Key, window: _Window, shard: int, expires_at_s: float) -> Item:
        pk = key[0] if key[0] == TICKS else shard_key(key[0], shard)
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
        return self._table.update_operation({"pk": pk, "sk": key[1]}, update, names=names, **values)

    def arrivals(self, model: str, *, since_s: float, until_s: float) -> dict[float, int]:
        counts: Counter[float] = Counter()
        for item in self._sharded(f"{model}#arrivals", since_s, until_s):
            if "arrivals" in item:
                counts[float(item["at_s"]["N"])] += int(item["arrivals"]["N"])
        return dict(sorted(counts.items()))

    def ticks(self, *, since_s: float, until_s: float) -> list[float]:
        return [float(item["at_s"]["N"]) for item in self._between(TICKS, since_s, until_s)]

    def outcomes(self, model: str, *, since_s: float, until_s: float) -> list[OutcomeCounts]:
        groups: dict[tuple[float, str, str, str], OutcomeCounts] = {}
        for item in self._sharded(f"{model}#outcomes", since_s, until_s):
            counts = _outcomes(model, item)
            groups[counts.group] = groups[counts.group].plus(counts) if counts.group in groups else counts
        return [groups[group] for group in sorted(groups)]

    def _record_shards(self) -> None:
        """Make readers look at all shards that this store writes to, once, before the first write to them."""
        if not self._is_recorded:
            count = number(self._shards)
            self._table.update(
                {"pk": SHARDS, "sk": SHARDS}, "SET ever = :count", condition="attribute_not_exists(pk) OR ever < :count", count=count
            )
            self._is_recorded = True

    def _sharded(self, pk: str, since_s: float, until_s: float) -> list[Item]:
        """Read a range of all shards that there ever were."""
        recorded = next(self._table.query(SHARDS), None)
        keys = [shard_key(pk, shard) for shard in range(int(recorded["ever"]["N"]) if recorded else 1)]
        if len(keys) == 1:
            return self._between(pk, since_s, until_s)
        with ThreadPoolExecutor(min(len(keys), PARALLEL_READS)) as readers:
            found = readers.map(lambda key: self._between(key, since_s, until_s), keys)
            return [item for items in found for item in items]

    def _between(self, pk: str, since_s: float, until_s: float) -> list[Item]:
        # Keys are rounded to microseconds and `until_s` is exclusive: the stored instant decides at the edges.
        items = self._table.query(pk, low=instant_key(since_s), high=instant_key(until_s))
        return [item for item in items if since_s <= float(item["at_s"]["N"]) < until_s]


def _parts(batch: MetricsBatch) -> list[_Part]:
    """Split a batch, most of which are one part; an empty one is too: its marker makes the second delivery known."""
    windows = sorted(_windows(batch).items(), key=lambda kv: kv[0])
    most = MAX_ITEMS_PER_WRITE - 1
    starts = range(0, max(len(windows), 1), most)
    return [_Part(batch_id=batch.batch_id, index=i, windows=dict(windows[start : start + most])) for i, start in enumerate(starts)]


def _groups(parts: Iterable[_Part]) -> list[list[_Part]]:
    """Put as many parts together as one transaction takes, in their order."""
    groups: list[list[_Part]] = []
    keys: set[Key] = set()
    for part in parts:
        joined = keys | set(part.windows)
        if groups and len(groups[-1]) + 1 + len(joined) <= MAX_ITEMS_PER_WRITE:
            groups[-1].append(part)
            keys = joined
        else:
            groups.append([part])
            keys = set(part.windows)
    return groups


def _summed(parts: Iterable[_Part]) -> dict[Key, _Window]:
    """Sum what the parts add, by item key: a transaction must not name an item twice."""
    summed: dict[Key, _Window] = {}
    for part in parts:
        for key, window in part.windows.items():
            known = summed.setdefault(
                key, _Window(at_s=window.at_s, tier=window.tier, slo_class=window.slo_class, model_version=window.model_version)
            )
            known.counters.update(window.counters)
    return summed


def _windows(batch: MetricsBatch) -> dict[Key, _Window]:
    """Sum what the batch adds, by item key."""
    windows: dict[Key, _Window] = {}
    for arrival in batch.arrivals:
        key = (f"{arrival.model}#arrivals", instant_key(arrival.window_at_s))
        windows.setdefault(key, _Window(at_s=arrival.window_at_s)).counters["arrivals"] += arrival.count
    for counts in batch.outcomes:
        tier = counts.tier or NO_TIER
        key = (f"{counts.model}#outcomes", f"{instant_key(counts.window_at_s)}#{tier}#{counts.slo_class}#{counts.model_version}")
        window = windows.setdefault(
            key, _Window(at_s=counts.window_at_s, tier=tier, slo_class=counts.slo_class, model_version=counts.model_version)
        )
        window.counters.update(ok=counts.ok, errors=counts.errors, within_slo=counts.within_slo)
        window.counters.update({f"h{bucket}": count for bucket, count in counts.latency_histogram.items()})
    if batch.tick_at_s is not None:
        windows[TICKS, instant_key(batch.tick_at_s)] = _Window(at_s=batch.tick_at_s)
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
