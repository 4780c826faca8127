"""Single models, loaded before: text encoders, a step of the UNet, the autoencoder's halves."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from scripts.bench.contest import Contest, Run
from scripts.bench.outcomes import COMPILED, DIFFUSERS, SDPY, Outcome
from scripts.bench.phases.base import BenchPhase
from sdpy.benchmark.figures import TITLES


def phase(name: str) -> BenchPhase:
    """The phase of that name of `sdpy.benchmark.phases`, in both programs."""
    return BenchPhase(
        TITLES[name],
        partial(_contestants, name=name),
        needs_formats=name != "text",
        table="models-{dtype}",
    )


def _contestants(contest: Contest, name: str) -> dict[str, Run]:
    found = {SDPY: _computing(contest, "sdpy", name)}
    found[DIFFUSERS] = _computing(contest, "diffusers", name)
    if contest.options.compile and name != "text":
        found[COMPILED] = _computing(contest, "compiled", name)
    return found


def _computing(contest: Contest, program: str, name: str) -> Run:
    def run(output: Path | None) -> Outcome:
        path = None if output is None else f"{output}.npy"
        result, _ = contest.work(contest.job(f"{program} phase", phase=name, output=path))
        names = ("times", "peak", "load", "first", "rate")
        return Outcome(**{name: result[name] for name in names})

    return run
