"""How much memory this process may take, and sizes as people write them. Needs no torch."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from sdpy.errors import UsageError
from sdpy.runtime.linux import ROOT, control_groups, read_number, read_numbers

_MOST = 2**60  # bytes; no machine has as many
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def parse_size(text: str) -> int:
    """Bytes of ``4G``, ``3500M``, ``1.5GiB``, ``2gb`` or ``4294967296``; K to T are powers of 1024.

    Raises:
        UsageError: no such size, or none at all.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:I?B)?", text.strip().upper())
    number = float(match[1]) * _UNITS[match[2]] if match else 0.0
    size = int(number) if number < _MOST else 0
    if size < 1:
        raise UsageError(f"--memory {text}: use auto, low, or a size such as 4G, 3500M or 2.5G")
    return size


def show_size(size: int) -> str:
    """A number of bytes for people, as `parse_size` takes it."""
    for unit in "KMGT":
        size_in_unit = size / _UNITS[unit]
        if size_in_unit < 999.5 or unit == "T":
            return f"{size_in_unit:.3g}{unit}"
    raise AssertionError("there is no larger unit")


def free_memory(root: Path = ROOT) -> int | None:
    """Bytes that this process may take beyond what it has; None where nobody says.

    That is what the system has left, or less where a container's limit is nearer: Linux control
    groups of both versions, with all their ancestors. Mapped files and the file cache count as
    free, for they are given up when memory is needed. Elsewhere than on Linux it is all the memory
    that the machine has.

    Args:
        root: folder in which ``proc`` and ``sys`` are.
    """
    kernel = read_numbers(root / "proc/meminfo")
    if "MemAvailable" not in kernel:
        return _physical_memory() if root == ROOT else None
    lefts = [*_left_in_groups(root), *_left_in_address_space(root)]
    return max(0, min([1024 * kernel["MemAvailable"], *lefts]))


def resident_memory(root: Path = ROOT) -> int:
    """Bytes of this process that are in memory now; 0 where nobody says."""
    return 1024 * read_numbers(root / "proc/self/status").get("VmRSS", 0)


def address_space() -> int | None:
    """Bytes of addresses that this process may use (``ulimit -v``); None where nobody limits it."""
    try:
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    except (ImportError, AttributeError, OSError):
        return None
    return None if limit == resource.RLIM_INFINITY else limit


def _left_in_address_space(root: Path) -> Iterator[int]:
    limit = address_space() if root == ROOT else None
    if limit is not None:
        yield limit - 1024 * read_numbers(root / "proc/self/status").get("VmSize", 0)


def _left_in_groups(root: Path) -> Iterator[int]:
    """What is left in each control group of this process that has a limit."""
    for version, folder in control_groups("memory", root):
        limit_file, usage_file, cache = (
            ("memory.max", "memory.current", ("active_file", "inactive_file"))
            if version == 2
            else (
                "memory.limit_in_bytes",
                "memory.usage_in_bytes",
                ("total_active_file", "total_inactive_file"),
            )
        )
        limit, usage = read_number(folder / limit_file), read_number(folder / usage_file)
        if limit is not None and usage is not None:
            stat = read_numbers(folder / "memory.stat")
            yield limit - usage + sum(stat.get(name, 0) for name in cache)


def _physical_memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None
