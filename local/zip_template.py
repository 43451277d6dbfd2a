"""Writes the template that SAM can build without Docker: the repository's own, with its image functions left unbuilt.

Run as `python -m local.zip_template > template-zip.json`, from the repository's root. An image function keeps everything but its image:
`SkipBuild` tells `sam build` to pass it over, and a placeholder `ImageUri` stands where `sam package` would put the
pushed one. Zip functions, the layer, the state machines and every other resource are as they are.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from samtranslator.yaml_helper import yaml_parse

PLACEHOLDER_IMAGE = "123456789012.dkr.ecr.us-east-1.amazonaws.com/not-built:placeholder"


def without_images(template: dict[str, Any], *, image_uri: str = PLACEHOLDER_IMAGE) -> dict[str, Any]:
    """Return the template with every image function referring to `image_uri` instead of a Dockerfile."""
    resources = {
        name: _unbuilt(resource, image_uri) if resource.get("Properties", {}).get("PackageType") == "Image" else resource
        for name, resource in template["Resources"].items()
    }
    return {**template, "Resources": resources}


def _unbuilt(resource: dict[str, Any], image_uri: str) -> dict[str, Any]:
    return {**resource, "Metadata": {"SkipBuild": True}, "Properties": {**resource["Properties"], "ImageUri": image_uri}}


def main() -> None:
    """Write the derived template to stdout."""
    template = yaml_parse(Path("template.yaml").read_text(encoding="utf-8"))
    sys.stdout.write(json.dumps(without_images(template), indent=1) + "\n")


if __name__ == "__main__":
    main()
