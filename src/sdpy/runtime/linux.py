"""What Linux tells of this process in its files, which tests imitate. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/")
"""The folder in which ``proc`` and ``sys`` are."""


def control_groups(controller: str, root: Path = ROOT) -> Iterator[tuple[int, Path]]:
    """Version and folder of this process's control groups and of their ancestors.

    In a container the paths may be those outside of it; then only the topmost group is seen.

    Args:
        controller: ``cpu``, ``memory``, ...; version 2 has all of them in the same folders.
        root: folder in which ``proc`` and ``sys`` are.
    """
    for line in read_lines(root / "proc/self/cgroup"):
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        mount = root / "sys/fs/cgroup"
        if controllers == "":
            version = 2
        elif controller in controllers.split(","):
            version, names = 1, (controller, controllers)
            mount = next((mount / name for name in names if (mount / name).is_dir()), mount)
        else:
            continue
        group = Path(path.lstrip("/"))
        for folder in (group, *group.parents):
            yield version, mount / folder


def read_numbers(path: Path) -> dict[str, int]:
    """The first number of each line ``name: 123 kB`` or ``name 123``, by its name."""
    found = {}
    for line in read_lines(path):
        words = line.replace(":", " ").split()
        if len(words) >= 2 and words[1].isdecimal():
            found[words[0]] = int(words[1])
    return found


def read_number(path: Path) -> int | None:
    """The number that a file holds; None if it holds none, as where there is no limit."""
    lines = read_lines(path)
    return int(lines[0]) if lines and lines[0].strip().isdecimal() else None


def read_lines(path: Path) -> list[str]:
    """The lines of a file; none if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
