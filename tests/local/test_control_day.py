"""A short day of control cycles with mishaps, on generated load and on a recorded trace where there is one."""

from __future__ import annotations

import json
from typing import Any

import pytest

from benchmarks.control_day import TRACE, main


def day(capsys: pytest.CaptureFixture[str], *options: str) -> dict[str, Any]:
    status = main([*options, "--json"])
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert (status, report["violations"]) == (0, [])
    return report


def test_short_day_counts_each_window_once_and_leaks_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    report = day(capsys, "--generated", "--cycles", "20", "--seed", "3")

    assert (report["cycles"], report["plans"] >= 20, report["launched"] > 0) == (20, True, True)
    assert report["reports_repeated"] > 0


@pytest.mark.skipif(not TRACE.exists(), reason="the developers' traces are not here")
def test_short_recorded_day_serves_the_load_that_was_recorded(capsys: pytest.CaptureFixture[str]) -> None:
    report = day(capsys, "--cycles", "15", "--calm")

    assert report["load"].startswith("twitter")
    assert report["served_by_workers"][-1] > 0.9


def test_command_refuses_what_makes_no_day(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--cycles", "1"])

    assert stopped.value.code == 2
    assert "at least 10" in capsys.readouterr().err
