"""How much time the stages of a run have, where ``--minutes`` limits it.

What a stage saves or overdraws is shared among those that follow: each gets its share of what is
left, so that the run as a whole ends in time. Time between two calls of the command is not counted.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

from scripts.demo.training.options import TrainingOptions

CLOCK_FILE = "clock.json"


class Clock:
    """The time that a run has used, over all calls of the command.

    Args:
        options: of the run, whose folder holds the time used by earlier calls.
        stage: that is timed.
    """

    def __init__(self, options: TrainingOptions, stage: str) -> None:
        self.path = options.run / CLOCK_FILE
        self.stage = stage
        self.started = time.monotonic()
        self.before = used_seconds(self.path)
        self.limit = stage_seconds(options, stage, self.before)

    @property
    def elapsed(self) -> float:
        """Seconds of this stage, those of earlier calls that were interrupted included."""
        return self.before.get(self.stage, 0.0) + time.monotonic() - self.started

    def save(self) -> None:
        """Write down the time used so far."""
        used = {**self.before, self.stage: self.elapsed}
        partial = self.path.with_suffix(".part")
        partial.write_text(json.dumps(used) + "\n", encoding="utf-8")
        partial.rename(self.path)


def used_seconds(path: Path) -> dict[str, float]:
    """Seconds that each stage has used, in a file that `Clock.save` wrote; empty without one."""
    if not path.exists():
        return {}
    used: dict[str, float] = json.loads(path.read_text(encoding="utf-8"))
    return used


def stage_seconds(
    options: TrainingOptions, stage: str, used: dict[str, float] | None = None
) -> float | None:
    """Seconds that a stage has as a whole; None without a limit.

    ``used`` are the seconds that the stages have taken so far, this one's own included.
    """
    shares = options.recipe.shares
    if options.minutes is None or stage not in shares:
        return None
    names = list(shares)
    others = sum(seconds for name, seconds in (used or {}).items() if name != stage)
    rest = names[names.index(stage) :]
    left = 60 * options.minutes - others
    return max(left, 0.0) * shares[stage] / sum(shares[name] for name in rest)
