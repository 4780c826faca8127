"""An image of the demo model, as a whole process, on a machine that may have other work.

sdpy as users start it, beside the same with OpenMP's threads told by hand how to wait: passively,
or spinning as long as GNU's OpenMP does by default.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from scripts.bench.beside import PROGRAMS, running
from scripts.bench.contest import Contest, Run, run_process
from scripts.bench.outcomes import PASSIVE, SDPY, SPINNING, Outcome
from scripts.bench.phases.base import BenchPhase
from sdpy.runtime.threads import WAITING

STEPS = 8

WAYS: Mapping[str, Mapping[str, str]] = {
    SDPY: {},
    PASSIVE: {"OMP_WAIT_POLICY": "PASSIVE"},
    SPINNING: {"GOMP_SPINCOUNT": "300000"},
}
"""Environment variables that say how threads wait."""


def beside(programs: str) -> BenchPhase:
    """The phase beside some of `PROGRAMS`."""
    titles = {
        "nothing": "demo image",
        "two": "the same beside two programs that count",
        "products": "beside one that multiplies matrices",
    }
    ways = partial(_contestants, programs=PROGRAMS[programs])
    return BenchPhase(titles[programs], ways, base=PASSIVE, table="waiting")


def _contestants(contest: Contest, programs: Sequence[str]) -> dict[str, Run]:
    return {name: _generating(contest, programs, changes) for name, changes in WAYS.items()}


def _generating(contest: Contest, programs: Sequence[str], changes: Mapping[str, str]) -> Run:
    environment = {n: value for n, value in contest.environment.items() if n not in WAITING}
    steps = min(STEPS, contest.options.steps)
    command = [sys.executable, "-m", "sdpy", "generate", "lighthouse at dark", "--model", "demo"]

    def run(output: Path | None) -> Outcome:
        path = contest.scratch / "ignored.png" if output is None else f"{output}.png"
        options = ["--steps", str(steps), "--seed", "32", "-o", str(path), "--quiet"]
        with running(programs):
            seconds, peak = run_process([*command, *options], {**environment, **changes})
        return Outcome([seconds], peak)

    return run
