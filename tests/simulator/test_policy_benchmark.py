"""The policy benchmark: its ratios and marks follow from the summaries, its page keeps what others wrote, and it resumes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from benchmarks.policy import POLICIES, PROFILES, cells_of, main
from benchmarks.policy_tables import by_load, full_table, page_section, ratio, sagemaker_ratio, targets_table
from benchmarks.policy_traces import LOADS, Load
from benchmarks.results_page import PAGE, experiment_section, fill
from benchmarks.results_page import main as fill_in
from simulator.experiments.cells import Outcome
from simulator.summary import Summary
from tests.simulator.rig import write_trace

ROOT = Path(__file__).resolve().parents[2]


def a_summary(policy: str, *, compute_usd: float, attainment: float = 0.999, **overrides: Any) -> Summary:
    cost_usd = {"instances": compute_usd, "lambda": 0.0, "compute": compute_usd, "plumbing": 3.0, "total": compute_usd + 3.0}
    values: dict[str, Any] = {field.name: 0 for field in msgspec.structs.fields(Summary) if field.required} | {
        "policy": policy,
        "rt_max_s": 0.2,
        "sl_min": 0.98,
        "capacity_rps": {},
        "requests": 1_000_000,
        "answered": 1_000_000,
        "slo_attainment": attainment,
        "worst_minute_attainment": attainment,
        "worst_hour_attainment": attainment,
        "latency_s": {},
        "cost_usd": cost_usd,
        "plumbing_units": {},
        "plumbing_usd": {},
        "per_million_usd": cost_usd,
        "lower_bound": "",
        "cost_over_bound": compute_usd,
        "spill_share": 0.01,
        "simulated_s": 10_000.0,
        "missing_s": 0.0,
    }
    return Summary(**(values | overrides))


def outcomes_of(**runs: Summary) -> list[Outcome]:
    return [
        Outcome(
            experiment="policy", group="squeezenet", value="day", policy=name.replace("_", "-"), described={"event_at_s": None}, summary=run
        )
        for name, run in runs.items()
    ]


def row_of(outcomes: list[Outcome]) -> dict[str, str]:
    header, [row] = targets_table(by_load(outcomes, "squeezenet"))
    named = [name if header.count(name) == 1 else f"{header[at - 1]}, {name}" for at, name in enumerate(header)]
    return dict(zip(named, row, strict=True))


def test_ratios_are_costs_over_the_same_load_s_clairvoyant_and_sagemaker() -> None:
    mark, sagemaker = a_summary("mark", compute_usd=0.5), a_summary("sagemaker", compute_usd=4.0, cost_usd={"compute": 4.0, "total": 4.0})

    header, rows = full_table({"day": {"mark": mark, "sagemaker": sagemaker, "clairvoyant": a_summary("clairvoyant", compute_usd=0.4)}})

    found = dict(zip(header[:6], rows[0][:6], strict=True))
    assert found == {
        "load": "day",
        "policy": "mark",
        "cost / clairvoyant": "1.25",
        "cost / bound": "0.50",
        "SageMaker / ours, compute": "8.00",
        "all-in": "1.14",
    }
    assert rows[1][4:6] == ["–", "–"]
    assert ratio(mark, None, "compute") is None


def test_sagemaker_that_misses_the_objective_is_starred() -> None:
    mark, late = a_summary("mark", compute_usd=1.0), a_summary("sagemaker", compute_usd=8.0, attainment=0.97)

    assert sagemaker_ratio(mark, late, "compute") == "8.00*"


def test_missed_targets_are_bold_and_met_ones_are_not() -> None:
    met = row_of(
        outcomes_of(
            mark=a_summary("mark", compute_usd=0.5),
            mark_on_demand=a_summary("mark-on-demand", compute_usd=1.2, attainment=0.995),
            mark_paper=a_summary("mark-paper", compute_usd=0.6, attainment=0.99),
            sagemaker=a_summary("sagemaker", compute_usd=4.0),
            clairvoyant=a_summary("clairvoyant", compute_usd=1.0),
        )
    )
    assert not any("**" in cell for cell in met.values())
    assert met["mean, requests/s"] == "100"

    missed = row_of(
        outcomes_of(
            mark=a_summary("mark", compute_usd=0.7, attainment=0.994),
            mark_on_demand=a_summary("mark-on-demand", compute_usd=1.21, worst_hour_attainment=0.9799),
            mark_paper=a_summary("mark-paper", compute_usd=0.6, attainment=0.996),
            sagemaker=a_summary("sagemaker", compute_usd=4.0),
            clairvoyant=a_summary("clairvoyant", compute_usd=1.0),
        )
    )
    bold = {name for name, cell in missed.items() if "**" in cell}
    assert bold == {
        "mark-on-demand / clairvoyant",
        "mark-on-demand: attainment, worst hour",
        "SageMaker / mark, compute",
        "mark: attainment",
        "mark-paper / mark, compute",
        "mark-paper: attainment",
    }


def test_light_load_has_no_target_against_clairvoyant() -> None:
    rare = {"requests": 10_000}
    row = row_of(
        outcomes_of(
            mark_on_demand=a_summary("mark-on-demand", compute_usd=3.0, **rare),
            clairvoyant=a_summary("clairvoyant", compute_usd=1.0, **rare),
        )
    )

    assert row["mark-on-demand / clairvoyant"] == "3.00"


def test_what_cannot_be_simulated_is_named_below_the_tables() -> None:
    refused = Outcome(experiment="policy", group="squeezenet", value="day", policy="sagemaker", described={}, refused="too slow by 0.1 s")

    section = page_section([*outcomes_of(mark=a_summary("mark", compute_usd=1.0)), refused])

    assert "Cannot be simulated: sagemaker on day: too slow by 0.1 s." in section


def test_section_of_a_page_is_replaced_and_the_rest_kept(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- a:begin -->\nold\n<!-- a:end -->\nafter <!-- b:begin -->x<!-- b:end -->\n")

    fill(page, {"a": "new\n"})
    fill(page, {"a": "newer"})

    assert page.read_text() == "before\n<!-- a:begin -->\nnewer\n<!-- a:end -->\nafter <!-- b:begin -->x<!-- b:end -->\n"
    with pytest.raises(ValueError, match="c:begin"):
        fill(page, {"c": "text"})


def test_shipped_page_has_every_marker_that_is_filled_in(tmp_path: Path) -> None:
    page = tmp_path / "results.md"
    page.write_text((ROOT / PAGE).read_text())

    fill(page, dict.fromkeys(("policy", "macro", "micro-surge", "micro-spot", "sensitivity"), "text"))


def test_experiment_s_table_and_chosen_pictures_come_into_the_page(tmp_path: Path) -> None:
    folder, page = tmp_path / "runs/micro-spot", tmp_path / "docs/results.md"
    folder.mkdir(parents=True)
    page.parent.mkdir()
    page.write_text("<!-- micro-spot:begin --><!-- micro-spot:end -->")
    (folder / "table.md").write_text("| a |\n")
    for name in ("all-of-the-largest-pool-latency.png", "one-instance-of-the-largest-pool-latency.png"):
        (folder / name).write_bytes(b"png")

    assert "![all of the largest pool latency](img/micro-spot-all-of-the-largest-pool-latency.png)" in experiment_section(folder, page)
    assert [path.name for path in (page.parent / "img").iterdir()] == ["micro-spot-all-of-the-largest-pool-latency.png"]


def test_column_of_a_table_becomes_a_trace_and_a_missing_file_none(tmp_path: Path) -> None:
    (tmp_path / "traces").mkdir()
    (tmp_path / "traces/shapes.csv").write_text("calm,wild\n3.0,5.0\n4.0,50.0\n")

    trace = Load(name="wild", file="shapes.csv", column="wild").trace(tmp_path, tmp_path / "loads")

    assert trace is not None
    assert Path(trace).read_text().splitlines() == ["t_s,count", "0,5.0", "1,50.0"]
    assert Load(name="gone", file="gone.csv").trace(tmp_path, tmp_path) is None


def test_every_load_has_every_policy_on_every_profile_with_a_name_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "traces").mkdir()
    for load in LOADS:
        if load.file:
            (tmp_path / "traces" / load.file).write_text("diurnal,diurnal-2,noisy,bursty\n1,1,1,1\n")

    cells = cells_of(LOADS, PROFILES, POLICIES, data=tmp_path, out=tmp_path)

    assert len({cell.file_name for cell in cells}) == len(cells) == len(LOADS) * len(PROFILES) * len(POLICIES)


def test_benchmark_runs_resumes_and_writes_the_page_from_all_that_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "traces").mkdir()
    write_trace(tmp_path / "traces/wits_1s.csv.gz", [(float(t), 100.0) for t in range(240)])
    page = tmp_path / "docs/results.md"
    page.parent.mkdir()
    page.write_text("kept <!-- policy:begin --><!-- policy:end -->")
    asked = ["--data", str(tmp_path), "--out", str(tmp_path / "out"), "--page", str(page), "--only", "wits", "--profiles", "squeezenet"]

    assert main([*asked, "--policies", "mark-on-demand,clairvoyant"]) == 0
    assert "2 of 2 done" in capsys.readouterr().err
    assert main([*asked, "--policies", "mark-on-demand,static"]) == 0
    assert "1 of 1 done: policy, squeezenet, wits, static" in capsys.readouterr().err

    text = page.read_text()
    assert text.startswith("kept ")
    assert all(f"| wits | {policy} |" in text for policy in ("mark-on-demand", "clairvoyant", "static"))
    assert (page.parent / "img/policy-squeezenet-cost.png").read_bytes().startswith(b"\x89PNG")


def test_bad_choices_are_one_line_and_exit_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--only", "nope"]) == 2
    assert capsys.readouterr().err.startswith("error: --only: nope is none of twitter-may25")
    assert main(["--only", "wits", "--data", str(tmp_path), "--out", str(tmp_path)]) == 2
    assert "nothing to run" in capsys.readouterr().err


def test_page_of_experiments_that_have_not_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fill_in([str(tmp_path)]) == 2
    assert "no experiment has run" in capsys.readouterr().err
