"""The images of a folder, and what is known of them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sdpy.errors import ImageError, UsageError
from sdpy.gallery.commands import command_line
from sdpy.images.paths import FORMATS
from sdpy.metadata.read import read_metadata


@dataclass(frozen=True)
class GalleryImage:
    """An image of a folder.

    Attributes:
        path: of its file.
        prompt, negative_prompt: of which it was made; empty where that is not known.
        facts: what else is known of it, by A1111's labels.
        command: that makes it again.
        modified: when its file was last changed, in seconds since 1970.
    """

    path: Path
    prompt: str = ""
    negative_prompt: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)
    command: str = ""
    modified: float = 0.0

    def value(self, name: str) -> str:
        """The value of a fact, or of ``prompt``; empty where there is none."""
        if name.lower() == "prompt":
            return self.prompt
        return next((self.facts[label] for label in self.facts if is_named(label, name)), "")


ALIASES = {"scheduler": "Sampler", "guidance-scale": "CFG scale", "guidance": "CFG scale"} | {
    "sigmas": "Schedule type",
    "strength": "Denoising strength",
}
"""Names of options whose labels differ from them."""


def find_images(folder: Path) -> tuple[list[Path], int]:
    """The image files in a folder and those below it, by their names.

    Returns:
        The files, and how many other files there are.

    Raises:
        UsageError: it is no folder, or has no images.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder} is no folder; name one with images")
    found: list[Path] = []
    others = 0
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if name.startswith("."):
                continue
            if Path(name).suffix.lower() in FORMATS:
                found.append(Path(place) / name)
            else:
                others += 1
    if not found:
        raise UsageError(f"{folder} has no images; they end in {', '.join(FORMATS)}")
    return found, others


def read_images(paths: list[Path]) -> Iterator[GalleryImage | ImageError]:
    """What is known of each image; an error for a file that cannot be read."""
    for path in paths:
        try:
            yield read_image(path)
        except ImageError as error:
            yield error


def read_image(path: Path) -> GalleryImage:
    """What is known of an image.

    Raises:
        ImageError: it cannot be read.
    """
    metadata = read_metadata(path)
    modified = path.stat().st_mtime
    if metadata is None or metadata.parameters is None:
        return GalleryImage(path, modified=modified)
    found = metadata.parameters
    return GalleryImage(
        path,
        found.prompt,
        found.negative_prompt,
        found.facts,
        command_line(metadata, path),
        modified,
    )


def is_named(label: str, name: str) -> bool:
    """Whether people may mean the fact with this label."""
    return _plain(label) == _plain(ALIASES.get(_plain(name), name))


def _plain(name: str) -> str:
    return name.lower().replace("_", "-").replace(" ", "-")
