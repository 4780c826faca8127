"""Opening files that are read, and writing files atomically."""

from __future__ import annotations

import atexit
import errno
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from sdpy.errors import OutputError


def open_input(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a file for reading, whatever it is; everything that sdpy reads is opened here.

    Looks first: a named pipe would make us wait for ever, and a device might never end.

    Raises:
        OSError: there is no such file, it cannot be read, or it is a folder or no plain file.
    """
    try:
        # Should it become a pipe before it is open, opening does not wait.
        descriptor = os.open(path, os.O_RDONLY | _AT_ONCE | getattr(os, "O_BINARY", 0))
    except ValueError as error:  # the null character
        raise FileNotFoundError(errno.ENOENT, "no file can have this name") from error
    try:
        kind = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(kind):
            raise IsADirectoryError(errno.EISDIR, "it is a folder", os.fspath(path))
        if not stat.S_ISREG(kind):
            raise OSError(errno.ENODEV, "it is not a plain file", os.fspath(path))
        return open(path, "rb", opener=lambda *_: descriptor)  # a file that knows its name
    except BaseException:
        os.close(descriptor)
        raise


def read_input(path: str | os.PathLike[str], limit: int) -> bytes:
    """All of a file that is read as a whole.

    Raises:
        OSError: as of `open_input`, or it has more than ``limit`` bytes.
    """
    with open_input(path) as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        reason = f"it has more than {limit >> 20} MB, as no such file does"
        raise OSError(errno.EFBIG, reason, os.fspath(path))
    return data


_AT_ONCE = getattr(os, "O_NONBLOCK", 0)


class OccupiedError(OutputError):
    """A file that must not be overwritten lies where one was to be written."""


@contextmanager
def atomic_write(path: str | os.PathLike[str], *, overwrite: bool = True) -> Iterator[BinaryIO]:
    """Yield a binary file that becomes ``path`` when the block ends without an exception.

    The bytes go to a temporary file in the same folder, which is flushed to the disk and then
    renamed over ``path``. When the block raises, ``path`` stays as it was and nothing is left
    behind. The result has the permissions that the umask gives a new file. A symbolic link stays
    a link: the file that it names is replaced.

    Args:
        path: where to.
        overwrite: whether another file may be replaced. Where not, of several that write to
            ``path`` at once one succeeds.

    Raises:
        OccupiedError: it must not overwrite, and there is such a file.
        OutputError: the folder is missing or not writable, ``path`` is a folder or a device, or
            the disk is full.
    """
    target = Path(os.path.realpath(path))
    # A rename would replace a device such as /dev/null by a plain file.
    if target.exists() and not target.is_file():
        kind = "a folder" if target.is_dir() else "not a plain file"
        raise OutputError(f"cannot write {path}: it is {kind}; give the name of a file")
    temporary: Path | None = None
    unnamed = None if overwrite else _open_unnamed(target.parent)
    try:
        if unnamed is not None:
            with os.fdopen(unnamed, "w+b") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
                _give_name(file.fileno(), target)
            _sync_folder(target.parent)
            return
        temporary = _name_temporary(target.parent)
        with open(temporary, "x+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if overwrite:
            os.replace(temporary, target)
        else:
            _rename_to_new(temporary, target)
        _sync_folder(target.parent)
    except FileExistsError as error:
        raise OccupiedError(
            f"cannot write {path}: it exists; choose another name, or --overwrite"
        ) from error
    except OSError as error:
        reason = error.strerror or error
        raise OutputError(f"cannot write {path}: {reason}; nothing was changed") from error
    finally:
        if temporary is not None:
            _remove(temporary)


def try_writing(folder: Path) -> None:
    """Create a file in a folder and remove it again.

    Raises:
        OSError: the folder cannot be written to.
    """
    temporary = _name_temporary(folder)
    try:
        with open(temporary, "xb"):
            pass
    finally:
        _remove(temporary)


def _name_temporary(folder: Path) -> Path:
    temporary = folder / f".sdpy-{secrets.token_hex(8)}.tmp"
    _UNFINISHED.add(temporary)
    return temporary


def _remove(temporary: Path) -> None:
    with suppress(OSError):  # such as that it was not even created, or has its name for good
        temporary.unlink()
    _UNFINISHED.discard(temporary)


_UNFINISHED: set[Path] = set()
"""Temporary files that may be there, known from before they are created."""


@atexit.register
def remove_unfinished() -> None:
    """Remove the temporary files of writes that ended in the middle.

    Ctrl-C can come between a file's creation and the block, or at the first line of what the
    block's end calls; then nothing else removes the file.
    """
    for temporary in tuple(_UNFINISHED):
        _remove(temporary)


def _open_unnamed(folder: Path) -> int | None:
    """A descriptor of a new file without a name, which goes with the process that is killed.

    None where the system (Linux has them) or the file system has no such files.
    """
    if not hasattr(os, "O_TMPFILE") or not os.path.isdir("/proc/self/fd"):
        return None
    try:
        return os.open(folder, os.O_TMPFILE | os.O_RDWR, 0o666)
    except OSError:
        return None


def _give_name(descriptor: int, target: Path) -> None:
    """Give an unnamed file a name that there is not yet.

    Raises:
        FileExistsError: there is a file of that name.
    """
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        # With a folder's descriptor, Python calls linkat, which follows the link in /proc.
        os.link(
            f"/proc/self/fd/{descriptor}",
            target.name,
            src_dir_fd=folder,
            dst_dir_fd=folder,
            follow_symlinks=True,
        )
    finally:
        os.close(folder)


def _rename_to_new(temporary: Path, target: Path) -> None:
    """Rename a file to a name that there is not yet; the old name may stay.

    Raises:
        FileExistsError: there is a file of that name.
    """
    try:
        os.link(temporary, target)
    except FileExistsError:
        raise
    except OSError:  # this file system has no hard links
        os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        os.replace(temporary, target)


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
