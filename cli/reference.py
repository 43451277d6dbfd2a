"""The reference pages of docs/reference, made from the code: commands, events, metrics, errors."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import msgspec
import typer
from typer.models import ArgumentInfo, OptionInfo

from cli.console import EXIT_CODES
from markserve import errors, messages, telemetry

REPOSITORY = Path(__file__).resolve().parent.parent
SHIPPED = ("functions", "worker", "layers/markserve/markserve")


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """An argument or option of a command."""

    names: tuple[str, ...]
    """As typed; one upper-case name for an argument."""
    takes_value: bool
    required: bool
    default: object
    meaning: str


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command, with its full name."""

    name: str
    help: str
    example: str
    parameters: tuple[Parameter, ...]


def commands() -> list[Command]:
    """Every command that there is, by name, as declared: not from typer's own objects, which change with its versions."""
    from cli.main import app

    return sorted(_commands(app, ""), key=lambda command: command.name)


def _commands(app: typer.Typer, prefix: str) -> Iterator[Command]:
    for group in app.registered_groups:
        if group.typer_instance is not None:
            yield from _commands(group.typer_instance, f"{prefix}{group.name} ")
    for info in app.registered_commands:
        if info.callback is not None:
            name = info.name or info.callback.__name__
            # One line of help, like --help's list; an epilog is the example.
            yield Command(
                name=f"{prefix}{name}",
                help=inspect.getdoc(info.callback) or "",
                example=info.epilog or "",
                parameters=tuple(_parameters(inspect.unwrap(info.callback))),
            )


def _parameters(callback: Callable[..., Any]) -> Iterator[Parameter]:
    hints = get_type_hints(callback, include_extras=True)
    for name, declared in inspect.signature(callback).parameters.items():
        kind, *extras = get_args(hints[name])
        info = next(extra for extra in extras if isinstance(extra, OptionInfo | ArgumentInfo))
        missing = declared.default is inspect.Parameter.empty
        yield Parameter(
            names=_names(name, info, flag=kind is bool),
            takes_value=kind is not bool,
            required=missing,
            default=None if missing else declared.default,
            meaning=_cell(info.help or "") + _bounds(info, kind),
        )


def _names(name: str, info: OptionInfo | ArgumentInfo, *, flag: bool) -> tuple[str, ...]:
    if isinstance(info, ArgumentInfo):
        return (name.upper(),)
    # With Annotated, the first name given stands where the default otherwise would.
    declared = [text for text in (info.default, *(info.param_decls or ())) if isinstance(text, str)]
    if declared:
        return tuple(part for text in declared for part in text.split("/"))
    dashed = name.replace("_", "-")
    return (f"--{dashed}", f"--no-{dashed}") if flag else (f"--{dashed}",)


def _bounds(info: OptionInfo | ArgumentInfo, kind: Any) -> str:
    if get_origin(kind) is Literal:
        return f" One of {', '.join(str(choice) for choice in get_args(kind))}."
    low, high = info.min, info.max
    if high is None:
        return "" if low is None else f" At least {_number(low)}."
    return f" At most {_number(high)}." if low is None else f" {_number(low)} to {_number(high)}."


def _number(value: float) -> str:
    """Write a bound.

    >>> _number(1e6), _number(0.5)
    ('1,000,000', '0.5')
    """
    return f"{value:,.0f}" if value == int(value) else f"{value:g}"


def cli_reference() -> str:
    """Write each command with its arguments, options and example."""
    parts = [
        "| exit code | every command ends with |",
        "|---|---|",
        *(f"| {code} | {meaning} |" for code, meaning in EXIT_CODES.items()),
        "",
    ]
    for command in commands():
        parts += [f"## {command.name}", "", command.help, "", "| argument or option | default | meaning |", "|---|---|---|"]
        parts += [_row(parameter) for parameter in command.parameters]
        parts += ["", command.example.replace("`    |    `", "    |    ").replace("    |    ", "` or `"), ""]
    return "\n".join(parts)


def _row(parameter: Parameter) -> str:
    default = "required" if parameter.required else _default(parameter.default)
    return f"| {', '.join(f'`{name}`' for name in parameter.names)} | {default} | {parameter.meaning} |"


def _default(value: object) -> str:
    if value is True:
        return "on"
    return "" if value in (None, False, ()) else f"`{value}`"


def events_reference(template: Mapping[str, Any]) -> str:
    """Write the events of the stack's own bus with their fields, and which rules follow them; then the decision log's events."""
    rules = _rules(template)
    parts = []
    for name, kind in sorted(vars(messages).items()):
        doc = inspect.getdoc(kind) or ""
        if not (isinstance(kind, type) and issubclass(kind, messages.Message) and doc.startswith("Event: ")):
            continue
        said = doc.removeprefix("Event: ").split("\n")[0]
        followers = ", ".join(f"`{rule}`" for rule in rules.get(name, [])) or "nobody"
        fields = ", ".join(f"`{field.name}` ({_type_name(field.type)})" for field in msgspec.structs.fields(kind))
        parts.append(f"| `{name}` | {said[0].upper()}{said[1:]} | {followers} | {fields} |")
    log = sorted({event for text in _sources() for event in re.findall(r'\bevent=f?"([a-z_]+)"', text)})
    head = ["| event | means | followed by | fields |", "|---|---|---|---|"]
    return "\n".join([*head, *parts, "", f"Events of the decision log: {', '.join(f'`{event}`' for event in log)}.", ""])


def _rules(template: Mapping[str, Any]) -> dict[str, list[str]]:
    """Names of the template's rules by the event that they follow."""
    found: dict[str, list[str]] = {}
    for logical_id, resource in template["Resources"].items():
        properties = resource.get("Properties", {})
        patterns = {logical_id: properties.get("EventPattern"), **_patterns(properties.get("Events", {}))}
        for rule, pattern in patterns.items():
            for event in (pattern or {}).get("detail-type", []):
                found.setdefault(event, []).append(rule)
    return found


def _patterns(events: Mapping[str, Any]) -> dict[str, Any]:
    return {name: event.get("Properties", {}).get("Pattern") for name, event in events.items()}


def metrics_reference(template: Mapping[str, Any]) -> str:
    """Write each metric with its meaning and the alarms that watch it."""
    alarms: dict[str, list[str]] = {}
    for resource in template["Resources"].values():
        if resource["Type"] == "AWS::CloudWatch::Alarm":
            name = resource["Properties"]["AlarmName"]["Fn::Sub"].removeprefix("${AWS::StackName}-")
            alarms.setdefault(resource["Properties"].get("MetricName", ""), []).append(name)
    parts = ["| metric | means | watched by |", "|---|---|---|"]
    for metric, meaning in documented_constants(Path(inspect.getfile(telemetry)).read_text(encoding="utf-8")).items():
        watched = ", ".join(f"[{alarm}](../operations.md#{alarm})" for alarm in alarms.get(metric, []))
        parts.append(f"| `{metric}` | {_cell(meaning)} | {watched} |")
    return "\n".join([*parts, ""])


def documented_constants(source: str) -> dict[str, str]:
    """Read the text constants of a module that have a docstring, by value."""
    body = ast.parse(source).body
    found = {}
    for constant, doc in pairwise(body):
        if isinstance(constant, ast.Assign) and isinstance(constant.value, ast.Constant) and isinstance(doc, ast.Expr):
            found[str(constant.value.value)] = inspect.cleandoc(str(ast.literal_eval(doc.value)))
    return found


def errors_reference() -> str:
    """Write each error with its parent, HTTP status and meaning."""
    parts = ["| error | is a | HTTP status | means |", "|---|---|---|---|"]
    for name, kind in vars(errors).items():
        if isinstance(kind, type) and issubclass(kind, errors.MarkserveError) and kind is not errors.MarkserveError:
            status = getattr(kind, "status", "429 or 503" if kind is errors.Overloaded else "")
            parts.append(f"| `{name}` | `{kind.__bases__[0].__name__}` | {status} | {_cell(inspect.getdoc(kind) or '')} |")
    return "\n".join([*parts, ""])


def pages(template: Mapping[str, Any]) -> dict[str, Callable[[], str]]:
    """Return the generated part of each page, by file name."""
    return {
        "cli.md": cli_reference,
        "events.md": lambda: events_reference(template),
        "metrics.md": lambda: metrics_reference(template),
        "errors.md": errors_reference,
    }


def _type_name(kind: Any) -> str:
    kind = get_args(kind)[0] if get_origin(kind) is Annotated else kind
    return getattr(kind, "__name__", str(kind))


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _sources() -> Iterator[str]:
    for folder in SHIPPED:
        for path in sorted((REPOSITORY / folder).rglob("*.py")):
            yield path.read_text(encoding="utf-8")
