"""Who may import what: the arrows of docs/architecture.md, read from the sources."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGE = REPOSITORY / "layers/markserve/markserve"
FUNCTIONS = REPOSITORY / "functions"
WORKER = REPOSITORY / "worker"
SERVER = REPOSITORY / "server"

# Time, randomness, the environment and logging come into core as arguments, or not at all.
IMPURE = {"os", "sys", "time", "datetime", "random", "secrets", "logging", "asyncio", "threading", "subprocess", "socket", "pathlib", "io"}
TORCH_MODULES = {*(PACKAGE / "adapters").glob("lstm*.py"), *(PACKAGE / "adapters").glob("torch_*.py"), FUNCTIONS / "forecast/train.py"}


def modules(*folders: Path) -> list[Path]:
    found = sorted(path for folder in folders for path in folder.rglob("*.py"))
    assert found, f"no sources in {folders}: the test would prove nothing"
    return found


def imports(path: Path, *, type_checking: bool = True) -> Iterator[str]:
    """Dotted names a module imports; without those that only type checkers see, on request."""
    pending: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test) and not type_checking:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: package-relative import; Lambda puts a function's module at the zip's root"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        pending.extend(ast.iter_child_nodes(node))


def offenders(paths: list[Path], *allowed: str, type_checking: bool = True) -> list[str]:
    """Imports outside the standard library that start with none of `allowed`."""

    def is_allowed(name: str) -> bool:
        return name.split(".")[0] in sys.stdlib_module_names or any(name == a or name.startswith(f"{a}.") for a in allowed)

    return [
        f"{path.relative_to(REPOSITORY)} imports {name}"
        for path in paths
        for name in imports(path, type_checking=type_checking)
        if not is_allowed(name)
    ]


def test_core_imports_only_itself_errors_and_the_standard_library() -> None:
    assert offenders(modules(PACKAGE / "core"), "markserve.core", "markserve.errors") == []


def test_core_imports_nothing_that_makes_its_decisions_depend_on_where_or_when_it_runs() -> None:
    impure = [f"{path.name} imports {name}" for path in modules(PACKAGE / "core") for name in imports(path) if name.split(".")[0] in IMPURE]

    assert impure == []


def test_errors_import_nothing_of_ours() -> None:
    assert offenders([PACKAGE / "errors.py"]) == []


def test_messages_and_ports_know_core_but_no_technology() -> None:
    assert offenders([PACKAGE / "messages.py"], "markserve.core", "markserve.errors", "msgspec") == []
    assert offenders([PACKAGE / "ports.py"], "markserve.core", "markserve.errors", "markserve.messages") == []


@pytest.mark.parametrize("path", modules(PACKAGE / "adapters"), ids=lambda path: path.stem)
def test_adapter_imports_no_other_adapter_and_no_settings_or_wiring(path: Path) -> None:
    family = f"markserve.adapters.{path.stem.split('_')[0]}"  # dynamodb_results may share dynamodb's translation of errors
    ours = {name for name in imports(path) if name.startswith("markserve.")}

    strangers = {
        name
        for name in ours
        if (name.startswith("markserve.adapters") and not name.startswith(family))
        or name.startswith(("markserve.settings", "markserve.wiring"))
    }

    assert strangers == set()


def test_environment_is_read_by_settings_and_handed_over_by_wiring_alone() -> None:
    readers = set()
    for path in modules(PACKAGE, FUNCTIONS, WORKER, SERVER):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and ast.unparse(node) in ("os.environ", "os.getenv"):
                readers.add(str(path.relative_to(PACKAGE if PACKAGE in path.parents else REPOSITORY)))

    assert readers <= {"settings.py", "wiring.py"}


def test_boto3_is_imported_by_wiring_alone() -> None:
    importers = {path for path in modules(PACKAGE, FUNCTIONS, WORKER, SERVER) for name in imports(path) if name.split(".")[0] == "boto3"}

    assert importers == {PACKAGE / "wiring.py"}


def test_wiring_imports_adapters_inside_its_builders_so_that_zip_functions_never_load_torch() -> None:
    tree = ast.parse((PACKAGE / "wiring.py").read_text(encoding="utf-8"))
    top_level = [node.module for node in tree.body if isinstance(node, ast.ImportFrom) and node.module]

    assert [name for name in top_level if name.startswith("markserve.adapters")] == []


@pytest.mark.parametrize("folder", sorted(path for path in FUNCTIONS.iterdir() if path.is_dir()), ids=lambda path: path.name)
def test_function_imports_the_shared_package_powertools_and_nothing_else(folder: Path) -> None:
    own = [path.stem for path in folder.glob("*.py")]
    sources = [path for path in modules(folder) if path not in TORCH_MODULES]

    assert offenders(sources, "markserve", "aws_lambda_powertools", *own) == []


def test_worker_imports_the_shared_package_and_itself_alone() -> None:
    assert offenders(modules(WORKER), "markserve", "worker", "aws_lambda_powertools") == []


def test_server_imports_the_shared_package_the_worker_s_pacing_and_its_http_library() -> None:
    assert offenders(modules(SERVER), "markserve", "server", "worker.pacing", "httptools", "uvloop", "msgspec") == []


def test_torch_is_imported_by_the_lstm_and_the_model_runner_alone() -> None:
    importers = {
        path
        for path in modules(PACKAGE, FUNCTIONS, WORKER, SERVER)
        for name in imports(path, type_checking=False)
        if name.split(".")[0] in ("torch", "safetensors")
    }

    assert importers <= TORCH_MODULES


def test_what_ships_imports_neither_the_local_system_nor_the_command_line_nor_tests() -> None:
    inward = {
        f"{path.relative_to(REPOSITORY)} imports {name}"
        for path in modules(PACKAGE, FUNCTIONS, WORKER, SERVER)
        for name in imports(path)
        if name.split(".")[0] in ("local", "cli", "simulator", "tests")
    }

    assert inward == set()


def test_simulator_is_imported_by_the_command_line_alone_and_imports_no_adapter() -> None:
    importers = {
        path.relative_to(REPOSITORY).parts[0]
        for path in modules(PACKAGE, FUNCTIONS, WORKER, REPOSITORY / "local", REPOSITORY / "cli")
        for name in imports(path)
        if name.split(".")[0] == "simulator"
    }
    outside = ("markserve.adapters", "markserve.wiring", "boto3", "local", "cli", "worker", "functions")
    outward = [name for path in modules(REPOSITORY / "simulator") for name in imports(path) if name.startswith(outside)]

    assert importers == {"cli"}
    assert outward == []


def test_numpy_is_imported_only_where_it_is_installed() -> None:
    importers = {
        path.relative_to(PACKAGE).parts[0]
        for path in modules(PACKAGE, FUNCTIONS, WORKER, SERVER)
        if PACKAGE in path.parents and any(name.split(".")[0] == "numpy" for name in imports(path, type_checking=False))
    }
    users = {
        path.relative_to(REPOSITORY)
        for path in modules(PACKAGE, FUNCTIONS, WORKER, REPOSITORY / "local")
        if PACKAGE / "forecasters" not in path.parents and any(name.startswith("markserve.forecasters") for name in imports(path))
    }

    assert importers <= {"forecasters", "adapters"}
    # The control cycle's module is imported by the forecast image's function alone.
    assert users == {Path("layers/markserve/markserve/forecast_cycle.py")}
    cycle_users = {
        path
        for path in modules(PACKAGE, FUNCTIONS, WORKER, SERVER)
        for name in imports(path)
        if name.startswith("markserve.forecast_cycle")
    }
    assert cycle_users == {FUNCTIONS / "forecast/app.py"}


def test_forecasters_import_core_numpy_and_nothing_of_the_outside() -> None:
    paths = modules(PACKAGE / "forecasters")

    assert offenders(paths, "markserve.core", "markserve.errors", "markserve.forecasters", "numpy") == []
    impure = [f"{path.name} imports {name}" for path in paths for name in imports(path) if name.split(".")[0] in IMPURE - {"io"}]
    assert impure == []


def test_layer_requirements_repeat_its_dependencies() -> None:
    import tomllib

    layer = REPOSITORY / "layers/markserve"
    declared = tomllib.loads((layer / "pyproject.toml").read_text())["project"]["dependencies"]

    assert (layer / "requirements.txt").read_text().split() == declared
