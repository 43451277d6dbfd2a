"""What the documents promise exists: commands, options, make targets, links; and what can run here in moments, runs."""

from __future__ import annotations

import gzip
import re
import shlex
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli import reference
from cli.main import app
from local.deployer import load_template
from tests.docs.commands import COMMANDS, DOCUMENTS, FENCED, PROMISED, REPOSITORY, RULES, TO_RUN, RunBy, commands, other_blocks, rules_for

TARGETS = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
VARIABLES = set(re.findall(r"\b([A-Z][A-Z0-9_]+)\b", (REPOSITORY / "Makefile").read_text(encoding="utf-8")))


OTHER_KINDS = {"text", "json", "python", "mermaid", "console"}
"""Of blocks; one of another kind, or of none, may hide commands."""


def named(commands: list[tuple[Path, str]]) -> list[str]:
    return [f"{path.name}: {command[:60]}" for path, command in commands]


def test_there_are_commands_to_check() -> None:
    assert len(FENCED) > 20
    assert {rule.by for _, command in FENCED for rule in rules_for(command)} == set(RunBy)


def test_commands_are_in_blocks_that_are_read_as_such() -> None:
    unread = [(path.name, kind) for path in DOCUMENTS for kind, _ in other_blocks(path) if kind not in OTHER_KINDS]
    # Recorded tours show commands and answers in one block; they have a test of their own.
    typed = [
        (path.name, line)
        for path in DOCUMENTS
        for _, text in other_blocks(path)
        if not path.name.startswith("tour-")
        for line in re.findall(r"^ *((?:\$ |(?:markserve|make|curl|python|pip|sam) ).*)", text, re.MULTILINE)
    ]

    assert unread == []
    assert typed == []


@pytest.mark.parametrize(("path", "command"), TO_RUN, ids=named(TO_RUN))
def test_command_is_run_by_a_test_or_excepted_with_a_reason(path: Path, command: str) -> None:
    assert len(rules_for(command)) == 1, f"{path.name}: say in tests/docs/commands.py, once, what runs `{command}` or why nothing does"


def test_every_rule_has_a_command_and_says_what_it_must() -> None:
    assert [rule.pattern for rule in RULES if not any(re.fullmatch(rule.pattern, command) for _, command in PROMISED)] == []
    assert [rule.pattern for rule in RULES if bool(rule.says) != (rule.by is RunBy.SYSTEM)] == []
    assert [rule.pattern for rule in RULES if bool(rule.why) != (rule.by is RunBy.NOBODY)] == []


def test_tests_that_run_commands_exist() -> None:
    assert all((REPOSITORY / by.value).exists() for by in RunBy if by is not RunBy.NOBODY)
    named_files = {name for rule in RULES for name in re.findall(r"tests/[\w/]+(?:\.py)?", rule.why)}
    assert named_files
    assert [name for name in named_files if not (REPOSITORY / name).exists()] == []


@pytest.mark.parametrize(("path", "command"), PROMISED, ids=named(PROMISED))
def test_promised_command_exists_with_its_options(path: Path, command: str) -> None:
    words = command.replace("[", " ").replace("]", " ").split()
    if words[0] == "make":
        assert words[1] in TARGETS
        assert {word.partition("=")[0] for word in words[2:] if "=" in word} <= VARIABLES
    if words[0] == "markserve" and not words[1].startswith("-"):
        name = words[1] if words[1] in COMMANDS else " ".join(words[1:3])
        if name not in COMMANDS and words[2:] == ["..."]:
            assert any(known.startswith(f"{words[1]} ") for known in COMMANDS)
            return
        assert name in COMMANDS, f"{path.name} promises `{command}`"
        known = {option for parameter in COMMANDS[name].parameters for option in parameter.names} | {"--help"}
        assert {word.partition("=")[0] for word in words if word.startswith("--")} <= known


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that the documents' examples name."""
    rows = "".join(f"{second},{2 + 5 * (1200 <= second < 1800)}\n" for second in range(3600))
    with gzip.open(tmp_path / "day.csv.gz", "wt") as file:
        file.write("t_s,count\n" + rows)
    (tmp_path / "simulator").symlink_to(REPOSITORY / "simulator")
    (tmp_path / "digits.json").write_bytes((REPOSITORY / "simulator/examples/squeezenet.json").read_bytes())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MARKSERVE_LOCAL_DIR", str(tmp_path / "state"))
    return tmp_path


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `markserve simulate --out` leaves, of ten minutes."""
    out = tmp_path_factory.mktemp("simulated") / "day"
    options = ["--trace", "mmpp:2,5:60:600", "--policy", "mark,all-lambda", "--rt-max", "0.3", "--out", str(out)]
    result = CliRunner().invoke(app, ["simulate", "--profile", str(REPOSITORY / "simulator/examples/squeezenet.json"), *options])
    assert result.exit_code == 0, result.output
    return out


RUNS_HERE = sorted(commands(RunBy.HERE))


@pytest.mark.parametrize("command", RUNS_HERE)
def test_fenced_command_runs(workplace: Path, simulated: Path, command: str) -> None:
    # What starts in the afternoon of a day's trace starts in the middle of this one.
    arguments = shlex.split(command.replace("--at 43200", "--at 1800"))[1:]
    if arguments[0] == "report":
        for name in ("day", "monday", "tuesday"):
            shutil.copytree(simulated, workplace / "runs" / name)
    result = CliRunner().invoke(app, arguments)

    assert result.exit_code == 0, result.output
    assert "Traceback" not in result.output


LINKS = [
    (path, target)
    for path in DOCUMENTS
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8"))
    if not target.startswith(("http://", "https://", "mailto:"))
]


@pytest.mark.parametrize(("path", "target"), LINKS, ids=[f"{path.name}: {target}" for path, target in LINKS])
def test_link_leads_somewhere(path: Path, target: str) -> None:
    file, _, anchor = target.partition("#")
    found = (path.parent / file).resolve() if file else path

    assert found.exists()
    if anchor and found.suffix == ".md":
        headings = re.findall(r"^#+ (.+)$", found.read_text(encoding="utf-8"), re.MULTILINE)
        assert anchor in {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", reference.pages({}))
def test_reference_is_current(name: str) -> None:
    page = (REPOSITORY / "docs/reference" / name).read_text(encoding="utf-8")

    generated = reference.pages(load_template(REPOSITORY / "template.yaml"))[name]()

    assert generated in page, "update it with: make tables"


def test_index_leads_to_every_document() -> None:
    index = (REPOSITORY / "docs/index.md").read_text(encoding="utf-8")
    missing = [path.name for path in (REPOSITORY / "docs").glob("*.md") if path.name != "index.md" and f"({path.name})" not in index]

    assert missing == []
    assert [name for name in reference.pages({}) if f"(reference/{name})" not in index] == []


@pytest.mark.parametrize("name", ["operator", "client"])
def test_every_command_of_a_recorded_tour_is_one_that_its_script_runs(name: str) -> None:
    """Tests in tests/system run both scripts; what a page shows must not be from another one."""
    script = (REPOSITORY / f"examples/tours/{name}.sh").read_text(encoding="utf-8")
    steps = re.findall(r'^ *(?:run (.+)|step "[^"]+" "(.+)")$', script, re.MULTILINE)
    runs = [f"markserve {ran}" if ran else stepped.replace("\\", "") for ran, stepped in steps]
    known = [re.sub(r"\\\$\w+", "\\\\S+", re.escape(re.sub(r'"(\$\w+)"', r"\1", text))) for text in runs]
    shown = re.findall(r"^\$ (.+)$", (REPOSITORY / f"docs/tour-{name}.md").read_text(encoding="utf-8"), re.MULTILINE)

    assert len(shown) >= 10
    assert [command for command in shown if not any(re.fullmatch(pattern, command) for pattern in known)] == []


def test_modules_and_files_that_documents_run_exist() -> None:
    for path, command in FENCED:
        for module in re.findall(r"python3? -m (\S+)", command):
            assert (REPOSITORY / (module.replace(".", "/") + ".py")).exists() or module in ("venv", "pip", "pytest"), (
                f"{path.name}: {module}"
            )
        if command.startswith("examples/"):
            assert (REPOSITORY / command.split()[0]).exists()
