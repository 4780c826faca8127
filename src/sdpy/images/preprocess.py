"""From an image to the map that a ControlNet is shown."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from sdpy.errors import UsageError

CANNY_LOW = 100
CANNY_HIGH = 200

Preprocessor = Callable[[Tensor], Tensor]
"""From an image (1, 3, H, W) in [-1, 1] to what a ControlNet is shown, in [0, 1]."""

NAMES = ("none", "canny")


def find_preprocessor(
    name: str, *, low: float = CANNY_LOW, high: float = CANNY_HIGH
) -> Preprocessor:
    """The preprocessor of that name.

    Args:
        name: of `NAMES`.
        low, high: thresholds of `canny`.

    Raises:
        UsageError: there is none.
    """
    if name == "none":
        return lambda image: (image + 1) / 2
    if name == "canny":
        return lambda image: canny(image, low, high)
    raise UsageError(f"unknown --control-preprocessor '{name}': use one of {', '.join(NAMES)}")


def canny(image: Tensor, low: float = CANNY_LOW, high: float = CANNY_HIGH) -> Tensor:
    """White edges on black, as ControlNets for Canny's edges were trained on.

    Args:
        image: (1, 3, H, W) in [-1, 1].
        low: gradients below are no edges; OpenCV's scale, on which 8-bit images reach hundreds.
        high: gradients above are edges; between the two they are where they continue an edge.

    Returns:
        (1, 3, H, W) float32, 0 or 1.

    Raises:
        UsageError: OpenCV is not installed, or ``low`` is above ``high``.

    Source: "A Computational Approach to Edge Detection" (Canny, 1986), as OpenCV computes it.
    """
    try:
        import cv2
    except ImportError as error:
        raise UsageError(
            "Canny's edges need OpenCV: install it with pip install 'sdpy[canny]'"
        ) from error
    if low > high:
        raise UsageError(f"Canny's low threshold {low:g} is above the high one, {high:g}")
    levels = ((image[0] + 1) / 2 * 255).round().clamp(0, 255).to(torch.uint8)
    pixels = np.ascontiguousarray(levels.permute(1, 2, 0).numpy())  # (H, W, 3)
    edges = torch.from_numpy(cv2.Canny(pixels, low, high) > 0)  # (H, W)
    return edges.float().expand(1, 3, -1, -1)
