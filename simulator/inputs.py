"""Profiles and catalogs in the forms that people have them in: JSON as shipped, or CSV tables."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

from markserve.catalog import Catalog, load_catalog
from markserve.core.catalog import CatalogEntry
from markserve.errors import InvalidRequest
from markserve.messages import ProfilePointRecord
from markserve.plan_inputs import LAMBDA
from simulator.prices import open_text
from simulator.service import ProfileFile, read_profile

PROFILE_COLUMNS = ("instance_type", "batch_size")
LATENCY_COLUMNS = ("p50_ms", "p98_ms", "p99_ms")
LAMBDA_MEMORY_COLUMN, PRICE_COLUMN = "lambda_memory_mb", "usd_per_h"
DEFAULT_LAMBDA_MEMORY_MB = 1769
CATALOG_COLUMNS = ("instance_type", "price_usd_per_hour")
DEFAULT_SPOT_SAVING, DEFAULT_BAND = 0.6, "5-10%"
"""Of a type that a CSV catalog prices on demand alone and the shipped catalog does not know. Assumption: the middle of both."""


def load_profile(path: Path, *, model: str | None) -> ProfileFile:
    """Read a profile: JSON, or a CSV of measured latencies of which `model` names the part to take.

    A CSV has one row per model, instance type and batch size; a row of instance type `lambda` is the spillover function.
    A column `usd_per_h` prices the types that the catalog does not know. Without a p98 its p99 stands in, without that its p50 or a mean.

    Raises
    ------
    InvalidRequest
        Naming the file and what is wrong with it.
    """
    if path.suffix.removesuffix(".gz") == ".csv" or path.name.endswith(".csv.gz"):
        return _profile_from_rows(path, _rows(path, PROFILE_COLUMNS), model)
    read = read_profile(path)
    if model is not None and model != read.model:
        raise InvalidRequest(f"{path}: holds model {read.model}, not {model}", field="model")
    return read


def _profile_from_rows(path: Path, rows: list[tuple[int, dict[str, str]]], model: str | None) -> ProfileFile:
    models = sorted({row.get("model", "") for _, row in rows})
    if model is None and len(models) > 1:
        raise InvalidRequest(f"{path}: holds {len(models)} models, choose one with --model: {', '.join(models)}", field="model")
    name = models[0] if model is None else model
    chosen = [(line, row) for line, row in rows if row.get("model", "") == name]
    if not chosen:
        raise InvalidRequest(f"{path}: no model {name}, only {', '.join(models)}", field="model")
    points: dict[str, dict[int, ProfilePointRecord]] = {}
    for line, row in chosen:
        point = _point(path, line, row)
        known = points.setdefault(row["instance_type"].strip(), {})
        if point.batch_size in known:
            raise InvalidRequest(f"{path}, line {line}: a second row of {row['instance_type']} at batch size {point.batch_size}")
        known[point.batch_size] = point
    memory = {int(_number(path, line, row, LAMBDA_MEMORY_COLUMN)) for line, row in chosen if row.get(LAMBDA_MEMORY_COLUMN)}
    if len(memory) > 1:
        raise InvalidRequest(f"{path}: several Lambda memory sizes ({', '.join(map(str, sorted(memory)))}); keep the rows of one")
    if set(points) <= {LAMBDA}:
        raise InvalidRequest(f"{path}: no instance type has a profile")
    return ProfileFile(
        model=name or path.stem,
        source=str(path.name),
        max_batch_size=max(max(known) for kind, known in points.items() if kind != LAMBDA),
        lambda_memory_mb=memory.pop() if memory else DEFAULT_LAMBDA_MEMORY_MB,
        prices_usd_per_hour={row["instance_type"]: _number(path, line, row, PRICE_COLUMN) for line, row in chosen if row.get(PRICE_COLUMN)},
        profiles={kind: tuple(known[b] for b in sorted(known)) for kind, known in points.items()},
    )


def _point(path: Path, line: int, row: Mapping[str, str]) -> ProfilePointRecord:
    names = [c for c in ("p50_ms", "mean_ms", "latency_ms") if row.get(c)]
    tails = [c for c in ("p98_ms", "p99_ms") if row.get(c)]
    if not names and not tails:
        raise InvalidRequest(f"{path}, line {line}: no latency; needs {', '.join(LATENCY_COLUMNS)}, mean_ms or latency_ms")
    p50_s = _number(path, line, row, (names or tails)[0]) / 1000
    p98_s = max(p50_s, _number(path, line, row, tails[0]) / 1000) if tails else p50_s
    p99_s = max(p98_s, _number(path, line, row, tails[-1]) / 1000) if tails else p50_s
    samples = int(_number(path, line, row, "n")) if row.get("n") else 1
    return ProfilePointRecord(
        batch_size=int(_number(path, line, row, "batch_size")), p50_s=p50_s, p98_s=p98_s, p99_s=p99_s, samples=samples
    )


# --- catalogs -------------------------------------------------------------------------------------------------------


def read_catalog(path: Path | None) -> Catalog:
    """Read a catalog: the shipped one, JSON of the same form, or a CSV of types and prices.

    A CSV may also have the columns `vcpu`, `memory_gib`, `arch`, `category`, `spot_saving` and `interruption_band`; what it
    lacks comes from the shipped catalog where that knows the type.

    Raises
    ------
    InvalidRequest
        Naming the file and what is wrong with it.
    """
    if path is None:
        return load_catalog()
    if path.name.endswith((".csv", ".csv.gz")):
        return _catalog_from_rows(path, _rows(path, CATALOG_COLUMNS))
    try:
        return msgspec.json.decode(path.read_bytes(), type=Catalog)
    except OSError as error:
        raise InvalidRequest(f"{path}: {error.strerror}") from error
    except (msgspec.DecodeError, ValueError) as error:
        raise InvalidRequest(f"{path}: {error}") from error


def with_prices(catalog: Catalog, prices_usd_per_hour: Mapping[str, float]) -> Catalog:
    """Add the types that the catalog does not know, at a profile's own prices."""
    known = {entry.instance_type for entry in catalog.entries}
    added = [_plain_entry(name, price) for name, price in sorted(prices_usd_per_hour.items()) if name not in known]
    return msgspec.structs.replace(catalog, entries=(*catalog.entries, *added))


def _plain_entry(instance_type: str, price_usd_per_hour: float) -> CatalogEntry:
    return CatalogEntry(
        instance_type=instance_type,
        category="general",
        vcpu=1,
        memory_gib=1.0,
        arch="x86_64",
        price_usd_per_hour=price_usd_per_hour,
        spot_saving=DEFAULT_SPOT_SAVING,
        interruption_band=DEFAULT_BAND,
    )


def _catalog_from_rows(path: Path, rows: Iterable[tuple[int, dict[str, str]]]) -> Catalog:
    shipped = load_catalog()
    known = {entry.instance_type: entry for entry in shipped.entries}
    entries: dict[str, CatalogEntry] = {}
    for line, row in rows:
        entry = _entry(path, line, row, known.get(row["instance_type"]))
        if entry.instance_type in entries:
            raise InvalidRequest(f"{path}, line {line}: a second row of {entry.instance_type}")
        entries[entry.instance_type] = entry
    return msgspec.structs.replace(shipped, prices_on="", prices_source=str(path), entries=tuple(entries.values()))


def _entry(path: Path, line: int, row: Mapping[str, str], known: CatalogEntry | None) -> CatalogEntry:
    if not row.get("price_usd_per_hour"):
        raise InvalidRequest(f"{path}, line {line}: {row['instance_type']} has no price")

    def of(name: str, fallback: float) -> float:
        return _number(path, line, row, name) if row.get(name) else fallback

    try:
        return CatalogEntry(
            instance_type=row["instance_type"].strip(),
            category=row.get("category") or (known.category if known else "general"),
            vcpu=int(of("vcpu", known.vcpu if known else 1)),
            memory_gib=of("memory_gib", known.memory_gib if known else 1.0),
            arch=row.get("arch") or (known.arch if known else "x86_64"),
            price_usd_per_hour=_number(path, line, row, "price_usd_per_hour"),
            spot_saving=of("spot_saving", known.spot_saving if known else DEFAULT_SPOT_SAVING),
            interruption_band=row.get("interruption_band") or (known.interruption_band if known else DEFAULT_BAND),
        )
    except ValueError as error:
        raise InvalidRequest(f"{path}, line {line}: {error}") from error


# --- tables ---------------------------------------------------------------------------------------------------------


def _rows(path: Path, needed: tuple[str, ...]) -> list[tuple[int, dict[str, str]]]:
    """Rows of a table with their lines; cells are stripped."""
    with open_text(path) as file:
        reader = csv.DictReader(file, restval="")
        header = [name.strip() for name in reader.fieldnames or ()]
        if not header:
            raise InvalidRequest(f"{path}: empty, not even a header")
        missing = [name for name in needed if name not in header]
        if missing:
            raise InvalidRequest(f"{path}: needs columns {','.join(needed)}, lacks {','.join(missing)}")
        reader.fieldnames = header
        rows = [
            (line, {name: (cell or "").strip() for name, cell in row.items() if isinstance(name, str) and not isinstance(cell, list)})
            for line, row in enumerate(reader, start=2)
        ]
    if not rows:
        raise InvalidRequest(f"{path}: empty, there is no row below the header")
    return rows


def _number(path: Path, line: int, row: Mapping[str, str], column: str) -> float:
    try:
        value = float(row[column])
    except (KeyError, ValueError):
        raise InvalidRequest(f"{path}, line {line}: {column} is no number: {row.get(column, '')!r}") from None
    if not 0 <= value < math.inf or (value == 0 and column in ("batch_size", PRICE_COLUMN, *LATENCY_COLUMNS)):
        raise InvalidRequest(f"{path}, line {line}: {column} must be positive and finite, got {row[column]}")
    return value
