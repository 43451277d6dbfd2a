"""The command's inputs: tables and JSON, every option's bad values, and memory that does not grow with the trace."""

from __future__ import annotations

import csv
import gzip
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from cli.main import app
from simulator.registry import policies
from simulator.simulation import simulate
from tests.simulator.rig import a_scenario, write_trace

ROOT = Path(__file__).resolve().parents[2]
SQUEEZENET = ROOT / "simulator/examples/squeezenet.json"
SHARED = ROOT.parent / "shared/data"
TABLE = (
    "model,instance_type,batch_size,n,p50_ms,p98_ms,p99_ms\n"
    "a,c5.large,1,9,20,24,25\na,c5.large,4,9,50,60,61\na,lambda,1,9,40,50,55\nb,c5.large,1,9,500,600,610\n"
)


def run(folder: Path, *more: str, trace: str | None = None, profile: Path | str = SQUEEZENET) -> Any:
    trace = trace or str(write_trace(folder / "trace.csv", [(float(t), 30.0) for t in range(180)]))
    return CliRunner().invoke(app, ["simulate", "--trace", trace, "--profile", str(profile), "--out", str(folder / "runs"), *more])


def written(folder: Path, name: str, text: str) -> str:
    (folder / name).write_text(text)
    return str(folder / name)


def test_everything_on_runs_and_names_its_settings(tmp_path: Path) -> None:
    result = run(tmp_path, "--policy", "mark,mark-paper,sagemaker", "--spot", "--interrupt", "60:0.5", "--launch-delay", "40:0.3")

    assert result.exit_code == 0, result.output
    plain = " ".join(result.stdout.split())
    assert "sagemaker: ml.c5." in plain
    assert "invocations per instance and minute, at least" in plain
    assert "lower bound (mark, mark-paper)" in plain
    assert "lower bound (sagemaker)" in plain


def test_table_of_profiles_is_read_by_model_with_its_lambda_rows(tmp_path: Path) -> None:
    table = written(tmp_path, "p.csv", TABLE)

    result = run(tmp_path, "--model", "a", "--json", profile=table)

    assert result.exit_code == 0, result.output
    [summary] = json.loads(result.stdout)
    assert summary["slo_attainment"] > 0.98
    assert summary["spill_share"] > 0 or summary["batches"] > 0


def test_catalog_as_a_table_sets_the_prices(tmp_path: Path) -> None:
    prices = written(tmp_path, "c.csv", "instance_type,price_usd_per_hour\nc5.large,1.5\nc5.xlarge,3.5\nc5.2xlarge,7.5\n")

    result = run(tmp_path, "--catalog", prices, "--policy", "static")

    assert result.exit_code == 0, result.output
    with (tmp_path / "runs/static/instances.csv").open() as file:
        assert {row["price_usd_per_hour"] for row in csv.DictReader(file)} <= {"1.5", "3.5", "7.5"}


@pytest.mark.skipif(not SHARED.is_dir(), reason="the recorded data are not here")
@pytest.mark.parametrize(("name", "model"), [("ribbon_ec2_latency.csv", "resnet"), ("kairos_ec2_latency.csv", "dien")])
def test_recorded_tables_and_prices_run(tmp_path: Path, name: str, model: str) -> None:
    prices = SHARED / "spot/aws_spot_price_us-east-1_2021-03_to_2021-05_linux.csv.gz"
    options = ["--model", model, "--spot-trace", str(prices), "--spot-trace", str(SHARED / "spot/skypilot_spot_traces.json")]

    result = run(tmp_path, *options, "--policy", "mark,mark-paper", "--json", profile=SHARED / "profiles" / name)

    assert result.exit_code == 0, result.output
    for summary in json.loads(result.stdout):
        assert summary["cost_usd"]["compute"] >= summary["lower_bound_usd"] > 0


def test_generated_workload_needs_no_file(tmp_path: Path) -> None:
    result = run(tmp_path, "--arrivals", "cv=2", "--json", trace="mmpp:20,100:60:300")

    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)[0]["requests"] > 3000


@pytest.mark.parametrize(("share", "low", "high"), [("0.1", 350, 750), ("0", None, None)])
def test_requests_are_sampled_only_if_asked(tmp_path: Path, share: str, low: int | None, high: int | None) -> None:
    assert run(tmp_path, "--policy", "static").exit_code == 0
    assert pq.read_table(tmp_path / "runs/static/requests.parquet").num_rows > 5000

    assert run(tmp_path, "--policy", "static", "--sample-requests", share).exit_code == 0

    path = tmp_path / "runs/static/requests.parquet"
    if low is None or high is None:
        assert not path.exists()
    else:
        assert low < pq.read_table(path).num_rows < high


# --- bad input ------------------------------------------------------------------------------------------------------


def refused(result: Any, message: str) -> None:
    assert result.exit_code == 2, result.output
    errors = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert message in errors[0]
    assert "Traceback" not in result.output + result.stderr


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty, not even a header"),
        ("t_s,count\n", "empty, there is no row below the header"),
        ("when,what\n1,2\n", "needs columns t_s,count or arrival_s"),
        ("t_s,count\n0,1\n2,1\n1,1\n", "line 4: times must rise, 1 comes after 2"),
        ("t_s,count\n-1,1\n0,1\n", "line 2: times and counts must be finite and not negative"),
        ("t_s,count\n0,1\n1,-2\n", "line 3: times and counts must be finite and not negative"),
        ("t_s,count\n0,1\nnan,1\n", "line 3: times and counts must be finite and not negative"),
        ("t_s,count\n0,nan\n1,1\n", "line 2: times and counts must be finite and not negative"),
        ("t_s,count\n0,1\n1\n", "line 3: not numbers"),
        ("arrival_s\n2\n1\n", "line 3: times must rise"),
        ("interarrival_us\n5\n-3\n", "line 3: times and counts must be finite and not negative"),
    ],
)
def test_bad_trace_is_one_clear_line(tmp_path: Path, text: str, message: str) -> None:
    refused(run(tmp_path, trace=written(tmp_path, "bad.csv", text)), message)


@pytest.mark.parametrize(
    ("name", "text", "more", "message"),
    [
        ("p.csv", TABLE, (), "holds 2 models, choose one with --model: a, b"),
        ("p.csv", TABLE, ("--model", "z"), "no model z, only a, b"),
        ("p.csv", TABLE, ("--model", "b"), "T(1) = 0.600 s"),
        ("p.csv", "", (), "empty, not even a header"),
        ("p.csv", "model,instance_type,batch_size,p50_ms\n", (), "empty, there is no row"),
        ("p.csv", "model,instance_type\na,b\n", (), "lacks batch_size"),
        ("p.csv", "instance_type,batch_size,p50_ms\nc5.large,1,nan\n", (), "line 2: p50_ms must be positive and finite"),
        ("p.csv", "instance_type,batch_size,p50_ms\nc5.large,1,fast\n", (), "line 2: p50_ms is no number"),
        ("p.csv", "instance_type,batch_size,p50_ms\nc5.large,1,\n", (), "line 2: no latency"),
        ("p.csv", "instance_type,batch_size,p50_ms\nc5.large,1,2\nc5.large,1,2\n", (), "line 3: a second row of c5.large"),
        ("p.csv", "instance_type,batch_size,p50_ms\nc9.huge,1,2\n", (), "c9.huge: not in the catalog, so its price is unknown"),
        ("p.csv", "instance_type,batch_size,p50_ms\nlambda,1,2\n", (), "no instance type has a profile"),
        ("p.json", "{}", (), "missing required field"),
        ("p.json", "\x00\x01", (), "p.json"),
    ],
)
def test_bad_profile_is_one_clear_line(tmp_path: Path, name: str, text: str, more: tuple[str, ...], message: str) -> None:
    refused(run(tmp_path, *more, profile=written(tmp_path, name, text)), message)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("c.csv", "instance_type,price_usd_per_hour\nc5.large,\n", "line 2: c5.large has no price"),
        ("c.csv", "instance_type,vcpu\nc5.large,2\n", "lacks price_usd_per_hour"),
        ("c.csv", "instance_type,price_usd_per_hour\nc5.large,0\n", "price_usd_per_hour must be positive"),
        ("c.csv", "instance_type,price_usd_per_hour\nc5.large,-1\n", "price_usd_per_hour must be positive"),
        ("c.csv", "instance_type,price_usd_per_hour\nc5.large,nan\n", "price_usd_per_hour must be positive"),
        ("c.csv", "instance_type,price_usd_per_hour\nm5.large,0.1\n", "c5.large: not in the catalog, so its price is unknown"),
        ("c.csv", "instance_type,price_usd_per_hour\n", "empty, there is no row"),
        ("c.json", "[]", "Expected `object`"),
    ],
)
def test_bad_catalog_is_one_clear_line(tmp_path: Path, name: str, text: str, message: str) -> None:
    refused(run(tmp_path, "--catalog", written(tmp_path, name, text)), message)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--policy", "magic"), "policy: magic is none of mark"),
        (("--policy", ","), "policy: nothing is none of mark"),
        (("--interrupt", "60:0.5"), "interrupt: nothing to interrupt without --spot"),
        (("--spot", "--interrupt", "60"), "is not AT:SHARE"),
        (("--spot", "--interrupt", "60:2"), "SHARE must lie above 0 and up to 1"),
        (("--launch-delay", "fast"), "launch-delay: 'fast' is not MEDIAN or MEDIAN:SIGMA"),
        (("--launch-delay", "-1:0.2"), "launch-delay"),
        (("--arrivals", "cv=x"), "arrivals: 'cv=x' is none of poisson"),
        (("--sagemaker-prices", "old"), "sagemaker-prices: 'old' is none of current, launch"),
        (("--spot-trace", "/nowhere.csv"), "/nowhere.csv: No such file"),
        (("--provisioned-concurrency", "21", "--lambda-concurrency", "20"), "21 is more than --lambda-concurrency 20 allows"),
        (("--model", "other"), "holds model squeezenet, not other"),
        (("--end", "nan"), "end: must be a number, got nan"),
        (("--scale", "nan"), "scale: must be positive, got nan"),
        (("--rt-max", "0.04", "--policy", "mark-paper"), "T(1) = 0.010 s on c5.2xlarge"),
        (("--rt-max", "0.04"), "T(1) = 0.010 s leaves nothing of the latency budget"),
    ],
)
def test_bad_option_is_one_clear_line(tmp_path: Path, more: tuple[str, ...], message: str) -> None:
    refused(run(tmp_path, *more), message)


@pytest.mark.parametrize("data", [b"\x1f\x8bnonsense", gzip.compress(b"t_s,count\n" + b"0,1\n" * 9, mtime=0)[:-9], b"t_s,count\n0,\xff\n"])
def test_trace_that_is_no_text_is_one_clear_line(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "bad.csv").write_bytes(data)
    refused(run(tmp_path, trace=str(tmp_path / "bad.csv")), "bad.csv: no CSV text")


def test_bad_generated_trace_is_one_clear_line(tmp_path: Path) -> None:
    refused(run(tmp_path, trace="mmpp:1:2:3"), "an MMPP needs two or more rates")


def test_sagemaker_that_cannot_meet_the_objective_says_by_how_much(tmp_path: Path) -> None:
    table = written(tmp_path, "p.csv", "instance_type,batch_size,p50_ms\nc5.large,1,500\n")
    refused(run(tmp_path, "--policy", "sagemaker", profile=table), "T(1) = 0.500 s on c5.large; the latency budget is 0.168 s")


# --- memory ---------------------------------------------------------------------------------------------------------


def peak_bytes(folder: Path, minutes: int) -> int:
    folder.mkdir()
    scenario = a_scenario(folder, rows=[(60.0 * m, 60 * 200.0) for m in range(minutes)])
    [built] = policies(["static"], scenario, forecaster_name="best")
    tracemalloc.start()
    simulate(scenario, built, folder / "out")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_memory_does_not_grow_with_the_length_of_the_trace(tmp_path: Path) -> None:
    peak_bytes(tmp_path / "warm-up", 5)  # compiled code and caches are there afterwards
    short, long = peak_bytes(tmp_path / "short", 90), peak_bytes(tmp_path / "long", 270)

    assert long < 1.2 * short  # three times the requests, and both fill more than one group of rows of every file
