"""Who is at work on which image, so that two processes in one folder do not do the same.

A claim is a lock on one byte of a file, at a place that the image's key says. The system releases
it when the process ends, however it ends; so no claim is left behind by one that was killed.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

NAME = ".sdpy-jobs.lock"


class Claims:
    """The claims of this process in one folder.

    Attributes:
        is_working: whether the file system has locks; where it has not, everything is granted.

    Args:
        folder: that has the file of locks.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / NAME
        self._descriptor: int | None = None
        self._held: dict[str, int] = {}
        self.is_working = fcntl is not None

    def claim(self, keys: Iterable[str]) -> list[str]:
        """Claim images; those that somebody else is at work on are not among the result."""
        granted = []
        for key in keys:
            # Where both keys of a process fall on one place, it holds the lock already.
            place = int(key[:15], 16)
            if key in self._held or self._lock(place):
                self._held[key] = place
                granted.append(key)
        return granted

    def release(self, keys: Iterable[str]) -> None:
        """Give up claims."""
        for key in keys:
            place = self._held.pop(key, None)
            if place is None or place in self._held.values() or self._descriptor is None:
                continue
            if self.is_working:
                fcntl.lockf(self._descriptor, fcntl.LOCK_UN, 1, place)

    def close(self) -> None:
        """Give up all claims."""
        if self._descriptor is not None:
            os.close(self._descriptor)
        self._descriptor = None
        self._held.clear()

    def _lock(self, place: int) -> bool:
        if not self.is_working:
            return True
        if self._descriptor is None:
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, place)
        except (BlockingIOError, PermissionError):
            return False
        except OSError:  # the file system has no locks
            self.is_working = False
        return True
