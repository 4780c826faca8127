"""How fast this machine does what the forms of layers are made of, where processors differ in it.

Some processors multiply bfloat16 twice as fast as float32, others sixteen times, while all of them
move and add numbers at much the same rate. Which form is the fastest depends on that, so it is
measured, in a tenth of a second, and kept in sdpy's cache folder for the next process.
"""

from __future__ import annotations

import json
import math
import platform
import re
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import torch

from sdpy.checkpoints.hashes import cache_folder
from sdpy.files import atomic_write

REFERENCE_BALANCE = 27.0
"""Operations of a product in bfloat16 in the time in which a byte of sums in bfloat16 is made, on
the processor that the cost model's constants for bfloat16 are from."""

SIZE = 1024
"""Rows and columns of the matrices that are multiplied."""

SUMS = 2**21
"""Numbers that are added at a time; they stay in a cache, as those of a layer's parts do."""

ROUNDS = 4
"""Timings of each kind, in turn, of which the best count: other work only makes them longer."""

_FINE = 1e-4
"""The seconds to which a clock has to tell processor time."""


@lru_cache
def bfloat16_balance() -> float:
    """How much faster products in bfloat16 are beside sums than on the cost model's processor.

    A power of two, so that noise does not change it.
    """
    return _remembered("bfloat16_balance", _measure_balance)


@lru_cache
def pairs_gain() -> float:
    """How much faster products of bfloat16 pairs are than those of float32 numbers."""
    return _remembered("pairs_gain", _measure_pairs)


def _measure_balance() -> float:
    a, b = (torch.ones(SIZE, SIZE, dtype=torch.bfloat16) for _ in range(2))
    x, y = (torch.ones(SUMS, dtype=torch.bfloat16) for _ in range(2))
    product, sums = torch.empty_like(a), torch.empty_like(x)
    taken = _best(
        lambda: torch.mm(a, b, out=product),
        lambda: torch.add(x, y, out=sums),
    )
    balance = (2 * SIZE**3 / taken[0]) / (sums.nbytes / taken[1])
    return float(2.0 ** round(math.log2(balance / REFERENCE_BALANCE)))


def _measure_pairs() -> float:
    from sdpy.optimizations.exact.bfloat16_pairs import Pair, add_product

    a, product = torch.ones(SIZE, SIZE), torch.zeros(SIZE, SIZE)
    pair = Pair.of(a)
    taken = _best(
        lambda: torch.mm(a, a.t(), out=product),
        lambda: add_product(pair, pair, product),
    )
    return taken[0] / taken[1]


def _best(*works: Callable[[], object]) -> list[float]:
    """The seconds that each takes at best, after a run that does not count.

    They are those of the processor, so that other work on the machine hardly matters, unless the
    system counts them too coarsely.
    """
    fine = time.get_clock_info("process_time").resolution <= _FINE
    clock = time.process_time if fine else time.perf_counter
    times: list[list[float]] = [[] for _ in works]
    with torch.inference_mode():
        for _ in range(1 + ROUNDS):
            for work, taken in zip(works, times, strict=True):
                started = clock()
                work()
                taken.append(clock() - started)
    return [min(taken[1:]) for taken in times]


def _remembered(name: str, measure: Callable[[], float]) -> float:
    """What was measured before on this processor, with as many threads and this torch; or now.

    A folder that cannot be written to only means that nothing is remembered.
    """
    path = cache_folder() / "machine.json"
    key = f"{name}, {processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    known: dict[str, float] = {}
    try:
        known = {str(one): float(rate) for one, rate in json.loads(path.read_bytes()).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        pass  # nothing is remembered, or nothing that can be read
    if known.get(key, 0.0) > 0:
        return known[key]
    known[key] = measure()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            file.write(json.dumps(known, indent=1).encode())
    except OSError:
        pass
    return known[key]


def processor() -> str:
    """The name of the processor, as far as the system tells it."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        text = ""
    found = re.search(r"model name\s*: (.*)", text)
    return platform.processor() if found is None else found[1]
