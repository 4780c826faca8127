"""Lines of a run's log."""

from __future__ import annotations

import time

from torch import distributed

from scripts.demo.training.options import TrainingOptions


class Log:
    """Prints lines and appends them to the run's log."""

    def __init__(self, options: TrainingOptions, stage: str) -> None:
        self.path = options.run / "log.txt"
        self.stage = stage

    def __call__(self, text: str) -> None:
        """Write one line with the time and the stage in front."""
        if worker() > 0:
            return
        line = f"{time.strftime('%H:%M:%S')} {self.stage}: {text}"
        print(line, flush=True)
        with self.path.open("a") as file:
            file.write(line + "\n")


def workers() -> int:
    """Number of processes that share the batches."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def worker() -> int:
    """Number of this process, from 0."""
    return distributed.get_rank() if distributed.is_initialized() else 0
