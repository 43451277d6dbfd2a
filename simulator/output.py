"""What happened, as files that an outsider can recompute the figures from.

In a folder per policy: `requests.parquet`, `batches.parquet`, `instances.csv`, `control.csv`, `summary.json`; docs/simulator.md
describes the columns. Written as the simulation goes, so nothing is held.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from simulator.fleet import Bill, instance_id
from simulator.policies import Decision
from simulator.service import Floats, Ints
from simulator.state import Batches

ROWS_PER_GROUP = 200_000
"""About 6 MB in memory, and few enough groups for readers."""
TIERS = ("none", "worker", "lambda")
"""Tier codes in memory, and their names in the files; none: rejected, or never answered."""
INSTANCE_COLUMNS = [
    "instance_id",
    "instance_type",
    "capacity_type",
    "zone",
    "policy",
    "price_usd_per_hour",
    "requested_at_s",
    "serving_at_s",
    "drain_at_s",
    "terminated_at_s",
    "end_reason",
    "billed_s",
    "cost_usd",
]
CONTROL_QUANTILES = (0.5, 0.8, 0.9, 0.95, 0.98, 0.99)
CONTROL_COLUMNS = ["t_s", "trigger", *(f"forecast_q{round(q * 100)}_rps" for q in CONTROL_QUANTILES), "demand_rps", "fleet", "reason"]
PRICE_COLUMNS = ["instance_id", "from_s", "to_s", "price_usd_per_hour", "cost_usd"]
REQUESTS = pa.schema(
    [
        ("arrival_s", pa.float64()),
        ("finished_at_s", pa.float64()),
        ("tier", pa.dictionary(pa.int8(), pa.string())),
        ("batch_id", pa.int64()),
    ]
)
BATCHES = pa.schema(
    [
        ("batch_id", pa.int64()),
        ("tier", pa.dictionary(pa.int8(), pa.string())),
        ("instance_id", pa.string()),
        ("closed_at_s", pa.float64()),
        ("started_at_s", pa.float64()),
        ("finished_at_s", pa.float64()),
        ("size", pa.int32()),
    ]
)


class _Grouped:
    """A Parquet file written in groups of rows."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._writer = pq.ParquetWriter(path, schema, compression="lz4", use_dictionary=["tier", "instance_id"])
        self._schema = schema
        self._held: list[tuple[np.ndarray, ...]] = []
        self._rows = 0

    def add(self, *columns: np.ndarray) -> None:
        self._held.append(columns)
        self._rows += columns[0].size
        if self._rows >= ROWS_PER_GROUP:
            self.flush()

    def flush(self) -> None:
        if self._rows:
            joined = [np.concatenate(parts) for parts in zip(*self._held, strict=True)]
            arrays = [_arrow(field, values) for field, values in zip(self._schema, joined, strict=True)]
            self._writer.write_table(pa.Table.from_arrays(arrays, schema=self._schema))
        self._held, self._rows = [], 0

    def close(self) -> None:
        self.flush()
        self._writer.close()


def _arrow(field: pa.Field, values: np.ndarray) -> pa.Array:
    if field.name == "tier":
        return pa.DictionaryArray.from_arrays(pa.array(values, pa.int8()), pa.array(TIERS))
    if field.name == "instance_id":
        known = np.flatnonzero(np.bincount(values + 1)) - 1  # numbers are few and small: counting beats sorting
        codes = np.zeros(int(known[-1]) + 2, np.int32)
        codes[known + 1] = np.arange(known.size)
        codes = codes[values + 1]
        names = pa.array([instance_id(int(number)) if number >= 0 else None for number in known], pa.string())
        return names.take(pa.array(codes))
    if field.name == "finished_at_s":
        return pa.array(values, mask=~np.isfinite(values))
    if field.name == "batch_id":
        return pa.array(values, mask=values < 0)
    return pa.array(values, field.type)


class AuditFiles:
    """One policy's files; a context manager, so that they are whole when it is left."""

    def __init__(self, folder: Path, *, policy: str, request_share: float = 1.0, seed: int = 1) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._policy = policy
        self._request_share = request_share
        self._sampling = np.random.default_rng([seed, 0x5A])
        self._requests = _Grouped(folder / "requests.parquet", REQUESTS) if request_share > 0 else None
        if self._requests is None:
            (folder / "requests.parquet").unlink(missing_ok=True)  # of an earlier run, which this one must not be taken for
        self._batches = _Grouped(folder / "batches.parquet", BATCHES)
        self._instances_file = (folder / "instances.csv").open("w", encoding="utf-8", newline="")
        self._control_file = (folder / "control.csv").open("w", encoding="utf-8", newline="")
        self._prices_file = (folder / "prices.csv").open("w", encoding="utf-8", newline="")
        self._prices = csv.writer(self._prices_file)
        self._prices.writerow(PRICE_COLUMNS)
        self._instances = csv.writer(self._instances_file)
        self._control = csv.writer(self._control_file)
        self._instances.writerow(INSTANCE_COLUMNS)
        self._control.writerow(CONTROL_COLUMNS)

    def __enter__(self) -> AuditFiles:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        for grouped in (self._requests, self._batches):
            if grouped is not None:
                grouped.close()
        self._instances_file.close()
        self._control_file.close()
        self._prices_file.close()

    def requests(self, arrival_s: Floats, finished_s: Floats, tier: Ints, batch_id: Ints) -> None:
        """Record finished requests."""
        if self._requests is None:
            return
        if self._request_share < 1:
            kept = self._sampling.random(arrival_s.size) < self._request_share
            arrival_s, finished_s, tier, batch_id = arrival_s[kept], finished_s[kept], tier[kept], batch_id[kept]
        if arrival_s.size:
            self._requests.add(arrival_s, finished_s, tier.astype(np.int8), batch_id)

    def batches(self, batches: Batches, ids: Ints, *, tier: int) -> None:
        """Record batches; they start when they are closed. One that was lost with its instance has an infinite end."""
        n = batches.size.size
        if n:
            tiers, size = np.full(n, tier, np.int8), batches.size.astype(np.int32)
            self._batches.add(ids, tiers, batches.worker, batches.started_s, batches.started_s, batches.finished_s, size)

    def instances(self, bills: Sequence[Bill]) -> None:
        """Record instances that have ended, and the stretches of their lives by price."""
        for bill in bills:
            i, offering = bill.instance, bill.instance.offering
            self._instances.writerow(
                (
                    i.instance_id,
                    offering.instance_type,
                    offering.capacity_type,
                    offering.zone,
                    self._policy,
                    bill.price_usd_per_hour,
                    i.requested_at_s,
                    i.serving_at_s,
                    i.drain_at_s,
                    i.terminated_at_s,
                    i.end_reason,
                    bill.billed_s,
                    bill.cost_usd,
                )
            )
            self._prices.writerows((i.instance_id, s.from_s, s.to_s, s.price_usd_per_hour, s.cost_usd) for s in bill.segments)

    def control(self, now_s: float, trigger: str, decision: Decision, fleet: str) -> None:
        """Record a control step."""
        quantiles = [decision.quantiles_rps.get(q) for q in CONTROL_QUANTILES]
        self._control.writerow((now_s, trigger, *quantiles, decision.demand_rps, fleet, decision.reason))


class NoFiles(AuditFiles):
    """Records nothing; for runs that only look for the best settings of a policy."""

    def __init__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        pass

    def requests(self, arrival_s: Floats, finished_s: Floats, tier: Ints, batch_id: Ints) -> None:
        """Record nothing."""

    def batches(self, batches: Batches, ids: Ints, *, tier: int) -> None:
        """Record nothing."""

    def instances(self, bills: Sequence[Bill]) -> None:
        """Record nothing."""

    def control(self, now_s: float, trigger: str, decision: Decision, fleet: str) -> None:
        """Record nothing."""
