"""Many images in one: contact sheets, animations, and thumbnails."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from sdpy.errors import UsageError
from sdpy.files import atomic_write
from sdpy.images.reading import load_image, size_of

_MARGIN = 8
_TEXT = 14
_LINES = 2
_PAPER, _INK, _EMPTY = (255, 255, 255), (20, 20, 20), (236, 236, 236)
MAX_PIXELS = 250_000_000
"""Of a sheet: three quarters of a gigabyte."""


def thumbnail(path: Path, side: int) -> tuple[bytes, tuple[int, int]]:
    """An image within a square, as a WebP file, and the whole image's width and height.

    Raises:
        ImageError: it cannot be read.
    """
    image = load_image(path)
    size = image.size
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=70)
    return buffer.getvalue(), size


def save_animation(
    frames: Sequence[Image.Image], path: Path, *, overwrite: bool = True, seconds: float = 0.15
) -> None:
    """Write an animated WebP file, atomically; the last image stays for two seconds.

    Args:
        frames: of one size, at least one.
        path: where to.
        overwrite: see `sdpy.files.atomic_write`.
        seconds: for which each of the others is shown.

    Raises:
        OutputError: the file cannot be written.
    """
    durations = [*[round(1000 * seconds)] * (len(frames) - 1), 2000]
    buffer = io.BytesIO()
    first, *others = [Image.Image.copy(frame) for frame in frames]
    Image.Image.save(
        first,
        buffer,
        "WEBP",
        save_all=True,
        append_images=others,
        duration=durations,
        loop=0,
        quality=90,
    )
    with atomic_write(path, overwrite=overwrite) as file:
        file.write(buffer.getvalue())


def contact_sheet(
    cells: Sequence[Sequence[tuple[Path, str] | None]],
    *,
    rows: Sequence[str] = (),
    columns: Sequence[str] = (),
    side: int = 256,
) -> Image.Image:
    """Images in rows and columns, each within a square.

    Args:
        cells: for each row and column the image's file and its caption, or None; not all are
            None.
        rows: what each row is called, at its left; none for no labels.
        columns: likewise, at the top.
        side: of the square, in pixels, where the images are not all smaller.

    Raises:
        ImageError: an image cannot be read.
        UsageError: the sheet would be too large.
    """
    sizes = [size_of(cell[0]) for row in cells for cell in row if cell is not None]
    side = min(side, max(max(size) for size in sizes))
    font = ImageFont.load_default(_TEXT)
    line = _TEXT + 4
    has_captions = any(cell is not None and cell[1] for row in cells for cell in row)
    caption = _LINES * line if has_captions else 0
    left = max((font.getlength(label) for label in rows), default=0)
    left = min(int(left) + 1, 2 * side) + _MARGIN if rows else 0
    top = line + _MARGIN if columns else 0
    across = max(len(row) for row in cells)
    width = left + across * (side + _MARGIN) + _MARGIN
    height = top + len(cells) * (side + caption + _MARGIN) + _MARGIN
    if width * height > MAX_PIXELS:
        raise UsageError(
            f"the sheet would have {width}x{height} pixels: use a smaller --size, or --html"
        )
    sheet = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for k, label in enumerate(columns):
        x = left + _MARGIN + k * (side + _MARGIN)
        draw.text((x, _MARGIN), _fitting(label, font, side), _INK, font=font)
    for j, row in enumerate(cells):
        y = top + _MARGIN + j * (side + caption + _MARGIN)
        if rows:
            text = _fitting(rows[j], font, left - _MARGIN)
            draw.text((_MARGIN, y + side // 2), text, _INK, font=font, anchor="lm")
        for k, cell in enumerate(row):
            x = left + _MARGIN + k * (side + _MARGIN)
            if cell is None:
                draw.rectangle((x, y, x + side - 1, y + side - 1), fill=_EMPTY)
                continue
            image = load_image(cell[0])
            image.thumbnail((side, side), Image.Resampling.LANCZOS)
            sheet.paste(image, (x + (side - image.width) // 2, y + (side - image.height) // 2))
            for i, text in enumerate(_wrapped(cell[1], font, side)):
                draw.text((x, y + side + 2 + i * line), text, _INK, font=font)
    return sheet


def _fitting(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """Text that is no wider, with dots in the place of what is left out."""
    text = " ".join(text.split())
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."


def _wrapped(
    text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int
) -> list[str]:
    """Text in as many lines as there is room for."""
    lines: list[str] = []
    left = " ".join(text.split())
    while left and len(lines) < _LINES - 1:
        end = len(left)
        while end > 1 and font.getlength(left[:end]) > width:
            space = left.rfind(" ", 0, end)
            end = space if space > 0 else end - 1
        lines.append(left[:end])
        left = left[end:].strip()
    return [*lines, _fitting(left, font, width)] if left else lines
