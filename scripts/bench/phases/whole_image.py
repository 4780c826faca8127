"""A whole image: start of the process to the file. sdpy also with ``--memory low``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from scripts.bench.contest import WORKER, Contest, Run, read_through
from scripts.bench.outcomes import DIFFUSERS, LOW, SDPY, Outcome
from scripts.bench.phases.base import BenchPhase
from scripts.bench.with_sdpy import sdpy_arguments


def contestants(contest: Contest) -> dict[str, Run]:
    """Both programs, and sdpy in as little memory as possible."""
    return {
        SDPY: by_sdpy(contest),
        DIFFUSERS: by_diffusers(contest),
        # Weights that come and go are not compiled.
        LOW: by_sdpy(contest, options=["--memory", "low"], compiled=False),
    }


def by_sdpy(contest: Contest, **changes: Any) -> Run:
    """The command ``sdpy generate``, by a job with some fields changed."""

    def run(output: Path | None) -> Outcome:
        read_through(contest.folder)
        arguments = sdpy_arguments(contest.job("", **changes), str(_image(contest, output)))
        return contest.command("-m", "sdpy", *arguments)

    return run


def by_diffusers(contest: Contest, **changes: Any) -> Run:
    """The same by diffusers' pipeline."""

    def run(output: Path | None) -> Outcome:
        path, job_file = str(_image(contest, output)), contest.scratch / "image.json"
        contest.job("diffusers generate", output=path, **changes).write(job_file)
        read_through(contest.folder)
        return contest.command(*WORKER, str(job_file))

    return run


def _image(contest: Contest, output: Path | None) -> Path:
    return contest.scratch / "ignored.png" if output is None else Path(f"{output}.png")


PHASE = BenchPhase("generate", contestants, needs_formats=True)
