"""`markserve catalog show|refresh`: what can be bought, at what price, and what AWS says today."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from cli.console import BAD_USAGE, Problem, emit_json, emit_table, err, explained, out
from cli.system import Json
from markserve.catalog import Catalog, load_catalog, render_catalog
from markserve.catalog_refresh import Changes, LeftOut, Market, build_catalog, changes, without_spot
from markserve.core.catalog import CATEGORIES
from markserve.errors import ConfigurationError, CredentialsRefused, DependencyUnavailable, PermissionDenied, Throttled

if TYPE_CHECKING:
    from markserve.adapters.pricing import AwsPriceList
    from markserve.adapters.pricing_ec2 import Ec2Market

app = typer.Typer(help="Show the catalog of instance types and prices, and renew it from AWS.", no_args_is_help=True)

ARCHITECTURES = ("x86_64", "arm64")
INSTANCE_TYPE = re.compile(r"[a-z][a-z0-9-]*\.[a-z0-9-]+")
CONNECT_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 60.0
"""A page of a hundred price documents is half a megabyte, and is made on request."""
NAMED = 12
"""More types than this are counted, not named; --json has them all."""
PERMISSIONS = "pricing:GetProducts, ec2:DescribeInstanceTypes and ec2:DescribeSpotPriceHistory"


@app.command("show", epilog="Example: `markserve catalog show --category gpu`    |    `markserve catalog show --arch arm64 --json`")
@explained()
def show(
    category: Annotated[str | None, typer.Option(help=f"One of {', '.join(CATEGORIES)}.")] = None,
    arch: Annotated[str | None, typer.Option(help=f"One of {', '.join(ARCHITECTURES)}.")] = None,
    json: Json = False,
) -> None:
    """Show the instance types that this version knows, with their prices, source and date."""
    _check_one_of("category", category, CATEGORIES)
    _check_one_of("architecture", arch, ARCHITECTURES)
    catalog = load_catalog()
    entries = tuple(e for e in catalog.entries if category in (None, e.category) and arch in (None, e.arch))
    if json:
        emit_json(msgspec.structs.replace(catalog, entries=entries))
        return
    emit_table(
        f"{len(entries)} of {len(catalog.entries)} instance types in {catalog.region} ({catalog.operating_system})",
        ("type", "vCPU", "GiB", "arch", "GPU", "on\ndemand\n$/h", "typical\nspot\n$/h", "inter-\nrupted\nmonthly"),  # fits 80 columns
        [
            (
                e.instance_type,
                e.vcpu,
                f"{e.memory_gib:g}",
                e.arch,
                f"{e.gpu_count} x {e.gpu}" if e.gpu else None,
                f"{e.price_usd_per_hour:.4f}",
                f"{e.typical_spot_usd_per_hour:.4f}",
                e.interruption_band,
            )
            for e in entries
        ],
    )
    out.print(f"on demand, {catalog.prices_on}: {catalog.prices_source}", highlight=False, soft_wrap=True)
    out.print(f"spot, {catalog.spot_on}: {catalog.spot_source}", highlight=False, soft_wrap=True)


def _check_one_of(what: str, value: str | None, known: Sequence[str]) -> None:
    if value is not None and value not in known:
        raise Problem(f"there is no {what} {value!r}", next_step=f"known: {', '.join(known)}", code=BAD_USAGE)


@app.command(
    "refresh",
    epilog="Example: `markserve catalog refresh --out catalog.json`    |    `markserve catalog refresh --types c7g.large,g6.xlarge`",
)
@explained()
def refresh(
    region: Annotated[str, typer.Option(help="Whose prices to ask for.")] = "us-east-1",
    types: Annotated[str | None, typer.Option(help="TYPE[,TYPE...]; default: those of the shipped catalog.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Every type that the region offers and that fits a category.")] = False,
    out_file: Annotated[Path | None, typer.Option("--out", help="File to write; without it, only what changed is shown.")] = None,
    json: Json = False,
) -> None:
    """Ask AWS for today's instance types and prices, and show what changed.

    Needs AWS credentials that allow pricing:GetProducts, ec2:DescribeInstanceTypes and ec2:DescribeSpotPriceHistory; costs
    nothing. Use the file with `markserve simulate --catalog FILE`.
    """
    shipped = load_catalog()
    wanted = _wanted(types, shipped, every=every)
    if out_file is not None and (out_file.is_dir() or not out_file.parent.is_dir()):
        wrong = f"{out_file} is a folder" if out_file.is_dir() else f"there is no folder {out_file.parent}"
        raise Problem(wrong, next_step="give the name of a file to write", code=BAD_USAGE)
    with _aws_explained():
        market = _ask(region, wanted)
    catalog, left_out = build_catalog(shipped, market, wanted)
    if not catalog.entries:
        reasons = "; ".join(sorted({left.reason for left in left_out})) or f"AWS names none in {region}"
        raise Problem(f"no instance type is left: {reasons}", next_step="check --types and --region", code=BAD_USAGE)
    changed = changes(shipped, catalog, left_out)
    if out_file is not None:
        _write(out_file, render_catalog(catalog))
    if json:
        written_to = None if out_file is None else str(out_file)
        emit_json({"catalog": catalog, "changes": changed, "left_out": left_out, "written_to": written_to})
        return
    _show_changes(catalog, changed)
    _show_gaps(left_out, without_spot(catalog, market))
    if region != shipped.region:
        out.print(f"interruption bands are those of {shipped.region}: no API has them", highlight=False)
    done = "nothing written: give --out FILE" if out_file is None else f"{len(catalog.entries)} types written to {out_file}"
    out.print(done, markup=False, highlight=False, soft_wrap=True)


def _wanted(types: str | None, shipped: Catalog, *, every: bool) -> tuple[str, ...] | None:
    """Return the types to ask for; None for all."""
    if types is None:
        return None if every else tuple(entry.instance_type for entry in shipped.entries)
    if every:
        raise Problem("--types and --all exclude each other", next_step="give one of them", code=BAD_USAGE)
    names = tuple(dict.fromkeys(name.strip() for name in types.split(",") if name.strip()))
    wrong = [name for name in names if not INSTANCE_TYPE.fullmatch(name)]
    if wrong or not names:
        said = ", ".join(repr(name) for name in wrong or [types])
        raise Problem(f"{said}: not an instance type", next_step="give names such as c7g.large,g6.xlarge", code=BAD_USAGE)
    return names


# --- asking AWS -----------------------------------------------------------------------------------------------------


def _ask(region: str, wanted: Sequence[str] | None) -> Market:
    price_list, ec2 = _adapters(region)
    now_s = time.time()
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True) as progress:
        task = progress.add_task("")

        def telling(what: str) -> Callable[[int], None]:
            progress.update(task, description=f"{what}: asking")
            return lambda done: progress.update(task, description=f"{what}: {done:,} read")

        specs = ec2.specs(wanted, tell=telling(f"instance types of {region}"))
        spot = ec2.spot_usd_per_hour(wanted, now_s=now_s, tell=telling(f"spot prices of {region}"))
        listed = price_list.on_demand(region, tell=telling(f"price list of {region}"))
    return Market(
        region=region,
        asked_on=datetime.fromtimestamp(now_s, tz=UTC).date().isoformat(),
        published_on=listed.published_on,
        specs=specs,
        on_demand_usd_per_hour=listed.usd_per_hour,
        spot_usd_per_hour=spot,
    )


def _adapters(region: str) -> tuple[AwsPriceList, Ec2Market]:
    """Build what asks AWS. The SDK's own variables choose profile, credentials and endpoints."""
    import boto3  # boto3 takes a moment to import: not for --help
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError

    from markserve.adapters.pricing import SERVED_FROM, AwsPriceList
    from markserve.adapters.pricing_ec2 import Ec2Market

    try:
        session = boto3.Session()
        _check_one_of("region", region, sorted(session.get_available_regions("ec2")))
        credentials = session.get_credentials()
        if credentials is None:
            raise CredentialsRefused("there are no AWS credentials")
        credentials.get_frozen_credentials()  # fetches what a profile, role or login promises
    except BotoCoreError as error:
        raise CredentialsRefused(f"there are no usable AWS credentials: {' '.join(str(error).split())}") from error
    config = Config(retries={"mode": "standard"}, connect_timeout=CONNECT_TIMEOUT_S, read_timeout=READ_TIMEOUT_S)
    return (
        AwsPriceList(session.client("pricing", region_name=SERVED_FROM, config=config)),
        Ec2Market(session.client("ec2", region_name=region, config=config)),
    )


@contextmanager
def _aws_explained() -> Iterator[None]:
    """Give each failure the next step that mends it."""
    try:
        yield
    except CredentialsRefused as error:
        step = "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or log in again; a new region must be enabled"
        raise Problem(str(error), next_step=step) from error
    except PermissionDenied as error:
        raise Problem(str(error), next_step=f"have your IAM policy allow {PERMISSIONS}") from error
    except Throttled as error:
        raise Problem(str(error), next_step="wait a minute, or set AWS_MAX_ATTEMPTS=10") from error
    except DependencyUnavailable as error:
        raise Problem(str(error), next_step="check the network, proxy and AWS_ENDPOINT_URL variables, then try again") from error
    except ConfigurationError as error:
        raise Problem(str(error), next_step="check --region and --types") from error


def _write(path: Path, text: str) -> None:
    beside = path.with_name(f"{path.name}.part")
    try:
        beside.write_text(text, encoding="utf-8")
        os.replace(beside, path)  # whole or not at all
    except OSError as error:
        with suppress(OSError):
            beside.unlink()
        raise Problem(f"{path}: {error.strerror}", next_step="give another --out", code=BAD_USAGE) from error


# --- telling what changed -------------------------------------------------------------------------------------------


def _show_changes(catalog: Catalog, changed: Changes) -> None:
    rows = [(c.instance_type, "on demand", f"${c.before:g}/h", f"${c.after:g}/h", f"{c.after / c.before - 1:+.1%}") for c in changed.prices]
    rows += [
        (c.instance_type, "spot saving", f"{c.before:.0%}", f"{c.after:.0%}", f"{(c.after - c.before) * 100:+.0f} points")
        for c in changed.spot_savings
    ]
    title = f"{len(catalog.entries)} types in {catalog.region}, {catalog.prices_on}, against the shipped catalog"
    emit_table(title, ("type", "what", "shipped", "now", "change"), rows)
    for what, names in (("new", changed.new), ("gone", changed.gone), ("other specifications", changed.specs)):
        if names:
            out.print(f"{what}: {_names(names)}", markup=False, highlight=False, soft_wrap=True)


def _show_gaps(left_out: Sequence[LeftOut], no_spot: Sequence[str]) -> None:
    for reason in sorted({left.reason for left in left_out}):
        names = [left.instance_type for left in left_out if left.reason == reason]
        out.print(f"left out, {reason}: {_names(names)}", markup=False, highlight=False, soft_wrap=True)
    if no_spot:
        out.print(f"no spot capacity now, saving set to 0: {_names(no_spot)}", markup=False, highlight=False, soft_wrap=True)


def _names(names: Sequence[str]) -> str:
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")
