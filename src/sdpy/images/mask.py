"""Masks: which part of an image is repainted, and how much of each pixel."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from sdpy.errors import ImageError
from sdpy.images.frame import size_text
from sdpy.images.reading import BLACK, open_input_image, to_input_image
from sdpy.images.resize import resize_mask

NEARLY = 8
"""Levels this near to black or white, of 255, are taken for it: JPEG files make some of either."""

_Levels = NDArray[np.uint8]

_DOUBTED_GREY = 0.25
_DOUBTED_COLOUR = 0.01
_COLOURED = 32
_FEW = 0.02
_LOOKED_AT = 1_000_000  # pixels that decide about doubts


@dataclass(frozen=True, eq=False)
class Mask:
    """A mask that was read.

    Attributes:
        image: mode L: 0 where the image is kept, 255 where it is repainted, and in between the
            share of the repainted image.
        doubts: how it was read, where that may not be what was meant; for people.
    """

    image: Image.Image
    doubts: tuple[str, ...] = ()


def load_mask(
    source: str | os.PathLike[str] | Image.Image,
    size: tuple[int, int] | None = None,
    *,
    invert: bool = False,
    blur: float = 0.0,
) -> Mask:
    """Read a mask: the mean of a pixel's channels is the share of it that is repainted.

    Transparency is laid over black, so that only what is painted white is repainted. But where the
    opaque pixels are not black and white, as in a photograph of which a part was erased, the alpha
    channel is the mask: what is transparent is repainted.

    Args:
        source: a path or an image of any kind that ``load_image`` takes.
        size: (width, height) of the image to mask. A mask of another size is resized if its
            proportions are the image's; see `resize_mask`.
        invert: whether white is kept and black repainted.
        blur: standard deviation of a Gaussian blur, in pixels of the image; 0 for none.

    Raises:
        ImageError: as ``load_image``; also if the proportions differ or nothing is repainted.
    """
    if isinstance(source, Image.Image):
        path, opened = "the mask", to_input_image(source, BLACK)
    else:
        path, opened = os.fspath(source), open_input_image(Path(source), BLACK)
    alpha = None if opened.alpha is None else np.asarray(opened.alpha)
    levels, doubts = _levels(path, np.asarray(opened.image), alpha)
    if invert:
        levels = 255 - levels
    if not levels.any():
        what = "no black pixel" if invert else "no white pixel"
        raise ImageError(f"{path}: the mask has {what}, so there is nothing to repaint")
    mask, own = Image.fromarray(levels), opened.image.size
    if size is not None and own != size:
        if not same_proportions(own, size):
            raise ImageError(
                f"{path}: the mask is {size_text(own)} pixels, the image "
                f"{size_text(size)}; give a mask of the image's size or proportions"
            )
        mask = resize_mask(mask, size)
    if blur:
        blurred = np.asarray(mask.filter(ImageFilter.GaussianBlur(blur)))
        mask = Image.fromarray(_without_traces(blurred))
        if not mask.getbbox():
            raise ImageError(f"{path}: nothing is left of the mask after the blur; use less")
    return Mask(mask, tuple(doubts))


def _levels(path: str, rgb: _Levels, alpha: _Levels | None) -> tuple[_Levels, list[str]]:
    """The shares (H, W) of 255, and doubts."""
    # The mean, rounded, in few bytes: masks may be large.
    brightness = ((rgb.sum(axis=2, dtype=np.uint16) + 1) // 3).astype(np.uint8)
    levels = _without_traces(brightness)
    if alpha is not None and _says_more(levels, alpha):
        return _without_traces(255 - alpha), [
            f"{path} is read by its transparency: what was erased is repainted"
        ]
    doubts = []
    some = math.isqrt(levels.size // _LOOKED_AT) + 1
    levels_seen, rgb_seen = levels[::some, ::some], rgb[::some, ::some]
    grey = np.mean((levels_seen != 0) & (levels_seen != 255))
    spread = rgb_seen.max(axis=2) - rgb_seen.min(axis=2)
    if np.mean(spread > _COLOURED) > _DOUBTED_COLOUR:
        doubts.append(
            f"{path} has colours, which a mask has not: the brighter a pixel, the more of it is "
            "repainted; paint white what is to be repainted, the rest black"
        )
    elif grey > _DOUBTED_GREY:
        doubts.append(
            f"{path} is neither black nor white in {grey:.0%} of its pixels: of these, only a "
            "share is repainted, the more the brighter"
        )
    return levels, doubts


def _says_more(levels: _Levels, alpha: _Levels) -> bool:
    """Whether the mask is meant by its alpha channel, because the colours say nothing."""
    erased = alpha <= NEARLY
    if erased.all() or not (alpha < 255 - NEARLY).any():
        return False
    opaque = levels[~erased]
    unclear = np.mean((opaque != 0) & (opaque != 255)) > _FEW
    # Where the opaque part is half transparent white, grey comes from the transparency.
    soft = np.abs(levels.astype(np.int16) - alpha)[~erased] <= NEARLY
    return bool((unclear and not soft.all()) or not opaque.any())


def _without_traces(levels: _Levels) -> _Levels:
    """Nearly black as black, nearly white as white."""
    clean = np.where(levels <= NEARLY, 0, levels)
    return np.where(clean >= 255 - NEARLY, 255, clean).astype(np.uint8)


def same_proportions(a: tuple[int, int], b: tuple[int, int]) -> bool:
    """Whether a mask of one size suits an image of the other."""
    # One is the other scaled, with both sides rounded to whole pixels at most.
    return abs(a[0] * b[1] - a[1] * b[0]) <= max(*a, *b)


def composite(original: Image.Image, generated: Image.Image, mask: Image.Image) -> Image.Image:
    """As much of ``generated`` as the mask says, of ``original`` the rest; all of one size.

    Where the mask is 0, the pixels are the original's, bit by bit.
    """
    if not original.size == generated.size == mask.size:
        sizes = ", ".join(size_text(image.size) for image in (original, generated, mask))
        raise ValueError(f"original, generated and mask differ in size: {sizes}")
    return Image.composite(generated, original, mask)
