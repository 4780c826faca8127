"""The peak of a whole image of two steps, diffusers in its default memory format."""

from __future__ import annotations

from scripts.bench.contest import Contest, Run
from scripts.bench.outcomes import DIFFUSERS, SDPY
from scripts.bench.phases.base import BenchPhase
from scripts.bench.phases.whole_image import by_diffusers, by_sdpy

STEPS = 2
"""The peak does not depend on their number."""


def contestants(contest: Contest) -> dict[str, Run]:
    """Both programs."""
    steps = min(STEPS, contest.options.steps)
    return {
        SDPY: by_sdpy(contest, steps=steps),
        DIFFUSERS: by_diffusers(contest, steps=steps, formats={}),
    }


PHASE = BenchPhase("peak of generate", contestants)
