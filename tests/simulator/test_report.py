"""The report of simulated runs: its figures are those of the files, and the page needs nothing but itself."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from cli.main import app
from markserve.errors import InvalidRequest
from simulator.registry import policies
from simulator.report import charts_time, charts_total, requests, series, style
from simulator.report.figures import notable_steps
from simulator.report.reading import find_runs, read_run
from simulator.report.write import write_report
from simulator.simulation import simulate
from tests.simulator.rig import a_scenario

NAMES = ("mark", "static")
VOID = {"meta", "br", "hr", "img", "link", "input"}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight minutes of two rates in turn, replayed under two policies; a second one lacks capacity at the change."""
    folder = tmp_path_factory.mktemp("day")
    scenario = a_scenario(folder, rows=[(float(t), 60.0 + 240 * (t // 240 % 2)) for t in range(480)])
    for policy in policies(NAMES, scenario, forecaster_name="best"):
        simulate(scenario, policy, folder / "run" / policy.name)
    summaries = [json.loads((folder / "run" / name / "summary.json").read_text()) for name in NAMES]
    (folder / "run/comparison.json").write_text(json.dumps(summaries))
    return folder / "run"


@pytest.fixture(scope="module")
def written(recorded: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Any]:
    """Its report, with pictures."""
    return write_report([recorded], out=tmp_path_factory.mktemp("report"))


@pytest.fixture
def run(recorded: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    return Path(shutil.copytree(recorded, tmp_path / "run"))


def report(*arguments: object) -> Result:
    result = CliRunner().invoke(app, ["report", *map(str, arguments)], env={"COLUMNS": "200"})
    assert "Traceback" not in result.output
    return result


class Page(HTMLParser):
    """Checks that tags are closed in order, and collects tables and what is referred to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.rows: list[list[str]] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "action", "data", "srcset")]
        self.ids += [value or "" for name, value in attrs if name == "id"]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data

    def row(self, name: str) -> list[str]:
        return next(row[1:] for row in self.rows if row[0] == name)


def latencies(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    table = pq.read_table(folder / "requests.parquet")
    arrival_s = table["arrival_s"].to_numpy()
    return arrival_s, np.array(table["finished_at_s"].to_numpy(), dtype=float) - arrival_s


def test_figures_on_the_page_are_those_of_the_files(recorded: Path, written: Mapping[str, Any]) -> None:
    page = Page(Path(written["page"]).read_text())

    assert page.rows[0][1:] == list(NAMES)
    for column, name in enumerate(NAMES):
        _, latency_s = latencies(recorded / name)
        with (recorded / name / "instances.csv").open() as file:
            instances_usd = sum(float(row["cost_usd"]) for row in csv.DictReader(file))
        attainment = np.count_nonzero(latency_s <= 0.2) / latency_s.size
        assert page.row("attainment")[column] == f"{int(attainment * 1e5) / 1e3:.3f} %"
        assert page.row("on demand, $")[column] == f"{instances_usd:,.2f}"
        assert float(page.row("latency p98, ms")[column]) == pytest.approx(1000 * np.nanquantile(latency_s, 0.98), rel=0.02)
        assert written["policies"][column]["slo_attainment"] == pytest.approx(attainment)
        assert written["policies"][column]["recomputed"] == {"instances": True, "attainment": True}
    assert "agree with the summaries" in page.text


def test_page_stands_alone(written: Mapping[str, Any]) -> None:
    text = Path(written["page"]).read_text()
    page = Page(text)

    assert not re.search(r"https?://|//\w+\.\w|@import|url\((?!#)", text)
    assert [link for link in page.links if not link.startswith("#")] == []
    assert {link[1:] for link in page.links} <= set(page.ids)
    assert set(re.findall(r"url\(#(\w+)\)", text)) <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    assert text.count("<svg") == 2 * text.count("<section") >= 12
    assert "prefers-color-scheme:dark" in text
    assert not [colour for colour in style.NAMES if f'style="fill: {colour}' in text or f"stroke: {colour}" in text]
    assert len(text) < 2_000_000


def test_pictures_are_valid_and_show_something(written: Mapping[str, Any]) -> None:
    assert set(written["png"]) >= {"load", "cost", "cost-over-time", "latency", "attainment", "latency-over-time"}
    for path in written["png"].values():
        with Image.open(path) as picture:
            picture.load()
            assert picture.format == "PNG"
            colours = picture.convert("RGB").getcolors(picture.width * picture.height) or []
        white = next(number for number, colour in colours if colour == (255, 255, 255))
        assert len(colours) > 50
        assert white < 0.99 * picture.width * picture.height


def test_counts_are_exact_and_do_not_depend_on_the_size_of_pieces(recorded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = recorded / "mark/requests.parquet"
    arrival_s, latency_s = latencies(recorded / "mark")
    at_once = requests.read_requests(path, simulated_s=480.0, rt_max_s=0.2, requests=arrival_s.size)
    monkeypatch.setattr(requests, "ROWS_AT_ONCE", 777)
    in_pieces = requests.read_requests(path, simulated_s=480.0, rt_max_s=0.2, requests=arrival_s.size)

    assert (at_once.latency_over_time == in_pieces.latency_over_time).all()
    assert (at_once.minute_attainment == in_pieces.minute_attainment).all()
    minute = (arrival_s // 60).astype(int)
    assert at_once.minute_attainment == pytest.approx([(latency_s <= 0.2)[minute == m].mean() for m in range(8)])
    assert at_once.bin_s == 5.0
    assert (at_once.arrived == np.bincount((arrival_s // 5).astype(int), minlength=96)).all()
    assert at_once.peak_rps == pytest.approx(at_once.arrived / 5)
    for index in (3, 50):
        mine = latency_s[(arrival_s // 5).astype(int) == index]
        assert at_once.quantile_over_time_s(0.98)[index] == pytest.approx(np.nanquantile(mine, 0.98, method="inverted_cdf"), rel=0.025)
    within_s, share = at_once.distribution()
    for limit_s in (0.08, 0.15):
        upto = share[np.searchsorted(within_s, limit_s * 1.001, side="right") - 1]
        assert upto == pytest.approx(np.count_nonzero(latency_s <= limit_s) / latency_s.size, abs=0.01)
    assert share[-1] == pytest.approx(1 - at_once.unanswered / latency_s.size)


def test_money_over_time_adds_up_to_the_bill_and_capacity_to_what_served(recorded: Path) -> None:
    for name in NAMES:
        run = read_run(name, recorded / name)
        hours = run.bin_s / 3600
        spent = {tier: float(usd.sum()) * hours for tier, usd in series.usd_per_hour(run).items()}
        served = 0.0
        for i in run.instances:
            assert i.drain_at_s is not None
            if i.serving_at_s is not None:
                served += run.summary.capacity_rps[i.instance_type] * (i.drain_at_s - i.serving_at_s)

        # An instance may end in the middle of its first, wholly billed minute at the very end of the run.
        assert spent == pytest.approx(series.tier_costs_usd(run), rel=0.02)
        assert sum(series.tier_costs_usd(run).values()) == pytest.approx(run.summary.cost_usd["total"])
        capacity = series.capacity_rps(run)
        assert capacity is not None
        assert capacity.sum() * run.bin_s == pytest.approx(served)


def test_spot_and_unknown_columns_are_read(run: Path, tmp_path: Path) -> None:
    path = run / "mark/instances.csv"
    rows = list(csv.DictReader(path.read_text().splitlines()))
    for row in rows:
        row |= {"capacity_type": "spot", "end_reason": "interrupted", "note": "new"}
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)

    page = Page(Path(write_report([run], out=tmp_path / "out", png=False)["page"]).read_text())

    assert page.row("on demand, $")[0] == "0.00"
    assert page.row("spot, $")[0] == f"{sum(float(row['cost_usd']) for row in rows):.2f}"
    assert sum(int(row[-1]) for row in page.rows if row[:1] == ["mark"] and "spot" in row) == len(rows)


def test_without_requests_the_rest_is_reported(run: Path, tmp_path: Path) -> None:
    for name in NAMES:
        (run / name / "requests.parquet").unlink()

    made = write_report([run], out=tmp_path / "out")
    page = Page(Path(made["page"]).read_text())

    assert {"load", "cost"} <= set(made["png"])
    assert "latency" not in made["png"]
    assert "requests were not recorded: mark, static" in page.text


def test_a_sample_of_requests_is_scaled_up_to_the_load(run: Path) -> None:
    path = run / "mark/requests.parquet"
    table = pq.read_table(path)
    pq.write_table(table.take(list(range(0, table.num_rows, 4))), path)

    whole = read_run("mark", run / "mark")

    assert whole.requests is not None
    assert whole.requests.arrived.sum() == pytest.approx(table.num_rows)
    assert "attainment" not in write_report([run], png=False)["policies"][0]["recomputed"]


def test_a_figure_that_does_not_follow_from_the_files_is_named(run: Path) -> None:
    path = run / "static/summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"slo_attainment": 0.5}))

    page = Page(Path(write_report([run], png=False)["page"]).read_text())

    assert "do not follow from the recorded files: attainment of static" in page.text
    assert "mark is the cheapest that meets the objective" in page.text or "mark meets" in page.text


def test_decisions_are_shown_with_their_reasons_and_nothing_in_them_is_markup(run: Path) -> None:
    path = run / "mark/control.csv"
    rows = list(csv.DictReader(path.read_text().splitlines()))
    rows[-1]["reason"] = "<script>alert(1)</script> & more"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)

    shown = notable_steps(read_run("mark", run / "mark"))
    text = Path(write_report([run], png=False)["page"]).read_text()

    assert shown[0][0] == "first"
    assert shown[-1][1].reason == rows[-1]["reason"]
    assert any("instance" in why for why, _ in shown)
    assert "<script" not in text
    assert rows[-1]["reason"] in Page(text).text


def test_runs_are_found_named_and_ordered(run: Path, tmp_path: Path) -> None:
    other = shutil.copytree(run, tmp_path / "other")
    (run / "comparison.json").write_text(json.dumps([{"policy": "static"}, {"policy": "mark"}]))

    assert [label for label, _ in find_runs([run])] == ["static", "mark"]
    assert [label for label, _ in find_runs([run / "mark"])] == ["mark"]
    assert [label for label, _ in find_runs([run, other])] == ["run/static", "run/mark", "other/mark", "other/static"]
    assert [label for label, _ in find_runs([run / "mark", run])] == ["mark", "static"]
    with pytest.raises(InvalidRequest, match="is no run"):
        find_runs([tmp_path])


def test_command_writes_where_it_is_told(run: Path, tmp_path: Path) -> None:
    told = report(run, "--out", tmp_path / "p/day.html", "--json")
    written = json.loads(told.stdout)

    assert told.exit_code == 0
    assert written["page"] == str(tmp_path / "p/day.html")
    assert [one["policy"] for one in written["policies"]] == list(NAMES)
    assert all(Path(path).is_file() and Path(path).parent == tmp_path / "p" for path in written["png"].values())

    beside = report(run / "mark", "--no-png")
    assert beside.exit_code == 0
    assert (run / "mark/report.html").is_file()
    assert not list(run.glob("**/*.png"))


def test_bad_input_gets_one_line(run: Path, tmp_path: Path) -> None:
    def fails(folder: Path, message: str) -> None:
        result = report(folder, "--no-png")
        assert result.exit_code == 2, result.output
        assert message in result.stderr
        assert result.stderr.count("error:") == 1

    empty = tmp_path / "empty"
    empty.mkdir()
    fails(tmp_path / "nowhere", "there is no such folder")
    fails(empty, "is no run: it has neither summary.json")
    mark = run / "mark"
    (mark / "requests.parquet").write_bytes(b"PAR1 no")
    fails(mark, "is not readable as Parquet")
    shutil.copy(mark / "batches.parquet", mark / "requests.parquet")
    fails(mark, "has no column arrival_s")
    (mark / "requests.parquet").unlink()
    (mark / "control.csv").write_text("a,b\n1,2\n")
    fails(mark, "is no list of control steps")
    (mark / "instances.csv").unlink()
    fails(mark, "cannot be read")
    (mark / "summary.json").write_text("{}")
    fails(mark, "simulate again")


def test_charts_take_values_measured_on_anything(tmp_path: Path) -> None:
    times_s = np.arange(0.0, 600.0, 5.0)
    latency = {"with standbys": {"p50": (times_s, np.full(120, 0.1)), "p98": (times_s, np.where(times_s > 300, 3.0, 0.15))}}
    figures = {
        "event": charts_time.latency_over_time(latency, rt_max_s=0.2, from_s=200.0, until_s=500.0, events_s=[300.0]),
        "bars": charts_total.cost_bars({"a": {"spot": 1.0}, "b": {"spot": 0.0}}, tier_colours={"spot": style.SPOT}),
        "cdf": charts_total.latency_cdf({"a": (np.array([0.1, 0.2]), np.array([0.5, 0.9]))}, rt_max_s=[0.15], sl_min=0.98),
        "batches": charts_total.batch_sizes({"a": np.array([0, 3, 0, 2])}),
    }

    for name, figure in figures.items():
        style.save_png(figure, tmp_path / f"{name}.png")
        Page(style.as_svg(figure, name=name, title=name))
        assert (tmp_path / f"{name}.png").stat().st_size > 5_000


def test_a_policy_has_one_colour_everywhere_and_no_two_share_one() -> None:
    usual = style.colours(style.USUAL)
    mixed = style.colours(["other/mark", "reactive", "mark"])

    assert len(set(usual.values())) == len(style.USUAL)
    assert mixed["mark"] == usual["mark"]
    assert mixed["reactive"] == usual["reactive"]
    assert len(set(mixed.values())) == 3
    assert len(style.colours([str(number) for number in range(25)])) == 25
