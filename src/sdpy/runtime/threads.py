"""How many threads compute, and what they do while they wait. Needs no torch until it is there."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterable, Iterator, MutableMapping
from contextlib import contextmanager
from pathlib import Path

from sdpy.runtime.linux import ROOT, control_groups, read_lines, read_number
from sdpy.runtime.memory import address_space

WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""Environment variables by which users say how OpenMP's threads wait."""

ADDRESSES_FOR_THREADS = 4 * 2**30
"""Bytes of address space from which on there may be several threads."""

WORK_PER_THREAD = 40e6
"""Multiplications and additions of an operation from which on another thread pays off. With the
demo model's 85 million, images took as long with one thread as with two. With four threads on two
cores they took a fifth longer, with eight a quarter (AMD EPYC)."""

NUMBERS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
"""Environment variables by which users say how many threads there are."""


def wait_passively(environment: MutableMapping[str, str] | None = None) -> bool:
    """Have the threads of PyTorch sleep while they wait, instead of keeping their cores busy.

    Threads that wait actively fight for the cores with whatever else runs on the machine. OpenMP
    reads this when PyTorch is imported, so it has to be called before. It holds for the whole
    process and for those that it starts, and is for programs to call, not for libraries.

    Args:
        environment: where to set the variable; None for this process's environment.

    Returns:
        Whether threads were asked to. They are not where one of `WAITING` is set already, or where
        PyTorch is imported already.
    """
    variables = os.environ if environment is None else environment
    if "torch" in sys.modules or any(name in variables for name in WAITING):
        return False
    variables["OMP_WAIT_POLICY"] = "PASSIVE"
    return True


def limit_threads(root: Path = ROOT) -> None:
    """Let torch use no more threads on the CPU than `usable_cores`, unless `NUMBERS` say so.

    Fewer, as somebody may have set them before, stay as they are. It holds for the whole process.
    """
    import torch

    if not is_number_given():
        torch.set_num_threads(min(torch.get_num_threads(), usable_cores(root)))


def is_number_given() -> bool:
    """Whether the user says by one of `NUMBERS` how many threads there are."""
    return any(os.environ.get(name) for name in NUMBERS)


def fitting_threads(work: float, available: int) -> int:
    """How many threads a network is computed with; two of them in any case if there are so many.

    At the end of each operation threads wait for one another, and with passive waiting have to be
    woken for the next one. Where that takes as long as their share of the operation, further
    threads make it slower and keep cores from others.

    Args:
        work: multiplications and additions of a large operation of the network.
        available: threads that there are.
    """
    return min(available, max(2, int(work / WORK_PER_THREAD)))


@contextmanager
def threads_for(work: float) -> Iterator[None]:
    """Let torch use `fitting_threads` during the block, of those that it has."""
    import torch

    before = torch.get_num_threads()
    fitting = fitting_threads(work, before)
    if fitting == before:  # setting it empties caches of the kernels
        yield
        return
    torch.set_num_threads(fitting)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def usable_cores(root: Path = ROOT) -> int:
    """How many cores this process may use, at least 1.

    A single one where the address space is limited to less than each thread's share of it would
    leave room in: a thread that cannot start ends the process.

    These are the processors that its affinity allows, as far as the CPU quota of its container
    suffices for them: Linux control groups of both versions, with all their ancestors. Two
    hardware threads of a core count as one, because they share its units for multiplication.

    Args:
        root: folder in which ``proc`` and ``sys`` are.
    """
    limit = address_space() if root == ROOT else None
    if limit is not None and limit < ADDRESSES_FOR_THREADS:
        return 1
    processors = _processors(root)
    cores = len({_siblings(number, root) for number in processors})
    quotas = [math.ceil(quota) for quota in _quotas(root)]
    return max(1, min([cores, *quotas]))


def _processors(root: Path) -> set[int]:
    """Numbers of the processors that this process may run on."""
    if root == ROOT:
        if hasattr(os, "sched_getaffinity"):
            return os.sched_getaffinity(0)
        return set(range(os.cpu_count() or 1))
    status = (line.partition(":") for line in read_lines(root / "proc/self/status"))
    allowed = [value for name, _, value in status if name == "Cpus_allowed_list"]
    return set(_numbers_in(allowed)) or {0}


def _siblings(number: int, root: Path) -> frozenset[int]:
    """The processors that are hardware threads of the same core."""
    folder = root / f"sys/devices/system/cpu/cpu{number}/topology"
    return frozenset(_numbers_in(read_lines(folder / "thread_siblings_list"))) or frozenset(
        {number}
    )


def _numbers_in(lines: Iterable[str]) -> Iterator[int]:
    """The numbers of lists such as ``0-3,8``."""
    for part in ",".join(lines).split(","):
        first, _, last = part.strip().partition("-")
        if first.isdecimal():
            yield from range(int(first), int(last if last.isdecimal() else first) + 1)


def _quotas(root: Path) -> Iterator[float]:
    """Cores' worth of time that each control group of this process may take, where limited."""
    for version, folder in control_groups("cpu", root):
        if version == 2:
            words = [word for line in read_lines(folder / "cpu.max") for word in line.split()]
            if len(words) == 2 and all(word.isdecimal() and int(word) for word in words):
                yield int(words[0]) / int(words[1])
        else:
            quota = read_number(folder / "cpu.cfs_quota_us")  # -1 where there is no limit
            period = read_number(folder / "cpu.cfs_period_us")
            if quota and period:
                yield quota / period
