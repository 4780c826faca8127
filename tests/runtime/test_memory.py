from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdpy.errors import UsageError
from sdpy.runtime.memory import free_memory, parse_size, resident_memory, show_size

GIB = 2**30
KIB = 1024


# --- sizes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4G", 4 * GIB),
        ("4g", 4 * GIB),
        ("4GB", 4 * GIB),
        ("4GiB", 4 * GIB),
        (" 4 gib ", 4 * GIB),
        ("3500M", 3500 * 2**20),
        ("1.5G", GIB + GIB // 2),
        ("0.5T", 512 * GIB),
        ("8K", 8192),
        ("4294967296", 4 * GIB),
        ("100B", 100),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "0", "0G", "-4G", "4X", "G", "four", "4 G B", "1,5G", "nan", "inf", "1e9", "4.G"]
)
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(UsageError, match="auto, low, or a size such as 4G") as caught:
        parse_size(text)
    assert f"--memory {text}:" in str(caught.value)


@pytest.mark.parametrize(
    ("size", "shown"),
    [(0, "0K"), (4 * GIB, "4G"), (3500 * 2**20, "3.42G"), (982 * 2**20, "982M"), (700, "0.684K")],
)
def test_sizes_are_shown(size: int, shown: str) -> None:
    assert show_size(size) == shown


@given(st.integers(1, 2**49))
def test_what_is_shown_can_be_given(size: int) -> None:
    assert parse_size(show_size(size)) == pytest.approx(size, rel=0.01, abs=1)


# --- what is free ------------------------------------------------------------------------------


def write(root: Path, path: str, text: str) -> None:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def machine(root: Path, available: int, groups: str = "0::/\n") -> Path:
    """A machine's files, with so much memory available and this process in such groups."""
    write(root, "proc/meminfo", f"MemTotal: 99999999 kB\nMemAvailable: {available // KIB} kB\n")
    write(root, "proc/self/cgroup", groups)
    write(root, "proc/self/status", "Name:\tpython\nVmRSS:\t  2048 kB\nRssAnon:\t 1024 kB\n")
    return root


def group_2(root: Path, path: str, limit: str, used: int, cache: int = 0) -> None:
    folder = f"sys/fs/cgroup/{path}"
    write(root, f"{folder}/memory.max", f"{limit}\n")
    write(root, f"{folder}/memory.current", f"{used}\n")
    stat = f"anon {used - cache}\nactive_file {cache // 4}\ninactive_file {cache - cache // 4}\n"
    write(root, f"{folder}/memory.stat", stat)


def group_1(root: Path, path: str, limit: int, used: int, cache: int = 0) -> None:
    folder = f"sys/fs/cgroup/memory/{path}"
    write(root, f"{folder}/memory.limit_in_bytes", f"{limit}\n")
    write(root, f"{folder}/memory.usage_in_bytes", f"{used}\n")
    stat = f"active_file 7\ninactive_file 7\ntotal_active_file 0\ntotal_inactive_file {cache}\n"
    write(root, f"{folder}/memory.stat", stat)


def test_without_groups_it_is_what_the_system_has_left(tmp_path: Path) -> None:
    assert free_memory(machine(tmp_path, 8 * GIB)) == 8 * GIB
    assert resident_memory(tmp_path) == 2048 * KIB


def test_a_container_of_version_2(tmp_path: Path) -> None:
    """Its own group is the root of what it sees; files in the cache can be given up."""
    machine(tmp_path, 8 * GIB)
    group_2(tmp_path, "", str(3 * GIB), used=2 * GIB, cache=GIB)
    assert free_memory(tmp_path) == 2 * GIB


def test_the_nearest_limit_of_all_ancestors_counts(tmp_path: Path) -> None:
    machine(tmp_path, 8 * GIB, "0::/user.slice/app.scope\n")
    group_2(tmp_path, "user.slice/app.scope", "max", used=GIB)
    group_2(tmp_path, "user.slice", str(5 * GIB), used=4 * GIB)
    assert free_memory(tmp_path) == GIB
    group_2(tmp_path, "user.slice/app.scope", str(GIB + 4096), used=GIB)
    assert free_memory(tmp_path) == 4096
    machine(tmp_path, 2048, "0::/user.slice/app.scope\n")
    assert free_memory(tmp_path) == 2048


def test_a_group_that_is_full_leaves_nothing(tmp_path: Path) -> None:
    machine(tmp_path, 8 * GIB)
    group_2(tmp_path, "", str(GIB), used=GIB + 5000)
    assert free_memory(tmp_path) == 0


def test_no_limit_is_none(tmp_path: Path) -> None:
    machine(tmp_path, 8 * GIB)
    group_2(tmp_path, "", "max", used=GIB)
    assert free_memory(tmp_path) == 8 * GIB


V1 = "12:cpu,cpuacct:/x\n4:memory:/docker/abc\n1:name=systemd:/docker/abc\n0::/system.slice\n"


def test_a_container_of_version_1(tmp_path: Path) -> None:
    machine(tmp_path, 8 * GIB, V1)
    group_1(tmp_path, "docker/abc", 3 * GIB, used=2 * GIB, cache=GIB // 2)
    group_1(tmp_path, "", 9223372036854771712, used=20 * GIB)
    assert free_memory(tmp_path) == 3 * GIB // 2


def test_a_path_from_outside_the_container(tmp_path: Path) -> None:
    machine(tmp_path, 8 * GIB, V1)
    group_1(tmp_path, "", GIB, used=GIB // 4)
    assert free_memory(tmp_path) == 3 * GIB // 4


@pytest.mark.parametrize("text", ["", "garbage\n", "4:memory\n", "0::\n", "::::\n"])
def test_odd_files_are_passed_over(tmp_path: Path, text: str) -> None:
    machine(tmp_path, 8 * GIB, text)
    write(tmp_path, "sys/fs/cgroup/memory.max", "\n")
    write(tmp_path, "sys/fs/cgroup/memory.current", "-5\n")
    assert free_memory(tmp_path) == 8 * GIB


def test_nobody_says(tmp_path: Path) -> None:
    assert free_memory(tmp_path) is None
    assert resident_memory(tmp_path) == 0


def test_here() -> None:
    free = free_memory()
    assert free is not None and 2**20 < free < 2**50
    if sys.platform == "linux":
        assert 2**20 < resident_memory() < 2**40
