"""Where images are written: names of several samples, and whether a path can work at all.

Both are asked before any model is loaded, so this module imports neither torch nor Pillow.
"""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

from sdpy.errors import UsageError

# Suffix -> name of the format in Pillow.
FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}


def numbered_paths(path: str | Path, count: int) -> list[Path]:
    """The files that ``count`` images go to.

    One image goes to ``path`` itself, several are numbered from 1 before the last suffix:
    ``sd_final.png`` becomes ``sd_final.1.png``, ``sd_final.2.png``, ...
    """
    path = Path(path)
    if count < 1:
        raise ValueError(f"count is {count}, at least one image is needed")
    if count == 1:
        return [path]
    return [path.with_name(f"{path.stem}.{k}{path.suffix}") for k in range(1, count + 1)]


def check_output(path: str | Path, count: int = 1) -> None:
    """Make sure that ``count`` images can be written to ``path`` (see ``numbered_paths``).

    A temporary file is really made in the folder and removed: permissions alone do not tell.

    Raises:
        UsageError: unknown format, no such folder, a folder in the place of a file, a folder that
            cannot be written to, or a name that the file system refuses.
    """
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise UsageError(
            f"{path}: unknown image format; let the name end in one of {', '.join(FORMATS)}"
        )
    for target in numbered_paths(path, count):
        _check_target(target)
        # Where the name is a symbolic link, the file that it names is written.
        _try_writing(Path(os.path.realpath(target)).parent, target)


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
        handle, name = tempfile.mkstemp(dir=folder, prefix=".sdpy-")
        os.close(handle)
        os.unlink(name)
    except OSError as error:
        raise UsageError(
            f"{path}: the folder {folder} cannot be written to ({error.strerror}); "
            "choose another path"
        ) from error
