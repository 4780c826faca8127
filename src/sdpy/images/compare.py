"""Comparing a generated image with a file."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from sdpy.images.files import encode_image
from sdpy.images.frame import size_text
from sdpy.images.paths import FORMATS
from sdpy.images.reading import load_image, read_image


def difference_to_file(made: Image.Image, path: str | Path) -> str | None:
    """How an image differs from that in a file, for people; None where all pixels are equal.

    What a lossy format changes is no difference: the image is compared as it would be in a file of
    the same format.

    Raises:
        ImageError: the file cannot be read.
    """
    there = load_image(path)
    format = FORMATS.get(Path(path).suffix.lower(), "PNG")
    if format != "PNG":
        made = read_image(io.BytesIO(encode_image(made, format)), "the image")
    here = made.convert("RGB")
    if here.size != there.size:
        return f"has {size_text(here.size)} pixels, not {size_text(there.size)}"
    gaps = np.abs(np.asarray(here, dtype=np.int16) - np.asarray(there, dtype=np.int16)).max(axis=2)
    if not gaps.any():
        return None
    return (
        f"differs in {np.count_nonzero(gaps)} of {gaps.size} pixels, by at most {gaps.max()} of 255"
    )
