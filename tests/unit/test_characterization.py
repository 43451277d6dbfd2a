"""Cost and latency of every machine: by hand for one, by rule for the estimated ones, and through the command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.main import app
from markserve.core.characterization import Economics, Rent, characterize
from markserve.core.cost import lambda_cost_usd
from markserve.core.types import BatchProfile, ProfilePoint
from markserve.rents import rents

T_S = {1: 0.020, 8: 0.080, 32: 0.300}
"""T(b): a batch of 8 is twice as good as one by one, and 32 does not fit 200 ms."""


def a_batch_profile(name: str, factor: float = 1.0) -> BatchProfile:
    points = tuple(
        ProfilePoint(batch_size=b, p50_s=t * factor, p98_s=1.2 * t * factor, p99_s=1.3 * t * factor, samples=50) for b, t in T_S.items()
    )
    return BatchProfile(instance_type=name, points=points)


PROFILES = {
    "c5.large": a_batch_profile("c5.large"),
    "g4dn.xlarge": a_batch_profile("g4dn.xlarge", 0.1),
    "lambda": a_batch_profile("lambda", 3.0),
}


def by_machine(found: list[Economics]) -> dict[tuple[str, bool], Economics]:
    return {(entry.rent.machine, entry.is_batched): entry for entry in found}


def judged(rt_max_s: float = 0.2) -> dict[tuple[str, bool], Economics]:
    return by_machine(characterize(PROFILES, rents(PROFILES, lambda_memory_mb=1769), rt_max_s=rt_max_s))


def test_batching_takes_the_fastest_batch_whose_wait_and_run_fit_the_objective() -> None:
    batched, alone = judged()["c5.large", True], judged()["c5.large", False]

    assert (batched.batch_size, batched.worst_s) == (8, pytest.approx(2 * 1.2 * 0.08))
    assert batched.throughput_rps == pytest.approx(100.0)
    assert batched.usd_per_million == pytest.approx(0.085 / 3600 / 100 * 1e6)
    assert alone.usd_per_million == pytest.approx(2 * batched.usd_per_million)
    assert ("c5.large", True) not in judged(0.1)


def test_functions_are_priced_by_duration_and_do_not_batch() -> None:
    alone = judged()["lambda-1769MB", False]

    assert alone.usd_per_million == pytest.approx(1e6 * lambda_cost_usd(duration_s=0.06, memory_mb=1769))
    assert ("lambda-1769MB", True) not in judged()
    half = judged()["lambda-1024MB", False]
    assert half.p50_s == pytest.approx(0.06 * 1769 / 1024)
    assert judged()["lambda-3538MB", False].p50_s == pytest.approx(0.06)


def test_containers_and_other_clouds_are_as_fast_as_the_instance_of_their_size_and_say_so() -> None:
    fargate, google = judged()["fargate-2vCPU", True], judged()["e2-standard-2", True]

    assert fargate.rent.basis == google.rent.basis == "as c5.large"
    assert fargate.rent.price_usd_per_hour == pytest.approx(2 * 0.04048 + 4 * 0.004445)
    assert google.rent.price_usd_per_hour == pytest.approx(2 * 0.02181159 + 8 * 0.00292353)
    assert fargate.throughput_rps == judged()["c5.large", True].throughput_rps


def test_a_google_machine_that_was_measured_is_judged_by_its_own_profile() -> None:
    profiles = {"n2-standard-4": a_batch_profile("n2-standard-4", 0.5)}

    found = by_machine(characterize(profiles, rents(profiles, lambda_memory_mb=1769), rt_max_s=0.2))

    assert set(found) == {("n2-standard-4", False), ("n2-standard-4", True)}
    assert found["n2-standard-4", True].rent.basis == "measured"


def test_gpus_are_marked_and_lend_their_speed_to_no_container() -> None:
    assert judged()["g4dn.xlarge", True].rent.has_gpu
    assert "as g4dn.xlarge" not in {entry.rent.basis for entry in judged().values()}


def test_rents_are_either_by_the_hour_or_by_memory() -> None:
    with pytest.raises(ValueError, match="FaaS has memory_mb"):
        Rent(provider="AWS", service="FaaS", machine="f", profile="lambda", price_usd_per_hour=1.0)


def test_command_prints_json_and_draws_from_a_profile_file(tmp_path: Path) -> None:
    figure = tmp_path / "figure.svg"
    arguments = ["characterize", "--profile", "simulator/examples/squeezenet.json", "--rt-max", "0.3", "--plot", str(figure), "--json"]

    done = CliRunner().invoke(app, arguments)

    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert {entry["rent"]["service"] for entry in found} == {"IaaS", "CaaS", "FaaS"}
    assert {entry["rent"]["provider"] for entry in found} == {"AWS", "Google Cloud"}
    assert figure.read_text().startswith("<?xml")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give either a model or --profile"),
        (["--profile", "nowhere.json"], "nowhere.json cannot be read"),
        (["--profile", "README.md"], "README.md is not a profile"),
    ],
)
def test_command_refuses_bad_input_in_one_line(arguments: list[str], said: str) -> None:
    done = CliRunner().invoke(app, ["characterize", *arguments])

    assert done.exit_code == 2
    assert said in done.output
    assert "Traceback" not in done.output
