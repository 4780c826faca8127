"""One step without guidance, as with models that were distilled for it: start to the file."""

from __future__ import annotations

from typing import Any

from scripts.bench.contest import Contest, Run
from scripts.bench.outcomes import DIFFUSERS, SDPY
from scripts.bench.phases.base import BenchPhase
from scripts.bench.phases.whole_image import by_diffusers, by_sdpy

ONE_STEP: dict[str, Any] = {"steps": 1, "guidance_scale": 1.0}


def plain(contest: Contest) -> dict[str, Run]:
    """Both programs, in the format of numbers that the command line names."""
    return {
        SDPY: by_sdpy(contest, **ONE_STEP),
        DIFFUSERS: by_diffusers(contest, **ONE_STEP, formats=contest.formats),
    }


def cheapest(contest: Contest) -> dict[str, Run]:
    """Both programs in bfloat16, with a tiny decoder (TAESD)."""
    changes = {**ONE_STEP, "dtype": "bfloat16", "tiny_vae": True}
    return {
        SDPY: by_sdpy(contest, **changes),
        DIFFUSERS: by_diffusers(contest, **changes, formats=contest.find_formats("bfloat16")),
    }


PLAIN = BenchPhase("one step", plain, needs_formats=True, table="few-steps")
CHEAPEST = BenchPhase(
    "one step, bf16, tiny decoder", cheapest, needs_formats=True, table="few-steps"
)
