"""How the C library deals out memory to this process."""

from __future__ import annotations

import ctypes
import sys
from typing import Any

# Numbers of glibc's malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> bool:
    """Keep freed memory for the next tensor instead of giving it back to the system every time.

    Without this each large tensor is a mapping of its own, whose every page the system has to clear
    again when it is first written to. It holds for the whole process, and is for programs to call,
    not for libraries. Returns whether it could be done: where the C library is glibc.
    """
    mallopt = _c_function("mallopt")
    if mallopt is None:
        return False
    options = {_MMAP_MAX: 0, _TRIM_THRESHOLD: 2**31 - 1, _TOP_PAD: 64 * 2**20}
    return all(mallopt(option, value) == 1 for option, value in options.items())


def give_back_freed_memory() -> None:
    """Give the memory that was freed so far back to the system, where the C library is glibc."""
    malloc_trim = _c_function("malloc_trim")
    if malloc_trim is not None:
        malloc_trim(0)


def _c_function(name: str) -> Any:
    """A function of the C library; None where there is no such."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        return getattr(ctypes.CDLL(None), name)
    except (OSError, AttributeError):
        return None
