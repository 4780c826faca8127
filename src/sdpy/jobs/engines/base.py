"""What all engines offer."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from sdpy.jobs.painter import PaintEvent, Task


@dataclass(frozen=True, slots=True)
class Bundle:
    """Jobs that are computed together.

    Attributes:
        number: of it.
        tasks: the jobs.
    """

    number: int
    tasks: tuple[Task, ...]


@dataclass(frozen=True, slots=True)
class BundleDone:
    """All jobs of a bundle are done or have failed."""


@dataclass(frozen=True, slots=True)
class Lost:
    """Whoever computed a bundle is gone.

    Attributes:
        reason: a line for people.
    """

    reason: str


EngineEvent = tuple[int, PaintEvent | BundleDone | Lost]
"""With the bundle's number."""


class Engine(Protocol):
    """Computes bundles, several at a time where it can."""

    def run(self, bundles: Iterator[Bundle | None]) -> Generator[EngineEvent | None, None, None]:
        """Compute bundles as they are given, and tell what happens.

        Args:
            bundles: asked for the next one as soon as somebody is free for it, and not before;
                None where there is none at present.

        Returns:
            Events, and now and then None, while nothing happens.

        Raises:
            OutputError: an image cannot be written.
        """

    def close(self) -> None:
        """Stop at once, and release everything."""


class Worker(Protocol):
    """One of several that compute a bundle at a time.

    Attributes:
        bundle: what it computes; None while it is free.
    """

    bundle: Bundle | None

    def give(self, bundle: Bundle) -> None:
        """Hand over a bundle."""


def hand_out(bundles: Iterator[Bundle | None], workers: Sequence[Worker]) -> bool:
    """Give the next bundles to the workers that are free; whether there will be no more."""
    for worker in workers:
        if worker.bundle is None:
            try:
                bundle = next(bundles)
            except StopIteration:
                return True
            if bundle is None:
                break
            worker.give(bundle)
    return False
