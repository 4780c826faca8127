"""Weights files: reading, writing, and strict loading into models.

One module a format, one line each in ``registry.FORMATS``. Nothing in a file is ever executed.
"""

from sdpy.checkpoints.base import Checkpoint, CheckpointFormat, LazyTensors, MappedFile
from sdpy.checkpoints.conversion import DTYPES, Output, Weights, plan_output, write_output
from sdpy.checkpoints.describe import describe
from sdpy.checkpoints.dialects import (
    COMPONENTS,
    DIFFUSERS,
    LABELS,
    OLD_DIFFUSERS,
    ORIGINAL,
    Part,
    find_parts,
)
from sdpy.checkpoints.folders import (
    ModelFolder,
    config_beside,
    is_model_folder,
    read_model_folder,
)
from sdpy.checkpoints.loading import (
    check_weights,
    load_weights,
    misfits,
    outline_of,
    read_part,
    stored_tensors,
)
from sdpy.checkpoints.lora import Change, Lora, check_loras, lora_changes, merge_loras
from sdpy.checkpoints.registry import FORMATS, read_checkpoint, write_checkpoint
from sdpy.checkpoints.textual_inversion import TextualInversion, read_textual_inversion

__all__ = [
    "COMPONENTS",
    "DIFFUSERS",
    "DTYPES",
    "FORMATS",
    "LABELS",
    "OLD_DIFFUSERS",
    "ORIGINAL",
    "Change",
    "Checkpoint",
    "CheckpointFormat",
    "LazyTensors",
    "Lora",
    "MappedFile",
    "ModelFolder",
    "Output",
    "Part",
    "TextualInversion",
    "Weights",
    "check_loras",
    "check_weights",
    "config_beside",
    "describe",
    "find_parts",
    "is_model_folder",
    "load_weights",
    "lora_changes",
    "merge_loras",
    "misfits",
    "outline_of",
    "plan_output",
    "read_checkpoint",
    "read_model_folder",
    "read_part",
    "read_textual_inversion",
    "stored_tensors",
    "write_checkpoint",
    "write_output",
]
