"""How commands speak: results on stdout, everything else on stderr, one clear line for what went wrong."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, NoReturn

import msgspec
import typer
from botocore.exceptions import BotoCoreError, ClientError
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from markserve.errors import ConfigurationError, InvalidRequest, MarkserveError

out = Console()
err = Console(stderr=True)

FAILED, BAD_USAGE, NOT_RUNNING, INTERRUPTED = 1, 2, 3, 130

EXIT_CODES = {
    0: "done",
    FAILED: "not done, or a promise was broken: a request unanswered, an objective missed, a check failed; standard error says which",
    BAD_USAGE: "bad input: an option, a value, or a name of something that does not exist; nothing was changed",
    NOT_RUNNING: "there is nothing to work on: no local system runs, or there is no stack of that name",
    INTERRUPTED: "interrupted, from the keyboard or by SIGTERM",
}
"""What every command ends with."""


class Problem(Exception):  # not always an error of ours: nothing may be running
    """What a command could not do, and what to do next."""

    def __init__(self, message: str, *, next_step: str = "", code: int = FAILED) -> None:
        super().__init__(message)
        self.next_step = next_step
        self.code = code


@contextmanager
def explained() -> Iterator[None]:
    """Turn failures into one line, a next step and an exit code: 2 for what the caller got wrong, 3 where nothing runs, 1 for the rest."""
    try:
        yield
    except Problem as problem:
        _end(str(problem), problem.next_step, problem.code)
    except InvalidRequest as error:
        _end(str(error), "see --help", BAD_USAGE)
    except ConfigurationError as error:
        _end(str(error), "set the variables, or start a local system with `markserve up`", FAILED)
    except MarkserveError as error:
        _end(str(error), "try again; `markserve status` shows the state of the system", FAILED)
    except (BotoCoreError, ClientError) as error:
        _end(f"AWS did not do it: {error}", "`markserve status` shows whether the system runs", FAILED)
    except KeyboardInterrupt:
        _end("interrupted", "", INTERRUPTED)


def _end(message: str, next_step: str, code: int) -> NoReturn:
    err.print(f"error: {message}", style="red", markup=False, highlight=False, soft_wrap=True)
    if next_step:
        err.print(f"next:  {next_step}", markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(code)


@contextmanager
def working(text: str) -> Iterator[None]:
    """Show on a terminal's standard error that something takes a moment, and for how long it has."""
    with Progress(SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=err, transient=True) as bar:
        bar.add_task(text)
        yield


def when(at_s: float) -> str:
    """Write an instant for people, in their own time zone.

    >>> len(when(0.0))
    19
    """
    return datetime.fromtimestamp(at_s).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def emit_json(value: Any) -> None:
    """Print a value as JSON, for programs."""
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n")


def emit_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print rows for people; says so when there are none."""
    table = Table(title=title, title_justify="left", title_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*("-" if cell is None else str(cell) for cell in row))
    out.print(table)
    if not rows:
        out.print("  none")
