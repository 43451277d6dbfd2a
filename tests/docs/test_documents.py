"""What the documents promise exists: commands, options, make targets, links; and what can run here in moments, runs."""

from __future__ import annotations

import gzip
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli import reference
from cli.main import app
from local.deployer import load_template

REPOSITORY = Path(__file__).resolve().parents[2]
DOCUMENTS = [REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "layers/markserve/README.md")] + sorted(
    path for path in (REPOSITORY / "docs").rglob("*.md") if path.name not in reference.pages({}) and "decisions" not in path.parts
)
COMMANDS = {command.name: command for command in reference.commands()}
TARGETS = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
VARIABLES = set(re.findall(r"\b([A-Z][A-Z0-9_]+)\b", (REPOSITORY / "Makefile").read_text(encoding="utf-8")))

HERE = "runs in this test"
SYSTEM = "runs in tests/system, on a local system"
ACCOUNT = "needs an AWS account"
LONG = "takes minutes, or builds; its parts have tests"
CLASSES = (
    (r"markserve (simulate --trace mmpp|report runs/how)", LONG),
    (
        r"markserve (catalog show|simulate --trace|forecast (backtest|show --trace)|characterize --profile|report runs|doctor|--version)",
        HERE,
    ),
    (r"markserve (simulate --catalog|experiments|demo|forecast train)", LONG),
    (r"markserve (catalog refresh|destroy)", ACCOUNT),
    (r"markserve \w+", SYSTEM),
    (r"examples/tours/\S+", SYSTEM),
    (r"make (up|down|status|demo)\b", SYSTEM),
    (r"make (build|deploy|worker-bundle)\b", ACCOUNT),
    (r"make [a-z-]+", LONG),
    (r"(sam|aws) ", ACCOUNT),
    (r"(python|pip|curl|cd|export|echo|git|npm|\.) ?", LONG),
)


def fenced(path: Path) -> Iterator[str]:
    """Commands of the `sh` blocks, one at a time, without comments, prompts and continuations."""
    for block in re.findall(r"^```sh\n(.*?)^```", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            bare = re.sub(r"(^|\s)#.*$", "", line).strip()
            for part in re.split(r"\s(?:&&|\|)\s", bare) if bare else ():
                command = re.sub(r"^(?:[A-Z_]+=\S+ )*(?:\./)?(?:\.venv(?:-sam)?/bin/)?", "", part.strip())
                if command:
                    yield command


def inline(path: Path) -> Iterator[str]:
    """Commands that the text mentions."""
    without_blocks = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    yield from (found.strip() for found in re.findall(r"`(?:\.venv/bin/)?((?:markserve|make) [^`]+)`", without_blocks))


PROMISED = [(path, command) for path in DOCUMENTS for command in (*fenced(path), *inline(path))]
FENCED = [(path, command) for path in DOCUMENTS for command in fenced(path)]


def named(commands: list[tuple[Path, str]]) -> list[str]:
    return [f"{path.name}: {command[:60]}" for path, command in commands]


def kind_of(command: str) -> str:
    return next((kind for pattern, kind in CLASSES if re.match(pattern, command)), "")


def test_there_are_commands_to_check() -> None:
    assert len(FENCED) > 20
    assert {kind_of(command) for _, command in FENCED} >= {HERE, SYSTEM, ACCOUNT, LONG}


@pytest.mark.parametrize(("path", "command"), FENCED, ids=named(FENCED))
def test_fenced_command_is_classed(path: Path, command: str) -> None:
    assert kind_of(command), f"{path.name}: say in CLASSES how `{command}` is tested"


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


RUNS_HERE = sorted({command for _, command in FENCED if kind_of(command) == HERE})


@pytest.mark.parametrize("command", RUNS_HERE)
def test_fenced_command_runs(workplace: Path, command: str) -> None:
    # What starts in the afternoon of a day's trace starts in the middle of this one.
    arguments = shlex.split(command.replace("--at 43200", "--at 1800"))[1:]
    if arguments[0] == "report":
        assert CliRunner().invoke(app, shlex.split(next(c for c in RUNS_HERE if " simulate " in f" {c} "))[1:]).exit_code == 0

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


def test_modules_and_files_that_documents_run_exist() -> None:
    for path, command in FENCED:
        for module in re.findall(r"python3? -m (\S+)", command):
            assert (REPOSITORY / (module.replace(".", "/") + ".py")).exists() or module in ("venv", "pip", "pytest"), (
                f"{path.name}: {module}"
            )
        if command.startswith("examples/"):
            assert (REPOSITORY / command.split()[0]).exists()
