"""What is done when memory runs out during the work."""

from __future__ import annotations

import gc
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import TypeVar

import torch

from sdpy.errors import ShortageError, is_shortage

Result = TypeVar("Result")


@dataclass(frozen=True)
class Notice:
    """Something that the user should know."""

    text: str


@dataclass(frozen=True)
class Fallback:
    """A way to need less memory.

    Attributes:
        description: for the notice, as in "running it in tiles".
        take: changes whatever has to change before the work is tried again.
    """

    description: str
    take: Callable[[], None]


def attempt(
    work: Callable[[], Result], fallbacks: list[Fallback], what: str
) -> Generator[Notice, None, Result]:
    """Do some work; each time that memory runs out, take the next fallback and do it again.

    Args:
        work: changes nothing before it is done.
        fallbacks: in the order in which they are taken; those that were taken are removed.
        what: what an error says the memory does not suffice for.

    Returns:
        The result of ``work``.

    Raises:
        ShortageError: there is no fallback left.
    """
    taken: list[str] = []
    while True:
        try:
            return work()
        except Exception as error:
            if not is_shortage(error):
                raise
            if not fallbacks:
                tried = f" (after {', '.join(taken)})" if taken else ""
                raise ShortageError(
                    f"not enough memory for {what}{tried}: use a smaller --width and --height, "
                    "--memory low, or --cpu for models that do not fit on the GPU"
                ) from error
        # Here the error no longer exists, and with it the tensors that its traceback held.
        fallback = fallbacks.pop(0)
        taken.append(fallback.description)
        yield Notice(f"not enough memory for {what}: {fallback.description}")
        release_cached_memory()
        fallback.take()


def finish(
    work: Generator[Notice, None, Result], notify: Callable[[Notice], None] = lambda notice: None
) -> Result:
    """The result of some work that yields notices on its way, each of which goes to ``notify``."""
    while True:
        try:
            notify(next(work))
        except StopIteration as stop:
            return stop.value


def release_cached_memory() -> None:
    """Free what nobody refers to any more, on the GPU too."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
