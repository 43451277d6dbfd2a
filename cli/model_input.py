"""What to ask a model, from a file: a V2 request, a bare value, an array, or a picture fitted to the declared tensor."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

from cli.console import BAD_USAGE, Problem

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
CHANNELS = (1, 3)
TENSOR_RANK = 4
"""Of a batch of pictures: batch, channels, height and width, in either order."""


def is_picture(source: str) -> bool:
    """Tell whether a source is a picture, which needs the model's declaration to become an input."""
    return Path(source).suffix.lower() in PICTURES


def read_value(source: str) -> Any:
    """Read parsed JSON, or an array as nested lists.

    Raises
    ------
    Problem
        If there is no such file, or it is not what its name says.
    """
    if source == "-":
        return parse_json(sys.stdin.read(), "standard input")
    path = existing(source)
    if path.suffix != ".npy":
        return parse_json(path.read_text(encoding="utf-8", errors="replace"), source)
    return load_array(path).tolist()


def existing(source: str) -> Path:
    """Return a file's path; raises `Problem` when there is none."""
    path = Path(source)
    if not path.is_file():
        step = "give a .npy, JSON, PNG or JPEG file, or - for standard input"
        raise Problem(f"there is no file {source}", next_step=step, code=BAD_USAGE)
    return path


def load_array(path: Path) -> Any:
    """Read a .npy file; raises `Problem` when it is none."""
    import numpy as np

    try:
        return np.load(io.BytesIO(path.read_bytes()), allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise Problem(f"{path} is not a NumPy array: {error}", next_step="save one with numpy.save", code=BAD_USAGE) from error


def parse_json(text: str, name: str) -> Any:
    """Parse JSON; raises `Problem` when it is none."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise Problem(f"{name} is not JSON: {error}", next_step="see `markserve infer --help`", code=BAD_USAGE) from error


def read_picture(path: Path, spec: dict[str, Any], *, white: float | None) -> Any:
    """Fit a picture to a declared tensor: grey or RGB by its channels, resized to its height and width, as nested lists.

    Parameters
    ----------
    spec
        Declaration of the input: datatype and shape, -1 being free.
    white
        Value of a white pixel; default: 1 for floats, 255 for integers. A model's own normalisation belongs into the model.

    Raises
    ------
    Problem
        If the tensor does not take pictures, or the file is none.
    """
    import numpy as np
    from PIL import Image, UnidentifiedImageError

    channels, height, width, channels_last = _layout(spec)
    try:
        with Image.open(path) as opened:
            picture = opened.convert("L" if channels == 1 else "RGB")
    except (UnidentifiedImageError, OSError) as error:
        raise Problem(f"{path} is not a picture: {error}", next_step="give a PNG or JPEG file", code=BAD_USAGE) from error
    if height > 0 and width > 0 and picture.size != (width, height):
        picture = picture.resize((width, height))
    is_float = spec["datatype"].startswith(("FP", "BF"))
    pixels = (
        np.asarray(picture, dtype=np.float64).reshape(picture.height, picture.width, channels) * (white or (1 if is_float else 255)) / 255
    )
    if not channels_last:
        pixels = pixels.transpose(2, 0, 1)
    return [(pixels if is_float else np.rint(pixels).astype(int)).tolist()]


def _layout(spec: dict[str, Any]) -> tuple[int, int, int, bool]:
    """Read channels, height, width, and whether channels come last.

    >>> _layout({"name": "image", "shape": [-1, 3, 224, 224]})
    (3, 224, 224, False)
    """
    shape = spec["shape"]
    if len(shape) == TENSOR_RANK and shape[1] in CHANNELS:
        return shape[1], shape[2], shape[3], False
    if len(shape) == TENSOR_RANK and shape[3] in CHANNELS:
        return shape[3], shape[1], shape[2], True
    step = "give an array (.npy) or JSON; pictures fit [batch, 1 or 3, height, width] or [batch, height, width, 1 or 3]"
    raise Problem(f"the input {spec['name']} of shape {shape} does not take pictures", next_step=step, code=BAD_USAGE)
