"""What is done and what failed, written down as it happens, beside the images.

A line of JSON for each image or failure. The images themselves say what is done; the journal only
makes it quick to know, and may be deleted. Several processes, of several machines, may write to
one: each line is appended under a lock. A line that was cut short by the end of a process is left
out.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from sdpy.errors import OutputError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

NAME = ".sdpy-jobs.jsonl"
FAILED_NAME = "failed.jsonl"


class LineFile:
    """A file of JSON lines that several processes append to.

    Args:
        path: of it; it need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._read_to = 0

    def new_lines(self) -> Iterator[dict[str, Any]]:
        """The lines that were not read yet. A line that is cut short, or no JSON, is left out."""
        try:
            with open(self.path, "rb") as file:
                size = os.fstat(file.fileno()).st_size
                self._read_to = self._read_to if self._read_to <= size else 0
                file.seek(self._read_to)
                for line in file:
                    if not line.endswith(b"\n"):
                        return
                    self._read_to += len(line)
                    try:
                        value = json.loads(line.decode("utf-8", "surrogateescape"))
                    except ValueError:
                        continue
                    if isinstance(value, dict):
                        yield value
        except FileNotFoundError:
            return
        except OSError as error:
            raise OutputError(f"{self.path}: cannot be read ({error.strerror})") from error

    def append(self, value: Mapping[str, Any]) -> None:
        """Append a line.

        Raises:
            OutputError: it cannot be written.
        """
        line = _encode(value)
        try:
            with _opened(self.path, os.O_CREAT) as descriptor:
                size = os.fstat(descriptor).st_size
                if size:
                    os.lseek(descriptor, size - 1, os.SEEK_SET)
                    if os.read(descriptor, 1) != b"\n":
                        line = b"\n" + line  # after a line that was cut short
                written = os.write(descriptor, line)
                if written != len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise OutputError(f"cannot write {self.path}: {error.strerror}") from error

    def rewrite(self, keep: Callable[[dict[str, Any]], bool]) -> None:
        """Leave out the lines for which ``keep`` is false; the file goes when none is left.

        Raises:
            OutputError: it cannot be written.
        """
        # Windows replaces no file that is open.
        opened = nullcontext() if fcntl is None else _opened(self.path)
        try:
            with opened:
                self._rewrite(keep)
        except FileNotFoundError:
            return
        except OSError as error:
            raise OutputError(f"cannot write {self.path}: {error.strerror}") from error

    def _rewrite(self, keep: Callable[[dict[str, Any]], bool]) -> None:
        from sdpy.files import atomic_write

        self._read_to = 0
        lines = list(self.new_lines())
        kept = [line for line in lines if keep(line)]
        if len(kept) == len(lines):
            return
        if not kept:
            self.path.unlink(missing_ok=True)
        else:
            with atomic_write(self.path) as file:
                for line in kept:
                    file.write(_encode(line))
        self._read_to = 0


def _encode(value: Mapping[str, Any]) -> bytes:
    # The name of a file may be no text at all.
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", "surrogateescape") + b"\n"


@contextmanager
def _opened(path: Path, flags: int = 0) -> Iterator[int]:
    """Open a file for appending, and lock it. Where the file system has no locks, that has to do.

    Who has waited for the lock may find that another has replaced the file meanwhile.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | flags, 0o666)
        try:
            if _lock(descriptor) and not _has_name(descriptor, path):
                continue
            yield descriptor
            return
        finally:
            os.close(descriptor)  # the lock goes with it


def _lock(descriptor: int) -> bool:
    if fcntl is None:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError:
        return False
    return True


def _has_name(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False
