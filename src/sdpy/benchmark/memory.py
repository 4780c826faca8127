"""Measures the most memory that this process holds while something runs."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

SECONDS_BETWEEN_SAMPLES = 0.01
"""Time between two looks at the memory, where it has to be sampled."""

HIGH_WATER = "VmHWM"
"""The method that reads the high-water mark which the kernel keeps."""

SAMPLED = "sampled"
"""The method in which a thread looks at the memory again and again."""

_PROC = Path("/proc/self")
_SLACK = 32 * 2**20
"""Bytes that a process may grow by between two looks at its memory."""


@dataclass
class Peak:
    """The result of `measure_peak`, once its block has ended.

    Attributes:
        bytes: the most resident memory, including pages of mapped files; None where the system does
            not report it.
        method: `HIGH_WATER` or `SAMPLED`; None where nothing is measured.
    """

    bytes: int | None = None
    method: str | None = None


@contextmanager
def measure_peak() -> Iterator[Peak]:
    """Measure the most memory that is resident during the block.

    Memory that was freed before is returned to the system first. On Linux the kernel's high-water
    mark is reset (``/proc/self/clear_refs``); where that is not allowed, a thread looks a hundred
    times a second and may miss a short peak. Elsewhere nothing is measured.
    """
    from sdpy.runtime.allocator import give_back_freed_memory

    peak = Peak()
    give_back_freed_memory()
    if _set_back():
        peak.method = HIGH_WATER
        try:
            yield peak
        finally:
            peak.bytes = _status("VmHWM")
    elif resident() is None:
        yield peak
    else:
        peak.method = SAMPLED
        with _sampling(peak):
            yield peak


def resident() -> int | None:
    """Bytes of this process that are in memory now; None where the system does not report it."""
    try:
        pages = int((_PROC / "statm").read_text().split()[1])
    except OSError:
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


def _set_back() -> bool:
    """Reset the kernel's mark to what is resident now; False if it did not move."""
    try:
        (_PROC / "clear_refs").write_text("5")
        return _status("VmHWM") <= _status("VmRSS") + _SLACK
    except (OSError, LookupError):  # not Linux, not allowed, or a kernel that reports less
        return False


def _status(field: str) -> int:
    lines = (_PROC / "status").read_text().splitlines()
    kilobytes = {line.split(":")[0]: line.split()[1:2] for line in lines}
    return 1024 * int(kilobytes[field][0])


@contextmanager
def _sampling(peak: Peak) -> Iterator[None]:
    done = threading.Event()

    def look() -> None:
        peak.bytes = max(peak.bytes or 0, resident() or 0)

    def keep_looking() -> None:
        while not done.wait(SECONDS_BETWEEN_SAMPLES):
            look()

    look()
    thread = threading.Thread(target=keep_looking, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        look()
