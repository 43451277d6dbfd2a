"""The `markserve` command."""

from __future__ import annotations

import typer

from cli import catalog, characterize, clients, control, destroy, experiments, forecast, models, report, requests, serve, simulate, system

app = typer.Typer(
    name="markserve",
    help="Serve models within a latency objective at the least cost. Works on the local system (`markserve up`), or on the "
    "stack that MARKSERVE_ variables name.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)

for name, command, example in (
    ("up", system.up, "markserve up --rt-max 1.5"),
    ("down", system.down, "markserve down"),
    ("status", system.status, "markserve status --json"),
    ("demo", system.demo, "markserve demo --rate 8 --seconds 120"),
    ("report", report.report, "markserve report    |    markserve report runs/day --out day.html"),
    ("infer", requests.infer, "markserve infer digits image.npy    |    echo '[[[[0, ...]]]]' | markserve infer digits -"),
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
        "markserve characterize digits    |    markserve characterize --profile mine.json --rt-max 0.3 --plot mine.png",
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
    ("destroy", destroy.destroy, "markserve destroy --dry-run    |    markserve destroy --stack markserve-dev"),
    ("explain", control.explain, "markserve explain    |    markserve explain --instance i-0abc"),
):
    app.command(name, epilog=f"Example: `{example}`")(command)
app.add_typer(models.app, name="models")
app.add_typer(control.app, name="params")
app.add_typer(catalog.app, name="catalog")
app.add_typer(forecast.app, name="forecast")
app.add_typer(clients.app, name="clients")


if __name__ == "__main__":
    app()
