"""Writing files atomically."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from sdpy.errors import OutputError


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Yield a binary file that becomes ``path`` when the block ends without an exception.

    The bytes go to a temporary file in the same folder, which is flushed to the disk and then
    renamed over ``path``. When the block raises, ``path`` stays as it was and nothing is left
    behind. The result has the permissions that the umask gives a new file. A symbolic link stays
    a link: the file that it names is replaced.

    Raises:
        OutputError: the folder is missing or not writable, ``path`` is a folder or a device, or
            the disk is full.
    """
    target = Path(os.path.realpath(path))
    # A rename would replace a device such as /dev/null by a plain file.
    if target.exists() and not target.is_file():
        kind = "a folder" if target.is_dir() else "not a plain file"
        raise OutputError(f"cannot write {path}: it is {kind}; give the name of a file")
    temporary: Path | None = None
    try:
        descriptor, name = tempfile.mkstemp(prefix=".sdpy-", suffix=".tmp", dir=target.parent)
        temporary = Path(name)
        with os.fdopen(descriptor, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, target)
        temporary = None
        _sync_folder(target.parent)
    except OSError as error:
        reason = error.strerror or error
        raise OutputError(f"cannot write {path}: {reason}; nothing was changed") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _umask() -> int:
    # The umask can only be read by setting it.
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    """Make the rename itself survive a power cut, where the system lets a folder be opened."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        pass  # Some network file systems cannot; the file is complete all the same.
    finally:
        os.close(descriptor)
