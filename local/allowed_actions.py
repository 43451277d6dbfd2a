"""What each process may do: read from template.yaml's roles, as the table of docs/security.md.

Run as `python -m local.allowed_actions` to print the table; a test compares it with the document.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from samtranslator.yaml_helper import yaml_parse

REPOSITORY = Path(__file__).resolve().parent.parent
ROLES = (
    "AuthorizerRole",
    "ApiRole",
    "ConsoleRole",
    "IngestRole",
    "ForecastRole",
    "PlanRole",
    "LifecycleRole",
    "SpilloverRole",
    "WorkerRole",
    "ControlCycleRole",
    "ControlScheduleRole",
)
"""In the order in which data flows."""

Allowed = tuple[str, str]
"""(action, resource)."""


def allowed_actions(template: Mapping[str, Any]) -> dict[str, list[Allowed]]:
    """Return (action, resource) pairs by role, managed policies of the stack included."""
    resources = template["Resources"]
    found: dict[str, list[Allowed]] = {}
    for name, resource in resources.items():
        if resource["Type"] != "AWS::IAM::Role":
            continue
        documents = [policy["PolicyDocument"] for policy in resource["Properties"].get("Policies", ())]
        documents += [
            resources[_policy(arn)]["Properties"]["PolicyDocument"] for arn in resource["Properties"].get("ManagedPolicyArns", ())
        ]
        found[name] = [pair for document in documents for statement in document["Statement"] for pair in _pairs(_granted(statement))]
    return found


def _policy(arn: Any) -> str:
    """Return a managed policy's logical id, of one attached under a condition too."""
    return str(arn["Fn::If"][1]["Ref"] if "Fn::If" in arn else arn["Ref"])


def _granted(statement: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a statement, of one that an option of the template grants too."""
    granted: Mapping[str, Any] = statement["Fn::If"][1] if "Fn::If" in statement else statement
    return granted


def _pairs(statement: Mapping[str, Any]) -> list[Allowed]:
    return [(action, _readable(resource)) for action in _listed(statement["Action"]) for resource in _listed(statement["Resource"])]


def _listed(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else [value]


def _readable(resource: Any) -> str:
    """Name a resource as people do.

    >>> _readable({"Fn::GetAtt": ["ModelsTable", "Arn"]}), _readable({"Fn::Sub": "${ArtefactsBucket.Arn}/models/*"})
    ('ModelsTable', 'ArtefactsBucket/models/*')
    >>> _readable({"Fn::Sub": "arn:${AWS::Partition}:sqs:${AWS::Region}:${AWS::AccountId}:${AWS::StackName}-work-*"})
    'sqs <stack>-work-*'
    """
    if isinstance(resource, str):
        return resource
    if "Ref" in resource:
        return str(resource["Ref"])
    if "Fn::GetAtt" in resource:
        return str(resource["Fn::GetAtt"][0] if isinstance(resource["Fn::GetAtt"], list) else resource["Fn::GetAtt"].split(".")[0])
    text = str(resource["Fn::Sub"]).replace("${AWS::StackName}", "<stack>")
    if text.startswith("arn:"):
        _, _, service, _, _, name = text.replace("${AWS::", "<").split(":", 5)
        return f"{service} {name}".replace("${", "").replace("}", "")
    return text.replace("${", "").replace(".Arn}", "").replace("}", "")


def table_of(allowed: Mapping[str, Sequence[Allowed]]) -> dict[str, Sequence[Allowed]]:
    """Return the roles of our own processes in the order of `ROLES`."""
    return {name: allowed[name] for name in ROLES if name in allowed}


def markdown(template: Mapping[str, Any]) -> str:
    """Write the table."""
    lines = ["| process | action | on |", "|---|---|---|"]
    for role, pairs in table_of(allowed_actions(template)).items():
        process = role.removesuffix("Role")
        by_action: dict[str, list[str]] = {}
        for action, resource in pairs:
            by_action.setdefault(action, []).append(resource)
        for action, on in sorted(by_action.items()):
            lines.append(f"| {process} | `{action}` | {', '.join(dict.fromkeys(on)).replace('*', chr(92) + '*')} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Print the table of this repository's template."""
    sys.stdout.write(markdown(yaml_parse((REPOSITORY / "template.yaml").read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
