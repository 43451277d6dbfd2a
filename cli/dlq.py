"""`markserve dlq ...`: requests that were given up."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.console import BAD_USAGE, Problem, emit_json, emit_table, explained, out, when, working
from cli.system import Json
from cli.target import connect_to_stack

if TYPE_CHECKING:
    from mypy_boto3_sqs import SQSClient

    from cli.dead_letters import DeadLetter

app = typer.Typer(help="Look at requests that were given up, send them again, or delete them.", no_args_is_help=True)

RequestId = Annotated[str, typer.Argument(help="Id of a request, as `markserve dlq list` shows it.")]


@app.command("list", epilog="Example: `markserve dlq list --json`")
@explained()
def list_letters(json: Json = False) -> None:
    """List the requests that were given up, and why."""
    with _held() as held:
        _print_list(held.letters, as_json=json)


@app.command("show", epilog="Example: `markserve dlq show 5f0c...`")
@explained()
def show(request_id: RequestId, json: Json = False) -> None:
    """Show one request: why it was given up, when it came, what it asks."""
    with _held() as held:
        (letter,) = _chosen(held.letters, request_id)
        facts = _facts(letter)
        if json:
            emit_json({**facts, "body": letter.body})
            return
        emit_table("Request", ("what", "value"), [(name, value) for name, value in facts.items()])
        out.print(letter.body[:2000], markup=False, highlight=False, soft_wrap=True)


@app.command("redrive", epilog="Example: `markserve dlq redrive --all`")
@explained()
def redrive(
    request_id: Annotated[str | None, typer.Argument(help="Id of one request.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every request that is worth it.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would be considered, and change nothing.")] = False,
    json: Json = False,
) -> None:
    """Send requests to their queue again where somebody still waits; safe to repeat, nobody is answered twice."""
    if (request_id is None) != everything:
        raise Problem("say which request", next_step="give its id, or --all", code=BAD_USAGE)
    with _held() as held:
        chosen = held.letters if request_id is None else _chosen(held.letters, request_id)
        if dry_run:
            _print_list(chosen, as_json=json)
            return
        from cli import dead_letters
        from markserve import wiring

        with working(f"sending {len(chosen)} again"):
            done = dead_letters.redrive(held.sqs, held.queue_url, chosen, models=wiring.models(), results=wiring.results(), now_s=time.time)
        if json:
            emit_json(done)
            return
        emit_table("Redriven", ("request", "sent", "why"), [(one.request_id, "yes" if one.sent else "no", one.why) for one in done])


@app.command("purge", epilog="Example: `markserve dlq purge --yes`")
@explained()
def purge(
    request_id: Annotated[str | None, typer.Argument(help="Id of one request; default: all of them.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    json: Json = False,
) -> None:
    """Delete requests for good. Whoever waits for one gets no other answer than the one that may be stored."""
    with _held() as held:
        chosen = held.letters if request_id is None else _chosen(held.letters, request_id)
        if chosen and not yes and not typer.confirm(f"Delete {len(chosen)} requests for good?", default=False, err=True):
            raise Problem("nothing was deleted", next_step="look with `markserve dlq list`", code=BAD_USAGE)
        from cli import dead_letters

        dead_letters.delete(held.sqs, held.queue_url, chosen)
        if json:
            emit_json({"deleted": [letter.request_id for letter in chosen]})
        else:
            out.print(f"deleted {len(chosen)}", highlight=False)


@dataclass(frozen=True, kw_only=True)
class Held:
    """The queue's messages, held back from other readers while they are looked at."""

    sqs: SQSClient
    queue_url: str
    letters: list[DeadLetter]


@contextmanager
def _held() -> Iterator[Held]:
    """Read the connected stack's queue, and let go of its messages afterwards."""
    import boto3

    from cli import dead_letters
    from markserve import wiring

    connect_to_stack()
    sqs, queue_url = boto3.client("sqs"), wiring.settings().dead_letter_queue_url
    if not queue_url:
        raise Problem("the dead-letter queue is not known", next_step="set MARKSERVE_DEAD_LETTER_QUEUE_URL, an output of the stack")
    with working("reading the dead-letter queue"):
        letters = dead_letters.read(sqs, queue_url)
    try:
        yield Held(sqs=sqs, queue_url=queue_url, letters=letters)
    finally:
        # One that was deleted meanwhile is refused by itself; the others of its batch are let go of.
        dead_letters.release(sqs, queue_url, letters)


def _print_list(letters: list[DeadLetter], *, as_json: bool) -> None:
    if as_json:
        emit_json([_facts(letter) for letter in letters])
        return
    rows = [(_model(letter), letter.request_id, when(letter.sent_at_s), letter.reason) for letter in letters]
    emit_table("Given up", ("model", "request", "since", "why"), rows)


def _chosen(letters: list[DeadLetter], request_id: str) -> list[DeadLetter]:
    found = [letter for letter in letters if letter.request_id == request_id]
    if not found:
        raise Problem(f"there is no request {request_id} in the queue", next_step="`markserve dlq list` shows them", code=BAD_USAGE)
    return found[:1]


def _model(letter: DeadLetter) -> str:
    return letter.request.model if letter.request else "unreadable"


def _facts(letter: DeadLetter) -> dict[str, Any]:
    request = letter.request
    return {
        "request_id": letter.request_id,
        "model": _model(letter),
        "reason": letter.reason,
        "given_up_at_s": letter.sent_at_s,
        "arrival_at_s": request.arrival_at_s if request else None,
        "deadline_at_s": request.deadline_at_s if request else None,
        "asynchronous": request is not None and request.deadline_at_s is None,
        "inputs": [f"{t.name} {t.datatype} {list(t.shape)}" for t in request.inputs] if request else [],
    }
