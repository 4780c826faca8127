"""Where images go: names that are known before the work, and files that replace none unasked."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdpy.errors import OutputError, UsageError
from sdpy.files import OccupiedError
from sdpy.images.paths import check_outputs, numbered
from sdpy.jobs.names import CountedNames, NameTemplate

if TYPE_CHECKING:  # at run time this would import Pillow
    from sdpy.images.metadata import GeneratedImage


@dataclass(frozen=True)
class ImageOutput:
    """How the files of images are called, and which may be replaced.

    A plain name replaces the file that has it, as Unix tools do. A name with fields never does, and
    its folders are made.

    Attributes:
        template: the name.
        overwrite: whether a name with fields replaces files, too.
        no_clobber: whether a plain name replaces none, either.
    """

    template: NameTemplate
    overwrite: bool = False
    no_clobber: bool = False

    @property
    def replaces(self) -> bool:
        """Whether files are replaced."""
        return (self.template.is_plain or self.overwrite) and not self.no_clobber

    def paths(self, values: Sequence[Mapping[str, Any]]) -> list[Path]:
        """The files of some images, one each; where their names are the same, with numbers.

        Args:
            values: of the template's fields, for each image.

        Raises:
            UsageError: see `NameTemplate.render`.
        """
        if self.template.has_counter:
            numbers: dict[CountedNames, int] = {}
            paths = []
            for one in values:
                counted = self.template.counted(one)
                number = numbers[counted] if counted in numbers else counted.highest()
                numbers[counted] = number + 1
                paths.append(self.template.render(one, number + 1))
            return paths
        paths = [self.template.render(one) for one in values]
        if len(set(paths)) == len(paths):
            return paths
        return [numbered(path, k) for k, path in enumerate(paths, 1)]

    def check(self, paths: Sequence[Path]) -> None:
        """Find out before any work whether the files can be written.

        Raises:
            UsageError: a file is there that must stay, or cannot be written; see `check_outputs`.
        """
        check_outputs(paths, makes_folders=not self.template.is_plain)
        if self.replaces:
            return
        for path in paths:
            if os.path.lexists(path):
                instead = "leave out --no-clobber" if self.no_clobber else "use --overwrite"
                raise UsageError(
                    f"{path} exists and is not replaced: choose another name, such as one with "
                    f"{{n}} for the next free number, or {instead}"
                )

    def write(self, image: GeneratedImage, path: Path, values: Mapping[str, Any]) -> Path:
        """Write an image atomically, with the folders of a name with fields.

        Args:
            image: with its metadata.
            path: one of `paths`.
            values: of its fields.

        Returns:
            The path: another one where the number was taken meanwhile.

        Raises:
            OutputError: it cannot be written.
        """
        from sdpy.images.files import save_image

        while True:
            if not self.template.is_plain:
                _make_folder(path.parent)
            try:
                save_image(image, path, image.texts, overwrite=self.replaces)
            except OccupiedError:
                if not self.template.has_counter:
                    raise
                path = self.template.render(values, self.template.next_number(values))
            else:
                return path


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make the folder {folder}: {error.strerror or error}") from error
