"""`markserve forecast`: tables, files, exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from cli import forecast
from cli.main import app
from markserve.adapters.memory import MemoryControlStore, MemoryModelStore
from tests.builders import MODEL, a_forecast_record, a_model_record


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


def run(*arguments: str) -> Result:
    result = CliRunner().invoke(app, ["forecast", *arguments])
    assert "Traceback" not in result.output
    return result


@pytest.fixture
def trace(tmp_path: Path) -> str:
    path = tmp_path / "t.csv"
    rng = np.random.default_rng(4)
    lines = [f"{60 * minute},{count}" for minute, count in enumerate(rng.poisson(600, 240))]
    path.write_text("t_s,count\n" + "\n".join(lines) + "\n")
    return str(path)


@pytest.mark.parametrize("command", ["backtest", "show"])
def test_help_gives_an_example(command: str) -> None:
    assert "Example:" in run(command, "--help").stdout


def test_backtest_prints_a_table_and_writes_figures_and_a_plot(trace: str, tmp_path: Path) -> None:
    result = run("backtest", "--trace", trace, "--out", str(tmp_path / "o"))

    assert result.exit_code == 0, result.output
    assert "120 origins" in result.stdout
    assert "persistence" in result.stdout
    assert "a row covers 60 s" in result.stdout
    judged = json.loads((tmp_path / "o/backtest.json").read_text())
    assert {one["ahead"] for one in judged} == {"launch", "1", "3", "10", "60"}
    assert (tmp_path / "o/backtest.png").read_bytes().startswith(b"\x89PNG")


def test_backtest_answers_programs(trace: str) -> None:
    judged = json.loads(run("backtest", "--trace", trace, "--forecasters", "linear,champion,persistence", "--json").stdout)

    assert {one["forecaster"] for one in judged} == {"champion", "persistence"}  # four hours teach no regression
    assert all(0 <= share <= 1 for one in judged for share in one["coverage"].values())


def test_backtest_refuses_what_it_does_not_know(trace: str, tmp_path: Path) -> None:
    unknown = run("backtest", "--trace", trace, "--forecasters", "lucky")
    absent = run("backtest", "--trace", str(tmp_path / "no.csv"))

    assert (unknown.exit_code, absent.exit_code) == (2, 2)
    assert "there is no forecaster 'lucky'" in unknown.output
    assert "No such file" in absent.output


def test_show_forecasts_from_a_time_of_the_trace(trace: str, tmp_path: Path) -> None:
    record = json.loads(run("show", "--trace", trace, "--at", "7200", "--json").stdout)
    shown = run("show", "--trace", trace, "--at", "7200", "--out", str(tmp_path))

    assert record["origin_at_s"] == 7200
    assert len(record["rates_rps"]["0.99"]) == 60
    assert 8 < record["rates_rps"]["0.5"][0] < 12
    assert "10 min" in shown.stdout
    assert (tmp_path / "forecast.png").stat().st_size < 150_000


def test_show_refuses_a_time_before_the_trace(trace: str) -> None:
    result = run("show", "--trace", trace, "--at", "0")

    assert result.exit_code == 2, result.output


def test_show_reads_the_live_stack(monkeypatch: pytest.MonkeyPatch) -> None:
    models, control = MemoryModelStore(), MemoryControlStore()
    monkeypatch.setattr(forecast, "connect_to_stack", lambda: None)
    monkeypatch.setattr("markserve.wiring.models", lambda: models)
    monkeypatch.setattr("markserve.wiring.control", lambda: control)
    assert run("show").exit_code == 2
    models.put(a_model_record())

    missing = run("show")
    control.put_forecast(a_forecast_record(rates_rps={str(q): (4.0, 5.0) for q in (0.5, 0.8, 0.9, 0.95, 0.98, 0.99)}, reason="cheapest"))
    found = run("show", MODEL)

    assert "there is no forecast of digits yet" in missing.output
    assert "persistence: cheapest" in found.stdout
