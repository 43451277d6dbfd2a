"""What `sam build` and `make worker-bundle` produce, without SAM or Docker: archives of the repository's own folders.

An archive depends on file names and contents only, so its digest names a version: same sources, same digest, and a
deployment of unchanged sources changes nothing. Locally, third-party packages come from the running interpreter.
"""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path

# The first instant that zip can express; any constant would do.
_TIMESTAMP = (1980, 1, 1, 0, 0, 0)
_SKIPPED_FOLDERS = {"__pycache__", ".mypy_cache", ".pytest_cache", ".ruff_cache", "dist", "build"}
_SKIPPED_SUFFIXES = {".pyc", ".pyo"}
_WORKER_SOURCES = ("worker", "layers/markserve")
_EXECUTABLE = ".sh"


def source_files(folder: Path) -> list[Path]:
    """List the files of `folder` that belong in an archive, sorted, relative to it."""
    return sorted(
        path.relative_to(folder)
        for path in folder.rglob("*")
        if path.is_file() and path.suffix not in _SKIPPED_SUFFIXES and not _SKIPPED_FOLDERS.intersection(path.relative_to(folder).parts)
    )


def zip_files(members: Iterable[tuple[str, Path]]) -> bytes:
    """Zip `(name in the archive, file)` pairs reproducibly."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, path in sorted(members):
            entry = zipfile.ZipInfo(name, date_time=_TIMESTAMP)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, path.read_bytes())
    return buffer.getvalue()


def function_zip(folder: Path) -> bytes:
    """Zip a function's folder; its contents become the root, as in Lambda."""
    return zip_files((str(name), folder / name) for name in source_files(folder))


def layer_zip(folder: Path) -> bytes:
    """Zip the layer's package below `python/`, where Lambda looks for it."""
    package = folder / "markserve"
    return zip_files((f"python/markserve/{name}", package / name) for name in source_files(package))


def worker_bundle(repository: Path) -> bytes:
    """Pack what an instance installs: the worker and the shared package, as a reproducible tar.gz."""
    buffer = io.BytesIO()
    with gzip.GzipFile(fileobj=buffer, mode="wb", mtime=0) as compressed, tarfile.open(fileobj=compressed, mode="w") as archive:
        for source in _WORKER_SOURCES:
            for name in source_files(repository / source):
                path = repository / source / name
                entry = tarfile.TarInfo(f"{source}/{name}")
                entry.size = path.stat().st_size
                entry.mode = 0o755 if path.suffix == _EXECUTABLE else 0o644
                with path.open("rb") as content:
                    archive.addfile(entry, content)
    return buffer.getvalue()


def content_key(prefix: str, data: bytes, suffix: str) -> str:
    """Name an archive by its content.

    >>> content_key("code/plan", b"", ".zip")
    'code/plan-e3b0c44298fc1c14.zip'
    """
    return f"{prefix}-{sha256(data).hexdigest()[:16]}{suffix}"
