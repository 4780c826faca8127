from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import sdpy.runtime.threads
from sdpy.runtime.threads import (
    WAITING,
    WORK_PER_THREAD,
    fitting_threads,
    limit_threads,
    threads_for,
    usable_cores,
    wait_passively,
)

# --- how threads wait --------------------------------------------------------------------------


def without_torch(code: str, **changes: str) -> str:
    kept = {name: value for name, value in os.environ.items() if name not in WAITING}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=kept | changes, capture_output=True, text=True, check=True)
    return done.stdout.strip()


SHOW = "print(sdpy.wait_passively(), os.environ.get('OMP_WAIT_POLICY'), 'torch' in sys.modules)"


def test_threads_are_asked_to_wait_passively() -> None:
    assert without_torch(f"import os, sys, sdpy; {SHOW}") == "True PASSIVE False"


@pytest.mark.parametrize("name", WAITING)
def test_what_the_user_says_counts(name: str) -> None:
    variables = {name: "200"}
    assert not wait_passively(variables)
    assert variables == {name: "200"}
    policy = "200" if name == "OMP_WAIT_POLICY" else "None"
    assert without_torch(f"import os, sys, sdpy; {SHOW}", **variables) == f"False {policy} False"


def test_is_too_late_once_torch_is_there() -> None:
    variables: dict[str, str] = {}
    assert not wait_passively(variables) and not variables


def test_the_command_asks_and_the_library_does_not() -> None:
    show = "print(os.environ.get('OMP_WAIT_POLICY'))"
    assert without_torch(f"import os, sdpy, torch; {show}") == "None"
    command = (
        "import os, sys; sys.argv = ['sdpy', '--version']; from sdpy.__main__ import main\n"
        f"try: main()\nexcept SystemExit: {show}"
    )
    assert without_torch(command).splitlines()[-1] == "PASSIVE"


# --- how many there are ------------------------------------------------------------------------


def write(root: Path, path: str, text: str) -> None:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def machine(root: Path, allowed: str, groups: str = "0::/\n", siblings: int = 1) -> Path:
    """A machine on whose processors this process may run, with so many hardware threads a core."""
    write(
        root,
        "proc/self/status",
        f"Name:\tpython\nCpus_allowed:\tff\nCpus_allowed_list:\t{allowed}\n",
    )
    write(root, "proc/self/cgroup", groups)
    for number in range(16):
        first = number % (16 // siblings)
        same = ",".join(str(first + i * 16 // siblings) for i in range(siblings))
        folder = f"sys/devices/system/cpu/cpu{number}/topology"
        write(root, f"{folder}/thread_siblings_list", f"{same}\n")
    return root


@pytest.mark.parametrize(
    ("allowed", "siblings", "cores"),
    [
        ("0-15", 1, 16),
        ("0-15", 2, 8),
        ("0-3,8-11", 2, 4),
        ("0-7", 2, 8),
        ("3", 2, 1),
        ("0-3,8", 1, 5),
        ("", 1, 1),
    ],
)
def test_affinity_and_physical_cores(
    tmp_path: Path, allowed: str, siblings: int, cores: int
) -> None:
    assert usable_cores(machine(tmp_path, allowed, siblings=siblings)) == cores


@pytest.mark.parametrize(
    ("quota", "cores"),
    [("max 100000", 8), ("200000 100000", 2), ("150000 100000", 2), ("20000 100000", 1), ("", 8)],
)
def test_quota_of_version_2(tmp_path: Path, quota: str, cores: int) -> None:
    root = machine(tmp_path, "0-7", "0::/app/worker\n")
    write(root, "sys/fs/cgroup/app/worker/cpu.max", "max 100000\n")
    write(root, "sys/fs/cgroup/app/cpu.max", f"{quota}\n")
    assert usable_cores(root) == cores


@pytest.mark.parametrize("folder", ["cpu", "cpu,cpuacct"])
@pytest.mark.parametrize(("quota", "cores"), [(-1, 8), (250000, 3), (50000, 1)])
def test_quota_of_version_1(tmp_path: Path, folder: str, quota: int, cores: int) -> None:
    """In a container, whose group has another path outside."""
    groups = "5:memory:/docker/1\n4:cpu,cpuacct:/docker/1\n0::/\n"
    root = machine(tmp_path, "0-7", groups)
    write(root, f"sys/fs/cgroup/{folder}/cpu.cfs_quota_us", f"{quota}\n")
    write(root, f"sys/fs/cgroup/{folder}/cpu.cfs_period_us", "100000\n")
    assert usable_cores(root) == cores


def test_this_machine() -> None:
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert allowed is not None and 1 <= usable_cores() <= allowed
    if hasattr(os, "sched_getaffinity") and allowed > 1:
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {min(before)})
        try:
            assert usable_cores() == 1
        finally:
            os.sched_setaffinity(0, before)


@pytest.mark.parametrize(
    ("before", "usable", "variable", "after"),
    [(8, 2, None, 2), (1, 2, None, 1), (8, 2, "OMP_NUM_THREADS", 8), (8, 2, "MKL_NUM_THREADS", 8)],
)
def test_torch_gets_no_more(
    monkeypatch: pytest.MonkeyPatch, before: int, usable: int, variable: str | None, after: int
) -> None:
    for name in sdpy.runtime.threads.NUMBERS:
        monkeypatch.delenv(name, raising=False)
    if variable is not None:
        monkeypatch.setenv(variable, str(before))
    monkeypatch.setattr(sdpy.runtime.threads, "usable_cores", lambda root: usable)
    usual = torch.get_num_threads()
    torch.set_num_threads(before)
    try:
        limit_threads()
        assert torch.get_num_threads() == after
    finally:
        torch.set_num_threads(usual)


# --- how many fit a model ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("work", "available", "expected"),
    [
        (1e3, 1, 1),
        (1e3, 2, 2),
        (1e3, 64, 2),
        (2 * WORK_PER_THREAD, 64, 2),
        (5.5 * WORK_PER_THREAD, 64, 5),
        (5.5 * WORK_PER_THREAD, 4, 4),
    ],
)
def test_small_models_take_few_threads(work: float, available: int, expected: int) -> None:
    assert fitting_threads(work, available) == expected


def test_threads_are_set_for_a_block_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """And not at all where they are as many already."""
    count = [8]
    monkeypatch.setattr(torch, "get_num_threads", lambda: count[-1])
    monkeypatch.setattr(torch, "set_num_threads", count.append)
    with pytest.raises(ValueError, match="within"), threads_for(3 * WORK_PER_THREAD):
        assert count == [8, 3]
        raise ValueError("within")
    assert count == [8, 3, 8]
    with threads_for(1e12):
        assert count == [8, 3, 8]
