"""What is done and what failed, written down as it happens, beside the images.

A line of JSON for each image or failure. The images themselves say what is done; the journal only
makes it quick to know, and may be deleted. Several processes, of several machines, may write to
one: each line is appended under a lock. A line that was cut short by the end of a process is left
out.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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
                        value = json.loads(line)
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
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
        line = text.encode("utf-8", "surrogateescape") + b"\n"
        try:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
            try:
                with _locked(descriptor):
                    size = os.fstat(descriptor).st_size
                    if size:
                        os.lseek(descriptor, size - 1, os.SEEK_SET)
                        if os.read(descriptor, 1) != b"\n":
                            line = b"\n" + line  # after a line that was cut short
                    written = os.write(descriptor, line)
                    if written != len(line):
                        raise OSError(28, "No space left on device")
            finally:
                os.close(descriptor)
        except OSError as error:
            raise OutputError(f"cannot write {self.path}: {error.strerror}") from error

    def rewrite(self, keep: Any) -> None:
        """Leave out the lines for which ``keep`` is false; the file goes when none is left.

        Raises:
            OutputError: it cannot be written.
        """
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
                    file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
        self._read_to = 0


@contextmanager
def _locked(descriptor: int) -> Iterator[None]:
    """Hold a lock on an open file. Where the file system has none, appending has to do."""
    if fcntl is None:
        yield
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError:
        yield
        return
    try:
        yield
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)
