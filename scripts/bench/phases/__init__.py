"""The phases of the benchmark, a module each; ``PHASES`` has them in their order."""

from __future__ import annotations

from collections.abc import Mapping

from scripts.bench.phases import busy, help, load, loaded, memory, models, one_step, whole_image
from scripts.bench.phases.base import BenchPhase

PHASES: Mapping[str, BenchPhase] = {
    "help": help.PHASE,
    "load": load.PHASE,
    "text": models.phase("text"),
    "unet": models.phase("unet"),
    "decode": models.phase("decode"),
    "encode": models.phase("encode"),
    "memory": memory.PHASE,
    "generate": whole_image.PHASE,
    "loaded": loaded.ONE,
    "batch": loaded.TOGETHER,
    "compiling": loaded.COMPILING,
    "one-step": one_step.PLAIN,
    "one-step-cheapest": one_step.CHEAPEST,
    "idle": busy.beside("nothing"),
    "busy-counting": busy.beside("two"),
    "busy": busy.beside("products"),
}
"""All phases in their order, by the names that ``--phases`` takes."""

__all__ = ["PHASES", "BenchPhase"]
