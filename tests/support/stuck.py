"""A worker that waits to be killed, in the midst of its work."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sdpy.jobs.painter import Painted, Painter, PaintEvent, Task


@dataclass(eq=False)
class StuckPainter(Painter):
    """Computes as others do, but one of all its copies gets stuck after its first image.

    Attributes:
        stuck: file that the number of the process is written to which is stuck.
    """

    stuck: Path = Path("stuck")

    def paint(self, tasks: Sequence[Task]) -> Iterator[PaintEvent]:
        """As all do, at first."""
        for event in super().paint(tasks):
            yield event
            if isinstance(event, Painted):
                self._get_stuck()

    def _get_stuck(self) -> None:
        try:
            with self.stuck.open("x") as file:
                file.write(f"{os.getpid()}\n")
        except FileExistsError:  # another one is
            return
        while True:
            time.sleep(60)

    def kill(self) -> None:
        """Kill the process that is stuck, once it is."""
        while not (self.stuck.exists() and self.stuck.read_text().endswith("\n")):
            time.sleep(0.01)
        os.kill(int(self.stuck.read_text()), signal.SIGKILL)
