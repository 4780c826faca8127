"""What of a mapped file is in memory, as Linux tells it."""

from __future__ import annotations

from pathlib import Path


def resident_kilobytes(path: Path) -> int:
    """How much of a file is in this process's memory."""
    found, within = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0]:
            within = line.endswith(str(path))
        elif within and line.startswith("Rss:"):
            found += int(line.split()[1])
    return found
