"""Which images are there already, decided by what lies on disk."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sdpy.errors import ImageError
from sdpy.images.files import read_record
from sdpy.images.paths import FORMATS
from sdpy.jobs.journal import NAME, LineFile

_SECONDS_OF_A_WRITE = 3600.0


class Finished:
    """The images in some folders, by the keys of the jobs that made them.

    An image says in its metadata which job it is of. The journal remembers that by its path, size
    and time of change, so that the file need not be opened again; images without metadata are
    known by the journal alone.

    Args:
        folder: that the journal lies in.
        roots: folders of images, each with whether those below it count, too.
    """

    def __init__(self, folder: Path, roots: Iterable[tuple[Path, bool]]) -> None:
        self.journal = LineFile(folder / NAME)
        self.folder = folder
        self.roots = tuple(roots)
        self.paths: dict[str, str] = {}
        self._on_disk: set[str] = set()

    def sweep(self) -> None:
        """Remove what processes have left that were killed while they wrote a file."""
        for root, _ in self.roots:
            for path in root.glob(".sdpy-*.tmp"):
                try:
                    if time.time() - path.stat().st_mtime > _SECONDS_OF_A_WRITE:
                        path.unlink()
                except OSError:
                    continue

    def find(self, *, writes: bool = True) -> None:
        """Read the journal, and the metadata of images that it does not know as they are.

        Args:
            writes: whether they are written down for the next time.

        Raises:
            OutputError: the journal cannot be read or written.
        """
        known: dict[str, tuple[int, int, str | None]] = {}
        for line in self.journal.new_lines():
            if "path" in line:
                path = os.path.normpath(self.folder / str(line["path"]))
                known[path] = (line.get("size", -1), line.get("time", -1), line.get("key"))
        for path, size, moment in self._images():
            self._on_disk.add(path)
            there = known.get(path)
            if there is not None and there[:2] == (size, moment):
                key = there[2]
            else:
                key = key_of(path)
                if writes:
                    self.journal.append(self._line(path, size, moment, key))
            if key is not None:
                self.paths[key] = path

    def refresh(self) -> None:
        """Learn what other processes have finished since."""
        for line in self.journal.new_lines():
            key, path = line.get("key"), line.get("path")
            if key is None or path is None:
                continue
            full = os.path.normpath(self.folder / str(path))
            if os.path.exists(full):
                self._on_disk.add(full)
                self.paths[str(key)] = full

    def add(self, key: str, path: Path, **more: Any) -> None:
        """Write down that an image is there.

        Raises:
            OutputError: the journal cannot be written.
        """
        full = os.path.normpath(path)
        found = os.stat(full)
        self.journal.append(self._line(full, found.st_size, found.st_mtime_ns, key) | more)
        self._on_disk.add(full)
        self.paths[key] = full

    def has_others(self, keys: Iterable[str]) -> bool:
        """Whether images are there that are of other jobs than those of these keys."""
        return len(self._on_disk) > len(self.paths) or not self.paths.keys() <= set(keys)

    def has_file(self, path: Path) -> bool:
        """Whether an image of that name was there, whatever it is."""
        return os.path.normpath(path) in self._on_disk or os.path.lexists(path)

    def _line(self, path: str, size: int, moment: int, key: str | None) -> dict[str, Any]:
        shown = os.path.relpath(path, self.folder)
        return {"path": shown, "size": size, "time": moment, "key": key}

    def _images(self) -> Iterator[tuple[str, int, int]]:
        seen = set()
        for root, is_deep in self.roots:
            for entry in _files(os.fspath(root), is_deep):
                path = os.path.normpath(entry.path)
                if path in seen:
                    continue
                seen.add(path)
                try:
                    found = entry.stat()
                except OSError:  # gone meanwhile
                    continue
                yield path, found.st_size, found.st_mtime_ns


def _files(folder: str, is_deep: bool) -> Iterator[os.DirEntry[str]]:
    try:
        entries = os.scandir(folder)
    except OSError:
        return
    below = []
    with entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if os.path.splitext(entry.name)[1].lower() in FORMATS and entry.is_file():
                yield entry
            elif is_deep and entry.is_dir(follow_symlinks=False):
                below.append(entry.path)
    for path in below:
        yield from _files(path, is_deep)


def key_of(path: str) -> str | None:
    """The key of the job that an image is of, as its metadata says; None where it does not."""
    try:
        text = read_record(path)
        record: Mapping[str, Any] = {} if text is None else json.loads(text)
        key = record.get("job", {}).get("key")
    except (ImageError, ValueError, AttributeError):
        return None
    return key if isinstance(key, str) else None
