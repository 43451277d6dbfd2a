"""What is measured of each server, in which order: markserve again between any two peers, because the machine's speed drifts."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.serving.bench import Bench, Result, ceiling
from benchmarks.serving.contestants import MARKSERVE, Contestant, Knobs
from benchmarks.serving.search import confirmed, highest_passing
from benchmarks.serving.server import CannotStart
from benchmarks.serving.venvs import CannotInstall, ensure
from benchmarks.serving.workload import Workload

LOW_RPS = 10.0
LEVELS = (0.2, 0.5, 0.8)
OVERLOAD = 1.5
SEEDS = {"search": 11, "confirm": 12, "level": 13, "low": 14, "overload": 15, "bursty": 16}
"""The same for every server: all get the same arrivals."""

Json = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How long to look; seconds exclude the warm-up of each run."""

    name: str
    search_s: float
    search_precision: float
    confirm_s: float
    level_s: float
    low_s: float
    overload_s: float
    bursty_s: float
    bursty_runs: int
    recheck_runs: int
    ceiling_repeats: int


FULL = Plan(
    name="full", search_s=4, search_precision=1.03, confirm_s=12, level_s=5, low_s=10, overload_s=7, bursty_s=10, bursty_runs=4,
    recheck_runs=6, ceiling_repeats=9,
)  # fmt: skip
QUICK = Plan(
    name="quick", search_s=2, search_precision=1.1, confirm_s=3, level_s=2, low_s=3, overload_s=3, bursty_s=5, bursty_runs=1,
    recheck_runs=0, ceiling_repeats=3,
)  # fmt: skip
TUNING = replace(QUICK, name="tuning")


class Campaign:
    """Measures contestants and keeps what is finished in a file, so that a second start goes on where the first ended."""

    def __init__(
        self, *, plan: Plan, workload: Workload, core: int, folder: Path, tuned_path: Path, say: Callable[[str], None], is_fresh: bool
    ) -> None:
        self.plan = plan
        self._workload = workload
        self._core = core
        self._folder = folder
        self._say = say
        self._tuned_path = tuned_path
        self.path = folder / f"results-{plan.name}.json"
        kept = not is_fresh and self.path.exists()
        self.results: Json = (
            json.loads(self.path.read_text(encoding="utf-8")) if kept else {"plan": asdict(plan), "contestants": {}, "rechecks": []}
        )

    def save(self) -> None:
        """Write the results whole or not at all."""
        draft = self.path.with_suffix(".tmp")
        draft.write_text(json.dumps(self.results, indent=1), encoding="utf-8")
        draft.replace(self.path)

    def knobs(self, contestant: Contestant) -> tuple[Knobs, Json | None]:
        """Return the tuned knobs, or the grid's first where none were tuned for these versions; and the search's record."""
        tuned = self._tuned().get(contestant.name)
        if tuned is None or tuned["requirements"] != list(contestant.requirements):
            return contestant.grid[0], None
        return Knobs(**tuned["knobs"]), tuned

    def _tuned(self) -> Json:
        found: Json = json.loads(self._tuned_path.read_text(encoding="utf-8")) if self._tuned_path.exists() else {}
        return found

    def tune(self, contestant: Contestant) -> None:
        """Try every entry of the grid: the first is searched, and another only where it passes 5 % above the best so far."""
        best, best_rps, tried = contestant.grid[0], 0.0, []
        for number, knobs in enumerate(contestant.grid, 1):
            self._say(f"{contestant.name}: knobs {number}/{len(contestant.grid)}: {knobs.label}")
            try:
                with self._bench(contestant, knobs) as bench:
                    start_rps = best_rps * 1.05 or contestant.hint_rps
                    rps = self._search(bench, start_rps, runs=6 if best_rps == 0 else 1)
                    if rps > best_rps > 0:
                        rps = self._search(bench, rps * 1.1, runs=4) or rps
            except CannotStart as error:
                self._say(f"  {error}")
                rps = 0.0
            tried.append({**asdict(knobs), "passed_rps": rps})
            if rps > best_rps:
                best, best_rps = knobs, rps
        record = {"knobs": asdict(best), "requirements": list(contestant.requirements), "tried": tried}
        self._tuned_path.write_text(json.dumps({**self._tuned(), contestant.name: record}, indent=1) + "\n", encoding="utf-8")

    def measure(self, contestant: Contestant) -> None:
        """Measure everything about one server and save it."""
        knobs, tuned = self.knobs(contestant)
        self._say(f"{contestant.name}: {knobs.label if contestant.requirements else 'no knobs'}")
        began = time.time()
        entry: Json = {"title": contestant.title, "front": contestant.front, "knobs": knobs.label, "tuned": tuned, "at": began}
        try:
            entry["ceiling_before"] = self._ceiling()
            with self._bench(contestant, knobs) as bench:
                entry |= self._measured(bench)
            entry |= {"ready_s": bench.ready_s, "restarts": bench.restarts, "rss": _thinned(bench)}
            entry["ceiling_after"] = self._ceiling()
        except (CannotInstall, CannotStart) as error:
            self._say(f"  {error}")
            entry["failed"] = str(error)
        entry["took_s"] = time.time() - began
        self.results["contestants"][contestant.name] = entry
        self.save()

    def recheck(self, neighbour: str) -> None:
        """Find markserve's maximum again, shortly, beside a peer's."""
        first = self.results["contestants"].get(MARKSERVE.name, {})
        if first.get("max_rps") and self.plan.recheck_runs:
            self._say("markserve again")
            with self._bench(MARKSERVE, Knobs()) as bench:
                rps = self._search(bench, first["max_rps"], runs=self.plan.recheck_runs, precision=self.plan.search_precision)
            self.results["rechecks"].append({"beside": neighbour, "max_rps": rps, "at": time.time()})
            self.save()

    def _bench(self, contestant: Contestant, knobs: Knobs) -> Bench:
        return Bench(
            contestant=contestant,
            python=ensure(contestant, self._say),
            workload=self._workload,
            knobs=knobs,
            core=self._core,
            folder=self._folder,
            say=self._say,
            may_repeat=self.plan is FULL,
        )

    def _ceiling(self) -> Json:
        found = ceiling(self._workload.model, self._core, self.plan.ceiling_repeats)
        self._say(f"  the model alone: {found['ceiling_rps']:.0f}/s at batch {found['ceiling_batch']}")
        return found

    def _search(self, bench: Bench, start_rps: float, *, runs: int, precision: float = 1.1, is_bursty: bool = False) -> float:
        seed, seconds = (SEEDS["bursty"], self.plan.bursty_s) if is_bursty else (SEEDS["search"], self.plan.search_s)

        def passes(rate_rps: float) -> bool:
            return bench.load(rate_rps, seconds, seed, is_bursty=is_bursty).summary.passes

        return highest_passing(passes, start_rps, precision=precision, runs=runs)

    def _measured(self, bench: Bench) -> Json:
        plan = self.plan
        proposed_rps = self._search(bench, bench.contestant.hint_rps, runs=10, precision=plan.search_precision)
        at_maximum: list[Result] = []

        def passes(rate_rps: float) -> bool:
            at_maximum.append(bench.load(rate_rps, plan.confirm_s, SEEDS["confirm"]))
            return at_maximum[-1].summary.passes

        max_rps = confirmed(passes, proposed_rps)
        found: Json = {"proposed_rps": proposed_rps, "max_rps": max_rps, "low": bench.load(LOW_RPS, plan.low_s, SEEDS["low"]).as_json()}
        if max_rps == 0:
            return found | {"failed": "no rate passed"}
        found["at_maximum"] = at_maximum[-1].as_json()
        found["levels"] = {str(share): bench.load(max_rps * share, plan.level_s, SEEDS["level"]).as_json() for share in LEVELS}
        found["overload"] = bench.load(max_rps * OVERLOAD, plan.overload_s, SEEDS["overload"]).as_json()
        found["bursty_max_rps"] = self._search(bench, max_rps * 0.45, runs=plan.bursty_runs, is_bursty=True)
        return found


def _thinned(bench: Bench) -> list[tuple[float, int]]:
    """Seconds and MiB of the server's memory, about a hundred points."""
    samples = bench.samples[:: max(1, len(bench.samples) // 100)]
    return [(round(one.at_s - samples[0].at_s, 1), one.rss_bytes >> 20) for one in samples]
