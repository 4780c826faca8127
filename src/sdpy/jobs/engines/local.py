"""This process computes, one batch after another."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator

from sdpy.jobs.engines.base import Bundle, BundleDone, EngineEvent
from sdpy.jobs.painter import Painter

PAUSE = 0.5
"""Seconds between two looks at what others are at work on."""


class LocalEngine:
    """Computes in this process; see `sdpy.jobs.engines.base.Engine`."""

    def __init__(self, painter: Painter) -> None:
        self.painter = painter

    def run(self, bundles: Iterator[Bundle | None]) -> Generator[EngineEvent | None, None, None]:
        """Compute bundles, one after another."""
        for bundle in bundles:
            if bundle is None:
                time.sleep(PAUSE)
                yield None
                continue
            for event in self.painter.paint(bundle.tasks):
                yield bundle.number, event
            yield bundle.number, BundleDone()

    def close(self) -> None:
        """Release the models."""
        self.painter.close()
