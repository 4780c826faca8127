"""What to do when memory runs out in the midst of the work."""

from __future__ import annotations

import gc
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import TypeVar

import torch

from sdpy.errors import ShortageError
from sdpy.pipelines.events import Notice

Result = TypeVar("Result")


@dataclass(frozen=True)
class Resort:
    """A way to need less memory: what to tell, and what to do before the work is tried again."""

    told: str
    take: Callable[[], None]


def attempt(
    work: Callable[[], Result], resorts: list[Resort], what: str
) -> Generator[Notice, None, Result]:
    """Do some work; each time that memory runs out, take the next resort and do it again.

    Args:
        work: does not change anything before it is done.
        resorts: what can be done, the first first; those that were taken are gone from it.
        what: what an error says the memory does not suffice for.

    Returns:
        The result of ``work``.

    Raises:
        ShortageError: there is no resort left.
    """
    taken: list[str] = []
    while True:
        try:
            return work()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            if not resorts:
                tried = f" (after {', '.join(taken)})" if taken else ""
                raise ShortageError(
                    f"not enough memory for {what}{tried}: use a smaller --width and --height, "
                    "--memory low, or --cpu for models that do not fit on the GPU"
                ) from error
        # Out here the error is gone, and with it what it held.
        resort = resorts.pop(0)
        taken.append(resort.told)
        yield Notice(f"not enough memory for {what}: {resort.told}")
        _give_back()
        resort.take()


def finish(
    work: Generator[Notice, None, Result], tell: Callable[[Notice], None] = lambda notice: None
) -> Result:
    """The result of some work that gives notices on its way; ``tell`` is told of each."""
    while True:
        try:
            tell(next(work))
        except StopIteration as stop:
            return stop.value


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory is lacking, on whatever device."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(
        words in str(error)
        for words in ("DefaultCPUAllocator", "CUDA out of memory", "MPS backend out of memory")
    )


def _give_back() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
