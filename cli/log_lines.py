"""Log lines of a stack's functions and workers: CloudWatch Logs, and on the local system also the files of its processes.

The local system runs image functions and workers as processes of its own, which write files. In AWS functions write to CloudWatch
Logs. A worker writes to its instance's journal and nowhere else: EC2's console output has how the instance started, not its lines.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from mypy_boto3_ec2 import EC2Client
    from mypy_boto3_logs import CloudWatchLogsClient

FUNCTIONS = ("api", "authorizer", "ingest", "forecast", "plan", "lifecycle", "spillover")
LAMBDAS_OWN = ("START ", "END ", "REPORT ", "INIT_START ")
"""Lines that Lambda itself writes around each invocation."""


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One log line."""

    at_s: float
    source: str
    """Function, or instance id."""
    text: str

    def fields(self) -> dict[str, Any]:
        """Return what a structured line says; empty for any other."""
        try:
            parsed = json.loads(self.text)
        except json.JSONDecodeError:
            return {}
        return parsed if isinstance(parsed, dict) else {}

    @property
    def is_noise(self) -> bool:
        """Whether it is Lambda's own line, or a metric in the embedded format."""
        return self.text.startswith(LAMBDAS_OWN) or '"_aws"' in self.text or '"type":"platform.' in self.text


def of_functions(
    logs: CloudWatchLogsClient, stack_name: str, functions: Sequence[str], *, since_s: float, until_s: float, containing: str = ""
) -> list[Line]:
    """Read functions' lines in `[since_s, until_s)` by time; a function that never ran has none."""
    lines: list[Line] = []
    for function in functions:
        request: Any = {
            "logGroupName": f"/aws/lambda/{stack_name}-{function}",
            "startTime": int(since_s * 1000),
            "endTime": int(until_s * 1000),
            **({"filterPattern": f'"{containing}"'} if containing else {}),
        }
        try:
            for page in logs.get_paginator("filter_log_events").paginate(**request):
                lines += [Line(at_s=e["timestamp"] / 1000, source=function, text=e["message"].rstrip()) for e in page["events"]]
        except logs.exceptions.ResourceNotFoundException:
            continue
    return sorted(lines, key=lambda line: line.at_s)


def of_files(
    folder: Path, stack_name: str, sources: Sequence[str], *, since_s: float, until_s: float = float("inf"), containing: str = ""
) -> list[Line]:
    """Read the files of the local system's processes: image functions by name, workers by instance id."""
    lines = [line for source in sources for name in (f"{stack_name}-{source}", f"worker-{source}") for line in _file(folder, name, source)]
    wanted = (line for line in lines if since_s <= line.at_s < until_s and containing in line.text)
    return sorted(wanted, key=lambda line: line.at_s)


def workers_with_files(folder: Path) -> list[str]:
    """Ids of the local instances that have a log file."""
    return sorted(path.stem.removeprefix("worker-") for path in folder.glob("worker-*.log"))


def console_output(ec2: EC2Client, instance_id: str, *, at_s: float) -> list[Line]:
    """Read the end of an EC2 instance's console, as AWS last took it: kernel, user data, and what systemd says of the unit."""
    text = ec2.get_console_output(InstanceId=instance_id).get("Output", "")
    return [Line(at_s=at_s, source=instance_id, text=line) for line in text.splitlines()]


def _file(folder: Path, name: str, source: str) -> Iterator[Line]:
    path = folder / f"{name}.log"
    if not path.is_file():
        return
    at_s = path.stat().st_mtime
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        line = Line(at_s=at_s, source=source, text=text)
        # A line without a time, such as one of a traceback, belongs to the one before it.
        at_s = _stated(line.fields().get("timestamp", ""), at_s)
        yield msgspec.structs.replace(line, at_s=at_s)


def _stated(timestamp: object, otherwise_s: float) -> float:
    """Read a structured line's own time, as Powertools writes it.

    >>> _stated("1970-01-01 00:00:01,500+0000", 0.0)
    1.5
    """
    try:
        return datetime.strptime(str(timestamp), "%Y-%m-%d %H:%M:%S,%f%z").timestamp()
    except ValueError:
        return otherwise_s
