"""Making masks larger and smaller."""

from __future__ import annotations

import numpy as np
from PIL import Image


def resize_mask(mask: Image.Image, size: tuple[int, int]) -> Image.Image:
    """A mask (mode L) of another size, of which no stroke is lost, however thin.

    Made smaller, a pixel takes the highest level of those that it stands for; made larger, that of
    its nearest.
    """
    if mask.size == size:
        return mask
    levels = np.asarray(mask)
    for axis, new in ((0, size[1]), (1, size[0])):
        old = levels.shape[axis]
        if new < old:
            levels = np.maximum.reduceat(levels, np.arange(new) * old // new, axis=axis)
        elif new > old:
            levels = levels.take((2 * np.arange(new) + 1) * old // (2 * new), axis=axis)
    return Image.fromarray(levels)
