"""Sheets of images to look at, and how far images are from each other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw
from torch import Tensor

from sdpy.images.tensors import tensor_to_image

LABEL_LINE = 11
"""Pixels from one line of a label to the next."""


def write_sheet(
    path: Path, images: Sequence[Tensor] | Tensor, columns: int, labels: Sequence[str] = ()
) -> None:
    """Write images, (3, H, W) or (1, 3, H, W) in [-1, 1] and of one size, in rows of ``columns``.

    Each stands over its label, which may have several lines, if there are labels.
    """
    side_y, side_x = images[0].shape[-2:]
    gap = 4 if labels else 0
    lines = max((label.count("\n") + 1 for label in labels), default=0)
    width, height = side_x + gap, side_y + gap + LABEL_LINE * lines
    rows = math.ceil(len(images) / columns)
    sheet = Image.new("RGB", (min(columns, len(images)) * width, rows * height), "white")
    draw = ImageDraw.Draw(sheet)
    for i, image in enumerate(images):
        x, y = i % columns * width, i // columns * height
        sheet.paste(tensor_to_image(image), (x + gap // 2, y + gap // 2))
        if labels:
            at = (x + 2, y + side_y + 2)
            draw.multiline_text(at, labels[i], fill="black", spacing=0, font_size=10)
    sheet.save(path)


def wrap(text: str, width: int = 25) -> list[str]:
    """A text in lines that fit under an image."""
    lines = [""]
    for word in text.split():
        if len(lines[-1]) + len(word) >= width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines


def psnr(mean_squared_error: float) -> float:
    """Peak signal-to-noise ratio in decibels of images in [-1, 1]; infinite without an error."""
    return 10 * math.log10(4 / mean_squared_error) if mean_squared_error else math.inf
