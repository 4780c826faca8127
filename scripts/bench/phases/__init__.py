"""The phases of the benchmark, a module each; ``PHASES`` has them in their order."""

from __future__ import annotations

from collections.abc import Mapping

from scripts.bench.phases import help, load, memory, models, whole_image
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
}
"""All phases in their order, by the names that ``--phases`` takes."""

__all__ = ["PHASES", "BenchPhase"]
