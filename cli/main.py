"""The `markserve` command."""

from __future__ import annotations

import importlib.metadata
import signal
import threading
from typing import Annotated

import typer

from cli import (
    catalog,
    chaos,
    characterize,
    clients,
    console_page,
    control,
    cost,
    destroy,
    dlq,
    doctor,
    experiments,
    explain,
    forecast,
    logs,
    models,
    plan,
    report,
    requests,
    serve,
    simulate,
    status,
    system,
)
from cli.console import EXIT_CODES

app = typer.Typer(
    name="markserve",
    help="Serve models within a latency objective at the least cost. Works on the local system (`markserve up`), or on the "
    "stack that MARKSERVE_STACK_NAME names.",
    epilog="Exit codes: " + "; ".join(f"{code} {meaning.split(':')[0]}" for code, meaning in EXIT_CODES.items()),
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)

for name, command, example in (
    ("up", system.up, "markserve up --rt-max 1.5"),
    ("down", system.down, "markserve down"),
    ("status", status.status, "markserve status    |    markserve status digits --json"),
    ("demo", system.demo, "markserve demo --rate 8 --seconds 120"),
    ("console", console_page.console, "markserve console --open"),
    ("report", report.report, "markserve report    |    markserve report runs/day --out day.html"),
    (
        "infer",
        requests.infer,
        "markserve infer digits photo.png    |    echo '[[[[0, ...]]]]' | markserve infer digits -",
    ),
    ("load", requests.load, "markserve load digits --rate 10 --seconds 30    |    markserve load digits --trace day.csv.gz --scale 0.1"),
    (
        "serve",
        serve.serve,
        "markserve serve lstm.pt --input x:FP32:-1,32 --rt-max 0.2    |    markserve serve models/a models/b",
    ),
    ("profile", models.profile, "markserve profile digits --instance-type c5.large"),
    (
        "characterize",
        characterize.characterize,
        "markserve characterize digits --measure c5.large,m7i.large    |    markserve characterize --profile mine.json --plot mine.png",
    ),
    (
        "simulate",
        simulate.simulate,
        "markserve simulate --trace day.csv.gz --profile simulator/examples/squeezenet.json --policy mark,static --out runs/day",
    ),
    (
        "experiments",
        experiments.experiments,
        "markserve experiments all --quick --out runs/try    |    markserve experiments macro --trace day.csv.gz --out runs/paper --resume",
    ),
    ("chaos", chaos.chaos, "markserve chaos list    |    markserve chaos worker-killed spot-all    |    markserve chaos all --json"),
    ("destroy", destroy.destroy, "markserve destroy --dry-run    |    markserve destroy --stack markserve-dev"),
    ("plan", plan.plan, "markserve plan --dry-run"),
    ("explain", explain.explain, "markserve explain    |    markserve explain --at 10m    |    markserve explain --request 5f0c..."),
    ("cost", cost.cost, "markserve cost --since 1h"),
    (
        "logs",
        logs.logs,
        "markserve logs --function plan --since 1h    |    markserve logs --request 5f0c...",
    ),
    ("doctor", doctor.doctor, "markserve doctor --json"),
):
    app.command(name, epilog=f"Example: `{example}`")(command)
app.add_typer(models.app, name="models")
app.add_typer(control.app, name="params")
app.add_typer(catalog.app, name="catalog")
app.add_typer(forecast.app, name="forecast")
app.add_typer(clients.app, name="clients")
app.add_typer(dlq.app, name="dlq")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"markserve {importlib.metadata.version('markserve')}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")] = False,
) -> None:
    """Take the options that stand before a command."""
    del version
    if threading.current_thread() is threading.main_thread():
        # What ends a command from outside (a time limit, a CI job's end) is to leave nothing running either.
        signal.signal(signal.SIGTERM, signal.default_int_handler)


if __name__ == "__main__":
    app()
