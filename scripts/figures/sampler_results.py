"""Measurements of samplers: the file that holds them, and their summaries."""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scripts.demo.adherence import percentage
from sdpy.files import atomic_write

NEAR = 0.1
"""Relative distance up to which latents count as near the solution."""


@dataclass(frozen=True)
class Setup:
    """What is measured, and of what.

    Attributes:
        prompts: number of prompts whose images are classified.
        solved: number of them, from the first on, whose solutions are found to compare with.
        evaluations: numbers of evaluations at which to take distances.
        classify_at: numbers of evaluations at which to classify images and take their detail.
        weights: digest of the model's and the classifier's.
    """

    prompts: int
    solved: int
    evaluations: tuple[int, ...]
    classify_at: tuple[int, ...]
    weights: str


@dataclass(frozen=True)
class SamplerRun:
    """What a sampler gave with a number of steps.

    Attributes:
        steps: number of steps.
        distances: to the solution, by prompt; none with fresh noise.
        as_asked: whether all attributes were seen as asked, by prompt; none if not classified.
        details: over those of the solutions, by prompt; none if not classified.
    """

    steps: int
    distances: tuple[float, ...] = ()
    as_asked: tuple[bool, ...] = ()
    details: tuple[float, ...] = ()


@dataclass(frozen=True)
class SamplerResults:
    """What is known of a sampler.

    Attributes:
        noisy: whether it adds fresh noise.
        late: whether it begins below the pure noise that the model begins with.
        runs: by the number of evaluations that were allowed.
    """

    noisy: bool
    late: bool
    runs: dict[int, SamplerRun]


@dataclass
class Results:
    """What was measured so far.

    Attributes:
        setup: what is measured.
        check: distance between the solutions of `SOLVER` and `CHECK` for the first prompt.
        samplers: by name.
    """

    setup: Setup
    check: float | None = None
    samplers: dict[str, SamplerResults] = field(default_factory=dict)


def write_results(file: Path, results: Results) -> None:
    """Write results as JSON."""
    text = json.dumps(dataclasses.asdict(results), indent=1) + "\n"
    with atomic_write(file) as opened:
        opened.write(text.encode())


def read_results(file: Path) -> Results:
    """Read a file that `write_results` has written."""
    found = json.loads(file.read_text())
    setup: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in found["setup"].items()
    }
    samplers = {}
    for name, one in found["samplers"].items():
        runs = {
            int(n): SamplerRun(
                run.pop("steps"), **{key: tuple(values) for key, values in run.items()}
            )
            for n, run in one["runs"].items()
        }
        samplers[name] = SamplerResults(one["noisy"], one["late"], runs)
    return Results(Setup(**setup), found["check"], samplers)


def median_distances(results: SamplerResults) -> dict[int, float]:
    """The median distance of the prompts, by evaluations."""
    return {n: statistics.median(run.distances) for n, run in results.runs.items() if run.distances}


def adherence(results: SamplerResults) -> dict[int, float]:
    """Percentage of images as asked, by evaluations."""
    return {n: percentage(run.as_asked) for n, run in results.runs.items() if run.as_asked}


def median_details(results: SamplerResults) -> dict[int, float]:
    """The median detail of the prompts, percent, by evaluations."""
    return {
        n: 100 * statistics.median(run.details) for n, run in results.runs.items() if run.details
    }


def near_from(results: SamplerResults) -> str:
    """The fewest evaluations from which on the image stays near the solution, in words."""
    taken = median_distances(results)
    if not taken:
        return ""
    far = [n for n, value in taken.items() if value > NEAR]
    enough = [n for n in taken if n > max(far, default=0)]
    return str(min(enough)) if enough else f"over {max(taken)}"


def ranked(samplers: Mapping[str, SamplerResults]) -> list[str]:
    """Samplers without fresh noise, the nearest to the solution first.

    By the mean logarithm of the distances at the numbers of evaluations that people use.
    """

    def mean_logarithm(name: str) -> float:
        values = [d for n, d in median_distances(samplers[name]).items() if 5 <= n <= 30]
        return statistics.fmean(map(math.log, values)) if values else math.inf

    return sorted((n for n in samplers if not samplers[n].noisy), key=mean_logarithm)


def with_noise(samplers: Mapping[str, SamplerResults]) -> list[str]:
    """Samplers with fresh noise, those whose images are most often as asked first."""

    def mean_adherence(name: str) -> float:
        values = adherence(samplers[name]).values()
        return statistics.fmean(values) if values else math.nan

    noisy = [name for name in samplers if samplers[name].noisy]
    return sorted(noisy, key=mean_adherence, reverse=True)
