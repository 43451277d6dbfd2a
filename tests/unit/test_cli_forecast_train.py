from __future__ import annotations

import gzip
import json
from math import pi, sin
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from cli.forecast_train import read_history, train
from markserve.adapters.lstm import LstmForecaster
from markserve.errors import InvalidRequest

app = typer.Typer(pretty_exceptions_enable=False)
app.command()(train)


def a_trace(path: Path, minutes: int) -> Path:
    with gzip.open(path, "wt") as file:
        file.write("t_s,count\n")
        for t in range(0, 60 * minutes, 5):
            file.write(f"{t},{round(100 * (1 + 0.5 * sin(2 * pi * t / 7200)))}\n")
    return path


def test_training_on_a_trace_reports_losses_and_writes_weights_that_forecast(tmp_path: Path) -> None:
    trace, weights = a_trace(tmp_path / "t.csv.gz", 400), tmp_path / "w.safetensors"

    result = CliRunner().invoke(app, ["--trace", str(trace), "--epochs", "1", "--out", str(weights), "--json"])

    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert (report["steps"], report["missing_steps"], report["trained_steps"]) == (400, 0, 280)
    assert set(report["losses_rps"]) == {"as shipped", "refined"}
    assert set(report["losses_rps"]["refined"]) == {"1 min", "3 min", "10 min", "60 min", "all"}
    forecasts = LstmForecaster().forecast(weights.read_bytes(), [20.0] * 90, origins=[90], horizon_steps=60)
    assert len(forecasts[90][0.5]) == 60


def test_training_on_a_trace_prints_a_table(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["--trace", str(a_trace(tmp_path / "t.csv.gz", 300)), "--epochs", "1"])

    assert result.exit_code == 0, result.output
    assert "as shipped" in result.stdout
    assert "60 min" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give either --trace or --model"),
        (["--trace", "x.csv", "--model", "digits"], "give either --trace or --model"),
        (["--trace", "nowhere.csv"], "nowhere.csv: No such file or directory"),
    ],
)
def test_training_ends_with_one_line_when_it_is_told_nonsense(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(app, arguments)

    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.output


def test_training_ends_with_one_line_when_the_trace_is_short(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["--trace", str(a_trace(tmp_path / "t.csv.gz", 20))])

    assert result.exit_code == 2
    assert "20 minutes; training on 70% of them needs 120" in result.stderr


def test_training_ends_with_one_line_when_the_weights_cannot_be_written(tmp_path: Path) -> None:
    trace = a_trace(tmp_path / "t.csv.gz", 300)

    result = CliRunner().invoke(app, ["--trace", str(trace), "--epochs", "1", "--out", str(tmp_path / "no" / "w.safetensors")])

    assert result.exit_code == 2
    assert "cannot write" in result.stderr


def test_trace_of_requests_becomes_minutes(tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_text("arrival_s\n" + "".join(f"{t / 10}\n" for t in range(1200)))

    assert read_history(tmp_path / "r.csv") == [10.0, 10.0]


def test_trace_with_missing_rows_has_missing_minutes(tmp_path: Path) -> None:
    rows = [t for t in range(300) if not 60 <= t < 100]
    (tmp_path / "c.csv").write_text("t_s,count\n" + "".join(f"{t},2\n" for t in rows))

    assert read_history(tmp_path / "c.csv") == [2.0, None, 2.0, 2.0, 2.0]


def test_trace_of_hours_is_refused(tmp_path: Path) -> None:
    (tmp_path / "h.csv").write_text("t_s,count\n0,5\n3600,6\n")

    with pytest.raises(InvalidRequest, match="covers 3600 s; forecasting needs 60 s"):
        read_history(tmp_path / "h.csv")
