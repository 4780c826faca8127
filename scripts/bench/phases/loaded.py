"""Whole images with the models loaded, and what compiling for them takes.

Each program loads its models once and generates the same images several times. On a GPU sdpy takes
part once more with its steps captured as CUDA graphs. With ``--compile`` both take part compiled:
sdpy as by its option, diffusers with UNet and decoder in the mode ``reduce-overhead``.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from scripts.bench.contest import Contest, Run
from scripts.bench.outcomes import (
    DIFFUSERS,
    DIFFUSERS_REDUCED,
    FIRST,
    SDPY,
    SDPY_COMPILED,
    SDPY_GRAPHS,
    SECOND,
    Outcome,
)
from scripts.bench.phases.base import BenchPhase

BATCH = 8
BATCH_STEPS = 10


def one_image(contest: Contest) -> dict[str, Run]:
    """An image in the steps that the command line names."""
    return _contestants(contest)


def batch(contest: Contest) -> dict[str, Run]:
    """Images that are computed together, in fewer steps."""
    return _contestants(contest, images=BATCH, steps=min(BATCH_STEPS, contest.options.steps))


def compiling(contest: Contest) -> dict[str, Run]:
    """What the first image takes longer than others, in two processes that keep compiled code."""
    found = {}
    for program, way in _compiled(contest).items():
        name = SDPY if program == SDPY_COMPILED else DIFFUSERS
        folder = contest.scratch / f"compiled by {name}"
        found[f"{name}, {FIRST}"] = _compiling(contest, name, way, folder, anew=True)
        found[f"{name}, {SECOND}"] = _compiling(contest, name, way, folder, anew=False)
    return found


def _contestants(contest: Contest, **changes: Any) -> dict[str, Run]:
    found = {SDPY: _generating(contest, SDPY, **changes)}
    if contest.options.device != "cpu":
        found[SDPY_GRAPHS] = _generating(contest, SDPY, way="graphs", **changes)
    found[DIFFUSERS] = _generating(contest, DIFFUSERS, **changes)
    if contest.options.compile:
        for name, way in _compiled(contest).items():
            program = SDPY if name == SDPY_COMPILED else DIFFUSERS
            found[name] = _generating(contest, program, way=way, **changes)
    return found


def _compiled(contest: Contest) -> dict[str, str]:
    """Who is compiled: sdpy on GPUs alone."""
    programs = [SDPY_COMPILED] if contest.options.device != "cpu" else []
    return dict.fromkeys([*programs, DIFFUSERS_REDUCED], "compiled")


def _generating(contest: Contest, program: str, **changes: Any) -> Run:
    def run(output: Path | None) -> Outcome:
        path = None if output is None else f"{output}.npy"
        result, _ = contest.work(contest.job(f"{program} images", output=path, **changes))
        names = ("times", "peak", "load", "first", "rate")
        return Outcome(**{name: result[name] for name in names})

    return run


def _compiling(contest: Contest, program: str, way: str, folder: Path, *, anew: bool) -> Run:
    def run(output: Path | None) -> Outcome:
        if anew:
            shutil.rmtree(folder, ignore_errors=True)
        outcome = _generating(contest, program, way=way, code_folder=str(folder), steps=2)(None)
        assert outcome.first is not None
        return replace(outcome, times=[max(outcome.first - outcome.seconds, 0.0)], peak=None)

    return run


def _phase(title: str, contestants: Callable[[Contest], dict[str, Run]], base: str) -> BenchPhase:
    return BenchPhase(
        title, contestants, base=base, needs_formats=True, for_gpus=True, table="loaded"
    )


ONE = _phase("models loaded", one_image, DIFFUSERS)
TOGETHER = _phase(f"{BATCH} images at a time, {BATCH_STEPS} steps", batch, DIFFUSERS)
COMPILING = _phase("compiling", compiling, f"{DIFFUSERS}, {FIRST}")
