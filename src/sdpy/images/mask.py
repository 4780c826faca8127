"""Masks: which part of an image is repainted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from sdpy.errors import ImageError
from sdpy.images.files import BLACK, open_image
from sdpy.images.frame import size_text

# The mean of a pixel's channels from which a mask says "repaint", of 255.
MASK_THRESHOLD = 122.5


def load_mask(path: str | Path, size: tuple[int, int] | None = None) -> Image.Image:
    """Read a mask: where the mean of the channels is at least 122.5 of 255, it says "repaint".

    Transparency is laid over black, so that only what is painted white is repainted.

    Args:
        path: a picture of any kind that ``load_image`` takes.
        size: (width, height) of the picture to mask. A mask of another size is resized by nearest
            neighbour if its proportions are the picture's.

    Returns:
        Image of mode L, 0 where the picture is kept and 255 where it is repainted.

    Raises:
        ImageError: as ``load_image``; also if the proportions differ or nothing is white.
    """
    rgb = np.asarray(open_image(Path(path), background=BLACK), dtype=np.float32)
    white = rgb.mean(axis=2) >= MASK_THRESHOLD
    if not white.any():
        raise ImageError(f"{path}: the mask has no white pixel, so there is nothing to repaint")
    mask = Image.fromarray(white.astype(np.uint8) * 255)
    if size is None or mask.size == size:
        return mask
    if not _same_proportions(mask.size, size):
        raise ImageError(
            f"{path}: the mask is {size_text(mask.size)} pixels, the picture {size_text(size)}; "
            "give a mask of the picture's size or proportions"
        )
    resized = mask.resize(size, Image.Resampling.NEAREST)
    if not resized.getbbox():
        raise ImageError(
            f"{path}: the white of the mask is too small for a picture of {size_text(size)} "
            "pixels; paint more of it white"
        )
    return resized


def _same_proportions(a: tuple[int, int], b: tuple[int, int]) -> bool:
    # One is the other scaled, with both sides rounded to whole pixels at most.
    return abs(a[0] * b[1] - a[1] * b[0]) <= max(*a, *b)


def composite(original: Image.Image, painted: Image.Image, mask: Image.Image) -> Image.Image:
    """``painted`` where the mask says so, elsewhere ``original`` bit by bit; all of one size."""
    if not original.size == painted.size == mask.size:
        sizes = ", ".join(size_text(image.size) for image in (original, painted, mask))
        raise ValueError(f"original, painted and mask differ in size: {sizes}")
    return Image.composite(painted, original, mask)
