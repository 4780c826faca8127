"""Images to files, and the texts in them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from PIL import Image

from sdpy.errors import OutputError
from sdpy.files import atomic_write
from sdpy.images.metadata import NO_TEXTS, RECORD, ImageTexts, saving, texts_of
from sdpy.images.paths import FORMATS
from sdpy.images.reading import one_line, opened


def blank_image(size: tuple[int, int], colour: tuple[int, int, int]) -> Image.Image:
    """An image of one colour, RGB."""
    return Image.new("RGB", size, colour)


def read_record(path: str | Path) -> str | None:
    """The text of sdpy's record in an image file, where it stands before the pixels as sdpy's does.

    Raises:
        ImageError: missing, unreadable or no image.
    """
    with opened(Path(path)) as image:
        found = image.info.get(RECORD) if image.format == "PNG" else texts_of(image).get(RECORD)
        return found if isinstance(found, str) else None


def read_texts(path: str | Path) -> dict[str, str]:
    """The texts of an image file's metadata; see `sdpy.images.metadata.texts_of`.

    Raises:
        ImageError: missing, unreadable or no image.
    """
    with opened(Path(path)) as image:
        if image.format == "PNG":
            image.load()  # text may stand behind the pixels
        return texts_of(image)


def save_image(
    image: Image.Image, path: str | Path, texts: ImageTexts = NO_TEXTS, *, overwrite: bool = True
) -> None:
    """Write an image atomically: an older file stays until the new one is complete.

    The suffix gives the format: .png, .jpg, .jpeg (quality 95, 4:4:4) or .webp (quality 95).

    Args:
        image: of any mode that the format can hold.
        path: where to; its folder must exist.
        texts: how the image was made.
        overwrite: whether it may take the place of another file.

    Raises:
        OutputError: the file cannot be written.
        OccupiedError: it must not overwrite, and there is such a file.
    """
    path = Path(path)
    format = FORMATS.get(path.suffix.lower())
    if format is None:
        raise ValueError(f"{path}: the suffix must be one of {', '.join(FORMATS)}")
    data = encode_image(image, format, texts, str(path))
    with atomic_write(path, overwrite=overwrite) as file:
        file.write(data)


def encode_image(
    image: Image.Image, format: str, texts: ImageTexts = NO_TEXTS, name: str = "the image"
) -> bytes:
    """The bytes of an image file.

    Args:
        image: of any mode that the format can hold.
        format: one of the values of `FORMATS`.
        texts: how the image was made.
        name: what errors call the file.

    Raises:
        OutputError: the format cannot hold the image, or not all of the texts.
    """
    buffer = io.BytesIO()
    settings: dict[str, Any] = {}
    if format != "PNG":
        settings["quality"] = 95
    if format == "JPEG":
        settings["subsampling"] = "4:4:4"
    if image.info.get("icc_profile"):  # the others are sRGB, as those without a profile are
        settings["icc_profile"] = image.info["icc_profile"]
    try:
        # Of the image itself, for a generated one would add what it knows of itself.
        Image.Image.save(image, buffer, format, **settings, **saving(texts, format))
    except (OSError, ValueError) as error:
        raise OutputError(
            f"{name}: the image cannot be stored as {format} ({one_line(error)}); "
            "choose another kind, such as .png"
        ) from error
    return buffer.getvalue()
