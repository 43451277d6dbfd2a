"""`markserve clients ...`: API keys and their quotas, for a stack with ApiAuth=api-key."""

from __future__ import annotations

import hashlib
import secrets
import time
from typing import Annotated

import typer

from cli.console import BAD_USAGE, Problem, emit_json, emit_table, explained, out
from cli.system import Json
from cli.target import connect_to_stack
from markserve.messages import ClientRecord

app = typer.Typer(help="Give out, list and withdraw API keys (ApiAuth=api-key).", no_args_is_help=True)

NAME_MAX_CHARACTERS = 64
KEY_BYTES = 32


@app.command("add", epilog="Example: `markserve clients add web-shop --per-minute 600`")
@explained()
def add(
    client: Annotated[str, typer.Argument(help="Name of the client.")],
    per_minute: Annotated[int, typer.Option(min=0, max=1_000_000, help="Requests a minute.")] = 600,
    operator: Annotated[
        bool, typer.Option("--operator", help="The key also opens the console: it may see everything and set parameters.")
    ] = False,
    json: Json = False,
) -> None:
    """Make a key. It is shown once: only its digest is stored."""
    if not client.replace("-", "").replace("_", "").isalnum() or len(client) > NAME_MAX_CHARACTERS:
        step = f"use letters, digits, - and _, at most {NAME_MAX_CHARACTERS}"
        raise Problem(f"{client!r} is no name for a client", next_step=step, code=BAD_USAGE)
    connect_to_stack()
    from markserve import wiring

    key = secrets.token_urlsafe(KEY_BYTES)
    digest = hashlib.sha256(key.encode()).hexdigest()
    record = ClientRecord(client=client, key_sha256=digest, requests_per_minute=per_minute, created_at_s=time.time(), operator=operator)
    if not wiring.clients().put(record):
        step = f"withdraw its key with `markserve clients remove {client}` first"
        raise Problem(f"there is a client {client!r} already", next_step=step, code=BAD_USAGE)
    if json:
        emit_json({"client": client, "key": key, "requests_per_minute": per_minute, "operator": operator})
        return
    out.print(
        f"{client}: {per_minute} requests a minute; send this key as x-api-key, it is not shown again", highlight=False, soft_wrap=True
    )
    out.print(key, markup=False, highlight=False, soft_wrap=True)


@app.command("list", epilog="Example: `markserve clients list --json`")
@explained()
def list_clients(json: Json = False) -> None:
    """List the clients and their quotas."""
    connect_to_stack()
    from markserve import wiring

    records = wiring.clients().list()
    if json:
        emit_json([{"client": r.client, "requests_per_minute": r.requests_per_minute, "operator": r.operator} for r in records])
        return
    rows = [(r.client, r.requests_per_minute, "yes" if r.operator else "no") for r in records]
    emit_table("Clients", ("client", "requests a minute", "operator"), rows)


@app.command("remove", epilog="Example: `markserve clients remove web-shop`")
@explained()
def remove(client: Annotated[str, typer.Argument(help="Name of the client.")], json: Json = False) -> None:
    """Withdraw a client's key, at once."""
    connect_to_stack()
    from markserve import wiring

    if not wiring.clients().remove(client):
        raise Problem(f"there is no client {client!r}", next_step="`markserve clients list` shows them", code=BAD_USAGE)
    if json:
        emit_json({"removed": client})
    else:
        out.print(f"the key of {client} is withdrawn", highlight=False)
