"""Starts a system, plays the chosen scenarios on it, and reports."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from chaos.runner import Outcome, Runner
from chaos.scenario import Scenario
from chaos.stage import NotInTime, chaos_config
from local.supervisor import state_dir
from local.system import LocalSystem

BUDGET_S = 1200.0
"""All scenarios end within 20 minutes: what has not begun by then is reported as not run."""
LAST_START_S = 90.0
"""Before the end of the budget no scenario begins any more."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What became of a run of scenarios."""

    seed: int
    seconds: float
    outcomes: tuple[Outcome, ...]
    not_run: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether every scenario was played, and everything that must hold did."""
        return not self.not_run and all(outcome.passed for outcome in self.outcomes)


def work_dir() -> Path:
    """Return where the system under test logs."""
    return state_dir() / "chaos"


def run_scenarios(
    scenarios: Sequence[Scenario], *, seed: int, note: Callable[[str], None], budget_s: float = BUDGET_S, folder: Path | None = None
) -> Report:
    """Play scenarios on one fresh system, as many as end within the budget; the last one has its time reserved."""
    started_at_s = time.monotonic()
    outcomes: list[Outcome] = []
    skipped: list[str] = []
    with LocalSystem(config=chaos_config(folder or work_dir()), note=note) as system:
        runner = Runner(system=system, note=note, seed=seed)
        pending = list(scenarios)
        while pending:
            if time.monotonic() - started_at_s > budget_s - LAST_START_S:
                skipped += [each.name for each in pending if not each.last]
                pending = [each for each in pending if each.last]
            if not pending:
                break
            chosen = pending.pop(0)
            note(f"[{len(outcomes) + 1}/{len(scenarios)}] {chosen.name}: {chosen.summary}")
            try:
                outcomes.append(runner.play(chosen))
            except NotInTime as error:  # of the preparation: this scenario was not played
                note(f"    not played: {error}")
                skipped.append(chosen.name)
                continue
            note(f"    {verdict(outcomes[-1])}")
    return Report(seed=seed, seconds=time.monotonic() - started_at_s, outcomes=tuple(outcomes), not_run=tuple(skipped))


def verdict(outcome: Outcome) -> str:
    """Say in one line what a scenario did."""
    figures = (
        f"{outcome.requests} requests, {outcome.refused} refused, {outcome.lost} lost, {outcome.doubled} doubled, {outcome.wrong} wrong; "
        f"{outcome.attainment:.1%} in time; recovered in {outcome.recovery_s:.0f} s; took {outcome.seconds:.0f} s"
    )
    return f"{'ok' if outcome.passed else 'FAILED: ' + '; '.join(outcome.breaches[:3])} | {figures}"
