"""Masks: which part of an image is repainted."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from PIL import Image

from sdpy.errors import ImageError
from sdpy.images.files import BLACK, open_image, to_rgb
from sdpy.images.frame import size_text

# The mean of a pixel's channels from which a mask says "repaint", of 255.
MASK_THRESHOLD = 122.5


def load_mask(
    source: str | os.PathLike[str] | Image.Image, size: tuple[int, int] | None = None
) -> Image.Image:
    """Read a mask: where the mean of the channels is at least 122.5 of 255, it says "repaint".

    Transparency is laid over black, so that only what is painted white is repainted.

    Args:
        source: a path or an image of any kind that ``load_image`` takes.
        size: (width, height) of the image to mask. A mask of another size is resized by nearest
            neighbour if its proportions are the image's.

    Returns:
        Image of mode L, 0 where the image is kept and 255 where it is repainted.

    Raises:
        ImageError: as ``load_image``; also if the proportions differ or nothing is white.
    """
    if isinstance(source, Image.Image):
        path, opened = "the mask", to_rgb(source, background=BLACK)
    else:
        path, opened = os.fspath(source), open_image(Path(source), background=BLACK)
    rgb = np.asarray(opened, dtype=np.float32)
    white = rgb.mean(axis=2) >= MASK_THRESHOLD
    if not white.any():
        raise ImageError(f"{path}: the mask has no white pixel, so there is nothing to repaint")
    mask = Image.fromarray(white.astype(np.uint8) * 255)
    if size is None or mask.size == size:
        return mask
    if not _same_proportions(mask.size, size):
        raise ImageError(
            f"{path}: the mask is {size_text(mask.size)} pixels, the image {size_text(size)}; "
            "give a mask of the image's size or proportions"
        )
    resized = mask.resize(size, Image.Resampling.NEAREST)
    if not resized.getbbox():
        raise ImageError(
            f"{path}: the white of the mask is too small for an image of {size_text(size)} "
            "pixels; paint more of it white"
        )
    return resized


def _same_proportions(a: tuple[int, int], b: tuple[int, int]) -> bool:
    # One is the other scaled, with both sides rounded to whole pixels at most.
    return abs(a[0] * b[1] - a[1] * b[0]) <= max(*a, *b)


def composite(original: Image.Image, generated: Image.Image, mask: Image.Image) -> Image.Image:
    """``generated`` where the mask says so, elsewhere ``original`` bit by bit; all of one size."""
    if not original.size == generated.size == mask.size:
        sizes = ", ".join(size_text(image.size) for image in (original, generated, mask))
        raise ValueError(f"original, generated and mask differ in size: {sizes}")
    return Image.composite(generated, original, mask)
