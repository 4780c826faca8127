"""The part of an image around its mask, which is repainted by itself and put back."""

from __future__ import annotations

import math
from dataclasses import dataclass

from PIL import Image

from sdpy.images.mask import composite
from sdpy.images.resize import resize_mask

MOST_ELONGATED = 2.0
"""A region is at most so many times as long as wide, where the image lets it."""

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Region:
    """A rectangle of an image, and the size at which it is repainted; see `Region.around`.

    Attributes:
        box: left, top, right and bottom, in pixels of the image.
        size: width and height that the model sees.
    """

    box: Box
    size: tuple[int, int]

    @classmethod
    def around(
        cls,
        mask: Image.Image,
        *,
        padding: int,
        multiple: int,
        min_side: int,
        pixels: tuple[int, int],
        size: tuple[int, int] | None = None,
    ) -> Region:
        """The region that holds all that a mask says is repainted.

        Args:
            mask: of the whole image, mode L.
            padding: pixels of the image that are added on each side.
            multiple: the model's sides are multiples of this.
            min_side: the shortest side that the model works with.
            pixels: the least and the most that the model sees; the region is scaled up or down to
                that, and left as it is in between. Without effect where a ``size`` is given.
            size: width and height that the model sees; the region gets these proportions, as far
                as the image has room.
        """
        bounds = mask.getbbox()
        assert bounds is not None, "the mask repaints something"
        left, top, right, bottom = bounds
        box = (
            max(0, left - padding),
            max(0, top - padding),
            min(mask.width, right + padding),
            min(mask.height, bottom + padding),
        )
        if size is not None:
            return cls(_widened(box, size[0] / size[1], mask.size), size)
        width, height = box[2] - box[0], box[3] - box[1]
        ratio = min(max(width / height, 1 / MOST_ELONGATED), MOST_ELONGATED)
        box = _widened(box, ratio, mask.size)
        width, height = box[2] - box[0], box[3] - box[1]
        area = min(max(width * height, pixels[0]), pixels[1])
        scale = math.sqrt(area / (width * height))

        def side(length: int) -> int:
            return max(min_side, round(length * scale / multiple) * multiple)

        return cls(box, (side(width), side(height)))

    def cut(self, image: Image.Image) -> Image.Image:
        """The region of an image, as the model sees it (Lanczos)."""
        return _resized(image.crop(self.box), self.size)

    def cut_mask(self, mask: Image.Image) -> Image.Image:
        """The region of a mask, as the model sees it."""
        return resize_mask(mask.crop(self.box), self.size)

    def put_back(self, original: Image.Image, made: Image.Image, mask: Image.Image) -> Image.Image:
        """The whole image with what was made of the region, as much of it as the mask says."""
        inside = original.crop(self.box)
        whole = original.copy()
        whole.paste(composite(inside, _resized(made, inside.size), mask.crop(self.box)), self.box)
        return whole


def _resized(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    return image if image.size == size else image.resize(size, Image.Resampling.LANCZOS)


def _widened(box: Box, ratio: float, size: tuple[int, int]) -> Box:
    """A box made wider or higher to have a ratio of width to height, within an image."""
    left, top, right, bottom = box
    width, height = right - left, bottom - top
    if width < ratio * height:
        left, right = _longer(left, right, round(ratio * height), size[0])
    else:
        top, bottom = _longer(top, bottom, round(width / ratio), size[1])
    return (left, top, right, bottom)


def _longer(start: int, end: int, length: int, most: int) -> tuple[int, int]:
    length = min(max(length, end - start), most)
    start = min(max(0, start - (length - (end - start)) // 2), most - length)
    return start, start + length
