"""SHA-256 of weights files, computed once and remembered."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from pathlib import Path
from threading import Event

from sdpy.checkpoints.registry import FileState, file_state
from sdpy.errors import SdpyError, WeightsError
from sdpy.files import atomic_write

CACHE_VARIABLE = "SDPY_CACHE"
"""Environment variable that names the folder in which sdpy remembers things."""

_BUFFER = 1 << 20


def cache_folder() -> Path:
    """The folder in which sdpy remembers what can be computed again; it need not exist.

    That is ``SDPY_CACHE`` where it is set, otherwise ``sdpy`` in the system's folder for caches.
    """
    given = os.environ.get(CACHE_VARIABLE)
    if given:
        return Path(given)
    usual = os.environ.get("LOCALAPPDATA" if os.name == "nt" else "XDG_CACHE_HOME")
    return (Path(usual) if usual else Path(os.path.expanduser("~/.cache"))) / "sdpy"


class Hashes:
    """The SHA-256 of files, each read once for each state that it is in.

    A thread of its own reads them, so that a file of gigabytes is hashed while images are computed.
    What was found is kept in `cache_folder`, a small file each, under the file's path, size and
    time of change; a folder that cannot be written to only means that nothing is remembered.
    """

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None
        self._is_closed = Event()
        self._found: dict[FileState, Future[str]] = {}

    def expect(self, files: Iterable[FileState]) -> None:
        """Begin to compute what is not known yet."""
        for file in files:
            if file in self._found:
                continue
            if self._pool is None:
                self._pool = ThreadPoolExecutor(1, "hashes")
            self._found[file] = self._pool.submit(find_sha256, file, self._is_closed)

    def sha256(self, file: FileState) -> str:
        """The hash of a file in hexadecimal digits; waits for it.

        Raises:
            WeightsError: the file cannot be read, or has changed.
        """
        self.expect([file])
        return self._found[file].result()

    def close(self) -> None:
        """Give up what nobody waits for any more."""
        self._is_closed.set()
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)


def find_sha256(file: FileState, stop: Event | None = None) -> str:
    """The hash of a file in hexadecimal digits, remembered or computed.

    Args:
        file: which, in the state in which it was read.
        stop: ends the work when it is set.

    Raises:
        WeightsError: the file cannot be read, or has changed.
        CancelledError: it was stopped.
    """
    remembered = _recall(file)
    if remembered is not None:
        return remembered
    digest, buffer = hashlib.sha256(), bytearray(_BUFFER)
    try:
        with open(file.path, "rb", buffering=0) as opened:
            while length := opened.readinto(buffer):
                digest.update(memoryview(buffer)[:length])
                if stop is not None and stop.is_set():
                    raise CancelledError
    except OSError as error:
        raise WeightsError(f"cannot read {file.path}: {error.strerror or error}") from error
    if file_state(Path(file.path)) != file:
        raise WeightsError(f"{file.path} has changed while it was in use; start again")
    _remember(file, digest.hexdigest())
    return digest.hexdigest()


def _entry(file: FileState) -> Path:
    name = hashlib.sha256(os.fsencode(os.path.abspath(file.path))).hexdigest()
    return cache_folder() / "hashes" / f"{name[:32]}.json"


def _recall(file: FileState) -> str | None:
    try:
        entry = json.loads(_entry(file).read_bytes())
        if all(entry[name] == getattr(file, name) for name in ("size", "mtime_ns", "inode")):
            return str(entry["sha256"])
    except (OSError, ValueError, LookupError, TypeError):
        pass  # nothing is remembered, or nothing that can be read
    return None


def _remember(file: FileState, computed: str) -> None:
    known = {**file._asdict(), "path": os.path.abspath(file.path), "sha256": computed}
    entry = _entry(file)
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(entry) as written:
            written.write(json.dumps(known).encode("utf-8"))
    except (OSError, SdpyError):
        pass  # it will be computed again
