"""Builds the worker bundle and, on request, uploads it: `python -m local.bundle [--upload STACK]`.

The bundle is the worker, its unit, the second half of its user data, and the shared package. Its S3 key is its content's
digest, so a stack names exactly one build, and a roll-back is the key of the build before.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from pathlib import Path

from local.packaging import content_key, worker_bundle

REPOSITORY = Path(__file__).resolve().parent.parent
FOLDER = REPOSITORY / "dist"


def build(folder: Path = FOLDER) -> tuple[str, Path]:
    """Write the bundle; return its S3 key and the file."""
    data = worker_bundle(REPOSITORY)
    key = content_key("worker/bundle", data, ".tar.gz")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / Path(key).name
    path.write_bytes(data)
    return key, path


def upload(stack_name: str, key: str, path: Path) -> str:
    """Put the bundle into the stack's artefacts bucket; return its URI."""
    import boto3

    stack = boto3.client("cloudformation").describe_stacks(StackName=stack_name)["Stacks"][0]
    outputs = {output["OutputKey"]: output["OutputValue"] for output in stack.get("Outputs", [])}
    bucket = outputs["ArtefactsBucket"]
    boto3.client("s3").upload_file(str(path), bucket, key)
    return f"s3://{bucket}/{key}"


def main() -> None:
    """Build, and upload if asked to."""
    parser = ArgumentParser(description="Build the worker bundle; the printed key is the parameter WorkerBundleKey.")
    parser.add_argument("--upload", metavar="STACK", help="also put it into this stack's artefacts bucket")
    stack_name = parser.parse_args().upload
    key, path = build()
    if stack_name:
        sys.stderr.write(f"uploaded to {upload(stack_name, key, path)}\n")
    else:
        sys.stderr.write(f"written to {path}\n")
    sys.stdout.write(key + "\n")


if __name__ == "__main__":
    main()
