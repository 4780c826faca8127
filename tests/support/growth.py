"""How much memory a session takes after many requests."""

from __future__ import annotations

import gc
import multiprocessing
import warnings
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from sdpy.pipelines.generate import generate
from sdpy.pipelines.request import Request
from sdpy.runtime.memory import resident_memory
from support.tiny import tiny_session


def memory_of_session(data: Path, counts: Sequence[int]) -> list[tuple[int, int]]:
    """Resident bytes and living tensors of a process whose session serves many requests.

    Each has a prompt and a seed of its own; sizes and samplers take turns.

    Args:
        data: folder of the tiny models' weights.
        counts: ascending numbers of requests after which to look.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_serve, data, counts).result()


def _serve(data: Path, counts: Sequence[int]) -> list[tuple[int, int]]:
    torch.set_num_threads(1)
    found, done = [], 0
    with tiny_session(data) as session:
        for count in counts:
            for i in range(done, count):
                request = Request(
                    f"cat {i}",
                    seed=i,
                    steps=1,
                    width=(32, 48)[i % 2],
                    height=32,
                    scheduler=("ddim", "euler-a", "unipc")[i % 3],
                )
                for _ in generate(session, [request]):
                    pass
            done = count
            gc.collect()
            found.append((resident_memory(), _count_tensors()))
    return found


def _count_tensors() -> int:
    with warnings.catch_warnings():  # some of torch's objects warn when they are looked at
        warnings.simplefilter("ignore")
        return sum(isinstance(thing, Tensor) for thing in gc.get_objects())
