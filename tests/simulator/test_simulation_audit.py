"""An outsider can recompute cost and attainment from the files alone."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from cli.main import app
from simulator.output import CONTROL_COLUMNS, INSTANCE_COLUMNS
from simulator.registry import POLICIES, policies
from simulator.simulation import simulate
from tests.simulator.rig import a_profile, a_scenario, points, write_trace

LAMBDA_USD_PER_GB_S, LAMBDA_USD_PER_REQUEST = 1.66667e-5, 0.20e-6


def replay(folder: Path, policy: str, **overrides: Any) -> dict[str, Any]:
    scenario = a_scenario(folder, **overrides)
    [built] = policies([policy], scenario, forecaster_name="best")
    simulate(scenario, built, folder / "out")
    loaded: dict[str, Any] = json.loads((folder / "out/summary.json").read_text())
    return loaded


def instances(folder: Path) -> list[dict[str, str]]:
    with (folder / "out/instances.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("policy", POLICIES)
def test_figures_can_be_recomputed_from_the_files(tmp_path: Path, policy: str) -> None:
    summary = replay(tmp_path, policy)
    requests = pq.read_table(tmp_path / "out/requests.parquet")
    batches = pq.read_table(tmp_path / "out/batches.parquet")

    latency_s = np.array(requests["finished_at_s"].to_numpy(), dtype=float) - requests["arrival_s"].to_numpy()
    tier = np.array(requests["tier"].to_pylist())
    assert requests.num_rows == summary["requests"] > 20_000
    assert np.count_nonzero(latency_s <= 0.2) / requests.num_rows == pytest.approx(summary["slo_attainment"], abs=1e-12)
    assert np.count_nonzero(tier == "lambda") / requests.num_rows == pytest.approx(summary["spill_share"], abs=1e-12)
    assert np.nanquantile(latency_s, 0.98) == pytest.approx(summary["latency_s"]["p98_s"], rel=0.01)
    by_minute = [(latency_s <= 0.2)[requests["arrival_s"].to_numpy() // 60 == minute].mean() for minute in range(8)]
    assert min(by_minute) == pytest.approx(summary["worst_minute_attainment"], abs=1e-12)

    instances_usd = 0.0
    for row in instances(tmp_path):
        billed_s = float(row["terminated_at_s"]) - float(row["requested_at_s"])
        cost_usd = float(row["price_usd_per_hour"]) / 3600 * max(60, math.ceil(billed_s))
        assert float(row["cost_usd"]) == pytest.approx(cost_usd)
        assert int(row["billed_s"]) == max(60, math.ceil(billed_s))
        instances_usd += cost_usd
    assert instances_usd == pytest.approx(summary["cost_usd"]["instances"])

    on_lambda = np.array(batches["tier"].to_pylist()) == "lambda"
    lambda_s = (batches["finished_at_s"].to_numpy() - batches["started_at_s"].to_numpy())[on_lambda]
    lambda_usd = np.ceil(lambda_s * 1000 - 1e-6).sum() / 1000 * 1769 / 1024 * LAMBDA_USD_PER_GB_S + lambda_s.size * LAMBDA_USD_PER_REQUEST
    assert lambda_s.size == summary["lambda_invocations"]
    # Warm-up pings are no batches; they are all that is missing.
    assert lambda_usd <= summary["cost_usd"]["lambda"] + 1e-12
    assert summary["cost_usd"]["lambda"] - lambda_usd <= 10 * 8 * (3.001 * 1769 / 1024 * LAMBDA_USD_PER_GB_S + LAMBDA_USD_PER_REQUEST)

    assert summary["cost_usd"]["total"] == pytest.approx(sum(summary["cost_usd"][part] for part in ("instances", "lambda", "plumbing")))
    assert summary["cost_usd"]["compute"] >= summary["lower_bound_usd"]


def test_every_request_is_finished_in_its_batch_and_batches_are_whole(tmp_path: Path) -> None:
    replay(tmp_path, "mark")
    requests = pq.read_table(tmp_path / "out/requests.parquet")
    batches = pq.read_table(tmp_path / "out/batches.parquet")

    ids = batches["batch_id"].to_numpy()
    assert (np.sort(ids) == np.arange(ids.size)).all()
    finished_s, size, tier = (np.array(batches[c].to_pylist())[np.argsort(ids)] for c in ("finished_at_s", "size", "tier"))
    batch_id, answered_s = requests["batch_id"].to_numpy(), requests["finished_at_s"].to_numpy()
    assert (np.array(requests["tier"].to_pylist()) == tier[batch_id]).all()
    assert (answered_s >= finished_s[batch_id] - 1e-9).all()
    reply_s = answered_s - finished_s[batch_id]
    assert (reply_s[tier[batch_id] == "lambda"] == 0).all()
    assert np.unique(reply_s[tier[batch_id] == "worker"]).size > 1000  # they vary, request by request
    assert 0.005 < np.median(reply_s[tier[batch_id] == "worker"]) < 0.02
    assert (np.bincount(batch_id, minlength=ids.size) <= size).all()
    assert (np.diff(requests["arrival_s"].to_numpy()) >= 0).all()


def test_files_have_the_columns_that_are_promised(tmp_path: Path) -> None:
    replay(tmp_path, "mark")

    assert list(instances(tmp_path)[0]) == INSTANCE_COLUMNS
    with (tmp_path / "out/control.csv").open() as file:
        steps = list(csv.DictReader(file))
    assert list(steps[0]) == CONTROL_COLUMNS
    assert [float(step["t_s"]) for step in steps if step["trigger"] == "schedule"] == [60.0 * minute for minute in range(8)]
    assert all(step["reason"] for step in steps)
    names = ["batch_id", "tier", "instance_id", "closed_at_s", "started_at_s", "finished_at_s", "size"]
    assert pq.read_schema(tmp_path / "out/batches.parquet").names == names
    assert pq.read_schema(tmp_path / "out/requests.parquet").names == ["arrival_s", "finished_at_s", "tier", "batch_id"]


def test_launches_serve_after_their_delay_and_are_billed_from_the_request(tmp_path: Path) -> None:
    rows = [(float(t), 20.0 if t < 120 else 200.0) for t in range(600)]
    replay(tmp_path, "reactive", rows=rows)

    late = [row for row in instances(tmp_path) if float(row["requested_at_s"]) > 0]
    assert late
    for row in late:
        if row["serving_at_s"]:
            assert 40 < float(row["serving_at_s"]) - float(row["requested_at_s"]) < 90  # median 60


def test_drained_instance_starts_no_batch_after_its_drain(tmp_path: Path) -> None:
    rows = [(float(t), 200.0 if t < 120 else 10.0) for t in range(1200)]
    replay(tmp_path, "mark", rows=rows)
    batches = pq.read_table(tmp_path / "out/batches.parquet")

    drained = {row["instance_id"]: row for row in instances(tmp_path) if row["end_reason"].startswith("drained")}
    assert drained
    for name, started_s, finished_s in zip(
        *(batches[c].to_pylist() for c in ("instance_id", "started_at_s", "finished_at_s")), strict=True
    ):
        if name in drained:
            assert started_s <= float(drained[name]["drain_at_s"])
            assert finished_s <= float(drained[name]["terminated_at_s"]) + 1e-9


def test_without_spill_over_nothing_is_on_lambda_and_what_is_late_is_refused(tmp_path: Path) -> None:
    profile = a_profile(profiles={"c5.large": points((1, 0.020, 0.024), (8, 0.070, 0.080))})
    rows = [(float(t), 20.0 if t < 60 else 400.0) for t in range(120)]
    summary = replay(tmp_path, "mark", profile=profile, rows=rows)

    assert summary["spill_share"] == summary["cost_usd"]["lambda"] == 0
    assert summary["answered"] < summary["requests"]


# --- the command ----------------------------------------------------------------------------------------------------


def run_command(folder: Path, *more: str, profile: str = "simulator/examples/squeezenet.json") -> Any:
    trace = write_trace(folder / "trace.csv", [(float(t), 30.0) for t in range(180)])
    root = Path(__file__).resolve().parents[2]
    arguments = ["simulate", "--trace", str(trace), "--profile", str(root / profile), "--out", str(folder / "runs"), *more]
    return CliRunner().invoke(app, arguments)


def test_command_compares_policies_as_json(tmp_path: Path) -> None:
    result = run_command(tmp_path, "--policy", "mark,all-lambda", "--json")

    assert result.exit_code == 0, result.output
    assert [s["policy"] for s in json.loads(result.stdout)] == ["mark", "all-lambda"]
    assert json.loads((tmp_path / "runs/comparison.json").read_text()) == json.loads(result.stdout)


def test_same_seed_gives_the_same_files(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
        assert run_command(folder, "--policy", "mark", "--seed", "7").exit_code == 0

    for name in ("requests.parquet", "batches.parquet", "instances.csv", "control.csv"):
        assert (first / "runs/mark" / name).read_bytes() == (second / "runs/mark" / name).read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--policy", "magic"], "policy: magic is none of mark"),
        (["--scale", "0"], "scale: must be positive"),
        (["--surge", "1:2"], "is not AT:FACTOR:FOR"),
        (["--start", "500"], "no row lies within"),
        (["--forecaster", "oracle"], "'oracle' is none of best"),
        (["--rt-max", "0.04"], "T(1) = 0.010 s leaves nothing of the latency budget"),
        (["--catalog", "/nowhere.json"], "/nowhere.json: No such file"),
        (["--trace", "/nowhere.csv"], "/nowhere.csv: No such file"),
    ],
)
def test_bad_input_is_one_clear_line_and_exit_code_two(tmp_path: Path, arguments: list[str], message: str) -> None:
    result = run_command(tmp_path, *arguments)

    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_type_without_a_price_is_refused(tmp_path: Path) -> None:
    profile = {
        "model": "m",
        "source": "",
        "max_batch_size": 1,
        "profiles": {"c9.huge": [{"batch_size": 1, "p50_s": 0.01, "p98_s": 0.01, "p99_s": 0.01, "samples": 1}]},
    }
    (tmp_path / "p.json").write_text(json.dumps(profile))

    result = run_command(tmp_path, profile=str(tmp_path / "p.json"))

    assert result.exit_code == 2
    assert "c9.huge: not in the catalog" in result.stderr
