"""The paper's evaluation: cells run once and resume, what is varied is what changes, and files say what was found."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from typer.testing import CliRunner

from cli.main import app
from markserve.core.types import CapacityType, Forecast
from simulator.experiments import tables
from simulator.experiments.cells import Cell, Outcome
from simulator.experiments.experiment import EXAMPLES, RT_MAX_S, Setup
from simulator.experiments.registry import EXPERIMENTS, experiments_named
from simulator.experiments.runner import event_counts, read_outcomes, run_cell, run_cells
from simulator.experiments.variations import AS_IS, Variation, mistaken, varied
from simulator.experiments.workloads import MEAN_RPS, SURGE_FACTOR, constant, write_twitter_like
from simulator.experiments.write import write_results
from simulator.inputs import load_profile
from simulator.policies import View, misled
from simulator.registry import POLICIES, policies
from simulator.request import Request, scenario_of
from simulator.run import LAMBDA

FEW_S = 300.0


def a_request(policy: str = "mark", **changes: Any) -> Request:
    asked = Request(
        trace=constant(60.0, FEW_S), profile=EXAMPLES / "squeezenet.json", rt_max_s=0.2, sl_min=0.98, policies=policy, spot=True
    )
    return replace(asked, **changes)


def a_cell(policy: str = "mark", **changes: Any) -> Cell:
    values: dict[str, Any] = {"experiment": "tried", "group": "g", "request": a_request(policy)}
    return Cell(**(values | changes))


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_cell_of_an_experiment_can_be_asked_for_and_has_a_file_of_its_own(tmp_path: Path, name: str) -> None:
    cells = EXPERIMENTS[name].cells(Setup(folder=tmp_path, span_s=120.0, is_quick=True))

    assert len({cell.file_name for cell in cells}) == len(cells) > 10
    assert {cell.policy for cell in cells} <= set(POLICIES)
    for cell in cells[:: max(1, len(cells) // 8)]:
        scenario = varied(scenario_of(cell.request), cell.variation)
        if cell.policy != "sagemaker":  # which searches
            assert next(iter(policies([cell.policy], scenario, forecaster_name="best"))).limits()


def test_macro_has_two_workloads_and_at_least_four_models_against_sagemaker(tmp_path: Path) -> None:
    cells = EXPERIMENTS["macro"].cells(Setup(folder=tmp_path, span_s=120.0))

    assert len({cell.group for cell in cells}) == 2 * len(RT_MAX_S) >= 8
    for group in {cell.group for cell in cells}:
        assert {"sagemaker", "mark-paper", "mark-on-demand", "mark"} <= {cell.policy for cell in cells if cell.group == group}


def test_recorded_load_is_replayed_over_the_span_from_its_start(tmp_path: Path) -> None:
    write_twitter_like(tmp_path / "day.csv", duration_s=900.0)

    asked = Setup(folder=tmp_path, trace=tmp_path / "day.csv", start_s=200.0, span_s=300.0, scale=2.0).recorded("dien", "mark")

    assert (asked.trace, asked.start_s, asked.end_s, asked.scale) == (str(tmp_path / "day.csv"), 200.0, 500.0, 2.0)


def test_generated_load_has_the_mean_and_the_surges_that_it_claims_and_the_same_for_the_same_seed(tmp_path: Path) -> None:
    path = write_twitter_like(tmp_path / "a.csv", duration_s=5 * 86400.0, seed=3)
    rates = np.array([float(row["count"]) for row in rows_of(path)])

    assert np.median(rates) == pytest.approx(MEAN_RPS, rel=0.4)
    assert SURGE_FACTOR * np.median(rates) / 2 < rates.max() < 40 * np.median(rates)
    assert path.read_bytes() == write_twitter_like(tmp_path / "b.csv", duration_s=5 * 86400.0, seed=3).read_bytes()


def test_cell_is_run_once_and_kept_on_resume_until_something_it_depends_on_changes(tmp_path: Path) -> None:
    told: list[str] = []
    cells = [a_cell(), a_cell(group="the same again")]

    first = run_cells(cells, tmp_path, tell=told.append)
    assert len([text for text in told if " done: " in text]) == 1
    assert [outcome.group for outcome in first] == ["g", "the same again"]
    assert first[0].summary == first[1].summary

    told.clear()
    assert run_cells(cells, tmp_path, resume=True, tell=told.append) == first == read_outcomes(cells, tmp_path)
    assert told == []

    changed = [a_cell(variation=Variation(instance_price=2.0))]
    assert read_outcomes(changed, tmp_path) == []
    run_cells(changed, tmp_path, resume=True, tell=told.append)
    assert [text for text in told if " done: " in text] == ["1 of 1 done: tried, g, mark"]


def test_half_written_result_is_run_again(tmp_path: Path) -> None:
    run_cells([a_cell()], tmp_path)
    [path] = (tmp_path / "cells").iterdir()
    path.write_bytes(path.read_bytes()[:100])

    assert read_outcomes([a_cell()], tmp_path) == []
    assert run_cells([a_cell()], tmp_path, resume=True)[0].summary is not None


def test_processes_side_by_side_give_the_same_results_as_one(tmp_path: Path) -> None:
    cells = [a_cell("mark"), a_cell("mark-paper")]

    one, two = run_cells(cells, tmp_path / "one"), run_cells(cells, tmp_path / "two", jobs=2)

    def plain(outcome: Outcome) -> Any:
        assert outcome.summary is not None
        return msgspec.structs.replace(outcome, summary=msgspec.structs.replace(outcome.summary, wall_s=0.0))

    assert [plain(outcome) for outcome in one] == [plain(outcome) for outcome in two]


def test_objective_that_cannot_be_met_is_a_result_that_says_why(tmp_path: Path) -> None:
    cell = a_cell(request=a_request(rt_max_s=0.02))

    [outcome] = run_cells([cell], tmp_path)

    assert outcome.summary is None
    assert "0.005 s more" in outcome.refused
    _, [row] = tables.table([outcome])
    assert row[2].startswith("cannot: no instance type can meet the objective")


def test_event_is_judged_by_the_requests_that_arrive_in_it(tmp_path: Path) -> None:
    surge = a_request("mark-paper", trace=constant(60.0, 900.0), surges=("120:4:60",))

    outcome = run_cell(a_cell(request=surge, event_at_s=120.0, records_latency=True), tmp_path, keep_files=True)

    [path] = tmp_path.glob("runs/*/requests.parquet")
    assert outcome.event_requests == event_counts(path, from_s=120.0, rt_max_s=0.2)[0]
    assert outcome.event_requests == pytest.approx(60 * 600 + 180 * 60, rel=0.03)
    assert outcome.summary is not None
    assert outcome.event_attainment is not None
    assert outcome.event_attainment < outcome.summary.slo_attainment
    assert max(outcome.latency_over_time["p98"].y[24:36]) > max(outcome.latency_over_time["p98"].y[:24])


def test_audit_files_are_gone_when_they_were_looked_at(tmp_path: Path) -> None:
    [outcome] = run_cells([a_cell(records_latency=True)], tmp_path)

    assert outcome.latency is not None
    assert outcome.latency.y[-1] == pytest.approx(1.0, abs=1e-3)
    assert [path.name for path in tmp_path.iterdir()] == ["cells"]


# --- variations -----------------------------------------------------------------------------------------------------


def test_instance_price_moves_instances_on_demand_and_on_spot_and_nothing_else() -> None:
    scenario = scenario_of(a_request())

    dear = varied(scenario, Variation(instance_price=2.0))

    assert [o.price_usd_per_hour for o in dear.offerings] == [2 * o.price_usd_per_hour for o in scenario.offerings]
    assert scenario.market is not None
    assert dear.market is not None
    assert [o.price_usd_per_hour for o in dear.market.pools] == [2 * o.price_usd_per_hour for o in scenario.market.pools]
    assert dear.profile == scenario.profile
    assert varied(scenario, AS_IS) == scenario


def test_lambda_price_moves_the_bill_of_the_same_invocations(tmp_path: Path) -> None:
    plain, dear = (run_cell(a_cell("all-lambda", variation=Variation(lambda_price=f)), tmp_path).summary for f in (1.0, 2.0))

    assert plain is not None
    assert dear is not None
    fees_usd = 0.2e-6 * plain.lambda_invocations
    assert dear.lambda_invocations == plain.lambda_invocations
    assert dear.cost_usd["lambda"] - fees_usd == pytest.approx(2 * (plain.cost_usd["lambda"] - fees_usd))


def test_mistaken_profile_is_planned_with_while_work_takes_its_true_time(tmp_path: Path) -> None:
    fast, true = (run_cell(a_cell("static", variation=Variation(planned_latency=f)), tmp_path).summary for f in (1 / 1.5, 1.0))

    assert fast is not None
    assert true is not None
    assert fast.capacity_rps["c5.large"] == pytest.approx(1.5 * true.capacity_rps["c5.large"])
    assert fast.lower_bound_usd / fast.answered == pytest.approx(true.lower_bound_usd / true.answered)
    assert fast.cost_usd["instances"] <= true.cost_usd["instances"]
    profile = load_profile(EXAMPLES / "squeezenet.json", model=None)
    assert mistaken(profile, 1.5).profiles[LAMBDA] == profile.profiles[LAMBDA]


def test_left_out_families_are_neither_offered_nor_profiled() -> None:
    scenario = varied(scenario_of(a_request(profile=EXAMPLES / "vgg-cifar10.json")), Variation(left_out=("g4dn", "c5")))

    assert scenario.market is not None
    families = {o.instance_type.split(".")[0] for o in (*scenario.offerings, *scenario.market.pools)}
    assert families == {name.split(".")[0] for name in scenario.profile.instance_types}
    assert not families & {"g4dn", "c5"}
    assert {o.capacity_type for o in scenario.market.pools} == {CapacityType.SPOT}


def test_misled_forecast_is_wrong_by_the_factor_in_every_quantile() -> None:
    true = Forecast(
        model="m", origin_at_s=0.0, step_s=60.0, rates_rps={0.5: (10.0, 20.0), 0.99: (30.0, 50.0)}, forecaster="drawn", reason=""
    )
    view = View(now_s=600.0, history_until_s=595.0, history=(), instances=(), launch_overhead_s=60.0, offerings=())

    def told(view: View) -> Forecast | None:
        return true if view.history_until_s > 0 else None

    wrong = misled(told, 0.5)(view)

    assert wrong is not None
    assert wrong.rates_rps == {0.5: (5.0, 10.0), 0.99: (15.0, 25.0)}
    assert misled(told, 0.5)(replace(view, history_until_s=0.0)) is None
    assert misled(told, 1.0) is told


def test_paper_policy_without_standbys_starts_none_when_spot_is_taken_back(tmp_path: Path) -> None:
    small = a_request(profile=EXAMPLES / "vgg-cifar10.json", trace=constant(1500.0, 420.0), interrupts=("180:1",))
    standbys = {}
    for policy in ("mark-paper", "mark-paper-no-standbys"):
        cell = a_cell(request=replace(small, policies=policy), variation=Variation(left_out=("g4dn", "c5", "c5a")))
        summary = run_cell(cell, tmp_path).summary
        assert summary is not None
        assert summary.interruptions > 1
        standbys[policy] = summary.cost_usd["standby_disks"]

    assert standbys["mark-paper"] > 0
    assert standbys["mark-paper-no-standbys"] == 0


# --- what is written ------------------------------------------------------------------------------------------------


def test_results_and_table_hold_the_figures_of_the_summaries(tmp_path: Path) -> None:
    cells = [a_cell(policy, value=value, group="prices") for value in ("1", "2") for policy in ("mark", "mark-paper")]
    outcomes = run_cells(cells, tmp_path)

    results = write_results(EXPERIMENTS["sensitivity"], outcomes, tmp_path, note="load: few", tell=lambda _: None)

    rows = rows_of(tmp_path / "results.csv")
    assert [float(row["compute_usd"]) for row in rows] == [o.summary.cost_usd["compute"] for o in outcomes if o.summary]
    assert json.loads((tmp_path / "results.json").read_text()) == results
    assert all(Path(path).read_bytes().startswith(b"\x89PNG") for path in results["pictures"])
    table = (tmp_path / "table.md").read_text()
    assert "| prices | 1 |" in table
    assert table.endswith("Load: few.\n")


def test_command_runs_an_experiment_resumes_it_and_prints_what_it_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = EXPERIMENTS["micro-surge"]
    monkeypatch.setitem(EXPERIMENTS, "micro-surge", replace(whole, cells=lambda setup: whole.cells(setup)[:3]))
    asked = ["experiments", "micro-surge", "--quick", "--out", str(tmp_path)]

    result = CliRunner().invoke(app, asked)

    assert result.exit_code == 0, result.output
    assert "squeezenet, +50 % for a minute" in result.stdout
    assert (tmp_path / "micro-surge/squeezenet-+50-for-a-minute-latency.png").is_file()
    again = CliRunner().invoke(app, [*asked, "--resume", "--json"])
    assert again.exit_code == 0, again.output
    [results] = json.loads(again.stdout)
    assert len(results["outcomes"]) == 3
    assert "done:" not in again.stderr
    assert all(o["event_attainment"] > 0.9 for o in results["outcomes"])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["nope"], "is none of all, macro"),
        (["macro", "--trace", "no-such.csv"], "no-such.csv: No such file"),
        (["sensitivity", "--scale", "-1"], "scale: must be positive"),
        (["micro-spot", "--spot-trace", "no-such.csv"], "no-such.csv: No such file"),
    ],
)
def test_bad_option_is_one_line_and_exit_2(tmp_path: Path, options: list[str], said: str) -> None:
    result = CliRunner().invoke(app, ["experiments", *options, "--quick", "--out", str(tmp_path)])

    assert result.exit_code == 2
    assert said in result.stderr
    assert "Traceback" not in result.stderr


def test_experiments_are_named_once_each() -> None:
    assert [one.name for one in experiments_named("all")] == list(EXPERIMENTS)
    assert [one.name for one in experiments_named("micro-spot, macro,micro-spot")] == ["micro-spot", "macro"]
