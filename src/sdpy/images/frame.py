"""Fitting an image to the sizes that a model takes, and back."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from sdpy.errors import ImageError
from sdpy.images.resize import resize_mask

MAX_SIDE = 8192
"""Pixels of the longest side that an image may be asked to have."""

_HUGE = 32_000_000

Resize = Callable[[Image.Image, tuple[int, int]], Image.Image]


def _lanczos(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    return image.resize(size, Image.Resampling.LANCZOS)


@dataclass(frozen=True)
class Frame:
    """How an image of any size becomes one that the model takes, and how the result comes back.

    The image is scaled (only where asked), cropped to the centre (only for a wanted width and
    height) and padded at the right and at the bottom. An image that needs none of this passes
    through bit by bit. Make one with ``Frame.fit``; all sizes are (width, height).

    Attributes:
        source: the image's size.
        scaled: its size after scaling; equal to ``source`` when it is not scaled.
        offset: left and top of what is cut out of the scaled image.
        content: size of what is cut out; the size of the finished image.
        padded: size that the model sees.
    """

    source: tuple[int, int]
    scaled: tuple[int, int]
    offset: tuple[int, int]
    content: tuple[int, int]
    padded: tuple[int, int]

    @classmethod
    def fit(
        cls,
        size: tuple[int, int],
        *,
        multiple: int = 8,
        max_pixels: int | None = None,
        min_side: int = 64,
        max_side: int = MAX_SIDE,
        width: int | None = None,
        height: int | None = None,
    ) -> Frame:
        """The frame for an image of ``size``.

        Args:
            size: (width, height) of the image.
            multiple: the model's sides are multiples of this (8 for Stable Diffusion).
            max_pixels: an image with more is scaled down to at most this many; None: never. Not
                applied where a width or height is asked for.
            min_side: shortest side, in pixels, that is worth generating.
            max_side: longest side, in pixels, that the finished image may have.
            width: wanted width; alone, the height follows from the proportions. With ``height`` the
                image is scaled to cover both and its centre is taken.
            height: wanted height, likewise.

        Raises:
            ImageError: a side of the finished image would be shorter than ``min_side`` or longer
                than ``max_side``.
        """
        if width is not None or height is not None:
            content = _wanted_size(size, width, height)
            scaled = _cover(size, content)
        else:
            content = scaled = _at_most(size, max_pixels)
        if min(content) < min_side:
            becomes = "" if content == size else f" and becomes {size_text(content)}"
            raise ImageError(
                f"the image has {size_text(size)} pixels{becomes}, too little to work on: "
                f"both sides must be at least {min_side}; enlarge it first"
            )
        if max(content) > max_side:
            becomes = "" if content == size else f" and becomes {size_text(content)}"
            raise ImageError(
                f"the image has {size_text(size)} pixels{becomes}: both sides may be at most "
                f"{max_side}; cut it to other proportions, or give both --width and --height"
            )
        return cls(
            source=size,
            scaled=scaled,
            offset=((scaled[0] - content[0]) // 2, (scaled[1] - content[1]) // 2),
            content=content,
            padded=(-(-content[0] // multiple) * multiple, -(-content[1] // multiple) * multiple),
        )

    def apply(self, image: Image.Image) -> Image.Image:
        """Scale (Lanczos), crop and pad an image; the padding repeats the last row and column."""
        image = self._cut(image, _lanczos)
        if self.padded == self.content:
            return image
        return Image.fromarray(np.pad(np.asarray(image), (*self._padding(), (0, 0)), mode="edge"))

    def apply_mask(self, mask: Image.Image) -> Image.Image:
        """The same for a mask, of which no stroke is lost; the padding is not repainted.

        Raises:
            ImageError: scaling or cropping left no white pixel.
        """
        mask = self._cut(mask, resize_mask)
        if not mask.getbbox():
            raise ImageError(
                f"nothing white is left of the mask where the image is used at "
                f"{size_text(self.content)} pixels; paint more of it white, nearer the centre"
            )
        if self.padded == self.content:
            return mask
        return Image.fromarray(np.pad(np.asarray(mask), self._padding()))

    def restore(self, image: Image.Image) -> Image.Image:
        """Cut the padding away; the result has the size ``content``, it is not scaled back."""
        if image.size != self.padded:
            raise ValueError(
                f"image is {size_text(image.size)}, this frame's is {size_text(self.padded)}"
            )
        if self.padded == self.content:
            return image
        return image.crop((0, 0, *self.content))

    def _cut(self, image: Image.Image, resize: Resize) -> Image.Image:
        if image.size != self.source:
            raise ValueError(
                f"image is {size_text(image.size)}, this frame's is {size_text(self.source)}"
            )
        if self.scaled != self.source:
            if self.scaled[0] * self.scaled[1] > _HUGE:
                # Only a small part of the scaled image is wanted: cut that out first.
                return resize(image.crop(self._box_of_content()), self.content)
            image = resize(image, self.scaled)
        if self.content != self.scaled:
            left, top = self.offset
            image = image.crop((left, top, left + self.content[0], top + self.content[1]))
        return image

    def _box_of_content(self) -> tuple[int, int, int, int]:
        """Which part of the source becomes the content, to the pixel."""
        starts, ends = [], []
        for source, scaled, offset, content in zip(
            self.source, self.scaled, self.offset, self.content, strict=True
        ):
            starts.append(offset * source // scaled)
            ends.append(min(source, -(-(offset + content) * source // scaled)))
        return (starts[0], starts[1], ends[0], ends[1])

    def _padding(self) -> tuple[tuple[int, int], tuple[int, int]]:
        right, bottom = (p - c for p, c in zip(self.padded, self.content, strict=True))
        return ((0, bottom), (0, right))


def _wanted_size(size: tuple[int, int], width: int | None, height: int | None) -> tuple[int, int]:
    if width is None and height is not None:
        width = max(1, round(size[0] * height / size[1]))
    elif height is None and width is not None:
        height = max(1, round(size[1] * width / size[0]))
    assert width is not None and height is not None
    return (width, height)


def _cover(size: tuple[int, int], content: tuple[int, int]) -> tuple[int, int]:
    """``size`` scaled so that it just covers ``content``."""
    scale = max(content[0] / size[0], content[1] / size[1])
    return (
        max(content[0], round(size[0] * scale)),
        max(content[1], round(size[1] * scale)),
    )


def _at_most(size: tuple[int, int], max_pixels: int | None) -> tuple[int, int]:
    if max_pixels is None or size[0] * size[1] <= max_pixels:
        return size
    # Rounded down, in whole numbers, so that the product stays within the limit.
    return (
        max(1, math.isqrt(max_pixels * size[0] // size[1])),
        max(1, math.isqrt(max_pixels * size[1] // size[0])),
    )


def size_text(size: tuple[int, int]) -> str:
    """``(640, 480)`` as people write it: 640x480."""
    return f"{size[0]}x{size[1]}"
