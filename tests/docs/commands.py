"""Every command of the documents, and which test runs it: read from the pages, so that a new one needs a rule here."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from cli import reference

REPOSITORY = Path(__file__).resolve().parents[2]
DOCUMENTS = [REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "layers/markserve/README.md")] + sorted(
    path for path in (REPOSITORY / "docs").rglob("*.md") if path.name not in reference.pages({}) and "decisions" not in path.parts
)
COMMANDS = {command.name: command for command in reference.commands()}


class RunBy(Enum):
    """Which test runs a command."""

    HERE = "tests/docs"
    SYSTEM = "tests/system/test_documented_commands.py"
    NOBODY = "nothing"


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """What is done with the commands that match a pattern as a whole."""

    pattern: str
    by: RunBy
    says: str = ""
    """Of what a system runs: what its output has to match."""
    why: str = ""
    """Of what nothing runs: why not."""


def here(pattern: str) -> Rule:
    return Rule(pattern=pattern, by=RunBy.HERE)


def system(pattern: str, says: str) -> Rule:
    return Rule(pattern=pattern, by=RunBy.SYSTEM, says=says)


def nobody(pattern: str, why: str) -> Rule:
    return Rule(pattern=pattern, by=RunBy.NOBODY, why=why)


ACCOUNT = "needs an AWS account"
VENV = "makes or enters the virtual environment that the tests run in"
BENCHMARK = "half an hour or more, on idle cores"
ITSELF = "runs the tests, this one among them"

RULES = (
    here(r"markserve catalog show --category gpu"),
    here(r"markserve characterize --profile \S+ --rt-max \S+ --plot \S+"),
    here(r"markserve simulate --trace day\.csv\.gz .*"),
    here(r"markserve report runs/(day|monday).*"),
    here(r"markserve forecast (backtest|show) --trace day\.csv\.gz .*"),
    # The local system, from start to end.
    system(r"(markserve|make) up", says=r"ready: http://\S+\s+curl "),
    system(r"(markserve|make) down", says=r"^stopped$"),
    system(r"make demo", says=r"(?s)\d sent, \d+ answered, 0 lost, 0 failed.*written: \S+report\.json"),
    system(r"markserve chaos worker-killed spot-all", says=r"(?s)worker-killed.*spot-all"),
    system(r"markserve serve lstm\.pt .*", says=r"ready at http://\S+: lstm"),
    # What runs, why, and at what price.
    system(r"markserve status", says=r"digits"),
    system(r"markserve doctor", says=r"(?s)local system.*ready.* ok, .* 0 failed"),
    system(r"markserve explain", says=r"plan plan-\d{6}-\S+ \(\w+\): "),
    system(r"markserve plan --dry-run", says=r"(?s)dry run: nothing was changed.*plan plan-"),
    system(r"markserve cost", says=r"(?s)\$\S+ an hour.*SageMaker"),
    system(r"markserve forecast show digits", says=r"Highest rate expected"),
    system(r"markserve params set rt-max-s \S+( --model \S+)?", says=r"^rt-max-s = \d"),
    # Models, from the artefact on.
    system(r"python -m examples\.models\.digits_cnn\.make \S+", says=r"^markserve models register digits-cnn \S+\.pt --input "),
    system(r"markserve models register digits-cnn .*", says=r"^digits-cnn version 1 is live"),
    system(r"markserve profile \S+ .*", says=r"(?s)Batch latency T\(b\).*c5\.large .*ms"),
    system(r"markserve simulate --trace mmpp\S+ --profile digits-cnn\.json .*", says=r"(?s)mark.*sagemaker.*all-lambda"),
    system(r"markserve simulate --trace mmpp\S+ --profile \S+/squeezenet\.json .*", says=r"(?s)mark.*sagemaker.*all-lambda"),
    system(r"markserve simulate --trace mmpp\S+ --profile \S+/inception-v3\.json .*", says=r"(?s)mark.*mark-on-demand.*all-lambda"),
    system(r"markserve report runs/how/.* --out \S+", says=r"runs/how\.html"),
    system(r"markserve infer digits-cnn \S+", says=r"(?s)digit INT64 \[1\].*probabilities FP32 \[1, 10\].*answered by (worker|lambda)"),
    system(r"markserve characterize digits( --measure \S+)?", says=r"(?s)^digits, RT_max .*c5\.large"),
    system(r"markserve models promote digits 2 --canary 0\.1", says=r"version 1 answers 90% of requests, version 2 10%"),
    system(r"markserve models show digits", says=r"(?s)Versions, and how they did.*│ 2 "),
    system(r"markserve models promote digits 2", says=r"^digits: version 2 answers$"),
    system(r"markserve models rollback digits", says=r"^digits: version 1 answers$"),
    system(r"markserve models delete digits --version 1", says=r"^removed digits version 1$"),
    # The runbook.
    system(r"markserve params set ((launches|canary-rollback)-enabled false|max-instances 0)", says=r"^[a-z-]+ = (False|0); in force"),
    system(r"markserve dlq list", says=r"Given up"),
    system(r"markserve dlq redrive --all", says=r"(?s)Redriven.*none"),
    system(r"markserve dlq purge", says=r"^deleted 0$"),
    system(r"markserve console --open", says=r"^http://\S+/console$"),
    system(r'curl -s "\$URL/v2/console/overview\?minutes=5" .*', says=r'"cost":.*"ways":'),
    system(r'curl -s -X PUT "\$URL/v2/console/parameters/headroom" .*', says=r'"new":1\.1\b'),
    system(r"markserve clients add ann --operator", says=r"ann: 600 requests a minute"),
    system(r"markserve destroy --dry-run", says=r"(?s)stack.*work queues"),
    # What nothing runs.
    nobody(r"sam deploy .*", ACCOUNT + "; tests/system/test_sam_deploy.py has SAM deploy to the embedded AWS"),
    nobody(r"make build", "needs Docker; tests/system/test_sam_deploy.py builds all but the two images"),
    nobody(r"make worker-bundle UPLOAD=\S+", ACCOUNT),
    nobody(r"export MARKSERVE_STACK_NAME=\S+", "names a stack in an AWS account"),
    nobody(r"markserve catalog refresh( --out \S+)?", "asks AWS for its prices; tests/unit/test_catalog_refresh.py has recorded answers"),
    nobody(r"markserve simulate --catalog catalog\.json \.\.\.", "is abbreviated, and needs what `catalog refresh` writes"),
    nobody(r"make setup|\. \.venv/bin/activate|pip install -e '\.\[simulate\]'", VENV),
    nobody(r"jq \.cost\.ways", "shows a part of what the command before it answers; its test looks for that part"),
    nobody(r"make test", ITSELF),
    nobody(r"make chaos", "twenty minutes; three of its faults are tests in tests/system/test_chaos.py"),
    nobody(r"make bench-(forecast|policy .*|experiments .*)|python -m benchmarks\.policy_(bound|lookahead).*", BENCHMARK),
    nobody(r"python -m benchmarks\.pretrain_lstm", "trains what is shipped; tests/unit trains a small one"),
    nobody(r"markserve simulate --trace berkeley_1s\.csv\.gz .*", "takes a recorded trace that is not in the repository"),
    nobody(r"markserve experiments .*", "ten minutes and more of simulation; tests/simulator runs each experiment, shortened"),
    nobody(r"markserve chaos soak --minutes 30 --rate 10", "half an hour, alone on the machine"),
    nobody(r"markserve chaos [a-z0-9-]+", "each is one of `make chaos`; three are tests in tests/system/test_chaos.py"),
    nobody(r"make demo TORCH_INDEX=\S+", "loads packages from the Internet; without it, it runs"),
    nobody(r"make demo RATE=\S+ RT_MAX=\S+ SEED=\S+", "saturates two cores, as the text says; with less, it runs"),
    nobody(r"make deploy CONFIG_ENV=\S+", ACCOUNT),
    nobody(r"make bench-serving ARGS=--quick", BENCHMARK + ", and engines in virtual environments of their own"),
    nobody(
        r"markserve (simulate --policy mark,sagemaker|models register --rt-max|params set max-hourly-cost-usd)"
        r"|markserve ((explain|logs) --(instance|at)|infer --version)",
        "names an option",
    ),
)


def fenced(path: Path) -> Iterator[str]:
    """Commands of the `sh` blocks, one at a time, without comments, prompts and continuations."""
    for block in re.findall(r"^```sh\n(.*?)^```", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            bare = re.sub(r"(^|\s)#.*$", "", line).strip()
            for part in re.split(r"\s(?:&&|\|)\s", bare) if bare else ():
                command = re.sub(r"^(?:[A-Z_]+=\S+ )*(?:\./)?(?:\.venv(?:-sam)?/bin/)?", "", part.strip())
                if command:
                    yield " ".join(command.split())


def other_blocks(path: Path) -> Iterator[tuple[str, str]]:
    """Kind and text of the blocks that `fenced` does not read."""
    blocks = re.findall(r"^ *```([^\n]*)\n(.*?)^ *```", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    yield from ((kind, text) for kind, text in blocks if kind != "sh")


def inline(path: Path) -> Iterator[str]:
    """Commands that the text mentions."""
    without_blocks = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    yield from (" ".join(found.split()) for found in re.findall(r"`(?:\.venv/bin/)?((?:markserve|make) [^`]+)`", without_blocks))


def is_whole(command: str) -> bool:
    """Tell whether the text mentions a command as it is typed: not its name alone, and with nothing left out."""
    is_name = command.removeprefix("markserve ") in COMMANDS or re.fullmatch(r"make [a-z-]+", command)
    left_out = r"\.\.\.|[<\[]|\b[A-Z]+\b(?!=)"
    return not is_name and not re.search(left_out, command)


FENCED = [(path, command) for path in DOCUMENTS for command in fenced(path)]
PROMISED = [(path, command) for path in DOCUMENTS for command in (*fenced(path), *inline(path))]
TO_RUN = [*FENCED, *((path, command) for path in DOCUMENTS for command in inline(path) if is_whole(command))]
"""What a test runs, or says why none does."""


def rules_for(command: str) -> list[Rule]:
    """Return the rules that a command matches: one, for one that is tested or excepted."""
    return [rule for rule in RULES if re.fullmatch(rule.pattern, command)]


def commands(by: RunBy) -> list[str]:
    """Commands that a test runs, in the order of the pages; each once."""
    return list(dict.fromkeys(command for _, command in PROMISED if [rule.by for rule in rules_for(command)] == [by]))


def sequence(page: str) -> list[str]:
    """Commands of a page's blocks that a system runs, as one types them from the top."""
    return [command for path, command in FENCED if path.name == page and [rule.by for rule in rules_for(command)] == [RunBy.SYSTEM]]
