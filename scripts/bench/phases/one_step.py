"""One step without guidance, as with models that were distilled for it: start to the file.

diffusers' models are in the memory format in which the whole process was faster: float32 ones as
they are loaded, since converting takes longer than it saves in a single step, and bfloat16 ones in
channels-last.
"""

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
        DIFFUSERS: by_diffusers(contest, **ONE_STEP, formats={}),
    }


def cheapest(contest: Contest) -> dict[str, Run]:
    """Both programs in bfloat16, with a tiny decoder (TAESD)."""
    changes = {**ONE_STEP, "dtype": "bfloat16", "tiny_vae": True}
    formats = dict.fromkeys(("unet", "vae"), "channels_last")
    return {
        SDPY: by_sdpy(contest, **changes),
        DIFFUSERS: by_diffusers(contest, **changes, formats=formats),
    }


PLAIN = BenchPhase("one step", plain, table="few-steps")
CHEAPEST = BenchPhase("one step, bf16, tiny decoder", cheapest, table="few-steps")
