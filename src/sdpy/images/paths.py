"""Where images are written: names of several samples, and whether a path can work at all.

Both are asked before any model is loaded, so this module imports neither torch nor Pillow.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from pathlib import Path

from sdpy.errors import UsageError
from sdpy.files import try_writing

# Suffix -> name of the format in Pillow.
FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}


def numbered(path: Path, number: int) -> Path:
    """The name of one of several images: ``sd_final.png`` becomes ``sd_final.1.png``."""
    return path.with_name(f"{path.stem}.{number}{path.suffix}")


def check_format(path: str | Path) -> None:
    """Make sure that a name says which format it is for.

    Raises:
        UsageError: it does not, or the format is unknown.
    """
    if Path(path).suffix.lower() not in FORMATS:
        raise UsageError(
            f"{path}: unknown image format; let the name end in one of {', '.join(FORMATS)}"
        )


def check_outputs(paths: Iterable[str | Path], *, makes_folders: bool = False) -> None:
    """Make sure that images can be written to some paths.

    A temporary file is really made in each folder and removed: permissions alone do not tell.

    Args:
        paths: of the files.
        makes_folders: whether missing folders will be made.

    Raises:
        UsageError: unknown format, no such folder, a folder in the place of a file, a folder that
            cannot be written to, or a name that the file system refuses.
    """
    tried: set[Path] = set()
    for path in map(Path, paths):
        check_format(path)
        _check_target(path)
        # Where the name is a symbolic link, the file that it names is written.
        folder = Path(os.path.realpath(path)).parent
        if makes_folders:
            while not os.path.lexists(folder):
                folder = folder.parent
        if folder not in tried:
            _try_writing(folder, path)
            tried.add(folder)


def _check_target(path: Path) -> None:
    try:
        path.lstat()  # is_dir() would hide why a name is refused
    except (FileNotFoundError, NotADirectoryError):
        return  # a missing folder is reported by _try_writing
    except OSError as error:
        reason = "the name is too long" if error.errno == errno.ENAMETOOLONG else error.strerror
        raise UsageError(f"{path}: cannot be written ({reason}); choose another path") from error
    if os.path.exists(path) and not os.path.isfile(path):
        kind = "a folder" if os.path.isdir(path) else "not a plain file"
        raise UsageError(f"{path}: is {kind}; give the path of a file to write")


def _try_writing(folder: Path, path: Path) -> None:
    if not os.path.exists(folder):
        raise UsageError(f"{path}: the folder {folder} does not exist; create it first")
    if not os.path.isdir(folder):
        raise UsageError(f"{path}: {folder} is not a folder; choose another path")
    try:
        try_writing(folder)
    except OSError as error:
        raise UsageError(
            f"{path}: the folder {folder} cannot be written to ({error.strerror}); "
            "choose another path"
        ) from error
