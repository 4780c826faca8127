"""Start of the process to the UNet's first step, weights in the page cache."""

from __future__ import annotations

from pathlib import Path

from scripts.bench.contest import Contest, Run, read_through
from scripts.bench.outcomes import DIFFUSERS, SDPY, Outcome
from scripts.bench.phases.base import BenchPhase


def contestants(contest: Contest) -> dict[str, Run]:
    """Both programs, until their first step begins."""
    return {SDPY: _loading(contest, "sdpy"), DIFFUSERS: _loading(contest, "diffusers")}


def _loading(contest: Contest, program: str) -> Run:
    def run(output: Path | None) -> Outcome:
        read_through(contest.folder)
        # Converting to another memory format would take diffusers longer.
        result, peak = contest.work(contest.job(f"{program} load", formats={}))
        return Outcome(result["times"], peak)

    return run


PHASE = BenchPhase("load", contestants)
