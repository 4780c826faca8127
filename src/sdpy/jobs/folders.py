"""Folders of images, each of which is to be changed."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sdpy.errors import UsageError

SUFFIXES = frozenset(
    (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".ppm", ".pgm")
)
"""In which names of images end."""

_MASK = re.compile(r"(?P<stem>.+)[._-]mask", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class InputImage:
    """An image of a folder.

    Attributes:
        path: of it.
        mask: of its mask; None for none.
    """

    path: str
    mask: str | None = None


def input_images(folder: Path, masks: Path | None = None) -> tuple[InputImage, ...]:
    """The images of a folder, in the order of their names, with the masks that belong to them.

    Args:
        folder: of the images. Without ``masks``, a file ``photo.mask.png``, ``photo_mask.png`` or
            ``photo-mask.png`` in it is the mask of ``photo.jpg``.
        masks: a folder with a mask of the same name, but for the suffix, for each image.

    Raises:
        UsageError: no such folder, no image in it, two masks for an image, an image without a
            mask in ``masks``, or a mask without an image.
    """
    images: dict[Path, str] = {}
    found: dict[str, Path] = {}
    for path in _files(folder):
        match = _MASK.fullmatch(path.stem) if masks is None else None
        if match is None:
            images[path] = path.stem
        else:
            _add(found, match["stem"], path)
    for path in _files(masks) if masks is not None else ():
        _add(found, path.stem, path)
    if not images:
        raise UsageError(f"{folder}: has no images; name another folder by --input")
    lonely = set(found) - set(images.values())
    if lonely:
        path = found[min(lonely)]
        raise UsageError(f"{path}: is a mask, but {folder} has no image of that name; rename it")
    for path, stem in images.items():
        if masks is not None and stem not in found:
            raise UsageError(f"{path}: {masks} has no mask of that name; add one or leave it out")
    return tuple(
        InputImage(os.fspath(path), os.fspath(found[stem]) if stem in found else None)
        for path, stem in images.items()
    )


def _add(found: dict[str, Path], stem: str, path: Path) -> None:
    if stem in found:
        raise UsageError(f"{found[stem]} and {path} are both masks of {stem}; leave one out")
    found[stem] = path


def _files(folder: Path) -> Iterator[Path]:
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise UsageError(f"{folder}: cannot be read ({error.strerror}); name a folder") from error
    for name in names:
        path = folder / name
        if path.suffix.lower() in SUFFIXES and not name.startswith(".") and path.is_file():
            yield path
